/* What can be done with the selected node: pin it, group it, label its feature, steer it, look at its heads. */
"use strict";

(() => {
  const { html, percent, signed } = OpenCLT;
  const { client, store } = OpenCLT.explorer;
  const STRONGEST = 9;
  let holding = false, held = []; // G is held down; the nodes that were clicked meanwhile

  const page = () => OpenCLT.explorer.graphPage;
  const trying = (promise) => OpenCLT.explorer.say.trying(promise);
  const graph = () => page().graph();

  function clicked(node, event) {
    if (!node) return false;
    if (holding) {
      held = held.includes(node.id) ? held.filter((id) => id !== node.id) : [...held, node.id];
      graph().mark(held, "held");
      return true;
    }
    if (event.ctrlKey || event.metaKey) {
      pin(node);
      return true;
    }
    return false;
  }

  const canBePinned = (node) => node.shape !== "token" && node.shape !== "output";

  function pin(node) {
    if (canBePinned(node)) trying(store.act({ kind: "pin", node: node.id }));
  }

  function hold(isHeld) {
    if (isHeld === holding) return;
    holding = isHeld;
    document.body.classList.toggle("x-holding", holding);
    if (!holding && held.length > 1) makeGroup(held);
    if (!holding && graph()) graph().mark([], "held");
    held = [];
  }

  function makeGroup(members) {
    const names = new Set(store.session().groups.map((group) => group.name));
    let number = 1;
    while (names.has(`group ${number}`)) number += 1;
    trying(store.act({ kind: "group", name: `group ${number}`, members }));
  }

  /* The pinned features that are in no group become one. */
  function groupPins() {
    const { pins, groups } = store.session();
    const free = pins.filter((id) => !groups.some((group) => group.members.includes(id)));
    if (free.length < 2) OpenCLT.explorer.say.info("Pin at least two nodes that are in no group; then they can be grouped.");
    else makeGroup(free);
  }

  const button = (name, action, attributes = {}) => {
    const element = html("button", { type: "button", class: "x-tool", ...attributes }, name);
    element.addEventListener("click", action);
    return element;
  };

  function tools(node) {
    const session = store.session(), pinned = session.pins.includes(node.id);
    const made = [];
    if (canBePinned(node)) made.push(button(pinned ? "Unpin" : "Pin", () => pin(node), { "aria-pressed": pinned, title: "P" }));
    if (node.feature) {
      made.push(button("Steer", () => OpenCLT.explorer.steer.add([node.id], node.brief || node.label)));
      made.push(button("Label", () => editLabel(node), { title: "L" }));
      made.push(OpenCLT.explorer.link(`/features/${node.feature.replace("L", "")}`, "Open feature", { class: "x-tool" }));
    }
    return [html("p", { class: "x-tools-of-node" }, ...made)];
  }

  /* A field in place of the label; Enter keeps what is written, Esc does not, and an empty text takes the label away. */
  function editLabel(node) {
    const title = document.querySelector("#panel .oc-title");
    const field = html("input", { type: "text", class: "x-label", maxlength: 200, "aria-label": `Label of feature ${node.feature}` });
    field.value = store.session().labels[node.feature] || "";
    field.placeholder = node.label;
    let done = false;
    const end = (keeps) => {
      if (done) return;
      done = true;
      if (keeps && field.value.trim() !== (store.session().labels[node.feature] || "")) {
        trying(store.act({ kind: "label", feature: node.feature, text: field.value }));
      }
      page().panel().refresh();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") end(event.key === "Enter");
    });
    field.addEventListener("blur", () => end(true));
    title.replaceChildren(field);
    field.focus();
  }

  /* Prompts to try, for the model that ships: it knows their answers. */
  function tries() {
    const status = client.status();
    if (!status || !status.start) return [];
    const made = page().EXAMPLES.map((prompt) => button(prompt, () => page().tracePrompt(prompt), { "data-try": "" }));
    return [html("h2", {}, "Prompts to try"), html("div", { class: "x-tries" }, ...made)];
  }

  /* Folds that say which attention heads carry the strongest edges into a node. What the graph stores of an edge is
     shown; the rest is computed when its fold is opened. */
  function heads(node) {
    const links = graph().fedBy(node).slice(0, STRONGEST);
    const { name, has_attention: isStored } = page().view();
    if (!links.length || (name && !isStored)) return [];
    const folds = links.map((link) => {
      const fold = html("details", {}, html("summary", {}, `from ${link.node.label}  ${signed(link.weight)}`));
      fold.addEventListener("toggle", () => fold.open && fold.childElementCount === 1 && fill(fold, link.node, node));
      return fold;
    });
    return [html("details", { class: "x-heads" }, html("summary", {}, "Attention heads that carry these edges"), ...folds)];
  }

  async function fill(fold, source, target) {
    const place = html("p", { class: "oc-none" }, "Computing \u2026");
    fold.append(place);
    try {
      const parts = await client.job("heads", { graph: page().view().graph, source: source.id, target: target.id });
      const rows = parts.heads.map(([layer, head, weight]) => html("tr", {},
        html("td", {}, whyFold(source, target, layer, head)), html("td", { class: "x-number" }, signed(weight))));
      const rest = parts.share ? `without a head, or in parts below ${percent(parts.share)}` : "without a head";
      rows.push(html("tr", {}, html("td", {}, rest), html("td", { class: "x-number" }, signed(parts.direct))));
      place.replaceWith(html("table", { class: "x-table" }, ...rows));
    } catch (error) {
      place.textContent = error instanceof client.Ended ? "Another edge was opened; open this one again." : error.message;
      fold.addEventListener("toggle", () => !fold.open && place.remove(), { once: true });
    }
  }

  /* A head, with a fold that says why it looked at the positions from which it carries most of an edge. */
  function whyFold(source, target, layer, head) {
    const fold = html("details", { class: "x-why" }, html("summary", { title: "Why the head looked there" }, `layer ${layer}, head ${head}`));
    fold.addEventListener("toggle", () => fold.open && fold.childElementCount === 1 && explain(fold, { source: source.id, target: target.id, layer, head }));
    return fold;
  }

  async function explain(fold, request) {
    const place = html("p", { class: "oc-none" }, "Computing \u2026");
    fold.append(place);
    try {
      const looks = await client.job("attention", { graph: page().view().graph, ...request });
      place.replaceWith(...looks.map(look));
    } catch (error) {
      place.textContent = error instanceof client.Ended ? "Another head was opened; open this one again." : error.message;
      fold.addEventListener("toggle", () => !fold.open && place.remove(), { once: true });
    }
  }

  /* One key: how much of the edge and of the attention it has, and the pairs of sources that make most of its score. */
  function look({ key, token, weight, attention, score, constant, pairs }) {
    const lines = pairs.map(([query, of, part]) => html("tr", {},
      html("td", {}, html("bdi", {}, query)), html("td", {}, html("bdi", {}, of)), html("td", { class: "x-number" }, signed(part))));
    const titles = ["of the query", "of the key", "part"].map((name) => html("th", { scope: "col" }, name));
    return html("div", { class: "x-look", "data-key": key },
      html("p", {}, `from ${JSON.stringify(token)} at ${key}: ${signed(weight)} of the edge, ${percent(attention)} of the attention`),
      html("p", { class: "oc-facts" }, `score ${signed(score)}, of which biases and positions make ${signed(constant)}; the largest other pairs of sources:`),
      html("table", { class: "x-table" }, html("thead", {}, html("tr", {}, ...titles)), html("tbody", {}, ...lines)));
  }

  OpenCLT.explorer.selection = { clicked, pin, hold, groupPins, makeGroup, editLabel, button, parts: () => ({ tools, links: heads, nothing: tries }) };
})();
