// Wires the page: form → runs → timeline → panels.

import { captionEvents } from "./api.js";
import { curlOf } from "./curl.js";
import { Panel } from "./panel.js";
import { PictureChoice, SAMPLES } from "./picture.js";
import { Player } from "./player.js";
import { Problem } from "./problems.js";
import { Recording } from "./recording.js";
import { Settings } from "./settings.js";
import { Strip } from "./strip.js";
import { count } from "./words.js";

const $ = (id) => document.getElementById(id);

const settings = new Settings({
  preset: $("preset"),
  hint: $("preset-hint"),
  tokensPerStep: $("tokens-per-step"),
  canvasLength: $("canvas-length"),
  prompt: $("prompt"),
  compare: $("compare"),
  key: $("key"),
});
const choice = new PictureChoice({
  file: $("file"),
  preview: $("preview"),
  name: $("file-name"),
  samples: $("samples"),
});
const timeline = { root: $("timeline"), play: $("play"), scrub: $("scrub"), place: $("place"), speed: $("speed") };
const strip = new Strip($("strip"));
const player = new Player(timeline, draw, stepOf, lastStep);

const keyHint = $("key-hint").textContent;

let runs = []; // { recording, panel }
let stopping = null; // AbortController of the runs under way

function draw(frame) {
  for (const { panel } of runs) panel.draw(frame);
  strip.draw(runs.map(({ recording }) => recording), lastStep(), frame);
}

function stepOf(frame) {
  return `step ${frame} of ${lastStep()}`;
}

// The longest run's last step: as planned, or as it was once all runs are over.
function lastStep() {
  const recordings = runs.map(({ recording }) => recording);
  const longest = Math.max(0, ...recordings.map(({ length }) => length));
  if (recordings.every(({ over }) => over)) return longest;
  return Math.max(longest, ...recordings.map(({ steps }) => steps.at(-1)?.steps ?? 0));
}

async function start() {
  stopping?.abort();
  for (const { panel } of runs) panel.leave();
  const abort = (stopping = new AbortController());
  runs = settings.orders(choice.current).map((order) => {
    const recording = new Recording(order);
    const panel = new Panel(recording, { seek, retry: start, copyCaption, copyCurl });
    return { recording, panel };
  });
  $("panels").replaceChildren(...runs.map(({ panel }) => panel.root));
  $("panels").toggleAttribute("data-pair", runs.length > 1);
  player.reset();
  setBusy(true);
  announce("Captioning");
  if (matchMedia("(max-width: 60rem)").matches) $("stage").scrollIntoView();
  await Promise.all(runs.map((run) => follow(run, abort.signal)));
  if (stopping !== abort) return;
  stopping = null;
  setBusy(false);
  player.end();
  announce(runs.map(({ recording }) => outcome(recording)).filter(Boolean).join(" "));
}

async function follow({ recording, panel }, signal) {
  try {
    for await (const [name, data] of captionEvents(recording.order, { key: settings.key, signal })) {
      if (name === "step") recording.add(data);
      if (name === "done") recording.finish(data);
      player.extend(recording.length);
    }
  } catch (error) {
    if (signal.aborted) {
      recording.fail(new Problem("Stopped", "The run was stopped before its end.", { code: "stopped" }));
    } else if (error instanceof Problem) {
      recording.fail(error);
      if (error.status === 401) askForKey();
    } else {
      throw error;
    }
    panel.fail(recording.problem);
  }
  draw(player.frame);
}

function outcome({ order, answer }) {
  if (!answer) return "";
  return `${order.title}: done after ${count(answer.steps, "step")} with ${count(answer.revisions, "revision")}. ${answer.caption}`;
}

function seek(frame) {
  player.seek(frame);
}

function setBusy(busy) {
  $("run").textContent = busy ? "Stop" : "Caption the picture";
  $("run").toggleAttribute("data-busy", busy);
}

function announce(text) {
  $("announcer").textContent = text;
}

function askForKey() {
  $("key-box").open = true;
  $("key-hint").textContent = settings.key
    ? "The server did not accept this key."
    : "This server wants a key. It stays in this tab’s memory.";
  $("key").setAttribute("aria-invalid", "true");
  $("key").focus();
}

async function learn() {
  const badge = $("server");
  try {
    const version = await settings.learn();
    const ready = version.status === "ready";
    badge.dataset.state = ready ? "ready" : "waiting";
    badge.textContent = ready ? `${version.model} on ${version.device}` : `${version.model}: ${version.status}`;
    $("key").removeAttribute("aria-invalid");
    $("key-hint").textContent = keyHint;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    badge.dataset.state = "down";
    badge.textContent = error.status === 401 ? "API key needed" : error.title;
    if (error.status === 401) askForKey();
  }
}

async function copyCaption(text) {
  if (await toClipboard(text)) announce("Caption copied");
}

async function copyCurl(order) {
  const { command, note } = await curlOf(order, { base: document.baseURI, key: settings.key });
  const copied = await toClipboard(command);
  $("curl-note").textContent = [copied ? "Copied." : "Copy it from here.", note].filter(Boolean).join(" ");
  $("curl-text").value = command;
  $("curl").showModal();
  $("curl-text").select();
}

// False where the browser gives pages no clipboard, such as plain HTTP to another machine.
async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

// Arrow keys step through the run wherever they mean nothing else.
function onKey(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const elsewhere = event.target.closest("input, textarea, select, .canvas, dialog");
  if (!step || elsewhere || !runs.length || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  player.seek(player.frame + step);
}

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  if (stopping) stopping.abort();
  else if (choice.current) start();
  else $("file").focus();
});
$("key").addEventListener("change", learn);
document.addEventListener("keydown", onKey);
learn();
choice.takeSample(SAMPLES[0][0]);
