/* A feature: its numbers, output tokens, histogram, examples and relatives. Needs elements.js; feature.css is its look.

   OpenCLT.feature(record, {activation, advice, words, link, wide}) returns an element.

     record      what is known of the feature (open_clt/features/feature_data.py); every key may be absent or null:
       label        {text, automatic, confidence, score}
       density      share of tokens on which the feature is active
       min, max     smallest and largest activation
       histogram    numbers of activations in bins of equal width from min to max
       percentiles  values of the quantiles 1 %, 2 %, ... 100 % of the activations
       groups       [{name, examples}], of which the first holds the contexts with the largest activations;
                    an example is [tokens, active, peak]: its tokens, position and activation of each active token in
                    turn (position, activation, position, ...), and the position of the peak
       top, bottom  [[token, effect]]: output tokens that the feature raises and lowers; effect may be null
       outputs      [{layer, top, bottom}]: the same for the decoder to each layer
       firesOn      [[token, share]]: tokens on which the feature is active, and their share
       nearest      [[feature, cosine]]: features with similar decoders
       coactive     [[feature, similarity]]: features that are active on the same tokens
     activation  activation here, which the histogram marks; without it, the largest one is marked
     advice      what is said of a record without examples
     words       the texts of tokens, if examples hold numbers of them
     link        a function from the name of a feature ("L2/417") to {href, choose, label, automatic}, which has an address
                 or a function that is called on a click; null for unknown features
     wide        whether all examples are shown, with everything else beside them

   OpenCLT.example(example, words, record, chart) returns one context, and OpenCLT.chip(token) one token.

   Text enters the page as text nodes and attributes only, never as HTML. */
"use strict";

