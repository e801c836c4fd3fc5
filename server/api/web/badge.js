// The server badge: asks the server how it is, again and again.

import { getJson } from "./api.js";
import { Problem } from "./problems.js";

const PERIOD_MS = { ready: 10_000, key: 60_000 };
const SOON_MS = 2_000;

const WORDS = {
  loading: "is loading",
  draining: "is stopping and takes no new requests",
  failed: "has failed",
};

export class Badge {
  #root;
  #actions;
  #timer = null;
  #known = ""; // the server that `onReady` has been told of

  // `actions` are { key(), onReady(version), onRefused() }.
  constructor(root, actions) {
    this.#root = root;
    this.#actions = actions;
    document.addEventListener("visibilitychange", () => this.ask());
  }

  async ask() {
    clearTimeout(this.#timer);
    if (document.hidden) return;
    const state = await this.#state();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.ask(), PERIOD_MS[state] ?? SOON_MS);
  }

  async #state() {
    const { key, onReady, onRefused } = this.#actions;
    try {
      const version = await getJson("version", key());
      const { status, model, device } = version;
      const ready = status === "ready";
      const identity = ready ? JSON.stringify(version) : this.#known;
      if (identity !== this.#known) await onReady(version);
      this.#known = identity;
      return this.#show(status, ready ? `${model} on ${device}` : `${model} ${WORDS[status] ?? status}`);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401) {
        if (this.#root.dataset.state !== "key") onRefused();
        return this.#show("key", "API key needed");
      }
      return this.#show("gone", error.status ? error.title : "The server is gone");
    }
  }

  #show(state, text) {
    this.#root.dataset.state = state;
    this.#root.textContent = text;
    this.#root.title = text;
    return state;
  }
}
