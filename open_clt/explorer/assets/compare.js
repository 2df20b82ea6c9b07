/* The compare page: the graphs of two prompts with linked selection, and two transcoders measured on the same text.

   The address holds what is compared: /compare?first=GRAPH&second=GRAPH&percent=80&across=1&node=ID, and
   /compare/transcoders?with=SOURCE. A transcoder is loaded only when the button is pressed, never because of an address. */
"use strict";

(() => {
  const { html, signed, digits, percent } = OpenCLT;
  const { client, store, say } = OpenCLT.explorer;
  const WAIT = 150; // milliseconds after the slider is released
  const HOW = "Name a second transcoder of this language model and press Measure both. Both are measured on the same text, which takes a while.";
  const SECOND = "The capital of the state containing Chicago is";
  const parts = {};
  let shown = "", view = null, graphs = [], active = 0, isLinking = false, timer = 0, rival = "", asked = "";

  function build() {
    parts.host = document.getElementById("page-compare");
    parts.main = document.getElementById("compare-main");
    parts.table = document.getElementById("compare-table");
    parts.work = html("div", { class: "x-work", role: "status", id: "compare-work" });
    parts.modes = html("nav", { class: "x-modes", "aria-label": "What is compared" }, OpenCLT.explorer.link("/compare", "Two prompts"), OpenCLT.explorer.link("/compare/transcoders", "Two transcoders"));
    parts.body = html("div", { class: "x-fill", id: "compare-body" });
    parts.main.append(parts.modes, parts.body);
    buildPrompts();
    buildTranscoders();
    document.addEventListener("keydown", pressed);
    addEventListener("popstate", () => parts.host.hidden || show(location.pathname));
    store.onChange((session, former) => {
      if (!parts.host.hidden && (session.labels !== former.labels || session.graph !== former.graph)) show(location.pathname);
    });
  }

  const field = (id, attributes) => html("input", { id, autocomplete: "off", spellcheck: "false", ...attributes });
  const submit = (form, action) =>
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      action();
    });

  function buildPrompts() {
    parts.first = field("first-prompt", { type: "text", "aria-label": "First prompt" });
    parts.second = field("second-prompt", { type: "search", "aria-label": "Second prompt", placeholder: "a second prompt" });
    parts.across = field("across", { type: "checkbox" });
    parts.slider = field("compare-influence", { type: "range", min: 10, max: 100, step: 1, "aria-label": "Share of influence that both graphs show, in percent" });
    parts.share = html("output", { class: "x-share" });
    const form = html("form", { class: "x-form", id: "compare-form" }, html("label", {}, "A", parts.first), html("label", {}, "B", parts.second),
      html("button", { type: "submit", class: "x-primary", id: "compare-run" }, "Compare"));
    submit(form, tracePrompts);
    parts.across.addEventListener("change", () => address({ across: parts.across.checked ? "1" : null }));
    parts.slider.addEventListener("input", () => (parts.share.textContent = `${parts.slider.value} %`));
    parts.slider.addEventListener("change", () => {
      clearTimeout(timer);
      timer = setTimeout(() => address({ percent: parts.slider.value }), WAIT);
    });
    parts.pair = html("div", { class: "x-pair" });
    parts.legend = html("div", { class: "x-legend", id: "compare-legend" });
    parts.changes = html("div", { class: "x-changes", id: "changes", tabindex: "0", role: "region", "aria-label": "Edges that changed most" });
    parts.prompts = [
      html("div", { class: "x-bar" }, form, html("label", { title: "Nodes are matched by layer and feature only, and edges between the same features are added up" }, parts.across, " across positions"),
        html("label", { class: "x-slider" }, "influence ", parts.slider, parts.share)),
      parts.pair, parts.legend, parts.changes,
    ];
  }

  function buildTranscoders() {
    parts.source = field("second-transcoder", { type: "search", "aria-label": "Second transcoder", placeholder: "directory, org/name on the hub, or neurons" });
    const form = html("form", { class: "x-form", id: "transcoders-form" }, html("label", {}, "second transcoder", parts.source),
      html("button", { type: "submit", class: "x-primary", id: "transcoders-run" }, "Measure both"));
    submit(form, () => {
      asked = parts.source.value.trim();
      clear(asked ? "Both transcoders are being measured on the same text." : HOW);
      OpenCLT.explorer.go(`/compare/transcoders${asked ? `?${new URLSearchParams({ with: asked })}` : ""}`);
      measure(asked, false);
    });
    parts.advice = html("p", { class: "x-note x-advice", id: "transcoders-advice" });
    parts.transcoders = [html("div", { class: "x-bar" }, form), parts.advice];
  }

  function show(path) {
    const transcoders = path.startsWith("/compare/transcoders"), wanted = transcoders ? parts.transcoders : parts.prompts;
    parts.main.classList.toggle("x-graphs", !transcoders);
    parts.body.classList.toggle("x-graphs", !transcoders);
    if (parts.body.lastChild !== wanted[wanted.length - 1]) parts.body.replaceChildren(wanted[0], parts.work, ...wanted.slice(1));
    [...parts.modes.children].forEach((link, index) => (index === Number(transcoders) ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current")));
    document.getElementById("holder-comparison").hidden = !transcoders || !rival;
    parts.table.hidden = !transcoders;
    if (transcoders) showTranscoders();
    else showPrompts();
  }

  const query = () => Object.fromEntries(new URLSearchParams(location.search));

  /* Go to the address with changes. */
  function address(changes) {
    const values = { ...query(), ...changes };
    const search = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
    OpenCLT.explorer.go(`/compare${search.size ? `?${search}` : ""}`);
  }

  function showPrompts() {
    const values = query(), session = store.session();
    const request = { first: values.first || session.graph, second: values.second || null, across: values.across === "1", percent: Number(values.percent) || session.percent };
    parts.across.checked = request.across;
    parts.slider.value = request.percent;
    parts.share.textContent = `${request.percent} %`;
    const key = JSON.stringify([request, session.labels]);
    if (!request.first) return nothing("Type two prompts and press Compare.");
    if (key === shown) return selectFromAddress();
    shown = key;
    compare({ ...request, session });
  }

  async function compare(request) {
    const close = working("Comparing", "compare");
    try {
      view = await client.job("compare", request, close.progress);
      draw();
    } catch (error) {
      if (error instanceof client.Ended) return;
      shown = "";
      if (view) say.error(error);
      else nothing(error.message);
    } finally {
      close();
    }
  }

  const working = (text, kind) => OpenCLT.explorer.graphPage.working(text, kind, parts.work);

  function nothing(sentence) {
    for (const graph of graphs) graph.destroy();
    graphs = [];
    view = null;
    parts.pair.replaceChildren(html("p", { class: "oc-none" }, sentence));
    parts.legend.replaceChildren();
    parts.changes.replaceChildren(html("p", { class: "oc-none" }, "The edges that changed most stand here after a comparison."));
  }

  async function tracePrompts() {
    const close = working("Starting", "trace_compared"), keys = [];
    try {
      for (const [index, text] of [parts.first.value, parts.second.value].entries()) {
        const known = view && view.sides[index];
        if (known && known.prompt === text) keys.push(known.graph);
        else keys.push((await client.job("trace_compared", { prompt: text }, close.progress)).graph);
      }
      say.clear();
      address({ first: keys[0], second: keys[1], node: null });
    } catch (error) {
      say.error(error);
    } finally {
      close();
    }
  }

  function draw() {
    for (const graph of graphs) graph.destroy();
    const { sides, comparison } = view, shared = new Set(comparison ? comparison.shared : []);
    const places = sides.map((side, index) => {
      const host = html("div", { class: "x-graph", id: index ? "graph-b" : "graph-a", "data-nodes": side.nodes });
      const own = comparison ? Object.values(side.keys).filter((key) => !shared.has(key)).length : 0;
      const line = html("p", { title: side.prompt }, html("b", {}, index ? "B  " : "A  "), html("bdi", {}, side.prompt), html("span", { class: "oc-facts" }, `  ${side.nodes} nodes, ${side.edges} edges`));
      host.dataset.own = own;
      return html("section", { class: "x-side", "aria-label": index ? "Second graph" : "First graph" }, line, host);
    });
    if (!comparison) places.push(invitation());
    parts.pair.replaceChildren(...places);
    graphs = sides.map((side, index) => OpenCLT.graph(places[index].lastChild, side.picture, { label: index ? "Second graph" : "First graph", digits: false }));
    graphs.forEach((graph, index) => {
      const { keys } = sides[index], ids = Object.keys(keys);
      if (comparison) {
        graph.mark(ids.filter((id) => shared.has(keys[id])), "shared");
        graph.mark(ids.filter((id) => !shared.has(keys[id])), "own");
      }
      graph.onChange((node) => selected(index, node));
    });
    if (document.activeElement !== parts.first) parts.first.value = sides[0].prompt;
    if (sides[1] && document.activeElement !== parts.second) parts.second.value = sides[1].prompt;
    legend();
    changes();
    selectFromAddress();
  }

  function invitation() {
    const button = html("button", { type: "button", class: "x-text-button" }, SECOND);
    button.addEventListener("click", () => {
      parts.second.value = SECOND;
      tracePrompts();
    });
    return html("section", { class: "x-side", "aria-label": "Second graph" }, html("p", { class: "oc-none" }, "Type a second prompt above and press Compare, or take ", button, "."));
  }

  function legend(sentence = "") {
    const { comparison } = view;
    if (!comparison) return parts.legend.replaceChildren(html("span", {}, "One graph is shown; a second prompt shows what both have in common."));
    const { shared, only, overlaps, cosine } = comparison;
    const key = (style, text) => html("span", {}, html("i", { class: style }), text);
    parts.legend.replaceChildren(
      html("span", {}, html("i", {}), html("b", { id: "shared-nodes" }, String(shared.length)), " nodes in both graphs"),
      key("x-own", `only in A: ${only[0]}, only in B: ${only[1]}`),
      html("span", { class: "oc-facts" }, `shared: ${percent(overlaps[0])} of the nodes, ${percent(overlaps[1])} of the edges \u00b7 cosine of the weights ${digits(cosine)}`),
      html("span", { id: "linked", role: "status" }, sentence));
  }

  function changes() {
    const { comparison } = view;
    if (!comparison) return parts.changes.replaceChildren(html("p", { class: "oc-none" }, "The edges that changed most stand here after a comparison."));
    const { edges, names } = comparison;
    if (!edges.length) return parts.changes.replaceChildren(html("p", { class: "oc-none" }, "Neither graph has an edge; show more influence."));
    const end = (key) => {
      const button = html("button", { type: "button", title: names[key], "data-key": key }, names[key]);
      button.addEventListener("click", () => choose(key));
      return html("td", {}, button);
    };
    const number = (text) => html("td", { class: "x-number" }, text);
    const rows = edges.map(([source, target, first, second]) => html("tr", {}, end(source), end(target),
      number(first ? signed(first) : "\u2014"), number(second ? signed(second) : "\u2014"), number(signed(second - first))));
    const heads = ["from", "to", "weight in A", "weight in B", "B \u2212 A"].map((name) => html("th", { scope: "col" }, name));
    parts.changes.replaceChildren(html("table", { class: "x-table", id: "changed-edges" }, html("thead", {}, html("tr", {}, ...heads)), html("tbody", {}, ...rows)));
  }

  /* The drawn nodes of a graph that match a key. */
  const matching = (index, key, by = "keys") =>
    Object.keys(view.sides[index][by]).filter((id) => view.sides[index][by][id] === key).map((id) => graphs[index].node(id)).filter((node) => node && !node.hidden);

  /* Select a node in the other graph too: the same node, or else the same feature at any position, the strongest one. */
  function selected(index, node) {
    if (isLinking) return;
    active = index;
    const other = 1 - index;
    graphs[index].mark([], "linked");
    if (graphs[other]) {
      const side = view.sides[index];
      let matches = node ? matching(other, side.keys[node.id]) : [];
      if (node && !matches.length) matches = matching(other, side.anywhere[node.id], "anywhere");
      const best = matches.find((each) => each.id === node.id) || [...matches].sort((a, b) => b.influence - a.influence)[0] || null;
      isLinking = true;
      graphs[other].select(best ? best.id : null);
      isLinking = false;
      graphs[other].mark(matches.map((each) => each.id), "linked");
      legend(node ? linkedLine(index, node, best) : "");
    }
    const values = { ...query(), node: node ? node.id : null, in: node && index ? "B" : null };
    const search = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
    if (!parts.host.hidden) history.replaceState(null, "", `/compare${search.size ? `?${search}` : ""}`);
  }

  function linkedLine(index, node, best) {
    const [here, there] = index ? ["B", "A"] : ["A", "B"], name = node.brief || node.label;
    if (!best) return `${name}: not in graph ${there}`;
    const value = (each) => (each.activation === null ? `influence ${digits(each.influence)}` : `activation ${digits(each.activation)}`);
    return `${name}: ${value(node)} in ${here}, ${value(best)} in ${there}`;
  }

  function choose(key) {
    for (const index of graphs.keys()) {
      const [node] = matching(index, key);
      if (node) {
        if (graphs[index].selected() === node) graphs[index].select(null);
        return graphs[index].select(node.id);
      }
    }
    say.info("This node is not drawn; only the strongest nodes are.");
  }

  function selectFromAddress() {
    const { node, in: where } = query(), index = where === "B" && graphs[1] ? 1 : 0;
    if (node && graphs[index]) graphs[index].select(node);
    else if (graphs[active]) graphs[active].select(null);
  }

  /* Esc clears the selection, and 1-9 go to a neighbour in the graph in which a node was selected last. */
  function pressed(event) {
    const typing = event.target instanceof HTMLElement && event.target.matches("textarea, select, input:not([type=checkbox]):not([type=range])");
    if (parts.host.hidden || typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const graph = graphs[active];
    if (!graph || !graph.selected()) return;
    if (event.key === "Escape") graph.select(null);
    else if (/^[1-9]$/.test(event.key)) {
      const next = graph.numbered(graph.selected())[Number(event.key) - 1];
      if (next) graph.select(next.id);
    }
  }

  function showTranscoders() {
    const source = query().with || "";
    if (document.activeElement !== parts.source) parts.source.value = source;
    if (source && (source === rival || source === asked)) return;
    asked = source;
    clear(HOW);
    if (source) measure(source, true);
  }

  function clear(sentence) {
    rival = "";
    document.getElementById("holder-comparison").hidden = true;
    parts.table.replaceChildren();
    parts.advice.textContent = sentence;
  }

  /* Measure both transcoders; with `kept`, show them only if they were measured before. */
  async function measure(source, kept) {
    const close = working("Starting", "compare_transcoders");
    try {
      const made = await client.job("compare_transcoders", { source, kept }, close.progress);
      if (!made) return;
      say.clear();
      rival = source;
      parts.advice.textContent = "Further left is sparser, and lower is better.";
      OpenCLT.explorer.transcoder.plot("comparison", made.figure);
      const head = made.heads.map((name) => html("th", { scope: "col" }, name));
      const rows = made.rows.map(([name, ...cells]) => html("tr", {}, html("th", { scope: "row" }, name), ...cells.map((cell) => html("td", { class: "x-number" }, cell))));
      parts.table.replaceChildren(html("div", { class: "x-scroll" }, html("table", { class: "x-table", id: "transcoders-table" }, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows))),
        ...made.notes.map((note) => html("p", { class: "oc-none" }, note)));
    } catch (error) {
      clear(HOW);
      say.error(error);
    } finally {
      close();
    }
  }

  OpenCLT.explorer.compare = { build, show };
})();
