/* The interactive attribution graph: plain ES2020 that draws SVG, without a framework and without a network.
   Needs elements.js.

   OpenCLT.graph(host, data, options) draws into an empty element and returns a handle. The data are plain values, which
   open_clt/visualization/graph/page_data.py makes:

     nodes    [{id, shape, kind, label, brief, automatic, note, layer, position, token, activation, influence, feature,
                numbers, opacity, members}]
                shape: feature, error, other (bias, position, MLP output), group, token or output
                brief: the label for places with little room, or null
                layer, activation and feature ("L2/417") are null where a node has none
                members: [{id, label}] of a group, the nodes that it stands for
                numbers: what else is known, such as the frequency in a consensus, or ""; opacity: that of the mark
                automatic: whether the label is an automatic one
                members: [{id, label, automatic, token, feature, activation, influence}] of a supernode, else []
     edges    [[source, target, weight, frequency]]: indices of nodes, a signed weight, and in a consensus the share of
              graphs that have the edge
     tokens   [text]: all tokens of the prompt
     layers   number of layers
     caption  what is drawn and what is not
     missing  a sentence on rows that do not add up, or ""; alarming: whether it reports an error
     layouts  [{labelled, width, height, upright, boxes, diameters, texts, tokens, rows}], of which the first that fits,
              or the one that fits best, is drawn. boxes: [x, y, width, height] of each node; x and y are the centre,
              y points downwards.
              texts: the text beside each dot or in each output. tokens: boxes of all tokens.
              rows: [{name, layer, top, bottom}], the bands of layers.

   options: {label: name of the graph for screen readers
             click: function(node, event), called on a click; if it returns true, the click does not select the node
             digits: whether the keys 1-9 and Esc select (default: true)}

   The handle has
     select(id)       select a node, or none with null; returns whether there is such a node
     selected()       the selected node, or null
     node(id)         a node by its id
     feeds(node)      its edges to others, fedBy(node): its edges from others: [{node, weight}], the largest first
     numbered(node)   the neighbours that the keys 1-9 select
     hide(shapes, f)  draw all nodes but those of these shapes, and those for which f(node) is true
     onChange(f)      call f(node or null) whenever the selection changes
     mark(ids, name)  give the nodes with these ids, and no others, the class oc-NAME
     focused()        the node at which Tab enters the graph
     destroy()        stop listening; the element can then be emptied
     counts()         {nodes, edges}: numbers of elements that are drawn
     labelled()       whether the drawn layout has labels

   Text enters the page as text nodes and attributes only, never as HTML. */
"use strict";

