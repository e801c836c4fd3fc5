// One run, kept so that every step of it can be shown again.

export class Recording {
  // `order` is the request it belongs to: { title, picture, sampling, prompt }.
  constructor(order) {
    this.order = order;
    this.size = 0; // positions of the canvas
    this.steps = []; // what came with each step
    this.histories = []; // of each position its changes, in order
    this.answer = null;
    this.problem = null;
    this.began = performance.now();
  }

  get length() {
    return this.steps.length;
  }

  get over() {
    return this.answer !== null || this.problem !== null;
  }

  add(event) {
    if (!this.length) {
      const revealed = event.changed.filter((change) => change.kind === "reveal").length;
      this.size = event.masked + revealed;
    }
    const before = this.steps.at(-1);
    const frame = this.length + 1;
    let { revisions, tokens } = before ?? { revisions: 0, tokens: 0 };
    for (const change of event.changed) {
      const history = (this.histories[change.position] ??= []);
      const former = history.at(-1);
      if (change.kind === "revise") revisions += 1;
      tokens += Number(change.text !== "") - Number(Boolean(former?.text));
      history.push({ ...change, frame, step: event.step, was: former?.text ?? "" });
    }
    const seconds = (performance.now() - this.began) / 1000;
    const { step, steps, masked, text } = event;
    this.steps.push({ step, steps, masked, text, revisions, tokens, seconds });
  }

  finish(answer) {
    this.answer = answer;
  }

  fail(problem) {
    this.problem = problem;
  }

  // Whether `frame` is the end of a finished run.
  isEnd(frame) {
    return this.answer !== null && frame >= this.length;
  }

  // The canvas after `frame` steps as text, masks as blocks; at the end the caption.
  textAt(frame) {
    return this.isEnd(frame) ? this.answer.caption : this.steps[Math.min(frame, this.length) - 1]?.text ?? "";
  }

  history(position) {
    return this.histories[position] ?? [];
  }

  // What a position shows after `frame` steps; frame 0 is all masks.
  at(position, frame) {
    const history = this.history(position);
    const index = history.findLastIndex((change) => change.frame <= frame);
    if (index < 0) return { kind: "mask", text: "", confidence: null, now: null, was: "", revisions: 0 };
    const { text, kind, confidence, was, frame: changed } = history[index];
    const revisions = history.slice(0, index + 1).filter((change) => change.kind === "revise").length;
    const end = this.isEnd(frame) ? this.answer.tokens?.[position] : undefined;
    return {
      kind: text === "" ? "end" : "token",
      text,
      confidence: end?.confidence ?? confidence,
      now: changed === frame ? kind : null,
      was,
      revisions,
    };
  }

  // Steps, revisions, tokens and seconds after `frame` steps.
  counts(frame) {
    if (this.isEnd(frame)) {
      const { steps, revisions, usage, timing } = this.answer;
      return { steps: `${steps}`, revisions, tokens: usage.caption_tokens, seconds: timing.total };
    }
    const step = this.steps[Math.min(frame, this.length) - 1];
    if (!step) return { steps: "0", revisions: 0, tokens: 0, seconds: 0 };
    const total = this.answer?.steps ?? step.steps; // until it is over, as many as there may be
    return { steps: `${step.step} of ${total}`, revisions: step.revisions, tokens: step.tokens, seconds: step.seconds };
  }
}
