/* Starts the explorer once Dash has drawn the page, and connects the address with the session. */
"use strict";

(() => {
  const { html } = OpenCLT;
  const PAGES = ["graph", "features", "steer", "compare", "transcoder"];
  let started = false, isReady = false;

  const pageOf = (path) => PAGES.find((name) => path === `/${name}` || path.startsWith(`/${name}/`)) || "graph";

  /* Show the page that an address names; Dash calls this whenever the address changes. */
  function navigate(path) {
    const name = pageOf(path || "/");
    for (const other of PAGES) {
      const page = document.getElementById(`page-${other}`), link = document.getElementById(`link-${other}`);
      if (page) page.hidden = other !== name;
      if (link) link.toggleAttribute("data-here", other === name);
      if (link && other === name) link.setAttribute("aria-current", "page");
      else if (link) link.removeAttribute("aria-current");
    }
    if (started) shown(name, path);
    return name;
  }

  function shown(name, path) {
    const { explorer } = OpenCLT;
    const page = { steer: explorer.steer, features: explorer.features, compare: explorer.compare, transcoder: explorer.transcoder }[name];
    if (page && page.show) page.show(path);
    if (name === "graph") fromAddress();
  }

  /* Go to an address of the explorer without loading the page again. */
  function go(address) {
    history.pushState(null, "", address);
    dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    dispatchEvent(new PopStateEvent("popstate"));
    navigate(location.pathname);
  }

  /* A link to an address of the explorer, which does not load the page again. */
  function link(address, text, attributes = {}) {
    const element = html("a", { href: address, ...attributes }, text);
    element.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      go(address);
    });
    return element;
  }

  /* The address of the graph page names the graph, the share of influence and the selected node. */
  function toAddress(session, former) {
    if (pageOf(location.pathname) !== "graph" || !session.graph) return;
    const search = new URLSearchParams({ graph: session.graph, percent: session.percent });
    if (session.selected) search.set("node", session.selected);
    const address = `/?${search}`;
    if (address === location.pathname + location.search) return;
    if (former.graph && former.selected !== session.selected) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  }

  function fromAddress() {
    const { store, say } = OpenCLT.explorer, search = new URLSearchParams(location.search);
    const session = store.session(), actions = [];
    const graph = search.get("graph"), percent = Number(search.get("percent"));
    if (graph && graph !== session.graph) actions.push({ kind: "show", graph });
    if (Number.isInteger(percent) && percent >= 1 && percent <= 100 && percent !== session.percent) actions.push({ kind: "percent", percent });
    const select = () => store.select(search.get("node"));
    if (actions.length) say.trying(store.act(...actions).then(select));
    else if (search.has("graph")) select();
  }

  function facts(status) {
    const { store, say, graphPage } = OpenCLT.explorer;
    say.gone(status === null);
    if (!status) return;
    const shape = status.shape ? ` \u00b7 ${status.shape[0]} \u00d7 ${status.shape[1]}` : "";
    const load = status.jobs.find((job) => job.kind === "load");
    document.getElementById("facts").textContent = status.ready ? `${status.model}${shape}` : status.failed || (load && load.phase) || "loading";
    if (status.failed) say.error(new Error(status.failed));
    const isEmpty = !store.session().graph && !store.isSending();
    if (isEmpty && status.start) say.trying(store.act({ kind: "show", graph: status.start }));
    if (status.ready && !isReady) {
      isReady = true;
      if (isEmpty && !status.start) graphPage.tracePrompt(graphPage.EXAMPLES[0]);
      else graphPage.refresh();
    }
  }

  function start() {
    const { explorer } = OpenCLT;
    if (started || !document.getElementById("page-graph")) return;
    started = true;
    observer.disconnect();
    explorer.graphPage.build(document.getElementById("page-graph"));
    for (const part of [explorer.steer, explorer.features, explorer.compare, explorer.transcoder, explorer.tools, explorer.keys]) {
      if (part && part.build) part.build();
    }
    const session = explorer.store.restore();
    explorer.store.onChange(toAddress);
    explorer.store.replace({ ...explorer.store.history(), present: session });
    addEventListener("popstate", () => pageOf(location.pathname) === "graph" && fromAddress());
    navigate(location.pathname);
    explorer.client.watch(facts);
    document.body.dataset.started = "true";
  }

  const observer = new MutationObserver(start);
  observer.observe(document.documentElement, { childList: true, subtree: true });
  addEventListener("DOMContentLoaded", start);

  Object.assign(OpenCLT.explorer, { go, link });
  OpenCLT.explorer.isIdle = () => !OpenCLT.explorer.client.running() && !OpenCLT.explorer.store.isSending();
  window.dash_clientside = Object.assign({}, window.dash_clientside, { explorer: { navigate } });
})();
