/* The circuit: pinned nodes and groups with their whole labels, the scores of this part, and what can be done with it. */
"use strict";

(() => {
  const { html, digits, signed } = OpenCLT;
  const { client, store, say } = OpenCLT.explorer;
  const MOST_WEIGHTS = 40;
  let drawn = "", picture = null, shown = null;

  const kept = ({ graph, pins, groups, labels }) => JSON.stringify([graph, pins, groups, labels]);

  function update(host, session) {
    if (kept(session) === drawn) return;
    drawn = kept(session);
    host.dataset.boxes = "";
    if (!host.childElementCount) build(host);
    fill(host, session);
  }

  function build(host) {
    const { button, groupPins } = OpenCLT.explorer.selection;
    host.append(
      html("div", { class: "x-circuit-bar" },
        html("b", {}, "Circuit"), html("span", { id: "circuit-score" }),
        button("Group the pins", groupPins), button("Suggest groups", () => suggest(host)),
        button("Weights", () => toggleWeights(host), { id: "weights" }), button("Steer these", steerAll)),
      html("div", { id: "suggestions" }),
      html("div", { id: "groups", class: "x-groups" }),
      html("div", { id: "circuit-graph", class: "x-graph" }));
  }

  async function fill(host, session) {
    const place = host.querySelector("#circuit-graph"), score = host.querySelector("#circuit-score");
    host.querySelector("#groups").replaceChildren(...session.groups.map(groupLine));
    try {
      shown = session.graph && session.pins.length ? await client.job("circuit", { session }) : null;
    } catch (error) {
      if (error instanceof client.Ended) return;
      shown = null;
      say.error(error);
    }
    if (picture) picture.destroy();
    picture = null;
    place.replaceChildren();
    score.textContent = shown
      ? `replacement ${digits(shown.scores[0])}, completeness ${digits(shown.scores[1])} of this part`
      : "Pin nodes (P or Ctrl-click) to put them here.";
    if (shown) {
      picture = OpenCLT.graph(place, shown.picture, { label: "Circuit", digits: false });
      host.dataset.boxes = shown.names.length;
    }
  }

  function groupLine(group) {
    const { button } = OpenCLT.explorer.selection;
    const size = Math.min(36, Math.max(10, group.name.length));
    const name = html("input", { type: "text", value: group.name, size, maxlength: 200, "aria-label": "Name of the group" });
    name.addEventListener("change", () => say.trying(store.act({ kind: "rename", name: group.name, new_name: name.value })));
    return html("span", { class: "x-group", title: group.members.join("  ") }, name,
      html("small", {}, ` ${group.members.length} nodes `),
      button("Ungroup", () => say.trying(store.act({ kind: "ungroup", name: group.name }))),
      button("Steer", () => OpenCLT.explorer.steer.add(group.members, group.name)));
  }

  async function suggest(host) {
    const place = host.querySelector("#suggestions"), { button } = OpenCLT.explorer.selection;
    place.replaceChildren(html("p", { class: "oc-none" }, "Comparing features \u2026"));
    try {
      const groups = await client.job("suggestions", { session: store.session() });
      const lines = groups.map((group) => {
        const line = html("span", { class: "x-group", "data-members": group.members.join(" "), title: group.members.join("  ") },
          html("b", {}, group.name), html("small", {}, ` ${group.members.length} nodes `));
        line.append(
          button("Take", () => {
            done(place, line);
            say.trying(store.act({ kind: "group", ...group }));
          }),
          button("Refuse", () => done(place, line)));
        return line;
      });
      const none = html("p", { class: "oc-none" }, "No features are similar enough for a group.");
      const close = button("Close", () => place.replaceChildren());
      place.replaceChildren(...(lines.length ? lines : [none]), close);
    } catch (error) {
      place.replaceChildren();
      say.error(error);
    }
  }

  /* A suggestion is taken or refused; after the last one, the circuit is seen again. */
  function done(place, line) {
    line.remove();
    if (!place.querySelector("[data-members]")) place.replaceChildren();
  }

  async function steerAll() {
    const { groups, pins } = store.session(), { steer, graphPage } = OpenCLT.explorer;
    const free = pins.filter((id) => !groups.some((group) => group.members.includes(id)));
    const nodes = free.map((id) => graphPage.graph() && graphPage.graph().node(id)).filter((node) => node && node.feature);
    if (!groups.length && !nodes.length) return say.info("Pin a feature first; then it can be steered.");
    await Promise.all([
      ...groups.map((group) => steer.add(group.members, group.name, false)),
      ...nodes.map((node) => steer.add([node.id], node.brief || node.label, false)),
    ]);
    OpenCLT.explorer.go("/steer");
    steer.run();
  }

  /* The edges between the boxes, strongest first. */
  function weights() {
    const labels = new Map(shown.picture.nodes.map((node) => [node.id, node.brief || node.label]));
    const name = (index) => labels.get(shown.names[index]) || shown.names[index];
    const sorted = [...shown.edges].sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, MOST_WEIGHTS);
    const head = ["from", "to", "weight"].map((title) => html("th", { scope: "col" }, title));
    return html("table", { class: "x-table" }, html("thead", {}, html("tr", {}, ...head)), html("tbody", {},
      ...sorted.map(([source, target, weight]) => html("tr", {}, html("td", {}, name(source)), html("td", {}, name(target)),
        html("td", { class: "x-number" }, signed(weight))))));
  }

  function toggleWeights(host) {
    const place = host.querySelector("#suggestions");
    if (place.childElementCount || !shown) return place.replaceChildren();
    place.replaceChildren(OpenCLT.explorer.selection.button("Close", () => place.replaceChildren()), weights());
  }

  OpenCLT.explorer.circuit = { update, shown: () => shown };
})();
