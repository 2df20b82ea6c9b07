/* The transcoder page: figures of plotly, which the worker makes one after another when the page is first opened.

   The panels are those of the page's layout (server/app.py): card-NAME with state-NAME, a sentence or buttons; figure-NAME,
   the figure; and below-NAME, a list of the features in it. A link to /transcoder/NAME shows the panel of that name.

   plot(name, figure) is also what the compare page uses: it shows a figure in the graph component figure-NAME. */
"use strict";

(() => {
  const { html } = OpenCLT;
  const { client } = OpenCLT.explorer;
  const NAMES = ["evaluation", "curves", "density", "norms", "correlations", "importance", "pca", "tsne"];
  const WAIT = 50; // milliseconds between looks for plotly's element, which its program makes
  const parts = {}, made = new Map(), failed = new Map(), pending = new Set();
  let isRunning = false, isStopped = false, isEvaluating = false;

  const at = (part, name) => document.getElementById(`${part}-${name}`);

  function build() {
    const { button } = OpenCLT.explorer.selection;
    parts.host = document.getElementById("page-transcoder");
    parts.work = html("div", { class: "x-work", role: "status", id: "transcoder-work" });
    // The bar stays while figure follows figure, so a click counts between two of them too.
    parts.work.addEventListener("click", ({ target }) => target.closest("[data-kind=figure] .x-cancel") && (isStopped = true));
    const jumps = NAMES.map((name) => {
      const title = at("card", name).getAttribute("aria-label");
      return button(title, () => OpenCLT.explorer.go(`/transcoder/${name}`), { "data-jump": name });
    });
    document.getElementById("transcoder-head").append(html("h1", {}, "Transcoder"), html("nav", { class: "x-buttons", "aria-label": "Figures" }, ...jumps), parts.work);
  }

  function show(path) {
    const name = path.replace(/^\/transcoder\/?/, "");
    for (const waiting of [...pending]) draw(waiting);
    if (!isStopped) run();
    if (NAMES.includes(name)) at("card", name).scrollIntoView({ block: "start" });
    else parts.host.scrollTop = 0;
  }

  /* Make the figures that are missing, one after another, while the page is looked at. */
  async function run() {
    if (isRunning) return;
    isRunning = true;
    isStopped = false;
    const missing = NAMES.filter((name) => !made.has(name) && !failed.has(name));
    for (const name of missing) state(name);
    const close = missing.length ? OpenCLT.explorer.graphPage.working("Figures", "figure", parts.work) : null;
    for (const name of missing) {
      if (parts.host.hidden || isStopped) break;
      await make(name, "figure", close);
    }
    if (close) close();
    isRunning = false;
    for (const name of missing) state(name);
  }

  /* Ask for the panel of a figure; `bar` shows how far it is. */
  async function make(name, kind, bar) {
    const title = at("card", name).getAttribute("aria-label");
    state(name, `${title} is being computed \u2026`);
    try {
      made.set(name, await client.job(kind, { name }, (progress) => bar.progress({ ...progress, phase: `${title}: ${progress.phase || "starting"}` })));
      failed.delete(name);
      draw(name);
    } catch (error) {
      if (error instanceof client.Ended) isStopped = true;
      else failed.set(name, error.message);
    }
    state(name);
  }

  /* What stands in place of a figure, or above it: what is happening, what went wrong, and what can be done. */
  function state(name, working = "") {
    const { button } = OpenCLT.explorer.selection, panel = made.get(name), place = at("state", name);
    const text = working || failed.get(name) || (panel ? panel.note : isRunning ? "This figure waits for the ones above." : isStopped ? "The computation was cancelled." : "");
    const tools = [];
    if (!working && failed.has(name) && !panel) tools.push(button("Try again", () => again(name)));
    else if (!working && !panel && !isRunning && isStopped) tools.push(button("Compute the figures", run));
    if (!working && name === "evaluation" && panel && panel.note && !isEvaluating) tools.push(button("Evaluate", evaluate, { id: "evaluate" }));
    place.replaceChildren(...(text ? [html("p", { class: "oc-none" }, text)] : []), ...(tools.length ? [html("p", { class: "x-buttons" }, ...tools)] : []));
  }

  function again(name) {
    failed.delete(name);
    run();
  }

  async function evaluate() {
    isEvaluating = true;
    failed.delete("evaluation");
    const close = OpenCLT.explorer.graphPage.working("Evaluation", "evaluate", parts.work), wasStopped = isStopped;
    await make("evaluation", "evaluate", close);
    close();
    isStopped = wasStopped; // a cancelled evaluation does not stop the other figures
    isEvaluating = false;
    state("evaluation");
  }

  function draw(name) {
    const { figure, features } = made.get(name);
    if (parts.host.hidden) return pending.add(name); // letters of a hidden page have no size
    pending.delete(name);
    if (!figure) return;
    plot(name, figure, (point) => features[point] && OpenCLT.explorer.go(pathOf(features[point])));
    const links = features.map((feature) => OpenCLT.explorer.link(pathOf(feature), feature));
    at("below", name).replaceChildren(...(links.length ? [html("details", {}, html("summary", {}, `The ${links.length} features of this figure`), html("p", { class: "x-features" }, ...links))] : []));
  }

  const pathOf = (feature) => `/features/${feature.replace("L", "")}`;

  /* Show a figure in a graph component of the layout; `clicked` is called with the number of the point. */
  function plot(name, figure, clicked) {
    at("holder", name).hidden = false;
    window.dash_clientside.set_props(`figure-${name}`, { figure });
    if (!clicked) return;
    const listen = () => {
      const element = at("figure", name).querySelector(".js-plotly-plot");
      if (!element || !element.on) return setTimeout(listen, WAIT);
      if (element.dataset.listens) return;
      element.dataset.listens = "true";
      element.on("plotly_click", ({ points }) => clicked(points[0].pointIndex));
    };
    listen();
  }

  OpenCLT.explorer.transcoder = { build, show, plot };
})();
