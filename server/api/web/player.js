// The timeline: which step is shown, and moving on to the next while it plays.

const STEP_MS = 110;

export class Player {
  #frame = 0;
  #length = 0;
  #live = false; // more steps may come
  #playing = false;
  #timer = null;
  #parts;
  #onFrame;
  #stepOf;
  #lastStep;

  // `parts` are the elements { root, play, scrub, place, speed }; `stepOf(frame)` names a frame;
  // `lastStep()` is where the scrubber ends, which may lie ahead of what has come.
  constructor(parts, onFrame, stepOf, lastStep) {
    this.#parts = parts;
    this.#onFrame = onFrame;
    this.#stepOf = stepOf;
    this.#lastStep = lastStep;
    parts.play.addEventListener("click", () => this.toggle());
    parts.scrub.addEventListener("input", () => this.seek(parts.scrub.valueAsNumber));
  }

  get frame() {
    return this.#frame;
  }

  // Starts over: shows steps as they come.
  reset() {
    this.#length = 0;
    this.#live = true;
    this.#show(0);
    this.#play(true);
  }

  extend(length) {
    this.#length = Math.max(this.#length, length);
    this.#describe();
    if (this.#playing && this.#timer === null) this.#schedule(0);
  }

  // No more steps will come.
  end() {
    this.#live = false;
    if (this.#playing && this.#frame >= this.#length) this.#play(false);
    this.#show(this.#frame);
  }

  toggle() {
    if (!this.#playing && this.#frame >= this.#length && !this.#live) this.#show(0);
    this.#play(!this.#playing);
  }

  seek(frame) {
    this.#play(false);
    this.#show(Math.max(0, Math.min(frame, this.#length)));
  }

  #play(playing) {
    this.#playing = playing;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#parts.play.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.#parts.play.toggleAttribute("data-playing", playing);
    if (playing) this.#schedule(STEP_MS);
  }

  #schedule(milliseconds) {
    this.#timer = setTimeout(() => this.#advance(), milliseconds / Number(this.#parts.speed.value));
  }

  #advance() {
    this.#timer = null;
    if (this.#frame < this.#length) {
      this.#show(this.#frame + 1);
      this.#schedule(STEP_MS);
    }
    // A live run wakes the player with its next step.
    if (this.#frame >= this.#length && !this.#live) this.#play(false);
  }

  #show(frame) {
    this.#frame = frame;
    this.#describe();
    this.#onFrame(frame);
  }

  #describe() {
    const { root, scrub, place } = this.#parts;
    root.hidden = this.#length === 0;
    scrub.max = this.#lastStep();
    scrub.value = this.#frame;
    const text = this.#stepOf(this.#frame);
    scrub.setAttribute("aria-valuetext", text);
    place.textContent = text;
  }
}
