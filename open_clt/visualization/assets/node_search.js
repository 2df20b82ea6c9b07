/* The search of nodes in a graph: by token, label, layer, feature or kind; Enter goes to the next match. Needs graph.js.

   OpenCLT.nodeSearch(graph) returns {form, refresh}, where graph() is the handle of the graph that is shown, or null.
   refresh() finds the nodes again after the graph or its selection changed. */
"use strict";

(() => {
  const { html } = OpenCLT;

  /* Every word must be in the label, the token, the feature or the kind of a node; L2 is layer 2, and not layer 20. */
  function meets(node, words) {
    const texts = [node.label, node.brief || "", node.token, node.kind, node.note].map((text) => text.toLowerCase());
    const feature = (node.feature || "").toLowerCase();
    return words.every((word) => {
      if (/^l\d+$/.test(word)) return node.layer === Number(word.slice(1));
      if (/^l\d+\//.test(word)) return feature.startsWith(word);
      return texts.some((text) => text.includes(word));
    });
  }

  function nodeSearch(graph) {
    let matches = [];
    const field = html("input", { type: "search", id: "find-node", placeholder: "find a node", autocomplete: "off", spellcheck: "false",
      "aria-label": "Find nodes by token, label, layer such as L2, or feature such as L2/417; Enter goes to the next one",
      title: "A token, a label, a layer such as L2, or a feature such as L2/417; Enter goes to the next match" });
    const count = html("output", { id: "found-nodes", role: "status" });
    const next = html("button", { type: "submit", title: "Go to the next match (Enter)", "aria-label": "Next match" }, "\u2193");
    const form = html("form", { class: "oc-find", role: "search", "aria-label": "Nodes" }, field, next, count);

    /* Find the drawn nodes again, the most influential first, and mark them in the graph. */
    function refresh() {
      if (!graph()) return;
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      matches = words.length ? graph().nodes().filter((node) => meets(node, words)).sort((a, b) => b.influence - a.influence) : [];
      graph().mark(matches.map((node) => node.id), "found");
      const at = matches.indexOf(graph().selected());
      const found = matches.length === 0 ? "no node" : at < 0 ? `${matches.length} nodes` : `${at + 1} of ${matches.length}`;
      count.textContent = words.length ? found : "";
    }

    /* Select the match after the selected node, or the one before it. */
    function step(by) {
      refresh();
      if (!matches.length) return;
      const at = matches.indexOf(graph().selected());
      const place = at < 0 ? (by > 0 ? 0 : matches.length - 1) : (at + by + matches.length) % matches.length;
      graph().select(matches[place].id);
      refresh();
    }

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      step(1);
    });
    field.addEventListener("input", refresh);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.shiftKey) step(-1);
      else if (event.key === "Escape" && field.value) field.value = "";
      else if (event.key === "Escape") field.blur();
      else return;
      event.preventDefault();
      event.stopPropagation();
      refresh();
    });
    return { form, refresh };
  }

  Object.assign(OpenCLT, { nodeSearch });
})();
