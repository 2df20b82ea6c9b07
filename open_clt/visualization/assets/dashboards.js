/* The dashboards of features: a table that can be searched, and one page for each feature. Needs elements.js.

   The data are scripts beside it, because a page from a disk may load
   scripts but not data; each calls OpenCLT.receive(name, values) (open_clt/visualization/dashboards/values.py):

     table    {about, partSize, rows: {layer, index, label, automatic, density, max, firesOn, raises}}: columns
     L2_3     {tokens, features}: features 3 * partSize, ... of layer 2 by index; examples hold indices of tokens

   The address holds the state: "#L2/417" is a feature, "#?q=Texas&layer=2&sort=density" a search.
   Text enters the page as text nodes and attributes only, never as HTML. */
"use strict";

(() => {
  const { html, svg, signed, digits, percent } = OpenCLT;
  const MANY = 200; // rows of the table that are shown at once
  const SEARCHED = [["all", "label or token"], ["label", "label"], ["fires", "token it fires on"], ["raises", "token it raises"]];
  const COLUMNS = [
    ["feature", "feature"], ["label", "label"], ["fires", "fires on"], ["raises", "raises"],
    ["density", "density"], ["max", "largest activation"],
  ];

  const received = new Map(), waiting = new Map();
  OpenCLT.receive = (name, values) => {
    received.set(name, values);
    if (waiting.has(name)) waiting.get(name)(values);
  };

  /* The values of a script beside the page, which is loaded when they are first needed. */
  const loading = new Map();
  function load(name) {
    if (!loading.has(name)) {
      loading.set(name, new Promise((resolve, reject) => {
        waiting.set(name, resolve);
        const script = html("script", { src: `data/${name}.js` });
        script.addEventListener("error", () => {
          loading.delete(name);
          reject(new Error(`The file data/${name}.js beside this page cannot be read. Write the dashboards again.`));
        });
        script.addEventListener("load", () => {
          if (!received.has(name)) reject(new Error(`The file data/${name}.js is damaged. Write the dashboards again.`));
        });
        document.head.append(script);
      }));
    }
    return loading.get(name);
  }

  const VISIBLE = { "\n": "⏎", "\r": "␍", "\t": "⇥" };
  const visible = (token) => token.replace(/[\n\r\t]/g, (character) => VISIBLE[character]);
  /* A token on its own: its spaces at the ends become dots, because they would not be seen. */
  const dotted = (token) => visible(token).replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length)) || "(empty)";
  const chip = (token) => html("span", { class: "d-chip" }, dotted(token));

  let rows = [], byName = new Map(), table = null, sequence = 0;
  const main = () => document.getElementById("main");
  const failed = (error) => main().replaceChildren(html("p", { class: "d-error", role: "alert" }, String(error.message || error)));

  async function start() {
    try {
      table = await load("table");
    } catch (error) {
      failed(error);
      return;
    }
    const { layer } = table.rows;
    rows = layer.map((_, row) => Object.fromEntries(Object.entries(table.rows).map(([name, column]) => [name, column[row]])));
    for (const row of rows) {
      row.name = `L${row.layer}/${row.index}`;
      byName.set(row.name, row);
    }
    window.addEventListener("hashchange", route);
    document.addEventListener("keydown", keys);
    document.getElementById("random").addEventListener("click", random);
    document.getElementById("jump").addEventListener("submit", (event) => {
      event.preventDefault();
      const named = /^\s*L?(\d+)[/_](\d+)\s*$/i.exec(document.getElementById("named").value);
      if (named) location.hash = `L${Number(named[1])}/${Number(named[2])}`;
      else document.getElementById("named").setAttribute("aria-invalid", "true");
    });
    document.getElementById("named").addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));
    route();
  }

  let search = "";
  function route() {
    const feature = /^#L(\d+)(?:\/|%2F)(\d+)$/i.exec(location.hash);
    sequence += 1;
    if (feature) showFeature(Number(feature[1]), Number(feature[2]));
    else {
      search = location.hash.startsWith("#?") ? location.hash.slice(2) : "";
      showTable(new URLSearchParams(search));
    }
  }

  const alive = () => rows.filter((row) => row.density !== 0);
  function random() {
    const from = alive().length ? alive() : rows;
    if (from.length) location.hash = from[Math.floor(Math.random() * from.length)].name;
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const press = (id) => {
      const link = document.getElementById(id);
      if (link) link.click();
    };
    if (event.key === "ArrowLeft") press("previous");
    else if (event.key === "ArrowRight") press("next");
    else if (event.key === "r") random();
    else if (event.key === "Escape") press("back");
    else if (event.key === "/") {
      event.preventDefault();
      const box = document.getElementById("q");
      if (box) box.focus();
      else press("back");
    }
  }

  /* ---- the table ---- */

  function found(query) {
    const words = (query.get("q") || "").toLowerCase(), where = query.get("in") || "all";
    const layer = query.get("layer"), least = Number(query.get("least") || 0) / 100, most = Number(query.get("most") || 100) / 100;
    const texts = (row) => [
      ...(where === "all" || where === "label" ? [row.label] : []),
      ...(where === "all" || where === "fires" ? row.firesOn : []),
      ...(where === "all" || where === "raises" ? row.raises : []),
    ];
    const kept = rows.filter((row) =>
      (!layer || row.layer === Number(layer)) &&
      (query.get("dead") || row.density !== 0) &&
      (row.density === null || row.density === 0 || (row.density >= least && row.density <= most)) &&
      (!words || row.name.toLowerCase() === words || texts(row).some((text) => text.toLowerCase().includes(words))));
    const key = query.get("sort") || "feature", sign = query.get("down") ? -1 : 1;
    const value = {
      label: (row) => row.label.toLowerCase(), fires: (row) => (row.firesOn[0] || "").trim().toLowerCase(),
      raises: (row) => (row.raises[0] || "").trim().toLowerCase(), density: (row) => row.density, max: (row) => row.max,
    }[key];
    if (value) {
      const empty = (row) => value(row) === null || value(row) === "";
      kept.sort((a, b) => empty(a) - empty(b) || sign * (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0));
    } else if (sign < 0) kept.reverse();
    return kept;
  }

  function showTable(query) {
    document.title = "Features";
    const layers = [...new Set(rows.map((row) => row.layer))].sort((a, b) => a - b);
    const field = (name, label, input) => html("label", { for: name }, label, input);
    const set = (name, value) => {
      if (value) query.set(name, value);
      else query.delete(name);
      search = query.toString();
      history.replaceState(null, "", search ? `#?${search}` : "#");
      fill();
    };
    const choice = (name, options, value) => {
      const select = html("select", { id: name }, ...options.map(([key, text]) => {
        const option = html("option", { value: key }, text);
        option.selected = key === value;
        return option;
      }));
      select.addEventListener("change", () => set(name, select.value === options[0][0] ? "" : select.value));
      return select;
    };
    const box = (name, attributes) => {
      const input = html("input", { id: name, ...attributes });
      input.value = query.get(name) || "";
      input.addEventListener("input", () => set(name, input.value));
      return input;
    };
    const dead = html("input", { id: "dead", type: "checkbox" });
    dead.checked = Boolean(query.get("dead"));
    dead.addEventListener("change", () => set("dead", dead.checked ? "1" : ""));
    const percentage = { type: "number", min: "0", max: "100", step: "any" };
    const form = html("form", { class: "d-search", role: "search" },
      field("q", "Search", box("q", { type: "search", placeholder: "label or token", autocomplete: "off" })),
      field("in", "in", choice("in", SEARCHED, query.get("in"))),
      field("layer", "Layer", choice("layer", [["", "all"], ...layers.map((layer) => [String(layer), String(layer)])], query.get("layer"))),
      field("least", "Density from %", box("least", { ...percentage, placeholder: "0" })),
      field("most", "to %", box("most", { ...percentage, placeholder: "100" })),
      html("label", { for: "dead" }, dead, "features that never fire"));
    form.addEventListener("submit", (event) => event.preventDefault());
    const count = html("p", { class: "d-note", role: "status" }), body = html("tbody"), more = html("p", { class: "d-more" });
    const heads = COLUMNS.map(([key, text]) => {
      const button = html("button", { type: "button" }, text);
      button.addEventListener("click", () => {
        const down = (query.get("sort") || "feature") === key ? !query.get("down") : key === "density" || key === "max";
        set("sort", key === "feature" ? "" : key);
        set("down", down ? "1" : "");
      });
      return html("th", { scope: "col", class: `d-${key}` }, button);
    });
    let shown = MANY;
    function fill() {
      const kept = found(query);
      shown = MANY;
      count.textContent = `${kept.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} features`;
      heads.forEach((head, index) => {
        const sorted = (query.get("sort") || "feature") === COLUMNS[index][0];
        head.setAttribute("aria-sort", sorted ? (query.get("down") ? "descending" : "ascending") : "none");
      });
      body.replaceChildren(...kept.slice(0, shown).map(line));
      grow(kept);
    }
    function grow(kept) {
      more.replaceChildren();
      if (!kept.length) more.append("No feature fits. Search for another word, or widen the layer and the density.");
      if (kept.length <= shown) return;
      const button = html("button", { type: "button" }, `Show more (${(kept.length - shown).toLocaleString("en")} left)`);
      button.addEventListener("click", () => {
        body.append(...kept.slice(shown, shown + MANY).map(line));
        shown += MANY;
        grow(kept);
      });
      more.append(button);
    }
    main().replaceChildren(form, count,
      html("div", { class: "d-wide" }, html("table", { class: "d-table" }, html("thead", {}, html("tr", {}, ...heads)), body)), more);
    fill();
  }

  function line(row) {
    const link = html("a", { href: `#${row.name}` }, row.name);
    const label = row.label || (row.density === 0 ? "never fires" : "no label");
    return html("tr", {},
      html("th", { scope: "row", class: "d-feature" }, link),
      html("td", { class: `d-label${row.automatic || !row.label ? " d-automatic" : ""}`, title: label }, html("bdi", {}, label)),
      html("td", { class: "d-fires" }, ...row.firesOn.map(chip)),
      html("td", { class: "d-raises" }, ...row.raises.map(chip)),
      html("td", { class: "d-density" }, row.density === null ? "" : percent(row.density)),
      html("td", { class: "d-max" }, row.max === null ? "" : digits(row.max)));
  }

  /* ---- one feature ---- */

  async function showFeature(layer, index) {
    const name = `L${layer}/${index}`, mine = sequence;
    document.title = `Feature ${name}`;
    const row = byName.get(name);
    if (!row) {
      main().replaceChildren(navigation(null), html("p", { class: "d-error", role: "alert" },
        `There is no record of feature ${name}. `, html("a", { href: "#" }, "All features")));
      return;
    }
    let part;
    try {
      part = await load(`L${layer}_${Math.floor(index / table.partSize)}`);
    } catch (error) {
      if (mine === sequence) failed(error);
      return;
    }
    if (mine !== sequence) return; // another feature was chosen meanwhile
    main().replaceChildren(navigation(row), feature(row, part.features[index], part.tokens));
    window.scrollTo(0, 0);
  }

  function navigation(row) {
    const at = row ? rows.indexOf(row) : -1;
    const step = (id, text, other) =>
      other ? html("a", { id, href: `#${other.name}`, class: "d-button" }, text) : html("span", { class: "d-button d-off" }, text);
    return html("nav", { class: "d-steps", "aria-label": "Features" },
      html("a", { id: "back", href: search ? `#?${search}` : "#", class: "d-button" }, "All features"),
      step("previous", "← Previous", rows[at - 1]),
      step("next", "Next →", at >= 0 ? rows[at + 1] : null));
  }

  function feature(row, record, words) {
    const groups = record.groups.filter(([, examples]) => examples.length);
    const chart = histogram(record);
    const examples = groups.map(([name, list], number) => html("section", {},
      html("h3", {}, name),
      ...list.map((each) => example(each, words, record, chart))));
    const fact = (text) => html("span", {}, text);
    const facts = [
      record.density === null ? [] : [fact(`fires on ${percent(record.density)} of the tokens`)],
      record.max === null ? [] : [fact(`largest activation ${digits(record.max)}`)],
      record.label && record.label.automatic ? [fact("automatic label")] : [],
      record.label && record.label.confidence !== null ? [fact(`confidence ${record.label.confidence.toFixed(2)}`)] : [],
      record.label && record.label.score !== null ? [fact(`detection score ${record.label.score.toFixed(2)}`)] : [],
    ].flat();
    const dead = row.density === 0
      ? html("p", { class: "d-dead" }, table.about.tokens
        ? `This feature fired on none of ${table.about.tokens.toLocaleString("en")} tokens.` : "This feature never fired.")
      : html("p", { class: "d-none" }, "There are no examples of this feature.");
    return html("article", { class: "d-page" },
      html("header", {},
        html("h2", {}, html("span", { class: "d-name" }, row.name), " ",
          html("bdi", { class: record.label && !record.label.automatic ? null : "d-automatic" }, record.label ? record.label.text : row.density === 0 ? "never fires" : "no label")),
        html("p", { class: "d-facts" }, ...facts)),
      html("div", { class: "d-columns" },
        html("div", { class: "d-examples" }, ...(examples.length ? examples : [dead])),
        html("aside", {},
          ...(record.histogram.length ? [html("h3", {}, "Activations"), chart.element] : []),
          ...shares("Fires on", record.firesOn),
          ...outputs(record),
          ...related("Similar decoders (cosine)", record.nearest),
          ...related("Active on the same tokens (similarity)", record.coactive))));
  }

  /* The percentage of the feature's activations that are lower, rounded up; null if it is not known. */
  function percentile(record, value) {
    if (!record.quantiles.length) return null;
    return Math.min(record.quantiles.filter((quantile) => quantile < value).length + 1, record.quantiles.length);
  }

  function example([tokens, active, peak], words, record, chart) {
    const values = new Map();
    for (let at = 0; at < active.length; at += 2) values.set(active[at], active[at + 1]);
    const largest = Math.abs(record.max) || Math.max(...[...values.values()].map(Math.abs), 1e-30);
    const spans = tokens.map((token, position) => {
      const value = values.get(position);
      if (value === undefined) return html("span", {}, visible(words[token]));
      const share = Math.min(1, Math.abs(value) / largest), rank = percentile(record, value);
      const span = html("button", {
        type: "button", class: `d-active${position === peak ? " d-peak" : ""}`, tabindex: position === peak ? "0" : "-1",
        style: `background:rgba(${value > 0 ? "0,114,178" : "213,94,0"},${(0.08 + 0.5 * share).toFixed(3)})`,
        title: `activation ${digits(value)}${rank === null ? "" : `, percentile ${rank}`}`,
      }, visible(words[token]));
      span.addEventListener("click", () => chart.mark(value));
      span.addEventListener("mouseenter", () => chart.mark(value));
      return span;
    });
    return html("p", { class: "d-example" }, ...spans);
  }

  /* The histogram, and a function that marks an activation in it. */
  function histogram(record) {
    const width = 380, height = 170, left = 46, bottom = 132, top = 8;
    const counts = record.histogram, most = Math.max(...counts, 1), least = record.min, largest = record.max || 1;
    const x = (value) => left + ((width - left - 8) * (value - least)) / (largest - least || 1);
    const y = (count) => bottom - ((bottom - top) * Math.log1p(count)) / Math.log1p(most);
    const text = (attributes, words) => svg("text", attributes, words);
    const ticks = [...new Set([0, ...[1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((tick) => tick <= most)])];
    const kept = ticks.filter((tick, index) => index % Math.ceil(ticks.length / 5) === 0);
    const bars = counts.map((count, index) => {
      const from = least + ((largest - least) * index) / counts.length, to = least + ((largest - least) * (index + 1)) / counts.length;
      return svg("rect", { x: x(from), y: count ? Math.min(y(count), bottom - 1) : bottom, width: Math.max(0.5, x(to) - x(from) - 1), height: count ? Math.max(1, bottom - y(count)) : 0 });
    });
    const here = svg("path", { class: "d-here" }), said = html("p", { class: "d-here-text", role: "status" });
    const mark = (value) => {
      here.setAttribute("d", `M${x(Math.max(least, Math.min(largest, value))).toFixed(1)} ${top}V${bottom}`);
      const rank = percentile(record, value);
      said.textContent = `activation ${digits(value)}${rank === null ? "" : ` is at percentile ${rank}`}`;
    };
    const middle = least + (largest - least) / 2;
    const element = html("div", {}, svg("svg", {
      class: "d-histogram", viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img",
      "aria-label": `Histogram of ${counts.length} bins of activations from ${digits(least)} to ${digits(largest)}`,
    }, ...bars, here,
    svg("path", { class: "d-axis", d: `M${left} ${top}V${bottom}H${width - 8}` }),
    ...kept.map((tick) => text({ x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, tick >= 1e4 ? `${tick / 1e3}k` : String(tick))),
    ...[least, middle, largest].map((value, index) => text({ x: x(value), y: bottom + 15, "text-anchor": ["start", "middle", "end"][index] }, digits(value))),
    text({ x: left + (width - left - 8) / 2, y: height - 6, "text-anchor": "middle" }, "activation"),
    text({ transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "tokens (log scale)")), said);
    if (record.max !== null) mark(record.max);
    return { element, mark };
  }

  function shares(name, pairs) {
    if (!pairs.length) return [];
    return [html("h3", {}, name), html("p", { class: "d-pairs" },
      ...pairs.map(([token, share]) => html("span", { class: "d-pair" }, chip(token), ` ${percent(share)}`)))];
  }

  function outputs(record) {
    const parts = [];
    if (record.top.length || record.bottom.length) parts.push(html("h3", {}, "Output tokens, through all decoders"), effects(record));
    if (record.outputs.length > 1) {
      parts.push(html("h3", {}, "Output tokens by the layer written to"));
      for (const each of record.outputs) {
        parts.push(html("details", {}, html("summary", {}, `layer ${each.layer}`, " ", ...each.top.slice(0, 3).map(([token]) => chip(token))), effects(each)));
      }
    }
    return parts;
  }

  const effects = ({ top, bottom }) => html("div", { class: "d-effects" }, effect("raises", top), effect("lowers", bottom));
  function effect(name, pairs) {
    return html("table", {}, html("caption", {}, name), html("tbody", {}, ...pairs.map(([token, value]) =>
      html("tr", {}, html("td", {}, chip(token)), html("td", {}, value === null ? "" : signed(value))))));
  }

  function related(name, pairs) {
    if (!pairs.length) return [];
    return [html("h3", {}, name), html("ul", { class: "d-related" }, ...pairs.map(([other, similarity]) => {
      const row = byName.get(other), label = row && row.label;
      const shown = html("bdi", { class: row && row.automatic ? "d-automatic" : null }, label || "");
      return html("li", {}, row ? html("a", { href: `#${other}` }, other) : html("span", {}, other),
        html("span", { class: "d-number" }, similarity.toFixed(2)), shown);
    }))];
  }

  start();
})();
