/* The session of the explorer in the browser, with its undo and redo; Python's reduce() makes every new session.

   store.session()        the session that is shown; store.history(): with the sessions before and after it
   store.act(...actions)  send actions, which are done in order; a promise that rejects with a sentence if one of them is
                          not possible. Actions wait while the server does not answer, so nothing is lost.
   store.select(id)       select a node or none, which needs no server
   store.replace(history) put another history in place, such as that of a file
   store.onChange(f)      call f(session, former session) after each change
   store.isSending()      whether actions wait for the server

   The browser keeps the history of this tab, so it survives a reload and a restart of the server. */
"use strict";

(() => {
  const KEY = "open-clt-history", RETRY = 1000;
  const EMPTY = {
    past: [], future: [],
    present: {
      graph: "", percent: 80, hidden: [], densest: 1, selected: null, pins: [], groups: [], labels: {}, steers: [], runs: [],
    },
  };
  const listeners = [], waiting = [];
  let history = EMPTY, sending = false;

  function set(next) {
    const former = history.present;
    history = next;
    try {
      sessionStorage.setItem(KEY, JSON.stringify(history));
    } catch (error) {
      // The browser's store is full or switched off; the session then lives until the page is closed.
    }
    for (const listener of listeners) listener(history.present, former);
  }

  function restore() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY));
      if (kept && kept.present) history = kept;
    } catch (error) {
      history = EMPTY;
    }
    return history.present;
  }

  function act(...actions) {
    return new Promise((resolve, reject) => {
      waiting.push({ actions, resolve, reject });
      send();
    });
  }

  async function send() {
    if (sending || !waiting.length) return;
    sending = true;
    const { actions, resolve, reject } = waiting[0];
    try {
      const next = await OpenCLT.explorer.client.post("/api/act", { history, actions });
      next.present.selected = history.present.selected; // it may have changed meanwhile
      waiting.shift();
      set(next);
      resolve(next.present);
    } catch (error) {
      if (error.message === "The server does not answer.") {
        sending = false;
        setTimeout(send, RETRY);
        return;
      }
      waiting.shift();
      reject(error);
    }
    sending = false;
    send();
  }

  function select(id) {
    if (id !== history.present.selected) set({ ...history, present: { ...history.present, selected: id } });
  }

  OpenCLT.explorer.store = {
    act, select, restore,
    session: () => history.present,
    history: () => history,
    replace: set,
    onChange: (listener) => listeners.push(listener),
    isSending: () => waiting.length > 0,
  };
})();
