// The form's settings, and what the server offers for them.

import { getJson } from "./api.js";

const PRESETS = {
  "": "What this model does best.",
  rediff: "Every step reveals tokens and may revise earlier ones.",
  mask: "Plain denoising: a revealed token stays as it is.",
  adaptive: "Reveals whatever it is sure of; the number of steps adapts.",
  careful: "One token a step, and more only where it is sure: slower, and better.",
};

export class Settings {
  #parts;

  // `parts` are the elements { preset, hint, tokensPerStep, canvasLength, prompt, compare, key }.
  constructor(parts) {
    this.#parts = parts;
    parts.preset.addEventListener("change", () => this.#explain());
    this.#explain();
  }

  get key() {
    return this.#parts.key.value.trim();
  }

  // Presets and the canvas of the server whose /version is given; throws a Problem.
  async learn(version) {
    const names = presetsOf(await getJson("openapi.json", this.key));
    if (names.length) this.#offer(names, version.preset);
    this.#parts.canvasLength.placeholder = version.canvas_length;
  }

  // The orders to run: one, or the same with refining on and off.
  orders(picture) {
    const { preset, tokensPerStep, canvasLength, prompt, compare } = this.#parts;
    const sampling = {};
    if (preset.value) sampling.preset = preset.value;
    if (tokensPerStep.value) sampling.tokens_per_step = tokensPerStep.valueAsNumber;
    if (canvasLength.value) sampling.canvas_length = canvasLength.valueAsNumber;
    const order = { picture, prompt: prompt.value.trim() };
    if (!compare.checked) return [{ ...order, title: `Preset ${preset.value}`, sampling }];
    return [true, false].map((refine) => ({
      ...order,
      title: `Refining ${refine ? "on" : "off"}`,
      sampling: { ...sampling, refine },
    }));
  }

  // A preset that somebody chose stays; before that it is the model's.
  #offer(names, usual) {
    const { preset } = this.#parts;
    const chosen = preset.value || usual;
    preset.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
    this.#explain();
  }

  #explain() {
    this.#parts.hint.textContent = PRESETS[this.#parts.preset.value] ?? "";
  }
}

// The names that the OpenAPI document lists, wherever the schema keeps them.
function presetsOf(document) {
  const schema = document.components?.schemas?.SamplingOptions?.properties?.preset ?? {};
  return [schema, ...(schema.anyOf ?? [])].flatMap((part) => part.enum ?? []);
}
