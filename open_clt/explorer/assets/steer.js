/* The steering page: what is changed, and before, after, and what the graph predicted. */
"use strict";

(() => {
  const { html, percent, signed, digits } = OpenCLT;
  const { client, store, say } = OpenCLT.explorer;
  const WAIT = 150, TOKENS = 20;
  const FROZEN = {
    nothing: "nothing: attention, norms and other features react",
    direct: "all but the direct effects: attention, norms and other features are frozen",
  };
  const parts = {};
  let timer = 0, listed = "";

  function build() {
    const { button } = OpenCLT.explorer.selection;
    const frozen = html("select", { id: "frozen", "aria-label": "What is frozen" },
      ...Object.entries(FROZEN).map(([value, name]) => html("option", { value }, name)));
    Object.assign(parts, {
      frozen,
      list: html("div", { id: "steers" }), result: html("div", { id: "steer-result" }),
      runs: html("div", { id: "runs" }), texts: html("div", { id: "continuations" }),
      prompt: html("p", { class: "x-note", id: "steer-prompt" }),
    });
    document.getElementById("page-steer").append(
      html("div", { class: "x-columns" },
        html("section", { class: "x-column", "aria-label": "Changes" },
          html("h1", {}, "Steer"), parts.prompt, parts.list,
          html("p", {}, html("label", { class: "x-frozen" }, "What is frozen", frozen)),
          html("p", { class: "x-buttons" }, primary("Run", run, "steer-run"), button("Continue the text", proceed, { id: "continue" }))),
        html("section", { class: "x-column x-wide", "aria-label": "Effects" }, parts.result, parts.texts, parts.runs)));
    store.onChange((session, former) => {
      if (session.graph !== former.graph) for (const each of [parts.result, parts.texts]) each.replaceChildren();
      draw(session);
    });
  }

  function primary(name, action, id) {
    const element = html("button", { type: "button", class: "x-primary", id }, name);
    element.addEventListener("click", action);
    return element;
  }

  /* List features; `goes` says whether the page is opened. Returns a promise that they are listed. */
  function add(members, name, goes = true) {
    const features = members.filter((id) => /^\d+:\d+:\d+$/.test(id));
    if (!features.length) return Promise.resolve(say.info("Only features can be steered."));
    const added = say.trying(store.act({ kind: "steer", steer: { name, members: features, scale: 0 } }));
    if (goes) OpenCLT.explorer.go("/steer");
    return added;
  }

  function draw(session) {
    const view = OpenCLT.explorer.graphPage.view();
    parts.prompt.textContent = view ? `on \u201c${view.prompt}\u201d` : "";
    const text = JSON.stringify(session.steers);
    if (text !== listed) {
      listed = text;
      const none = html("p", { class: "oc-none" }, "Nothing is listed. Select a feature in the graph and press Steer, or press \u201cSteer these\u201d below the graph.");
      parts.list.replaceChildren(...(session.steers.length ? session.steers.map(entry) : [none]));
    }
    parts.runs.replaceChildren(...history(session.runs));
  }

  function entry(steer, index) {
    const { button } = OpenCLT.explorer.selection;
    const slider = html("input", { type: "range", min: -5, max: 5, step: 0.1, value: steer.scale, list: "", "aria-label": `Factor of ${steer.name}` });
    const number = html("input", { type: "number", min: -5, max: 5, step: 0.1, value: steer.scale, "aria-label": `Factor of ${steer.name}, as a number` });
    const everywhere = html("input", { type: "checkbox" });
    everywhere.checked = steer.everywhere;
    const set = (scale) => {
      slider.value = number.value = scale;
      clearTimeout(timer);
      timer = setTimeout(() => {
        const changed = { ...steer, scale: Number(scale), everywhere: everywhere.checked };
        say.trying(store.act({ kind: "set_steer", index, steer: changed }).then(run));
      }, WAIT);
    };
    slider.addEventListener("input", () => (number.value = slider.value));
    slider.addEventListener("change", () => set(slider.value));
    slider.addEventListener("dblclick", () => set(1));
    number.addEventListener("change", () => set(Math.min(5, Math.max(-5, Number(number.value) || 0))));
    everywhere.addEventListener("change", () => set(number.value));
    return html("fieldset", { class: "x-steer" }, html("legend", {}, steer.name),
      html("div", {}, slider, number, html("span", {}, "\u00d7"), button("Remove", () => say.trying(store.act({ kind: "remove_steer", index })))),
      html("div", {}, button("Ablate (0)", () => set(0)), button("Unchanged (1)", () => set(1)),
        html("label", {}, everywhere, " at every position"),
        html("small", {}, `${steer.members.length} ${steer.members.length === 1 ? "node" : "nodes"}`)));
  }

  async function run() {
    const session = store.session();
    if (!session.steers.length) return parts.result.replaceChildren();
    parts.result.classList.add("x-dimmed");
    try {
      const made = await client.job("steer", { session, frozen: parts.frozen.value });
      parts.result.replaceChildren(...effects(made));
      say.clear();
      await store.act({ kind: "run", run: made });
    } catch (error) {
      say.error(error);
    }
    parts.result.classList.remove("x-dimmed");
  }

  function effects(made) {
    const words = (likely) => html("ol", { class: "x-likely" }, ...likely.map(({ token, probability }) =>
      html("li", {}, html("span", { class: "x-token" }, token.replace(/^ /, "\u00b7")), html("span", { class: "x-number" }, percent(probability)),
        html("span", { class: "oc-bar", style: `width:${(100 * probability).toFixed(1)}px` }))));
    const rows = made.effects.map(({ name, predicted, measured }) => html("tr", {},
      html("td", {}, name.replace(/^ /, "\u00b7")), html("td", { class: "x-number" }, signed(predicted)), html("td", { class: "x-number" }, signed(measured))));
    const head = ["output", "the graph predicts", "measured"].map((name) => html("th", { scope: "col" }, name));
    return [
      html("h2", {}, "Next token"),
      html("div", { class: "x-before-after" },
        html("div", { "data-when": "before" }, html("h3", {}, "before"), words(made.before)),
        html("div", { "data-when": "after" }, html("h3", {}, "after"), words(made.after))),
      html("p", { class: "oc-facts", id: "steer-kl", "data-kl": made.kl_divergence }, `KL divergence ${digits(made.kl_divergence)} nats \u00b7 frozen: ${FROZEN[made.frozen]}`),
      html("h2", {}, "Change of the outputs"),
      html("table", { class: "x-table", id: "effects" }, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows)),
      html("p", { class: "oc-none" }, "A logit is counted less the mean of all logits. " + (made.frozen === "direct"
        ? "With everything frozen, the two numbers agree except for rounding."
        : "The graph adds up all of its paths and assumes that attention and norms stay and that no feature begins or ceases to fire.")),
    ];
  }

  async function proceed() {
    const session = store.session();
    if (!session.steers.length) return say.info("List a feature first.");
    parts.texts.replaceChildren(html("p", { class: "oc-none" }, "Writing \u2026"));
    try {
      const [before, after] = await client.job("continuations", { session, tokens: TOKENS });
      const line = (name, text) => html("p", { "data-when": name }, html("b", {}, `${name}: `), html("bdi", { class: "x-text" }, text));
      parts.texts.replaceChildren(html("h2", {}, `Continuation of ${TOKENS} tokens (nothing frozen)`), line("before", before), line("after", after));
    } catch (error) {
      parts.texts.replaceChildren();
      say.error(error);
    }
  }

  function history(runs) {
    if (!runs.length) return [];
    const rows = runs.map((made) => {
      const [first] = made.effects;
      return html("tr", {}, html("td", {}, made.steers.map((each) => `${each.name} \u00d7 ${each.scale}`).join(", ")),
        html("td", {}, made.frozen === "direct" ? "direct" : "all"), html("td", {}, (made.after[0] || {}).token || ""),
        html("td", { class: "x-number" }, first ? signed(first.predicted) : ""), html("td", { class: "x-number" }, first ? signed(first.measured) : ""),
        html("td", { class: "x-number" }, digits(made.kl_divergence)));
    });
    const head = ["changes", "effects", "next token", "predicted", "measured", "KL"].map((name) => html("th", { scope: "col" }, name));
    return [html("h2", {}, "Earlier runs"), html("table", { class: "x-table" }, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows))];
  }

  OpenCLT.explorer.steer = { build, add, run, show: () => draw(store.session()) };
})();
