// Below a canvas: one token, how sure the model is of it, and what stood there before.

import { describe, percent } from "./words.js";

export class Inspector {
  #root;
  #actions;

  // `actions` are { seek(frame), close() }.
  constructor(root, actions) {
    this.#root = root;
    this.#actions = actions;
    this.clear();
  }

  clear() {
    const hint = element("p", "hint", "Point at a token, or move to it with the arrow keys, for its history.");
    this.#root.replaceChildren(hint);
  }

  show(recording, position, frame) {
    const { kind, text, confidence } = recording.at(position, frame);
    const head = element("p", "token");
    head.append(
      element("b", "", describe(kind, text)),
      element("span", "", `position ${position + 1} of ${recording.size}`),
    );
    if (confidence !== null) head.append(meter(confidence), element("span", "", `probability ${percent(confidence)}`));
    head.append(this.#closing());
    const past = element("ol", "history");
    for (const change of recording.history(position)) past.append(this.#entry(change, frame));
    this.#root.replaceChildren(head, past);
  }

  // Shown where the inspector is a sheet over the page.
  #closing() {
    const button = element("button", "quiet close", "Close");
    button.type = "button";
    button.addEventListener("click", () => this.#actions.close());
    return button;
  }

  #entry(change, frame) {
    const item = document.createElement("li");
    const button = element("button", "", `step ${change.step} `);
    button.type = "button";
    button.dataset.kind = change.kind;
    button.toggleAttribute("data-later", change.frame > frame);
    button.append(element("b", "", describe("token", change.text)), ` ${percent(change.confidence)}`);
    button.addEventListener("click", () => this.#actions.seek(change.frame));
    item.append(button);
    return item;
  }
}

function meter(value) {
  const bar = document.createElement("meter");
  bar.value = value;
  bar.setAttribute("aria-hidden", "true");
  return bar;
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
