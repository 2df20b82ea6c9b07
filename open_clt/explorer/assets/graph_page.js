/* The graph page: the prompt bar, the graph, the selection and the circuit. */
"use strict";

(() => {
  const { html, percent, digits } = OpenCLT;
  const { client, store, say } = OpenCLT.explorer;
  const EXAMPLES = [
    "The capital of the state containing Dallas is", "The opposite of hot is", "The language spoken in Brazil is",
  ];
  const DENSITIES = [1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01];
  const WAIT = 150; // milliseconds after the slider is released
  const parts = {};
  let view = null, graph = null, panel = null, drawn = "", wasPinned = "", timer = 0, records = new Map();

  function build(host) {
    const prompt = html("input", { id: "prompt", type: "text", autocomplete: "off", "aria-label": "Prompt", spellcheck: "false" });
    const trace = html("button", { id: "trace", type: "submit", class: "x-primary" }, "Trace");
    const form = html("form", { id: "prompt-form", class: "x-form" }, prompt, trace);
    const slider = html("input", { id: "influence", type: "range", min: 10, max: 100, step: 1, "aria-label": "Share of influence that is shown, in percent" });
    Object.assign(parts, {
      prompt, slider,
      share: html("output", { class: "x-share" }),
      counts: html("span", { id: "counts" }),
      next: html("div", { id: "predictions", class: "x-next" }),
      work: html("div", { id: "work", class: "x-work", role: "status" }),
      graph: html("div", { id: "graph", class: "x-graph" }),
      panel: html("aside", { id: "panel", class: "x-panel", "aria-label": "Selection" }),
      circuit: html("section", { id: "circuit", class: "x-circuit", "aria-label": "Circuit" }),
      note: html("span", { id: "note" }),
    });
    host.append(
      html("div", { class: "x-bar" }, form, parts.next,
        html("label", { class: "x-slider" }, "influence ", slider, parts.share), parts.counts),
      parts.work,
      html("div", { class: "x-main" },
        html("section", { class: "x-left", "aria-label": "Attribution graph" }, toggles(), parts.graph),
        parts.panel, parts.circuit),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      tracePrompt(prompt.value);
    });
    slider.addEventListener("input", () => (parts.share.textContent = `${slider.value} %`));
    slider.addEventListener("change", () => {
      clearTimeout(timer);
      timer = setTimeout(() => say.trying(store.act({ kind: "percent", percent: Number(slider.value) })), WAIT);
    });
    store.onChange(changed);
  }

  const search = OpenCLT.nodeSearch(() => graph);

  const NAMES = { feature: "features", error: "errors", other: "other nodes" };
  const TITLES = { other: "Biases, positions and MLP outputs", error: "What the transcoder does not reconstruct" };
  function toggles() {
    const boxes = Object.entries(NAMES).map(([shape, name]) => {
      const box = html("input", { type: "checkbox", "data-shape": shape });
      box.checked = true;
      box.addEventListener("change", () => {
        const hidden = [...parts.toggles.querySelectorAll("[data-shape]:not(:checked)")].map((other) => other.dataset.shape);
        say.trying(store.act({ kind: "hide", shapes: hidden }));
      });
      return html("label", { title: TITLES[shape] || null }, box, ` ${name}`);
    });
    const key = [["x-positive", "raises"], ["x-negative", "lowers"]].map(([style, name]) =>
      html("span", { class: "x-key" }, html("i", { class: style }), name));
    parts.dense = html("select", { id: "densest", title: "Density: the share of tokens on which a feature fires", "aria-label": "Features that fire on more tokens than this are hidden" },
      ...DENSITIES.map((share) => html("option", { value: share }, share === 1 ? "of any density" : `of density ${percent(share)} at most`)));
    parts.dense.addEventListener("change", () => say.trying(store.act({ kind: "dense", densest: Number(parts.dense.value) })));
    return (parts.toggles = html("div", { class: "x-toggles" }, boxes[0], parts.dense, ...boxes.slice(1), ...key, search.form));
  }

  async function tracePrompt(text) {
    const close = working("Starting", "trace");
    try {
      const { graph: key } = await client.job("trace", { prompt: text }, close.progress);
      say.clear();
      const { graph: former, pins, runs } = store.session();
      await store.act({ kind: "show", graph: key });
      if (key !== former && (pins.length || runs.length)) {
        say.info("Pins, groups and runs belong to the former graph; Undo brings them back.");
      }
    } catch (error) {
      say.error(error);
    } finally {
      close();
    }
  }

  /* The bar that shows a job's phase and seconds, with a button to cancel it; returns a function that removes it. */
  function working(text, kind, host = parts.work) {
    const phase = html("span", { class: "x-phase" }, text), seconds = html("span", {}, "");
    const bar = html("progress", { max: 1, "aria-label": "Progress" });
    const button = html("button", { type: "button", class: "x-cancel" }, "Cancel");
    const line = html("div", { class: "x-working", "data-kind": kind }, phase, bar, seconds, button);
    button.addEventListener("click", () => client.cancel(kind).catch(say.error));
    for (const other of host.querySelectorAll(`[data-kind="${kind}"]`)) other.remove();
    host.append(line);
    if (host === parts.work) parts.graph.classList.add("x-dimmed");
    const close = () => {
      line.remove();
      parts.graph.classList.toggle("x-dimmed", parts.work.childElementCount > 0);
    };
    close.progress = (state) => {
      const of = state.total > 1 ? ` ${state.done} of ${state.total}` : "";
      phase.textContent = state.state === "waiting" ? waitingFor(state) : `${state.phase || text}${of}`;
      seconds.textContent = `${state.seconds.toFixed(0)} s`;
      if (state.total > 1) bar.value = state.done / state.total;
      else bar.removeAttribute("value");
    };
    return close;
  }

  function waitingFor(state) {
    const status = client.status(), first = status && status.jobs.find((job) => job.number !== state.number);
    return first ? `waiting for: ${first.phase || first.kind}` : "waiting";
  }

  /* What the picture depends on; the selection, the pins and the steering are drawn on top of it. */
  const pictureOf = ({ graph: key, percent: share, labels }) => JSON.stringify([key, share, labels]);

  function changed(session, former) {
    parts.slider.value = session.percent;
    parts.share.textContent = `${session.percent} %`;
    parts.dense.value = session.densest;
    for (const box of parts.toggles.querySelectorAll("[data-shape]")) box.checked = !session.hidden.includes(box.dataset.shape);
    if (session.graph && pictureOf(session) !== drawn) draw(session);
    else decorate(session);
    OpenCLT.explorer.circuit.update(parts.circuit, session, former);
  }

  async function draw(session) {
    drawn = pictureOf(session);
    const close = view && view.graph === session.graph ? null : working("Drawing", "view");
    try {
      show(await client.job("view", { session }, close ? close.progress : undefined));
    } catch (error) {
      if (error instanceof client.Ended) return;
      drawn = "";
      say.error(error);
    } finally {
      if (close) close();
    }
  }

  function show(next) {
    if (!view || view.graph !== next.graph) {
      records = new Map();
      parts.prompt.value = next.prompt;
    }
    view = next;
    if (graph) graph.destroy();
    parts.graph.replaceChildren();
    const { selection } = OpenCLT.explorer;
    graph = OpenCLT.graph(parts.graph, view.picture, { label: "Attribution graph", click: selection.clicked, digits: false });
    parts.graph.querySelector(".oc-caption").append(" ", parts.note); // on the line of the caption, which saves height
    panel = OpenCLT.panel(parts.panel, graph, { load: record, advise, ...selection.parts(view) });
    graph.onChange((node) => store.select(node ? node.id : null));
    decorate(store.session());
    predictions();
  }

  function decorate(session) {
    if (!graph) return;
    graph.hide(session.hidden, (node) => node.feature !== null && view.densities[node.feature] > session.densest);
    parts.dense.disabled = !Object.keys(view.densities).length;
    if (!graph.select(session.selected)) store.select(null);
    const pinned = session.groups.reduce((ids, group) => ids.concat(group.members), [...session.pins]);
    graph.mark(pinned, "pinned");
    search.refresh();
    if (pinned.join() !== wasPinned) panel.refresh();
    wasPinned = pinned.join();
    const { nodes, edges } = graph.counts(), { shown } = view;
    parts.counts.textContent = `${nodes} nodes, ${edges} edges`;
    parts.counts.title = `The shown part of the graph has ${shown.nodes} nodes and ${shown.edges} edges.`;
    Object.assign(parts.graph.dataset, { nodes, edges, graph: view.graph, labelled: graph.labelled() });
    parts.note.replaceChildren(...note());
    nextTokens(session);
  }

  function note() {
    const { scores } = view;
    const lines = [`Replacement score ${digits(scores.whole[0])}, completeness ${digits(scores.whole[1])} of the whole graph.`];
    if (view.left_out) lines.push(view.left_out);
    if (view.name) lines.push(`Read from ${view.name}; no model is needed to look at it.`);
    return [html("span", {}, lines.join(" "))];
  }

  const record = (name) => {
    if (!records.has(name)) {
      const [layer, index] = name.replace("L", "").split("/");
      const asked = client.get(`/api/feature/L${layer}/${index}`);
      asked.catch(() => records.delete(name)); // it is asked again the next time
      records.set(name, asked);
    }
    return records.get(name);
  };

  const advise = (shown) => OpenCLT.explorer.features.advise(shown, (measured) => {
    records.set(measured.feature, Promise.resolve(measured));
    panel.refresh();
  });

  async function predictions() {
    if (!view.predictions.length && client.status() && client.status().ready && !view.name) {
      const { graph: key } = view;
      try {
        const rows = await client.job("predictions", { graph: key });
        if (view.graph === key) view.predictions = rows;
      } catch (error) {
        if (!(error instanceof client.Ended)) say.error(error);
      }
    }
    nextTokens(store.session());
  }

  /* The likeliest next tokens of both models after the token of the selected node, or after the prompt. */
  function nextTokens(session) {
    const node = session.selected && graph ? graph.node(session.selected) : null;
    const rows = view.predictions, last = view.picture.tokens.length - 1;
    const at = node && node.shape !== "output" ? node.position : last;
    const line = (name, likely, index) => html("div", { "data-model": name }, html("span", { class: "x-who" }, name),
      ...likely.map(([token, share], rank) => html("span", { class: `x-chip${rank ? "" : " x-first"}` }, `${token} `, html("small", {}, percent(share)))));
    if (rows.length) {
      parts.next.replaceChildren(line("model", rows[at].model), line("replacement", rows[at].replacement));
      parts.next.title = `Likeliest next tokens after ${rows[at].token}`;
      return;
    }
    const outputs = view.outputs.filter((output) => output.probability !== null).map((each) => [each.name, each.probability]);
    parts.next.replaceChildren(line("model", outputs.slice(0, 3)));
  }

  OpenCLT.explorer.graphPage = {
    build, tracePrompt, EXAMPLES, working,
    graph: () => graph,
    view: () => view,
    panel: () => panel,
    /* Draw once more, when more is known: labels, densities and predictions. */
    refresh() {
      drawn = "";
      if (store.session().graph) draw(store.session());
    },
    record,
  };
})();
