/* The client of the explorer's server: requests, jobs, and a watch on the connection.

   client.post(address, body), client.get(address)   a promise of the answer; rejects with an Error whose message is a
                                                     sentence
   client.job(kind, body, onProgress)                a promise of a job's result. A new job of a kind replaces an older
                                                     one, whose promise is rejected with `replaced`.
   client.cancel(kind)                               cancel the job of a kind
   client.running()                                  number of jobs whose results this page waits for
   client.watch(listener)                            listener(status or null): the state of the server, null if it does
                                                     not answer; called whenever it changes

   All scripts of the explorer define their parts in window.OpenCLT.explorer; start.js starts them. */
"use strict";

window.OpenCLT = window.OpenCLT || {};
OpenCLT.explorer = OpenCLT.explorer || {};

(() => {
  const POLL = 10, WATCH = 1000; // milliseconds between questions about a job, whose answers wait, and about the server
  const current = new Map(); // the latest job of each kind
  const starts = new Map(); // a promise for each kind: the server has answered the request that started its last job
  const listeners = [];
  let last = "", status = null;

  class Ended extends Error {} // a job was cancelled, or another one of its kind took its place

  async function request(address, options) {
    let answer;
    try {
      answer = await fetch(address, options);
    } catch (error) {
      throw new Error("The server does not answer.");
    }
    let content = {};
    try {
      content = await answer.json();
    } catch (error) {
      throw new Error(`The server answered with status ${answer.status}.`);
    }
    if (!answer.ok || content.error) throw new Error(content.error || `The server answered with status ${answer.status}.`);
    return content;
  }

  const get = (address) => request(address, { headers: { Accept: "application/json" } });
  const post = (address, body) =>
    request(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

  let running = 0;
  async function job(kind, body, onProgress) {
    running += 1;
    try {
      return await follow(kind, body, onProgress);
    } finally {
      running -= 1;
    }
  }

  async function follow(kind, body, onProgress = () => {}) {
    const ticket = {};
    current.set(kind, ticket);
    const number = await start(kind, ticket, body);
    for (;;) {
      if (current.get(kind) !== ticket) throw new Ended("replaced");
      const state = await get(`/api/job/${number}`);
      if (current.get(kind) !== ticket) throw new Ended("replaced");
      if (state.state === "done") return state.result;
      if (state.state === "cancelled") throw new Ended("cancelled");
      if (state.state === "failed") throw new Error(state.error);
      onProgress(state);
      await pause(POLL);
    }
  }

  /* Start a job and return its number. Requests that are sent together may arrive in any order, so each waits until the
     one before it is answered; a job that was replaced in the meantime is never started. */
  function start(kind, ticket, body) {
    const former = starts.get(kind) || Promise.resolve();
    ticket.number = former.then(async () => {
      if (current.get(kind) !== ticket) throw new Ended("replaced");
      return (await post(`/api/start/${kind}`, body)).job;
    });
    starts.set(kind, ticket.number.catch(() => {}));
    return ticket.number;
  }

  async function cancel(kind) {
    const ticket = current.get(kind);
    current.delete(kind);
    const number = ticket && (await ticket.number.catch(() => null));
    if (number) await post(`/api/cancel/${number}`, {});
  }

  function watch(listener) {
    listeners.push(listener);
    if (listeners.length > 1) return listener(status);
    const look = async () => {
      try {
        status = await get("/api/status");
      } catch (error) {
        status = null;
      }
      const text = JSON.stringify(status);
      if (text !== last) for (const each of listeners) each(status);
      last = text;
      setTimeout(look, WATCH);
    };
    look();
  }

  OpenCLT.explorer.client = {
    get, post, job, cancel, watch, Ended,
    status: () => status,
    running: () => running,
  };
})();
