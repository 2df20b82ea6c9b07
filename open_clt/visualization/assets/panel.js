/* The panel beside the graph: what feeds the selected node and what it feeds, and the feature behind it. Needs elements.js.

   OpenCLT.panel(host, graph, {features, advice}) fills an element, and again whenever the selection changes.
   OpenCLT.detail(record, {activation, advice}) returns an element that shows one feature.

     features  records by the name of the feature ("L2/417"). Every key of a record may be absent:
       density      share of tokens on which the feature is active
       max          largest activation
       top, bottom  [[token, effect]]: output tokens that the feature raises and lowers; effect may be null
       histogram    {least, largest, counts}: numbers of activations in bins of equal width from least to largest
       percentiles  values of the quantiles 1 %, 2 %, ... 100 % of the activations
       firesOn      [[token, share]]: tokens on which the feature is active, and their share
       nearest      [[feature, cosine]]: features with similar decoders
       coactive     [[feature, similarity]]: features that are active on the same tokens
       examples     [{tokens, activations, peak}]: contexts with the largest activations; peak is an index of tokens
       quantiles    [{name, examples}]: further examples
     advice    a sentence that says how to get examples, for records without any

   Text enters the page as text nodes and attributes only, never as HTML. */
"use strict";

(() => {
  const { html, svg, signed, digits, percent } = OpenCLT;
  const MOST_LINKS = 9, FIRST_EXAMPLES = 3, MOST_INFLUENTIAL = 12;

  const VISIBLE = { "\n": "\u23ce", "\r": "\u240d", "\t": "\u21e5" };
  const visible = (token) => token.replace(/[\n\r\t]/g, (character) => VISIBLE[character]);

  function panel(host, graph, { features = {}, advice = "" } = {}) {
    host.classList.add("oc-panel");

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
      );
    }

    function show(node) {
      const hadFocus = host.contains(document.activeElement);
      if (!node) nothingSelected();
      else {
        const [, where, numbers] = OpenCLT.facts(node);
        const sources = graph.fedBy(node), targets = graph.feeds(node);
        const title = html("h2", { class: `oc-title${node.automatic ? " oc-automatic" : ""}`, tabindex: "-1" }, node.label);
        host.replaceChildren(
          title,
          html("p", { class: "oc-facts" }, `${node.automatic ? "automatic label \u00b7 " : ""}${where}`),
          html("p", { class: "oc-facts" }, `${numbers} \u00b7 node ${node.id}`),
          html("h2", {}, "Fed by"), ...list(sources, MOST_LINKS, true),
          html("h2", {}, "Feeds"), ...list(targets, MOST_LINKS, !sources.length),
        );
        if (node.feature) host.append(html("h2", {}, `Feature ${node.feature}`), detail(features[node.feature] || {}, { activation: node.activation, advice }));
      }
      host.scrollTop = 0;
      if (hadFocus) host.querySelector(".oc-title").focus();
    }
    graph.onChange(show);
    show(graph.selected());
  }

  function detail(record, { activation = null, advice = "" } = {}) {
    const parts = [];
    const numbers = [];
    if (record.density != null) numbers.push(`fires on ${percent(record.density)} of tokens`);
    if (record.max != null) numbers.push(`largest activation ${digits(record.max)}`);
    if (record.max && activation !== null) numbers.push(`here ${percent(activation / record.max)} of it`);
    if (record.percentiles && activation !== null) {
      const lower = record.percentiles.filter((value) => value < activation).length;
      numbers.push(`percentile ${Math.min(lower + 1, record.percentiles.length)}`);
    }
    if (numbers.length) parts.push(html("p", { class: "oc-facts" }, numbers.join(" \u00b7 ")));
    if ((record.top || []).length || (record.bottom || []).length) {
      parts.push(html("div", { class: "oc-columns" }, effects("Raises", record.top || []), effects("Lowers", record.bottom || [])));
    }
    const shares = (name, pairs, write) =>
      pairs && pairs.length ? [html("h3", {}, name), html("p", { class: "oc-pairs" },
        ...pairs.map(([word, value]) => html("span", {}, html("b", {}, word), ` ${write(value)} `)))] : [];
    parts.push(...shares("Fires on", record.firesOn, percent));
    if (record.histogram) parts.push(...histogram(record.histogram, activation));
    const examples = record.examples || [];
    const groups = (record.quantiles || []).filter((group) => group.examples.length);
    const all = [...examples, ...groups.flatMap((group) => group.examples)];
    const largest = Math.max(...all.flatMap((each) => each.activations.map(Math.abs)), 1e-30);
    const shown = examples.map((each) => example(each, largest));
    const fold = (name, ...content) => html("details", {}, html("summary", {}, name), ...content);
    if (shown.length) parts.push(html("h3", {}, "Examples"), ...shown.slice(0, FIRST_EXAMPLES));
    if (shown.length > FIRST_EXAMPLES) {
      parts.push(fold(`${shown.length - FIRST_EXAMPLES} more examples`, ...shown.slice(FIRST_EXAMPLES)));
    }
    if (groups.length) {
      const listed = groups.map((group) => [html("h3", {}, group.name), ...group.examples.map((each) => example(each, largest))]);
      parts.push(fold("Examples from weaker and weaker contexts", ...listed.flat()));
    }
    parts.push(...shares("Similar decoders", record.nearest, (value) => value.toFixed(2)));
    parts.push(...shares("Active on the same tokens", record.coactive, (value) => value.toFixed(2)));
    if (!all.length) parts.push(html("h3", {}, "Examples"), html("p", { class: "oc-none" }, nothing(record, advice)));
    return html("div", { class: "oc-detail" }, ...parts);
  }

  const nothing = (record, advice) =>
    record.density === 0 ? "This feature fired on none of the tokens that were read." : advice || "There are no examples.";

  function effects(name, pairs) {
    const rows = pairs.flatMap(([token, effect]) => [
      html("dt", { title: visible(token) }, visible(token)),
      html("dd", {}, effect === null ? "" : signed(effect)),
    ]);
    return html("div", {}, html("h3", {}, name), html("dl", { class: "oc-effects" }, ...rows));
  }

  /* A context whose tokens are shaded by the activation of the feature: blue if it is positive, vermillion otherwise. */
  function example({ tokens, activations, peak }, largest) {
    const words = tokens.map((token, index) => {
      const share = activations[index] / largest;
      const shade = share > 0 ? `rgba(0,114,178,${(0.55 * share).toFixed(3)})` : `rgba(213,94,0,${(-0.55 * share).toFixed(3)})`;
      return html("span", {
        style: share ? `background:${shade}` : null, class: index === peak ? "oc-peak" : null,
        title: share ? digits(activations[index]) : null,
      }, visible(token));
    });
    return html("p", { class: "oc-example" }, ...words);
  }

  function histogram({ least, largest, counts }, activation) {
    const width = 340, height = 64, floor = 44, most = Math.max(...counts, 1);
    const edges = [...counts, 0].map((_, index) => least + ((largest - least) * index) / counts.length);
    const x = (value) => (width * (value - least)) / (largest - least || 1);
    const bars = counts.map((count, index) => {
      const tall = count ? Math.max(1, (floor * Math.log1p(count)) / Math.log1p(most)) : 0;
      return svg("rect", { x: x(edges[index]), y: floor - tall, width: Math.max(0.5, x(edges[index + 1]) - x(edges[index]) - 1), height: tall });
    });
    const here = activation === null ? [] : [svg("path", { class: "oc-here", d: `M${x(activation)} 0V${floor}` })];
    return [
      html("h3", {}, "Activations"),
      svg("svg", { class: "oc-histogram", viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img",
        "aria-label": `Histogram of activations from ${digits(least)} to ${digits(largest)}` },
        ...bars, ...here,
        svg("text", { x: 0, y: height - 4 }, digits(least)),
        svg("text", { x: width / 2, y: height - 4, "text-anchor": "middle" }, "activation (height: log of the number of tokens)"),
        svg("text", { x: width, y: height - 4, "text-anchor": "end" }, digits(largest))),
    ];
  }

  Object.assign(OpenCLT, { panel, detail });
})();
