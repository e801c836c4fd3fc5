// The view of one run: counts, canvas, token under the pointer, caption or problem.

import { Canvas } from "./canvas.js";
import { Inspector } from "./inspector.js";
import { bytes, count, percent, seconds } from "./words.js";

export class Panel {
  #recording;
  #canvas;
  #inspector;
  #picked = null;
  #frame = 0;
  #ticking = null;
  #onPicked;

  // `actions` are { seek(frame), picked(panel), retry(), copyText(button, text, what), copyCurl(order) }.
  constructor(recording, actions) {
    this.#recording = recording;
    const template = document.querySelector("#panel");
    this.root = template.content.firstElementChild.cloneNode(true);
    this.#find("h2").textContent = recording.order.title;
    this.#canvas = new Canvas(this.#find(".canvas"), (position) => this.#pick(position));
    this.#inspector = new Inspector(this.#find(".inspector"), { seek: actions.seek, close: () => this.unpick() });
    this.#onPicked = actions.picked;
    this.#find(".copy-caption").addEventListener("click", (event) => {
      const ended = recording.isEnd(this.#frame);
      actions.copyText(event.currentTarget, recording.textAt(this.#frame), ended ? "Caption" : `Step ${this.#frame}`);
    });
    this.#find(".copy-curl").addEventListener("click", () => actions.copyCurl(recording.order));
    this.#find(".again").addEventListener("click", actions.retry);
  }

  // Shows the run after `frame` steps, or at its last one if it has fewer.
  draw(frame) {
    const recording = this.#recording;
    this.#frame = Math.min(frame, recording.length);
    this.#canvas.draw(recording, this.#frame);
    if (this.#picked !== null) this.#inspector.show(recording, this.#picked, this.#frame);
    const counts = recording.counts(this.#frame);
    counts.seconds = seconds(counts.seconds);
    for (const cell of this.root.querySelectorAll("[data-count]")) cell.textContent = counts[cell.dataset.count];
    const ended = recording.isEnd(this.#frame);
    this.root.toggleAttribute("data-over", ended);
    this.#find(".copy-caption").disabled = this.#frame === 0;
    if (recording.length) this.#find(".sending").hidden = true;
    const caption = this.#find(".caption");
    caption.hidden = !ended;
    if (ended) caption.replaceChildren(recording.answer.caption, sureness(recording.answer));
  }

  // Shows how much of the picture has reached the server, 0 to 1.
  sent(part) {
    const size = this.#recording.order.picture.blob.size;
    this.#find(".sending").hidden = part >= 1;
    this.#find(".sending progress").value = part;
    this.#find(".sending span").textContent = `Sending the picture: ${bytes(part * size)} of ${bytes(size)}`;
  }

  // Shows why the run ended early; what was recorded stays.
  fail(problem) {
    this.#find(".sending").hidden = true;
    this.root.toggleAttribute("data-failed", true);
    this.root.toggleAttribute("data-blank", this.#recording.length === 0);
    const box = this.#find(".problem");
    box.hidden = false;
    box.toggleAttribute("data-calm", problem.code === "stopped");
    const title = document.createElement("strong");
    title.textContent = problem.title;
    const text = document.createElement("p");
    text.textContent = problem.message;
    this.#find(".said").replaceChildren(title, text, details(problem));
    this.#countDown(this.#find(".again"), problem.retryAfter ?? 0);
  }

  leave() {
    clearTimeout(this.#ticking);
  }

  // Looks at no token any more.
  unpick() {
    this.#picked = null;
    this.root.removeAttribute("data-picked");
    this.#canvas.mark(null);
    this.#inspector.clear();
  }

  #countDown(button, left) {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0) this.#ticking = setTimeout(() => this.#countDown(button, left - 1), 1000);
  }

  #pick(position) {
    this.#picked = position;
    this.root.toggleAttribute("data-picked", true);
    this.#onPicked(this);
    this.#canvas.mark(position);
    this.#inspector.show(this.#recording, position, this.#frame);
  }

  #find(selector) {
    return this.root.querySelector(selector);
  }
}

function sureness({ caption_confidence: confidence, finish_reason: reason, usage, warnings = [] }) {
  const note = document.createElement("small");
  const sure = confidence === undefined ? [] : [`Mean token probability ${percent(confidence)}`];
  const cut = reason === "length" ? [`Cut off at ${count(usage.caption_tokens, "token")}`] : [];
  note.textContent = [...cut, ...sure, ...warnings].join(" · ");
  return note;
}

function details({ status, param, code, id }) {
  const line = document.createElement("p");
  line.className = "hint";
  const parts = [status ? `HTTP ${status}` : "", status ? code : "", param ? `field ${param}` : "", id ? `request ${id}` : ""];
  line.textContent = parts.filter(Boolean).join(" · ");
  return line;
}
