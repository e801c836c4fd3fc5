// The picture to caption: chosen, dropped, pasted or one of the samples.

import { bytes } from "./words.js";

export const SAMPLES = [
  ["turtle", "Turtle, duck, kite and hedgehog on lilac stripes"],
  ["rocket", "Rocket and fire extinguisher on mint stripes"],
  ["octopus", "Elephant, octopus and football on plain lilac"],
  ["horse", "Horse, egg, helicopter and crab on white stripes"],
  ["strawberry", "Cow, snake and strawberry on cream stripes"],
  ["snail", "Aubergine, laptop, rabbit and snail on mint stripes"],
];

export class PictureChoice {
  current = null; // { blob, name, sample }: `sample` is its address on the server, or null
  #shown = null; // object URL of the preview
  #parts;

  // `parts` are the elements { file, preview, label, name, samples }.
  constructor(parts) {
    this.#parts = parts;
    parts.file.addEventListener("change", () => this.#take(parts.file.files[0]));
    document.addEventListener("paste", (event) => this.#paste(event));
    document.addEventListener("dragover", (event) => this.#drag(event, true));
    document.addEventListener("dragleave", (event) => this.#drag(event, event.relatedTarget !== null));
    document.addEventListener("drop", (event) => this.#drop(event));
    parts.preview.addEventListener("error", () => (parts.preview.hidden = true));
    parts.samples.replaceChildren(...SAMPLES.map(([name, text]) => this.#sample(name, text)));
  }

  async takeSample(name) {
    const address = new URL(`web/samples/${name}.png`, document.baseURI).href;
    const response = await fetch(address);
    if (response.ok) this.#set(await response.blob(), `${name}.png`, address);
  }

  #sample(name, text) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.sample = name;
    button.setAttribute("aria-pressed", "false");
    const picture = document.createElement("img");
    Object.assign(picture, { src: `web/samples/${name}.png`, alt: text, title: text, width: 56, height: 56 });
    button.append(picture);
    button.addEventListener("click", () => this.takeSample(name));
    return button;
  }

  #take(file) {
    if (file) this.#set(file, file.name, null);
  }

  #set(blob, name, sample) {
    const { preview, name: label, samples, file } = this.#parts;
    this.current = { blob, name, sample };
    if (this.#shown) URL.revokeObjectURL(this.#shown);
    this.#shown = URL.createObjectURL(blob);
    preview.hidden = false;
    preview.src = this.#shown;
    preview.alt = `Chosen picture: ${name}`;
    label.textContent = `${name}, ${bytes(blob.size)}`;
    file.value = "";
    for (const button of samples.children) {
      button.setAttribute("aria-pressed", String(sample !== null && `${button.dataset.sample}.png` === name));
    }
  }

  #paste(event) {
    const file = [...(event.clipboardData?.files ?? [])].find(isPicture);
    if (!file) return;
    event.preventDefault();
    this.#set(file, "pasted.png", null);
  }

  #drag(event, over) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.toggleAttribute("data-dropping", over);
  }

  #drop(event) {
    this.#drag(event, false);
    this.#take(event.dataTransfer?.files[0]);
  }
}

const isPicture = (file) => file.type.startsWith("image/");
