/* The pages of features: a list that can be searched, and one page for each feature. Their state is in the address. */
"use strict";

(() => {
  const { html, digits, percent } = OpenCLT;
  const { client, store, say } = OpenCLT.explorer;
  const COLUMNS = [["feature", "feature"], ["label", "label"], ["density", "density"], ["max", "largest activation"]];
  const parts = {};
  let timer = 0, asked = 0, shape = null, open = null;

  function build() {
    const host = document.getElementById("page-features");
    const field = (attributes) => html("input", attributes);
    Object.assign(parts, {
      q: field({ type: "search", id: "search", placeholder: "label, token, or L2/417", "aria-label": "Search features by label, token or name" }),
      layer: html("select", { id: "layer", "aria-label": "Layer" }, html("option", { value: "" }, "all layers")),
      least: field({ type: "number", id: "least", min: 0, max: 1, step: "any", placeholder: "0", "aria-label": "Smallest density" }),
      most: field({ type: "number", id: "most", min: 0, max: 1, step: "any", placeholder: "1", "aria-label": "Largest density" }),
      here: field({ type: "checkbox", id: "here" }),
      wide: field({ type: "checkbox", id: "wide" }),
      list: html("div", { id: "feature-list" }), one: html("div", { id: "feature-page" }),
    });
    parts.form = html("form", { class: "x-search", role: "search" }, parts.q, parts.layer,
      html("label", {}, "density from ", parts.least), html("label", {}, " to ", parts.most),
      html("label", { title: "Search also in outputs that the list does not show, and in the largest examples" }, parts.wide, " in examples too"),
      html("label", {}, parts.here, " on this prompt"));
    parts.form.addEventListener("submit", (event) => event.preventDefault());
    parts.form.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => address({ page: null }), 200);
    });
    host.append(parts.form, parts.list, parts.one);
    store.onChange((session, former) => {
      if (session.labels !== former.labels && !host.hidden) show(location.pathname);
    });
    client.watch((status) => {
      if (status && status.shape && !shape) {
        shape = status.shape;
        for (const layer of status.layers) parts.layer.append(html("option", { value: layer }, `layer ${layer}`));
        if (!host.hidden) show(location.pathname);
      }
    });
  }

  const query = () => Object.fromEntries(new URLSearchParams(location.search));

  /* Write the fields into the address, with changes, and show what it then says. */
  function address(changes) {
    const values = { ...query(), q: parts.q.value, layer: parts.layer.value, least: parts.least.value, most: parts.most.value, here: parts.here.checked ? "1" : "", wide: parts.wide.checked ? "1" : "", ...changes };
    const search = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
    history.replaceState(null, "", `/features${search.size ? `?${search}` : ""}`);
    list();
  }

  function show(path) {
    const [, layer, index] = path.match(/^\/features\/(\d+)\/(\d+)$/) || [];
    parts.form.hidden = parts.list.hidden = Boolean(layer);
    parts.one.hidden = !layer;
    if (layer) return one(Number(layer), Number(index));
    const values = query();
    for (const name of ["q", "layer", "least", "most"]) if (parts[name] !== document.activeElement) parts[name].value = values[name] || "";
    for (const name of ["here", "wide"]) parts[name].checked = values[name] === "1";
    list();
  }

  async function list() {
    const number = (asked += 1), values = query();
    try {
      const found = await client.post("/api/features", { query: values, session: store.session() });
      if (number !== asked) return;
      parts.list.replaceChildren(...table(found, values));
    } catch (error) {
      if (number === asked) parts.list.replaceChildren(html("p", { class: "oc-none" }, error.message));
    }
  }

  function table({ rows, total, pages }, values) {
    const status = client.status();
    if (!total && status && !status.has_records) return [advice()];
    const page = Number(values.page || 0);
    const heads = COLUMNS.map(([name, title]) => {
      const here = (values.sort || "feature") === name, down = values.down === "1";
      const button = html("button", { type: "button" }, `${title}${here ? (down ? " \u25be" : " \u25b4") : ""}`);
      button.addEventListener("click", () => address({ sort: name, down: here && !down ? "1" : "", page: null }));
      return html("th", { scope: "col", "aria-sort": here ? (down ? "descending" : "ascending") : "none" }, button);
    });
    const others = ["fires on", "raises"].map((title) => html("th", { scope: "col" }, title));
    const withHere = rows.some((row) => row.here !== null);
    if (withHere) others.unshift(html("th", { scope: "col" }, "here"));
    const words = (list) => html("td", { class: "x-words" }, list.join("  "));
    const lines = rows.map((row) => html("tr", { "data-feature": row.feature },
      html("td", {}, link(row.feature)), html("td", { class: row.automatic ? "oc-automatic x-words" : "x-words" }, row.label),
      html("td", { class: "x-number" }, row.density === null ? "" : percent(row.density)),
      html("td", { class: "x-number" }, row.max === null ? "" : digits(row.max)),
      ...(withHere ? [html("td", { class: "x-number" }, digits(row.here))] : []), words(row.firesOn), words(row.top)));
    const turn = (name, to) => {
      const button = html("button", { type: "button", class: "x-tool" }, name);
      button.disabled = to < 0 || to >= pages;
      button.addEventListener("click", () => address({ page: to ? String(to) : null }));
      return button;
    };
    return [
      html("p", { class: "x-pages" }, html("span", { id: "found" }, `${total.toLocaleString("en")} features`), turn("Previous", page - 1),
        html("span", {}, `page ${Math.min(page + 1, Math.max(pages, 1))} of ${Math.max(pages, 1)}`), turn("Next", page + 1)),
      html("div", { class: "x-scroll" }, html("table", { class: "x-table x-list" }, html("thead", {}, html("tr", {}, ...heads, ...others)), html("tbody", {}, ...lines))),
    ];
  }

  const pathOf = (feature) => `/features/${feature.replace("L", "")}`;

  const link = (feature) => OpenCLT.explorer.link(pathOf(feature), feature);

  function advice() {
    const status = client.status() || {};
    return html("div", { class: "oc-none" }, html("p", {}, "This transcoder has no feature files. This command measures all features on a text:"),
      html("pre", { class: "x-command" }, `open-clt features --model ${status.model} --transcoder ${status.transcoder} --text FILE`));
  }

  /* How to get examples of a feature that was not measured; `done` is called once it is. */
  function advise(record, done) {
    if (record.measured) return [];
    const { button } = OpenCLT.explorer.selection;
    const measure = button("Compute this one", async () => {
      measure.disabled = true;
      measure.textContent = "Computing \u2026";
      try {
        done(await client.job("measure", { feature: record.feature }));
      } catch (error) {
        say.error(error);
        measure.disabled = false;
        measure.textContent = "Compute this one";
      }
    }, { "data-measure": record.feature });
    return [advice(), html("p", {}, measure)];
  }

  /* Draw the page; a field that stays keeps the focus, which it would lose because it is put into the page again. */
  function draw(content) {
    const focused = document.activeElement;
    parts.one.replaceChildren(...content);
    if (parts.one.contains(focused)) focused.focus();
  }

  async function one(layer, index) {
    const name = `L${layer}/${index}`;
    if (open !== name) parts.one.replaceChildren(html("p", { class: "oc-none" }, "Reading the record \u2026"));
    open = name;
    try {
      const record = await client.get(`/api/feature/L${layer}/${index}`);
      if (open === name) draw(page(name, layer, index, record));
    } catch (error) {
      if (open === name) parts.one.replaceChildren(html("p", { class: "oc-none" }, error.message));
    }
  }

  function page(name, layer, index, record) {
    const given = store.session().labels[name], label = given || (record.label ? record.label.text : "");
    const graph = OpenCLT.explorer.graphPage.graph();
    const nodes = graph ? graph.nodes().filter((node) => node.feature === name) : [];
    const activation = nodes.length ? Math.max(...nodes.map((node) => node.activation)) : null;
    return [
      steps(name, layer, index),
      html("h1", { class: !given && record.label && record.label.automatic ? "oc-automatic" : null }, label || name),
      html("p", { class: "oc-facts" }, [`feature ${name}`, !given && record.label && record.label.automatic ? "automatic label" : "",
        nodes.length ? `in the graph at ${nodes.map((node) => `${node.token} (${node.position})`).join(", ")}` : "not in the shown graph"].filter(Boolean).join(" \u00b7 ")),
      labelField(name, given || ""),
      record.density === 0 ? html("p", { class: "x-dead" }, "This feature is dead: it fired on none of the tokens that were read.") : "",
      ...advise(record, (measured) => draw(page(name, layer, index, measured))),
      tester(name, record),
      OpenCLT.feature(record, { activation, wide: true, link: (other) => ({ choose: () => OpenCLT.explorer.go(pathOf(other)) }) }),
    ];
  }

  function steps(name, layer, index) {
    const { button } = OpenCLT.explorer.selection, [layers, count] = shape || [1, 1];
    const at = layer * count + index, all = layers * count;
    const goTo = (place) => OpenCLT.explorer.go(`/features/${Math.floor(place / count)}/${place % count}`);
    const jump = html("input", { type: "text", size: 9, placeholder: "L2/417", "aria-label": "Go to a feature" });
    const form = html("form", { class: "x-jump" }, jump);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const [, l, i] = jump.value.match(/^\s*L?(\d+)[/_:](\d+)\s*$/i) || [];
      if (l === undefined) say.info("Write a feature as layer/index, such as L2/417.");
      else OpenCLT.explorer.go(`/features/${l}/${i}`);
    });
    return html("p", { class: "x-buttons" },
      button("All features", () => OpenCLT.explorer.go("/features"), { id: "all-features" }),
      button("Previous", () => goTo((at + all - 1) % all), { id: "previous" }), button("Next", () => goTo((at + 1) % all), { id: "next" }),
      button("Random", () => goTo(Math.floor(Math.random() * all)), { id: "random" }), form,
      button("Show in the graph", () => {
        const node = OpenCLT.explorer.graphPage.graph().nodes().find((each) => each.feature === name);
        if (!node) return say.info("The shown graph does not have this feature.");
        OpenCLT.explorer.go("/");
        store.select(node.id);
      }));
  }

  function labelField(name, given) {
    const field = html("input", { type: "text", id: "feature-label", maxlength: 200, placeholder: "your own label", "aria-label": `Your label of feature ${name}` });
    field.value = given;
    field.addEventListener("change", () => say.trying(store.act({ kind: "label", feature: name, text: field.value })));
    return html("p", {}, field);
  }

  /* A place to try a text. The page is drawn again when the session changes, and the text and its result must stay. */
  let own = { name: null };

  function tester(name, record) {
    if (own.name === name) {
      own.record = record;
      return own.section;
    }
    const tested = (own = { name, record });
    const text = html("textarea", { id: "own-text", rows: 2, "aria-label": "Your own text", placeholder: "Write a text to see where the feature fires." });
    const result = html("div", { id: "own-result" });
    const { button } = OpenCLT.explorer.selection;
    const test = async () => {
      try {
        const made = await client.job("probe", { feature: name, text: text.value });
        const rank = made.percentile === null ? "" : `, percentile ${made.percentile}`;
        result.replaceChildren(OpenCLT.example(made.example, null, tested.record, null), html("p", { class: "oc-facts" }, made.example[1].length
          ? `largest activation ${digits(made.largest)}${rank}` : "The feature does not fire on this text."));
      } catch (error) {
        say.error(error);
      }
    };
    text.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && test());
    tested.section = html("section", { class: "x-tester" }, html("h2", {}, "Test your own text"), text,
      html("p", {}, button("Test", test, { id: "test-text" })), result);
    return tested.section;
  }

  OpenCLT.explorer.features = { build, show, advise };
})();
