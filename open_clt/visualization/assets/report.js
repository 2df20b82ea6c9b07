/* The page of a report: fills the graph, the panel and the list of features from the data in the page.

   #node=ID in the address selects a node, and a selection changes the address, so that it can be shared and the
   browser's own way back works. The numbers of drawn elements are attributes of #graph: data-nodes, data-edges,
   data-labelled and data-selected. */
"use strict";

(() => {
  const { html, digits } = OpenCLT;
  const data = JSON.parse(document.getElementById("data").textContent);
  const host = document.getElementById("graph");
  const graph = OpenCLT.graph(host, data.graph, { label: "Attribution graph: tokens below, layers above them, outputs on top" });
  OpenCLT.panel(document.getElementById("panel"), graph, data);
  const inGraph = OpenCLT.panel.linkTo(graph), search = OpenCLT.nodeSearch(() => graph);
  document.querySelector(".r-toggles").append(search.form);

  function check() {
    const { nodes, edges } = graph.counts(), selected = graph.selected();
    search.refresh();
    Object.assign(host.dataset, { nodes, edges, labelled: graph.labelled(), selected: selected ? selected.id : "" });
  }

  function fromAddress() {
    const id = decodeURIComponent(location.hash.replace(/^#node=/, ""));
    graph.select(location.hash.startsWith("#node=") && graph.node(id) ? id : null);
    check();
  }
  graph.onChange((node) => {
    const hash = node ? `#node=${encodeURIComponent(node.id)}` : "";
    if (location.hash !== hash) history.pushState(null, "", hash || location.pathname + location.search);
    check();
  });
  addEventListener("popstate", fromAddress);
  addEventListener("hashchange", fromAddress);

  for (const box of document.querySelectorAll("input[data-shape]")) {
    box.addEventListener("change", () => {
      graph.hide([...document.querySelectorAll("input[data-shape]:not(:checked)")].map((other) => other.dataset.shape));
      check();
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
    event.preventDefault();
    document.getElementById("find-node").focus();
  });

  /* One line for each feature, the most influential first; its examples are made when it is opened. */
  function list() {
    const features = new Map();
    for (const node of graph.nodes()) {
      if (node.feature) features.set(node.feature, [...(features.get(node.feature) || []), node]);
    }
    const influence = (nodes) => nodes.reduce((sum, node) => sum + node.influence, 0);
    return [...features.values()].sort((a, b) => influence(b) - influence(a)).map((nodes) => {
      const [node] = [...nodes].sort((a, b) => b.influence - a.influence);
      const record = data.features[node.feature] || {};
      const raises = (record.top || []).slice(0, 3).map(([token]) => OpenCLT.chip(token));
      const show = (select) => () => {
        select();
        host.scrollIntoView({ block: "center" });
      };
      const link = (name) => inGraph(name) && { ...inGraph(name), choose: show(inGraph(name).choose) };
      const line = html("details", { class: "r-feature" }, html("summary", {},
        html("span", { class: node.automatic ? "oc-automatic" : null }, node.label),
        html("span", {}, node.feature),
        html("span", {}, nodes.map((each) => each.token).join(" ")),
        html("span", { class: "r-number" }, digits(node.activation)),
        html("span", { class: "r-number" }, digits(influence(nodes))),
        html("span", {}, ...raises)));
      line.addEventListener("toggle", () => {
        if (!line.open || line.querySelector(".f-feature")) return;
        const button = html("button", { type: "button" }, "Show in the graph");
        button.addEventListener("click", show(() => graph.select(node.id)));
        line.append(button, OpenCLT.feature(record, { activation: node.activation, advice: data.advice, link }));
      });
      return line;
    });
  }
  const names = ["label", "feature", "active at", "activation", "influence", "raises"];
  document.getElementById("features").append(
    html("div", { class: "r-feature r-names", "aria-hidden": "true" }, ...names.map((name) => html("span", {}, name))),
    ...list(),
  );
  fromAddress();
})();
