/* What the explorer says in the bar below its header: mistakes and the state of the server. */
"use strict";

(() => {
  const { html } = OpenCLT;
  const bar = () => document.getElementById("banner");

  function line(text, kind, closes) {
    const element = html("p", { class: `x-say x-${kind}` }, html("span", {}, text));
    if (closes) {
      const button = html("button", { type: "button", "aria-label": "Close this message" }, "\u00d7");
      button.addEventListener("click", () => element.remove());
      element.append(button);
    }
    bar().querySelectorAll(`.x-${kind}`).forEach((other) => other.remove());
    bar().append(element);
  }

  const error = (problem) => {
    if (!(problem instanceof OpenCLT.explorer.client.Ended)) line(problem.message, "error", true);
  };

  OpenCLT.explorer.say = {
    error,
    info: (text) => line(text, "info", true),
    /* Wait for a promise, and say what went wrong with it. */
    trying: (promise) => promise.then(() => clear(), error),
    clear,
    /* Say that the server does not answer, or that it does again. */
    gone(isGone) {
      bar().querySelectorAll(".x-gone").forEach((other) => other.remove());
      if (isGone) line("The server does not answer. What you did is kept; the page goes on when the server is back.", "gone", false);
    },
  };

  function clear() {
    bar().querySelectorAll(".x-error, .x-info").forEach((other) => other.remove());
  }
})();
