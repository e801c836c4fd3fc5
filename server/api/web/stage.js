// Where runs are shown: their picture, one timeline for all of them, and a panel for each.

import { Panel } from "./panel.js";
import { Player } from "./player.js";
import { Strip } from "./strip.js";

export class Stage {
  #runs = []; // { recording, panel }
  #parts;
  #actions;
  #player;
  #strip;

  // `parts` are the elements { root, watch, picture, panels, stale, timeline, play, scrub, place,
  // speed, strip }; `actions` those of a panel but `seek` and `picked`.
  constructor(parts, actions) {
    this.#parts = parts;
    this.#actions = {
      ...actions,
      seek: (frame) => this.#player.seek(frame),
      picked: (panel) => this.#leaveOthers(panel),
    };
    this.#strip = new Strip(parts.strip);
    this.#player = new Player(
      { root: parts.timeline, play: parts.play, scrub: parts.scrub, place: parts.place, speed: parts.speed },
      (frame) => this.#draw(frame),
      (frame) => `step ${frame} of ${this.#lastStep()}`,
      () => this.#lastStep(),
    );
    document.addEventListener("keydown", (event) => this.#onKey(event));
  }

  get recordings() {
    return this.#runs.map(({ recording }) => recording);
  }

  // Shows runs that are about to begin, and follows them as they go on.
  begin(recordings) {
    this.#put(recordings);
    this.#player.reset();
    // So that the space bar pauses the run and does not press the button that began it.
    this.#parts.root.focus({ preventScroll: true });
    if (matchMedia("(max-width: 60rem)").matches) this.#parts.root.scrollIntoView();
  }

  // Draws what has been added to a run.
  extend(recording) {
    this.#player.extend(recording.length);
    if (recording.over) this.#draw(this.#player.frame);
  }

  sent(recording, part) {
    this.#panelOf(recording)?.sent(part);
  }

  fail(recording) {
    this.#panelOf(recording)?.fail(recording.problem);
    this.#draw(this.#player.frame);
  }

  // No more steps will come.
  end() {
    this.#player.end();
  }

  // Dims the runs unless they are of the picture that is chosen now.
  compareWith(picture) {
    const shown = this.#runs[0]?.recording.order.picture;
    const stale = shown !== undefined && shown !== picture;
    this.#parts.root.toggleAttribute("data-stale", stale);
    this.#parts.stale.hidden = !stale;
    if (stale) this.#parts.stale.textContent = `This run is of ${shown.name}, not of ${picture.name}.`;
  }

  #put(recordings) {
    const { picture, panels, watch } = this.#parts;
    for (const { panel } of this.#runs) panel.leave();
    this.#runs = recordings.map((recording) => ({ recording, panel: new Panel(recording, this.#actions) }));
    panels.replaceChildren(...this.#runs.map(({ panel }) => panel.root));
    panels.toggleAttribute("data-pair", recordings.length > 1);
    const { url, name } = recordings[0].order.picture;
    picture.src = url;
    picture.alt = `The picture of this run: ${name}`;
    watch.hidden = false;
    this.compareWith(recordings[0].order.picture);
  }

  #draw(frame) {
    for (const { panel } of this.#runs) panel.draw(frame);
    this.#strip.draw(this.recordings, this.#lastStep(), frame);
  }

  #panelOf(recording) {
    return this.#runs.find((run) => run.recording === recording)?.panel;
  }

  // The longest run's last step: as planned, or as it was once all runs are over.
  #lastStep() {
    const recordings = this.recordings;
    const longest = Math.max(0, ...recordings.map(({ length }) => length));
    if (recordings.every(({ over }) => over)) return longest;
    return Math.max(longest, ...recordings.map(({ steps }) => steps.at(-1)?.steps ?? 0));
  }

  // One token is looked at on a phone, whose sheet covers all panels.
  #leaveOthers(picked) {
    for (const { panel } of this.#runs) if (panel !== picked) panel.unpick();
  }

  // Space pauses and arrow keys step through the run wherever they mean nothing else.
  #onKey(event) {
    const { target, key } = event;
    if (!this.#runs.length || event.altKey || event.ctrlKey || event.metaKey) return;
    if (key === "Escape") this.#leaveOthers(null);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    const typing = target.closest("textarea, select, dialog") || target.matches("input:not([type=range])");
    if (key === " " && !typing && !target.closest("button, a, summary")) this.#player.toggle();
    else if (step && !typing && !target.closest("input, .canvas")) this.#player.seek(this.#player.frame + step);
    else return;
    event.preventDefault();
  }
}
