/* The tools in the header: undo and redo, opening and keeping files, and the list of keys; and the keys themselves. */
"use strict";

(() => {
  const { html } = OpenCLT;
  const { client, store, say, selection } = OpenCLT.explorer;
  const EXPORTS = [
    ["session", "Session (opens again in the explorer and in Python)"], ["png", "Picture (PNG)"], ["svg", "Picture (SVG)"],
    ["pdf", "Picture (PDF)"], ["html", "Page that needs no network (HTML)"], ["json", "Graph for circuit-tracer and Neuronpedia (JSON)"],
  ];
  const KEYS = [
    ["/", "go to the search of nodes, or of features; Enter goes to the next match"], ["Tab", "enter the graph"], ["arrow keys", "move between nodes"],
    ["Enter", "select the node"], ["1\u20139", "go to that neighbour of the selected node"], ["Alt+Left", "go back to the former selection"],
    ["Esc", "clear the selection, or close what is open"], ["P or Ctrl-click", "pin the node"],
    ["hold G and click", "group the clicked nodes"], ["L", "label the selected feature"], ["Z, Shift+Z", "undo, redo"],
    ["E", "expand the panel with the focus, or the circuit"], ["hold Shift", "freeze the flag beside the pointer"], ["?", "show this list"],
  ];

  function build() {
    const undo = tool("Undo", () => say.trying(store.act({ kind: "undo" })), { id: "undo", title: "Z" });
    const redo = tool("Redo", () => say.trying(store.act({ kind: "redo" })), { id: "redo", title: "Shift+Z" });
    const chooser = html("input", { type: "file", id: "open-file", accept: ".json", "aria-label": "File to open", hidden: "" });
    chooser.addEventListener("change", () => {
      const [file] = chooser.files;
      chooser.value = "";
      if (file) open(file);
    });
    const kinds = EXPORTS.map(([kind, name]) => tool(name, () => keep(kind), { "data-export": kind }));
    const menu = html("details", { class: "x-menu", id: "export" }, html("summary", { class: "x-tool" }, "Export"), html("div", {}, ...kinds));
    menu.addEventListener("focusout", (event) => menu.contains(event.relatedTarget) || (menu.open = false));
    document.getElementById("tools").append(
      undo, redo, tool("Open", () => chooser.click(), { id: "open", title: "A session, or a graph of circuit-tracer or Neuronpedia" }),
      chooser, tool("Save", () => keep("session"), { id: "save" }), menu, tool("?", help, { id: "help", "aria-label": "Keys" }));
    store.onChange(() => {
      undo.disabled = !store.history().past.length;
      redo.disabled = !store.history().future.length;
    });
    document.addEventListener("keydown", pressed);
    document.addEventListener("keyup", (event) => event.key.toLowerCase() === "g" && selection.hold(false));
    addEventListener("blur", () => selection.hold(false));
  }

  function tool(name, action, attributes) {
    const button = html("button", { type: "button", class: "x-tool", ...attributes }, name);
    button.addEventListener("click", action);
    return button;
  }

  /* Let the server write a file of what is shown, and let the browser keep it. */
  async function keep(kind) {
    document.getElementById("export").open = false;
    try {
      const { file, name } = await client.job("export", { session: store.session(), kind });
      const link = html("a", { href: `/api/file/${file}`, download: name });
      document.body.append(link);
      link.click();
      link.remove();
    } catch (error) {
      say.error(error);
    }
  }

  async function open(file) {
    try {
      const answer = await fetch(`/api/open/${encodeURIComponent(file.name)}`, { method: "POST", body: await file.arrayBuffer() });
      const content = await answer.json();
      if (content.error) throw new Error(content.error);
      const { past, present } = store.history();
      say.clear();
      store.replace({ past: [...past, present], present: content.session, future: [] });
      OpenCLT.explorer.go("/");
    } catch (error) {
      say.error(error);
    }
  }

  function help() {
    const old = document.getElementById("keys");
    if (old) return old.close();
    const rows = KEYS.map(([key, what]) => html("tr", {}, html("th", { scope: "row" }, html("kbd", {}, key)), html("td", {}, what)));
    const close = tool("Close", () => box.close(), {});
    const box = html("dialog", { id: "keys", "aria-label": "Keys" }, html("h2", {}, "Keys"), html("table", { class: "x-table" }, ...rows), close);
    box.addEventListener("close", () => box.remove());
    document.body.append(box);
    box.showModal();
  }

  const isTyping = (target) => target instanceof HTMLElement &&
    (target.isContentEditable || target.matches("textarea, select, input:not([type=checkbox]):not([type=range]):not([type=button])"));

  const onGraphPage = () => !document.getElementById("page-graph").hidden;

  /* Keys act on the selected node, or on the node with the focus; they are dead while something is typed. */
  function pressed(event) {
    if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const graph = OpenCLT.explorer.graphPage.graph();
    const node = graph && (graph.selected() || (document.activeElement.closest("#graph") && graph.focused()));
    if (key === "?") help();
    else if (key === "/") find();
    else if (key === "z") say.trying(store.act({ kind: event.shiftKey ? "redo" : "undo" }));
    else if (!onGraphPage() || !graph) return;
    else if (key === "g") selection.hold(true);
    else if (key === "e") expand();
    else if (key === "Escape") escape(graph);
    else if (/^[1-9]$/.test(key) && graph.selected()) {
      const next = graph.numbered(graph.selected())[Number(key) - 1];
      if (next) graph.select(next.id);
    } else if (key === "p" && node) selection.pin(node);
    else if (key === "l" && node && node.feature) {
      graph.select(node.id);
      selection.editLabel(node);
    } else return;
    event.preventDefault();
  }

  function find() {
    const field = document.querySelector(".x-page:not([hidden]) input[type=search]") || document.getElementById("prompt");
    if (field.id === "prompt" && !onGraphPage()) OpenCLT.explorer.go("/");
    field.focus();
    field.select();
  }

  /* The panel with the focus fills the window, or the circuit if no panel has it; once more, and it does not. */
  function expand() {
    const big = document.querySelector(".x-expanded");
    if (big) return big.classList.remove("x-expanded");
    const place = document.activeElement.closest(".x-panel, .x-circuit, .x-left") || document.getElementById("circuit");
    place.classList.add("x-expanded");
  }

  function escape(graph) {
    const big = document.querySelector(".x-expanded");
    if (big) big.classList.remove("x-expanded");
    else graph.select(null);
  }

  OpenCLT.explorer.tools = { build, expand };
})();