(() => {
  const { html, svg, digits } = OpenCLT;
  const NAMES = 46, EDGE = 8; // room for the names of layers on the left, and the margin elsewhere
  const SMALLEST_SCALE = 11 / 12; // letters of 12 px become letters of 11 px
  const NEAREST = 30, HIT = 10; // pixels between the pointer and a node; half of the smallest area to click
  const THINNEST = 0.6, WIDEST = 4;

  /* The lines that describe a node: on the flag, and as its name for screen readers. */
  const facts = (node) => {
    const where = [node.kind === "feature" ? `feature ${node.feature}` : node.kind];
    const isGroup = node.kind === "supernode";
    if (node.kind !== "feature" && !isGroup && node.layer !== null) where.push(`layer ${node.layer}`);
    where.push(`${isGroup ? "mostly " : ""}at ${node.token} (${node.position})`);
    const numbers = node.activation === null ? [] : [`activation ${digits(node.activation)}`];
    if (node.shape !== "output") numbers.push(`influence ${digits(node.influence)}`); // outputs are what is influenced
    if (node.numbers) numbers.push(node.numbers);
    return [node.note ? `${node.label}  ${node.note}` : node.label, where.join(" \u00b7 "), numbers.join(" \u00b7 ")];
  };

  const isTyping = (target) =>
    target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

  function graph(host, data, options = {}) {
    const nodes = data.nodes.map((node, index) => ({ ...node, index, from: [], to: [], hidden: false }));
    const byId = new Map(nodes.map((node) => [node.id, node]));
    const largest = data.edges.reduce((most, edge) => Math.max(most, Math.abs(edge[2])), 1e-30);
    const edges = data.edges.map(([source, target, weight, frequency = 1]) => {
      const share = Math.abs(weight) / largest;
      const edge = { source: nodes[source], target: nodes[target], weight, share, frequency };
      edge.source.to.push(edge);
      edge.target.from.push(edge);
      return edge;
    });
    const listeners = [], marks = new Map(), stop = new AbortController(), { signal } = stop;
    let layout = null, selected = null, hovered = null, entry = null, names = null, drawn = false, drawnSize = "";

    const picture = svg("svg", { class: "oc-picture" });
    const flag = html("div", { class: "oc-flag", "aria-hidden": "true" });
    const caption = html("p", { class: "oc-caption" }, data.caption);
    const canvas = html("div", { class: "oc-canvas" }, picture);
    if (data.missing) caption.append(" ", html("span", { class: data.alarming ? "oc-alarm" : null }, data.missing));
    host.classList.add("oc-graph");
    host.replaceChildren(canvas, flag, caption);

    const strongest = (list, end) =>
      list
        .filter((edge) => !edge[end].hidden)
        .map((edge) => ({ node: edge[end], weight: edge.weight }))
        .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    const fedBy = (node) => strongest(node.from, "source");
    const feeds = (node) => strongest(node.to, "target");
    const numbered = (node) => {
      const sources = fedBy(node);
      return (sources.length ? sources : feeds(node)).slice(0, 9).map((link) => link.node);
    };

    /* Where things stand: the first layout that fits, stretched to the room that there is. */
    function arrange() {
      const room = { x: canvas.clientWidth, y: canvas.clientHeight };
      const fit = (each) => Math.min(room.x / (each.width + NAMES + EDGE), room.y / (each.height + 2 * EDGE));
      const last = data.layouts[data.layouts.length - 1], alike = data.layouts.filter((each) => each.labelled === last.labelled);
      layout = data.layouts.find((each) => fit(each) >= SMALLEST_SCALE) || alike.reduce((a, b) => (fit(a) > fit(b) ? a : b));
      const scale = Math.min(1, Math.max(SMALLEST_SCALE, fit(layout)));
      const inner = { x: room.x / scale - NAMES - EDGE, y: room.y / scale - 2 * EDGE };
      const stretch = { x: Math.max(1, inner.x / layout.width), y: Math.max(1, inner.y / layout.height) };
      const size = { x: layout.width * stretch.x + NAMES + EDGE, y: layout.height * stretch.y + 2 * EDGE };
      picture.setAttribute("viewBox", `0 0 ${size.x} ${size.y}`);
      picture.setAttribute("width", size.x * scale);
      picture.setAttribute("height", size.y * scale);
      const moved = ([x, y, width, height]) => ({ x: NAMES + x * stretch.x, y: EDGE + y * stretch.y, width, height });
      for (const node of nodes) place(node, moved(layout.boxes[node.index]), layout.diameters[node.index]);
      const rows = layout.rows.map((row) => ({
        ...row, top: EDGE + row.top * stretch.y, bottom: EDGE + row.bottom * stretch.y,
      }));
      return { size, scale, rows, tokens: layout.tokens.map(moved) };
    }

    /* The box of a node, and the points where edges arrive (bottom) and leave (top). */
    function place(node, box, diameter) {
      node.text = layout.texts[node.index];
      node.diameter = diameter;
      node.box = box;
      node.x = node.text && diameter ? box.x - box.width / 2 + diameter / 2 : box.x;
      node.y = box.y;
      const isBox = node.shape === "output" || node.shape === "group";
      node.top = node.shape === "token" || isBox ? box.y - box.height / 2 : box.y;
      node.bottom = isBox ? box.y + box.height / 2 : box.y;
    }

    function draw() {
      const hadFocus = picture.contains(document.activeElement);
      const { size, rows, tokens } = arrange();
      const bands = svg("g", { "aria-hidden": "true" });
      names = svg("g", { "aria-hidden": "true" }, svg("rect", { class: "oc-names", width: NAMES - 4, height: size.y }));
      for (const row of rows) {
        if (row.layer % 2 === 0) {
          const height = row.bottom - row.top;
          bands.append(svg("rect", { class: "oc-band", x: NAMES, y: row.top, width: size.x - NAMES - EDGE, height }));
        }
        const y = (row.top + row.bottom) / 2;
        if (row.name) names.append(svg("text", { class: "oc-layer", x: NAMES - 8, y, "text-anchor": "end" }, row.name));
      }
      const faint = Math.min(0.35, Math.max(0.06, 25 / edges.length));
      const lines = svg("g", { class: "oc-edges", "aria-hidden": "true" });
      for (const edge of [...edges].sort((a, b) => a.share - b.share)) {
        edge.element = svg("path", {
          class: `oc-edge ${edge.weight < 0 ? "oc-negative" : "oc-positive"}`,
          d: curve(edge),
          "stroke-width": (THINNEST + (WIDEST - THINNEST) * edge.share).toFixed(2),
          "stroke-opacity": (edge.frequency * (faint + 0.6 * edge.share)).toFixed(3),
        });
        lines.append(edge.element);
      }
      const list = svg("g", { role: "listbox", "aria-label": options.label || "Attribution graph" });
      const shown = new Set(nodes.filter((node) => node.shape === "token").map((node) => node.position));
      tokens.forEach((box, position) => {
        if (!shown.has(position)) bands.append(word(box, data.tokens[position]));
      });
      for (const node of readingOrder()) list.append((node.element = drawNode(node)));
      for (const name of marks.keys()) showMark(name);
      picture.replaceChildren(bands, lines, list, svg("g", { class: "oc-numbers", "aria-hidden": "true" }), names);
      for (const edge of edges) edge.element.classList.toggle("oc-hidden", edge.source.hidden || edge.target.hidden);
      entry = entry && !entry.hidden ? entry : nodes.find((node) => node.shape === "output") || nodes[0] || null;
      if (entry) entry.element.setAttribute("tabindex", "0");
      hovered = null;
      mark();
      const last = nodes.find((node) => node.shape === "token" && node.position === data.tokens.length - 1) || entry;
      if (!drawn && last) canvas.scrollLeft = last.x * scaleOf() - 0.65 * canvas.clientWidth;
      if (selected) reveal(selected);
      drawn = canvas.clientWidth > 0; // where there is no room yet, nothing can be scrolled
      holdNames();
      if (hadFocus && entry) entry.element.focus();
    }

    /* A curve that leaves a node upwards and arrives from below. */
    function curve({ source, target }) {
      const bend = (source.top - target.bottom) / 2;
      const [x, y, to, end] = [source.x, source.top, target.x, target.bottom].map((value) => Math.round(10 * value) / 10);
      return `M${x} ${y}C${x} ${(y - bend).toFixed(1)} ${to} ${(end + bend).toFixed(1)} ${to} ${end}`;
    }

    function word(box, text) {
      const turn = layout.upright ? `rotate(-90 ${box.x} ${box.y})` : null;
      return svg("text", { class: "oc-token", x: box.x, y: box.y, "text-anchor": "middle", transform: turn }, text);
    }

    function drawNode(node) {
      const { box } = node;
      const element = svg("g", {
        class: `oc-node oc-${node.shape}`, role: "option", tabindex: "-1", "aria-selected": "false",
        "aria-label": facts(node).filter(Boolean).join(", "), "data-node": node.id,
      });
      if (node.hidden) element.classList.add("oc-hidden");
      const area = { x: box.x - box.width / 2, y: box.y - box.height / 2, width: box.width, height: box.height };
      if (node.shape === "token") {
        element.append(svg("rect", { class: "oc-ring", ...grown(area, 3), rx: 3 }), word(box, data.tokens[node.position]));
      } else if (node.shape === "output" || node.shape === "group") {
        element.append(svg("rect", { class: "oc-ring", ...grown(area, 3), rx: 6 }));
        element.append(svg("rect", { class: "oc-box", ...area, rx: 4 }));
        element.append(textLines([...node.text.split("\n"), ...(node.note ? [node.note] : [])], box.x, box.y, "middle"));
      } else {
        element.append(svg("circle", { class: "oc-ring", cx: node.x, cy: node.y, r: node.diameter / 2 + 4 }));
        element.append(dot(node));
        if (node.opacity < 1) element.lastChild.setAttribute("fill-opacity", node.opacity);
        if (node.text) element.append(textLines(node.text.split("\n"), node.x + node.diameter / 2 + 5, node.y, "start"));
      }
      element.addEventListener("focus", () => {
        enterAt(node);
        over(node);
      });
      element.addEventListener("blur", () => over(null));
      return element;
    }

    const grown = ({ x, y, width, height }, by) => ({ x: x - by, y: y - by, width: width + 2 * by, height: height + 2 * by });

    /* The mark of a node: a circle for a feature, a diamond for an error, a square for the others. */
    function dot({ shape, x, y, diameter }) {
      const half = diameter / 2;
      if (shape === "feature") return svg("circle", { class: "oc-dot", cx: x, cy: y, r: half });
      if (shape === "error") {
        return svg("path", { class: "oc-dot", d: `M${x} ${y - half}L${x + half} ${y}L${x} ${y + half}L${x - half} ${y}Z` });
      }
      const side = 0.44 * diameter;
      return svg("rect", { class: "oc-dot", x: x - side, y: y - side, width: 2 * side, height: 2 * side });
    }

    function textLines(lines, x, y, anchor) {
      const element = svg("text", { class: "oc-label", "text-anchor": anchor });
      lines.forEach((line, index) => {
        element.append(svg("tspan", { x, y: y + 14 * (index - (lines.length - 1) / 2) }, line));
      });
      return element;
    }

    /* Outputs first, then layer by layer downwards, each from left to right. */
    const line = (node) => (node.shape === "output" ? data.layers + 1 : node.shape === "token" ? -2 : node.layer ?? -1);
    const readingOrder = () => [...nodes].sort((a, b) => line(b) - line(a) || a.x - b.x || a.y - b.y);

    /* Show what is selected: the node, its edges and its neighbours; the rest fades. */
    function mark() {
      const near = new Set(selected ? [selected] : []);
      for (const edge of selected ? [...selected.from, ...selected.to] : []) near.add(edge.source).add(edge.target);
      picture.classList.toggle("oc-selecting", selected !== null);
      for (const edge of edges) edge.element.classList.toggle("oc-near", edge.source === selected || edge.target === selected);
      for (const node of nodes) {
        node.element.classList.toggle("oc-near", near.has(node));
        node.element.setAttribute("aria-selected", String(node === selected));
      }
      const numbers = selected ? numbered(selected) : [];
      picture.querySelector(".oc-numbers").replaceChildren(...numbers.map((node, index) => {
        const x = node.x, y = node.diameter ? node.y : node.top - 7; // on the dot, so that it covers no other node
        return svg("g", {}, svg("rect", { x: x - 7, y: y - 7, width: 14, height: 14, rx: 3 }),
          svg("text", { x, y, "text-anchor": "middle" }, String(index + 1)));
      }));
      over(hovered);
    }

    const showMark = (name) => {
      for (const node of nodes) node.element.classList.toggle(`oc-${name}`, marks.get(name).has(node.id));
    };

    const scaleOf = () => picture.getBoundingClientRect().width / picture.viewBox.baseVal.width || 1;

    /* Scroll the graph, and not the page, until a node is in sight. */
    function reveal(node) {
      const scale = scaleOf(), room = 60;
      const within = (at, from, size, least) => Math.min(Math.max(from, at + room - size), Math.max(0, at - least - room));
      canvas.scrollLeft = within(node.x * scale, canvas.scrollLeft, canvas.clientWidth, NAMES);
      canvas.scrollTop = within(node.y * scale, canvas.scrollTop, canvas.clientHeight, 0);
      holdNames();
    }

    /* The names of layers stay in sight while the graph is scrolled. */
    const holdNames = () => names.setAttribute("transform", `translate(${canvas.scrollLeft / scaleOf()} 0)`);

    /* Show the flag of a node; without a node, that of the selected one. */
    function over(node) {
      if (hovered) hovered.element.classList.remove("oc-over");
      for (const edge of hovered ? [...hovered.from, ...hovered.to] : []) edge.element.classList.remove("oc-over");
      hovered = node;
      if (node) node.element.classList.add("oc-over");
      for (const edge of node ? [...node.from, ...node.to] : []) edge.element.classList.add("oc-over");
      const shown = node || selected;
      flag.classList.toggle("oc-shown", shown !== null);
      if (!shown) return;
      const [name, where, numbers] = facts(shown);
      flag.replaceChildren(html("b", { class: shown.automatic ? "oc-automatic" : null }, name));
      if (node) flag.append(html("span", {}, where), html("span", {}, numbers));
      const scale = scaleOf();
      const x = shown.x * scale - canvas.scrollLeft, y = shown.y * scale - canvas.scrollTop;
      const { offsetWidth: width, offsetHeight: height } = flag, gap = shown.box.height / 2 + 8;
      const half = shown.diameter ? 0 : shown.box.width / 2;
      const above = y - gap - height, left = Math.min(Math.max(4, x - half - width - 14), canvas.clientWidth - width - 4);
      flag.style.left = `${left < x - half - width ? left : Math.max(4, Math.min(x - width / 2, canvas.clientWidth - width - 4))}px`;
      flag.style.top = `${left < x - half - width ? Math.max(4, y - height / 2) : above > 4 ? above : y + gap}px`;
    }

    /* The node nearest to the pointer, if one is near enough. */
    function nearest(event) {
      const frameBox = picture.getBoundingClientRect(), scale = frameBox.width / picture.viewBox.baseVal.width;
      const x = (event.clientX - frameBox.left) / scale, y = (event.clientY - frameBox.top) / scale;
      let best = null, least = NEAREST;
      for (const node of nodes) {
        if (node.hidden) continue;
        const { box } = node;
        const away = Math.hypot(
          Math.max(0, Math.abs(x - box.x) - Math.max(HIT, box.width / 2)),
          Math.max(0, Math.abs(y - box.y) - Math.max(HIT, box.height / 2)),
        );
        // Within several areas at once, the nearest centre counts.
        const distance = away || Math.hypot(x - node.x, y - node.y) / 1000;
        if (distance < least) [best, least] = [node, distance];
      }
      return best;
    }

    function choose(node) {
      if (node === selected) return;
      selected = node;
      if (node) {
        enterAt(node);
        reveal(node);
      }
      mark();
      if (node && picture.contains(document.activeElement)) node.element.focus();
      for (const listener of listeners) listener(node);
    }

    /* Tab enters the graph at one node, the latest one (a roving tab index). */
    function enterAt(node) {
      if (entry) entry.element.setAttribute("tabindex", "-1");
      entry = node;
      node.element.setAttribute("tabindex", "0");
    }

    /* The node in a direction: the next of the same row, or the nearest of the next row. */
    function beside(node, key) {
      const visible = nodes.filter((other) => !other.hidden);
      if (key === "ArrowLeft" || key === "ArrowRight") {
        const row = visible.filter((other) => line(other) === line(node)).sort((a, b) => a.x - b.x || a.y - b.y);
        return row[row.indexOf(node) + (key === "ArrowRight" ? 1 : -1)];
      }
      const way = key === "ArrowUp" ? 1 : -1;
      const rows = visible.map(line).filter((other) => way * (other - line(node)) > 0);
      const next = way * Math.min(...rows.map((other) => way * other));
      const row = visible.filter((other) => line(other) === next);
      return row.sort((a, b) => Math.abs(a.x - node.x) - Math.abs(b.x - node.x) || a.index - b.index)[0];
    }

    picture.addEventListener("pointermove", (event) => {
      if (event.shiftKey) return; // Shift freezes the flag
      const node = nearest(event);
      if (node !== hovered) over(node);
      picture.classList.toggle("oc-pointing", node !== null);
    });
    picture.addEventListener("pointerleave", (event) => event.shiftKey || over(null));
    picture.addEventListener("click", (event) => {
      const node = nearest(event);
      if (options.click && options.click(node, event)) return;
      choose(node === selected ? null : node);
    });
    picture.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !entry) return;
      if (event.key === "Enter" || event.key === " ") {
        choose(selected === entry ? null : entry);
      } else if (event.key.startsWith("Arrow")) {
        const next = beside(entry, event.key);
        if (next) next.element.focus();
      } else {
        return;
      }
      event.preventDefault();
    });
    if (options.digits !== false) document.addEventListener("keydown", (event) => {
      if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey || !selected) return;
      if (event.key === "Escape") choose(null);
      else if (/^[1-9]$/.test(event.key)) {
        const next = numbered(selected)[Number(event.key) - 1];
        if (next) choose(next);
      }
    }, { signal });
    canvas.addEventListener("scroll", () => {
      holdNames();
      over(hovered);
    });
    const observer = new ResizeObserver(() => {
      const size = `${canvas.clientWidth} ${canvas.clientHeight}`;
      if (size === drawnSize) return;
      drawnSize = size;
      draw();
    });
    observer.observe(canvas);
    signal.addEventListener("abort", () => observer.disconnect());
    drawnSize = `${canvas.clientWidth} ${canvas.clientHeight}`;
    draw();

    return {
      fedBy, feeds, numbered,
      node: (id) => byId.get(id) || null,
      nodes: () => readingOrder().filter((node) => !node.hidden),
      selected: () => selected,
      select(id) {
        const node = id === null ? null : byId.get(id);
        if (node !== undefined && !(node && node.hidden)) choose(node);
        return node !== undefined;
      },
      hide(shapes, isHidden = () => false) {
        for (const node of nodes) node.hidden = shapes.includes(node.shape) || isHidden(node);
        if (selected && selected.hidden) choose(null);
        draw();
      },
      onChange: (listener) => listeners.push(listener),
      mark(ids, name) {
        marks.set(name, new Set(ids));
        showMark(name);
      },
      focused: () => entry,
      destroy: () => stop.abort(),
      labelled: () => layout.labelled,
      counts: () => ({
        nodes: picture.querySelectorAll(".oc-node:not(.oc-hidden)").length,
        edges: picture.querySelectorAll(".oc-edge:not(.oc-hidden)").length,
      }),
    };
  }

  Object.assign(OpenCLT, { graph, facts });
})();
