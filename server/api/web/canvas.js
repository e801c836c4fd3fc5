// Draws the canvas of one run at one step, and lets pointer and keyboard pick a token.

import { describe, percent } from "./words.js";

export class Canvas {
  #cells = [];
  #gaps = []; // text before each cell: a space where its token begins with one
  #drawn = []; // what each cell shows, so that only changes touch the page
  #root;
  #onPick;

  constructor(root, onPick) {
    this.#root = root;
    this.#onPick = onPick;
    root.addEventListener("pointerover", (event) => this.#pick(event.target));
    root.addEventListener("focusin", (event) => this.#pick(event.target));
    root.addEventListener("keydown", (event) => this.#move(event));
  }

  draw(recording, frame) {
    if (recording.size !== this.#cells.length) this.#build(recording.size);
    const length = recording.isEnd(frame) ? recording.answer.usage.caption_tokens : Infinity;
    for (let position = 0; position < recording.size; position += 1) {
      const state = recording.at(position, frame);
      const beyond = position >= length;
      const key = JSON.stringify([state, beyond]);
      if (key === this.#drawn[position]) continue;
      this.#drawn[position] = key;
      paint(this.#cells[position], state, position, beyond);
      this.#gaps[position].data = state.text.startsWith(" ") && position ? " " : "";
    }
  }

  mark(position) {
    this.#root.querySelector(".picked")?.classList.remove("picked");
    this.#cells[position]?.classList.add("picked");
  }

  #build(size) {
    this.#cells = Array.from({ length: size }, (_, position) => {
      // Not a button, which is a box of its own: lines would break between the parts of a word.
      const cell = document.createElement("span");
      cell.role = "button";
      cell.className = "cell";
      cell.dataset.position = position;
      cell.tabIndex = position ? -1 : 0;
      return cell;
    });
    this.#drawn = [];
    this.#gaps = this.#cells.map(() => new Text());
    this.#root.replaceChildren(...this.#cells.flatMap((cell, at) => [this.#gaps[at], cell]));
    this.#root.setAttribute("aria-label", `Canvas of ${size} tokens; arrow keys move between them`);
  }

  #pick(target) {
    const cell = target.closest(".cell");
    if (cell) this.#onPick(Number(cell.dataset.position));
  }

  #move(event) {
    const from = Number(event.target.dataset.position);
    const to = this.#target(event.key, from);
    if (to === null || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.#cells[from].tabIndex = -1;
    this.#cells[to].tabIndex = 0;
    this.#cells[to].focus();
  }

  #target(key, from) {
    const last = this.#cells.length - 1;
    switch (key) {
      case "ArrowLeft": return Math.max(0, from - 1);
      case "ArrowRight": return Math.min(last, from + 1);
      case "ArrowUp": return this.#inNextRow(from, -1);
      case "ArrowDown": return this.#inNextRow(from, 1);
      case "Home": return 0;
      case "End": return last;
      default: return null;
    }
  }

  // The cell of the row above or below that is nearest by its middle.
  #inNextRow(from, direction) {
    const middle = (cell) => cell.offsetLeft + cell.offsetWidth / 2;
    const row = (cell) => cell.offsetTop + cell.offsetHeight;
    const start = this.#cells[from];
    let best = from;
    let found = null;
    for (let at = from + direction; this.#cells[at]; at += direction) {
      const cell = this.#cells[at];
      if (Math.abs(row(cell) - row(start)) < 4) continue;
      found ??= row(cell);
      if (Math.abs(row(cell) - found) >= 4) break;
      if (best === from || distance(cell) < distance(this.#cells[best])) best = at;
    }
    return best;

    function distance(cell) {
      return Math.abs(middle(cell) - middle(start));
    }
  }
}

function paint(cell, state, position, beyond) {
  const { kind, text, now, was, confidence, revisions } = state;
  // A mask behind the end is as empty as what was revealed there.
  const shown = beyond && kind === "mask" ? "end" : kind;
  cell.dataset.kind = now && kind === "token" ? now : shown;
  cell.toggleAttribute("data-revised", revisions > 0 && !now);
  cell.toggleAttribute("data-beyond", beyond);
  cell.toggleAttribute("data-now", Boolean(now));
  cell.style.setProperty("--doubt", confidence === null ? 0 : (1 - confidence).toFixed(2));
  cell.replaceChildren();
  if (now === "revise" && kind === "token" && was.trim()) {
    const former = document.createElement("s");
    former.textContent = was.trim();
    cell.append(former);
  }
  cell.append(text.trim().replaceAll("\n", "↵"));
  cell.setAttribute("aria-label", `${position + 1}: ${describe(kind, text)}${label(state)}`);
}

function label({ now, confidence, was }) {
  if (confidence === null) return "";
  const change = { reveal: ", revealed now", revise: `, was ${describe("token", was)}` }[now] ?? "";
  return `${change}, ${percent(confidence)}`;
}
