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
  current = null; // { blob, name, sample, url }: `sample` is its address on the server, or null
  #limits = null; // { bytes, formats } of the server
  #parts;
  #actions;

  // `parts` are the elements { file, preview, name, samples, problem };
  // `actions` are { onChange(), onSample() }: the second after a click on a sample.
  constructor(parts, actions) {
    this.#parts = parts;
    this.#actions = actions;
    parts.file.addEventListener("change", () => this.#take(parts.file.files[0]));
    document.addEventListener("paste", (event) => this.#paste(event));
    document.addEventListener("dragover", (event) => this.#drag(event, true));
    document.addEventListener("dragleave", (event) => this.#drag(event, event.relatedTarget !== null));
    document.addEventListener("drop", (event) => this.#drop(event));
    parts.preview.addEventListener("error", () => (parts.preview.hidden = true));
    parts.samples.replaceChildren(...SAMPLES.map(([name, text]) => this.#sample(name, text)));
  }

  // What the server reads, in the words of its /version.
  learn({ limits, image_formats: formats }) {
    this.#limits = { bytes: limits.max_image_bytes, formats };
    this.#parts.file.accept = formats.map(mediaType).join(",");
    this.#check();
  }

  // Whether the server may take the picture; if not, the page says why.
  get sendable() {
    return this.current !== null && this.#parts.problem.hidden;
  }

  async takeSample(name) {
    const address = new URL(`web/samples/${name}.png`, document.baseURI).href;
    const response = await fetch(address);
    if (response.ok) this.#set(await response.blob(), `${name}.png`, address);
    return response.ok;
  }

  #sample(name, text) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.sample = name;
    button.setAttribute("aria-pressed", "false");
    const picture = document.createElement("img");
    Object.assign(picture, { src: `web/samples/${name}.png`, alt: text, title: text, width: 56, height: 56 });
    button.append(picture);
    button.addEventListener("click", async () => {
      if (await this.takeSample(name)) this.#actions.onSample();
    });
    return button;
  }

  #take(file) {
    if (file) this.#set(file, file.name, null);
  }

  #set(blob, name, sample) {
    const { preview, name: label, samples, file } = this.#parts;
    // Its address stays: runs of this picture show it for as long as the page is open.
    this.current = { blob, name, sample, url: URL.createObjectURL(blob) };
    preview.hidden = false;
    preview.src = this.current.url;
    preview.alt = `Chosen picture: ${name}`;
    label.textContent = `${name}, ${bytes(blob.size)}`;
    file.value = "";
    for (const button of samples.children) {
      button.setAttribute("aria-pressed", String(sample !== null && `${button.dataset.sample}.png` === name));
    }
    this.#check();
    this.#actions.onChange();
  }

  #check() {
    const reason = this.current === null ? "" : refusal(this.current, this.#limits);
    this.#parts.problem.textContent = reason;
    this.#parts.problem.hidden = reason === "";
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

// Why the server would refuse a file, or "". A file without a type is left to the server.
function refusal({ blob, name }, limits) {
  if (limits === null) return "";
  if (blob.size > limits.bytes) {
    return `${name} has ${bytes(blob.size)}; this server takes pictures of up to ${bytes(limits.bytes)}.`;
  }
  if (blob.type && blob.type !== UNKNOWN && !limits.formats.map(mediaType).includes(blob.type)) {
    return `${name} is ${blob.type}; this server reads ${limits.formats.join(", ")}.`;
  }
  return "";
}

const UNKNOWN = "application/octet-stream";
const mediaType = (format) => `image/${format.toLowerCase()}`;
const isPicture = (file) => file.type.startsWith("image/");
