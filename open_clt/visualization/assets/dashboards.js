/* The dashboards of features: a table that can be searched, and one page for each feature. Needs elements.js and feature.js.

   The data are scripts beside it, because a page from a disk may load
   scripts but not data; each calls OpenCLT.receive(name, values) (open_clt/visualization/dashboards/values.py):

     table    {about, partSize, rows: {layer, index, label, automatic, density, max, firesOn, raises}}: columns
     L2_3     {tokens, features}: features 3 * partSize, ... of layer 2 by index; examples hold numbers of tokens

   The address holds the state: "#L2/417" is a feature, "#?q=Texas&layer=2&sort=density" a search.
   Text enters the page as text nodes and attributes only, never as HTML. */
"use strict";

(() => {
  const { html, digits, percent, chip } = OpenCLT;
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
      html("td", { class: `d-label${row.automatic || !row.label ? " f-automatic" : ""}`, title: label }, html("bdi", {}, label)),
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
    main().replaceChildren(navigation(row), page(row, part.features[index], part.tokens));
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

  function page(row, record, words) {
    const { label } = record, tokens = table.about.tokens;
    const unlabelled = row.density === 0 ? "never fires" : "no label";
    const dead = tokens ? `This feature fired on none of ${tokens.toLocaleString("en")} tokens.` : "This feature never fired.";
    const link = (name) => byName.has(name) ? { href: `#${name}`, ...byName.get(name) } : null;
    return html("article", { class: "d-page" },
      html("h2", {}, html("span", { class: "d-name" }, row.name), " ",
        html("bdi", { class: label && !label.automatic ? null : "f-automatic" }, label ? label.text : unlabelled)),
      OpenCLT.feature(record, { words, link, wide: true, advice: row.density === 0 ? dead : "" }));
  }

  start();
})();
