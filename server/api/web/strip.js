// Under the scrubber: how many tokens every step revised.

export class Strip {
  #root;

  constructor(root) {
    this.#root = root;
  }

  // One bar a step, `planned` of them; runs side by side share a bar.
  draw(recordings, planned, frame) {
    const revised = Array.from({ length: planned }, (_, at) =>
      recordings.reduce((sum, recording) => sum + revisedIn(recording, at), 0));
    const most = Math.max(1, ...revised);
    while (this.#root.childElementCount < planned) this.#root.append(document.createElement("i"));
    while (this.#root.childElementCount > planned) this.#root.lastChild.remove();
    for (const [at, bar] of [...this.#root.children].entries()) {
      bar.style.setProperty("--height", revised[at] / most);
      bar.toggleAttribute("data-past", at < frame);
      bar.toggleAttribute("data-now", at === frame - 1);
    }
  }
}

const revisedIn = ({ steps }, at) => (steps[at]?.revisions ?? 0) - (steps[at] ? steps[at - 1]?.revisions ?? 0 : 0);