(() => {
  const { html, svg, signed, digits, percent } = OpenCLT;
  const FIRST_EXAMPLES = 3;

  const VISIBLE = { "\n": "\u23ce", "\r": "\u240d", "\t": "\u21e5" };
  const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g; // control characters
  const visible = (token) => token.replace(UNSEEN, (character) =>
    VISIBLE[character] || `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
  /* A token on its own: its spaces at the ends become dots, because they would not be seen. */
  const dotted = (token) => visible(token).replace(/^ +| +$/g, (spaces) => "\u00b7".repeat(spaces.length)) || "(empty)";
  const chip = (token) => html("span", { class: "f-chip", title: dotted(token) }, dotted(token));

  const titled = (name, ...content) => [html("h3", { class: "f-title" }, name), ...content];
  const fold = (name, ...content) => html("details", {}, html("summary", {}, ...[name].flat()), ...content);
  const known = (value) => value !== null && value !== undefined;

  function feature(record, { activation = null, advice = "", words = null, link = () => null, wide = false } = {}) {
    const groups = (record.groups || []).filter((group) => group.examples.length);
    const chart = (record.histogram || []).length && known(record.max) ? histogram(record, activation) : null;
    const drawn = groups.map((group) => ({ name: group.name, examples: group.examples.map((each) => example(each, words, record, chart)) }));
    const facts = factsOf(record, activation, wide);
    const said = facts.length ? [html("p", { class: "f-facts" }, ...facts.map((fact) => html("span", {}, fact)))] : [];
    const about = [outputs(record), shares("Fires on", record.firesOn), chart ? titled("Activations", chart.element) : []];
    if (wide) about.reverse();
    const relatives = [
      ...related("Similar decoders (cosine)", record.nearest, link),
      ...related("Active on the same tokens (similarity)", record.coactive, link),
    ];
    const none = html("p", { class: "f-none" }, advice || (record.density === 0
      ? "This feature fired on none of the tokens that were read." : "There are no examples of this feature."));
    if (wide) {
      const examples = drawn.map((group) => html("section", {}, ...titled(group.name, ...group.examples)));
      return html("div", { class: "f-feature f-wide" }, ...said, html("div", { class: "f-columns" },
        html("div", {}, ...(examples.length ? examples : [none])), html("aside", {}, ...about.flat(), ...relatives)));
    }
    return html("div", { class: "f-feature" }, ...said, ...about.flat(), ...(drawn.length ? folded(drawn) : titled("Examples", none)), ...relatives);
  }

  /* The first examples; all others are folded. */
  function folded([first, ...others]) {
    const shown = first.examples.slice(0, FIRST_EXAMPLES), rest = first.examples.slice(FIRST_EXAMPLES);
    return [
      ...titled(first.name, ...shown),
      ...(rest.length ? [fold(`${rest.length} more examples`, ...rest)] : []),
      ...(others.length ? [fold("Examples from weaker and weaker contexts", ...others.flatMap((group) => titled(group.name, ...group.examples)))] : []),
    ];
  }

  function factsOf({ density, max, label, ...record }, activation, wide) {
    const rank = activation === null ? null : percentile(record, activation);
    return [
      known(density) && `fires on ${percent(density)} of tokens`,
      known(max) && `largest activation ${digits(max)}`,
      max && activation !== null && `here ${percent(activation / max)} of it`,
      rank !== null && `percentile ${rank}`,
      wide && label && label.automatic && "automatic label", // elsewhere the label stands above, and is marked there
      label && known(label.confidence) && `label confidence ${label.confidence.toFixed(2)}`,
      label && known(label.score) && `detection score ${label.score.toFixed(2)}`,
    ].filter(Boolean);
  }

  /* The percentage of the feature's activations that are lower, rounded up; null if it is not known. */
  function percentile({ percentiles }, value) {
    if (!percentiles || !percentiles.length) return null;
    return Math.min(percentiles.filter((quantile) => quantile < value).length + 1, percentiles.length);
  }

  /* A context whose tokens are shaded by the activation: blue if it is positive, vermillion otherwise. Tokens that are
     active mark their activation in the histogram. */
  function example([tokens, active, peak], words, record, chart) {
    const values = new Map();
    for (let at = 0; at < active.length; at += 2) values.set(active[at], active[at + 1]);
    const largest = Math.abs(record.max) || Math.max(...[...values.values()].map(Math.abs), 1e-30);
    const spans = tokens.map((token, position) => {
      const text = visible(words ? words[token] : token), value = values.get(position);
      if (value === undefined) return html("span", {}, text);
      const share = Math.min(1, Math.abs(value) / largest), rank = percentile(record, value);
      const span = html(chart ? "button" : "span", {
        type: chart ? "button" : null, class: `f-active${position === peak ? " f-peak" : ""}`,
        tabindex: chart ? (position === peak ? "0" : "-1") : null,
        style: `background:rgba(${value > 0 ? "0,114,178" : "213,94,0"},${(0.08 + 0.5 * share).toFixed(3)})`,
        title: `activation ${digits(value)}${rank === null ? "" : `, percentile ${rank}`}`,
      }, text);
      for (const event of chart ? ["click", "mouseenter", "focus"] : []) span.addEventListener(event, () => chart.mark(value));
      return span;
    });
    return html("p", { class: "f-example" }, ...spans);
  }

  /* The histogram, and a function that marks an activation in it. */
  function histogram(record, activation) {
    const width = 350, height = 150, left = 46, bottom = 112, top = 8;
    const counts = record.histogram, most = Math.max(...counts, 1), least = record.min || 0, largest = record.max || 1;
    const x = (value) => left + ((width - left - 8) * (value - least)) / (largest - least || 1);
    const y = (count) => bottom - ((bottom - top) * Math.log1p(count)) / Math.log1p(most);
    const text = (attributes, words) => svg("text", attributes, words);
    const ticks = [0, ...[1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((tick) => tick <= most)];
    const kept = ticks.filter((tick, index) => index % Math.ceil(ticks.length / 5) === 0);
    const edge = (index) => least + ((largest - least) * index) / counts.length;
    const bars = counts.map((count, index) => {
      const tall = count ? Math.max(1, bottom - y(count)) : 0;
      return svg("rect", { x: x(edge(index)), y: bottom - tall, width: Math.max(0.5, x(edge(index + 1)) - x(edge(index)) - 1), height: tall });
    });
    const here = svg("path", { class: "f-here" }), said = html("p", { class: "f-here-text", role: "status" });
    const mark = (value) => {
      here.setAttribute("d", `M${x(Math.max(least, Math.min(largest, value))).toFixed(1)} ${top}V${bottom}`);
      const rank = percentile(record, value);
      said.textContent = `activation ${digits(value)}${rank === null ? "" : ` is at percentile ${rank}`}`;
    };
    const element = html("div", {}, svg("svg", {
      class: "f-histogram", viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
      "aria-label": `Histogram of ${counts.length} bins of activations from ${digits(least)} to ${digits(largest)}`,
    }, ...bars, here,
    svg("path", { class: "f-axis", d: `M${left} ${top}V${bottom}H${width - 8}` }),
    ...kept.map((tick) => text({ x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, tick >= 1e4 ? `${tick / 1e3}k` : String(tick))),
    ...[least, (least + largest) / 2, largest].map((value, index) =>
      text({ x: x(value), y: bottom + 15, "text-anchor": ["start", "middle", "end"][index] }, digits(value))),
    text({ x: left + (width - left - 8) / 2, y: height - 6, "text-anchor": "middle" }, "activation"),
    text({ transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "tokens (log scale)")), said);
    mark(activation === null ? record.max : activation);
    return { element, mark };
  }

  function shares(name, pairs) {
    if (!pairs || !pairs.length) return [];
    return titled(name, html("p", { class: "f-pairs" },
      ...pairs.map(([token, share]) => html("span", { class: "f-pair" }, chip(token), ` ${percent(share)}`))));
  }

  function outputs(record) {
    const parts = [], layers = record.outputs || [];
    if ((record.top || []).length || (record.bottom || []).length) {
      parts.push(...titled(layers.length > 1 ? "Output tokens, through all decoders" : "Output tokens", effects(record)));
    }
    if (layers.length > 1) {
      parts.push(...titled("Output tokens by the layer written to", ...layers.map((each) =>
        fold([`layer ${each.layer} `, ...each.top.slice(0, 3).map(([token]) => chip(token))], effects(each)))));
    }
    return parts;
  }

  const effects = ({ top, bottom }) => html("div", { class: "f-effects" }, effect("raises", top || []), effect("lowers", bottom || []));
  function effect(name, pairs) {
    return html("table", {}, html("caption", {}, name), html("tbody", {}, ...pairs.map(([token, value]) =>
      html("tr", {}, html("td", {}, chip(token)), html("td", {}, known(value) ? signed(value) : "")))));
  }

  function related(name, pairs, link) {
    if (!pairs || !pairs.length) return [];
    return titled(name, html("ul", { class: "f-related" }, ...pairs.map(([other, similarity]) => {
      const target = link(other);
      const name = html(!target ? "span" : target.href ? "a" : "button", target ? { href: target.href, type: target.href ? null : "button" } : {}, other);
      if (target && target.choose) name.addEventListener("click", target.choose);
      return html("li", {}, name,
        html("span", { class: "f-number" }, similarity.toFixed(2)),
        html("bdi", { class: target && target.automatic ? "f-automatic" : null }, (target && target.label) || ""));
    })));
  }

  Object.assign(OpenCLT, { feature, chip, example });
})();
