/* The panel beside the graph: what feeds the selected node and what it feeds, and the feature behind it. Needs elements.js
   and feature.js.

   OpenCLT.panel(host, graph, options) fills an element, and again whenever the selection changes. It returns
   {refresh()}, which fills it once more. Options:
     features, advice  as below
     load(name)        a promise of a feature's record, for pages that do not have all records at once
     name(node)        an element in place of the node's label, such as one that can be edited
     tools(node)       elements below the facts of a node
     links(node)       elements below the lists of edges
     advise(record)    elements below a feature that was loaded
     nothing()         elements below what is shown while nothing is selected

     features  records by the name of the feature ("L2/417"), as feature.js shows them
     advice    a sentence that says how to get examples, for records without any

   OpenCLT.panel.linkTo(graph) returns the function link of feature.js: it selects the node of a feature in the graph.

   Text enters the page as text nodes and attributes only, never as HTML. */
"use strict";

(() => {
  const { html, signed, digits } = OpenCLT;
  const MOST_LINKS = 9, MOST_INFLUENTIAL = 12;

  /* Features of the graph are links that select their most influential node. */
  function linkTo(graph) {
    const nodes = new Map();
    for (const node of graph.nodes()) {
      const other = nodes.get(node.feature);
      if (node.feature && !(other && other.influence >= node.influence)) nodes.set(node.feature, node);
    }
    return (name) => {
      const node = nodes.get(name);
      return node ? { choose: () => graph.select(node.id), label: node.label, automatic: node.automatic } : null;
    };
  }

  function panel(host, graph, { features = {}, advice = "", load, name, tools, links: below, nothing, advise = () => [] } = {}) {
    host.classList.add("oc-panel");
    const link = linkTo(graph), detail = (record, settings) => OpenCLT.feature(record, { ...settings, link });
    let shown = null;

    const row = (link, largest, key) => {
      const share = Math.abs(link.weight) / largest;
      const button = html("button", { type: "button", class: link.weight < 0 ? "oc-below" : null, title: link.node.label },
        html("kbd", {}, key),
        html("span", { class: `oc-name${link.node.automatic ? " oc-automatic" : ""}` }, link.node.brief || link.node.label),
        html("span", { class: "oc-number" }, link.text || signed(link.weight)),
        html("span", { class: "oc-bar", style: `width:${(100 * share).toFixed(1)}%` }));
      button.addEventListener("click", () => graph.select(link.node.id));
      return html("li", {}, button);
    };
    const list = (links, most, keyed) => {
      if (!links.length) return [html("p", { class: "oc-none" }, "nothing that is drawn")];
      const largest = Math.max(...links.map((link) => Math.abs(link.weight)), 1e-30);
      const rows = links.slice(0, most).map((link, index) => row(link, largest, keyed ? String(index + 1) : ""));
      const rest = links.length - rows.length;
      return [html("ol", { class: "oc-links" }, ...rows), ...(rest ? [html("p", { class: "oc-rest" }, `and ${rest} more`)] : [])];
    };

    /* The members of a supernode; a feature is shown when its line is opened. */
    function members(all) {
      const line = (member) => {
        const name = html("span", { class: `oc-name${member.automatic ? " oc-automatic" : ""}`, title: member.label }, member.label);
        const where = html("span", { class: "oc-number" }, digits(member.influence));
        const parts = [name, html("span", {}, member.token), where];
        if (!member.feature) return html("li", { class: "oc-member" }, ...parts);
        const fold = html("details", {}, html("summary", { class: "oc-member" }, ...parts));
        fold.addEventListener("toggle", () => {
          if (!fold.open || fold.querySelector(".f-feature")) return;
          fold.append(html("p", { class: "oc-facts" }, `feature ${member.feature} \u00b7 activation ${digits(member.activation)}`),
            about(member));
        });
        return html("li", {}, fold);
      };
      return [html("h2", {}, `${all.length} members, by influence`), html("ul", { class: "oc-members" }, ...all.map(line))];
    }

    function nothingSelected() {
      const nodes = graph.nodes().filter((node) => node.shape !== "token" && node.shape !== "output");
      const links = nodes.map((node) => ({ node, weight: node.influence, text: digits(node.influence) }));
      links.sort((a, b) => b.weight - a.weight);
      host.replaceChildren(
        html("h2", { class: "oc-title", tabindex: "-1" }, "Nothing is selected"),
        html("p", { class: "oc-facts" }, "Click a node to see what feeds it and what it feeds. Keys: Tab enters the graph, " +
          "arrows move, Enter selects, 1\u20139 go to a neighbour, Esc clears."),
        html("h2", {}, "Most influence on the outputs"),
        ...list(links, MOST_INFLUENTIAL, false),
        ...(nothing ? nothing() : []),
      );
    }

      /* The feature of a node; a record that has to be loaded takes its place when it is there. */
    function about(node) {
      if (!load) return detail(features[node.feature] || {}, { activation: node.activation, advice });
      const place = html("div", { class: "f-feature" }, html("p", { class: "oc-none" }, "Reading the record \u2026"));
      load(node.feature).then(
        (record) => place.replaceWith(detail(record, { activation: node.activation, advice }), ...advise(record)),
        (error) => place.replaceChildren(html("p", { class: "oc-none" }, error.message)),
      );
      return place;
    }

    function show(node) {
      shown = node;
      const hadFocus = host.contains(document.activeElement);
      if (!node) nothingSelected();
      else {
        const [, where, numbers] = OpenCLT.facts(node);
        const sources = graph.fedBy(node), targets = graph.feeds(node);
        const title = html("h2", { class: `oc-title${node.automatic ? " oc-automatic" : ""}`, tabindex: "-1" },
          (name && name(node)) || node.label);
        host.replaceChildren(
          title,
          html("p", { class: "oc-facts" }, `${node.automatic ? "automatic label \u00b7 " : ""}${where}`),
          html("p", { class: "oc-facts" }, [numbers, `node ${node.id}`].filter(Boolean).join(" \u00b7 ")),
          ...(tools ? tools(node) : []),
          html("h2", {}, "Fed by"), ...list(sources, MOST_LINKS, true),
          html("h2", {}, "Feeds"), ...list(targets, MOST_LINKS, !sources.length),
          ...(below ? below(node) : []),
        );
        if (node.feature) host.append(html("h2", {}, `Feature ${node.feature}`), about(node));
      }
      if (node && (node.members || []).length) host.append(...members(node.members));
      host.scrollTop = 0;
      if (hadFocus) host.querySelector(".oc-title").focus();
    }
    graph.onChange(show);
    show(graph.selected());
    return { refresh: () => show(shown) };
  }

  Object.assign(OpenCLT, { panel: Object.assign(panel, { linkTo }) });
})();
