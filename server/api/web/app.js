// Wires the page: form → runs → stage.

import { captionEvents } from "./api.js";
import { Badge } from "./badge.js";
import { copied, toClipboard } from "./clipboard.js";
import { curlOf } from "./curl.js";
import { PictureChoice, SAMPLES } from "./picture.js";
import { Problem } from "./problems.js";
import { Recording } from "./recording.js";
import { Settings } from "./settings.js";
import { Stage } from "./stage.js";
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
const choice = new PictureChoice(
  {
    file: $("file"),
    preview: $("preview"),
    name: $("file-name"),
    samples: $("samples"),
    problem: $("picture-problem"),
  },
  { onChange: changePicture, onSample: start },
);
const stage = new Stage(
  {
    root: $("stage"),
    watch: $("watch"),
    picture: $("run-picture"),
    panels: $("panels"),
    stale: $("stale"),
    timeline: $("timeline"),
    play: $("play"),
    scrub: $("scrub"),
    place: $("place"),
    speed: $("speed"),
    strip: $("strip"),
  },
  { retry: start, copyText, copyCurl },
);
const badge = new Badge($("server"), { key: () => settings.key, onReady: learn, onRefused: askForKey });

const keyHint = $("key-hint").textContent;

let stopping = null; // AbortController of the runs under way

async function start() {
  stopping?.abort();
  if (!choice.sendable) {
    $("file").focus();
    return;
  }
  const abort = (stopping = new AbortController());
  const recordings = settings.orders(choice.current).map((order) => new Recording(order));
  stage.begin(recordings);
  setBusy(true);
  announce("Captioning");
  await Promise.all(recordings.map((recording) => follow(recording, abort.signal)));
  if (stopping !== abort) return;
  stopping = null;
  setBusy(false);
  stage.end();
  announce(recordings.map(outcome).filter(Boolean).join(" "));
}

async function follow(recording, signal) {
  const { order } = recording;
  const onSent = (part) => stage.sent(recording, part);
  try {
    for await (const [name, data] of captionEvents(order, { key: settings.key, signal, onSent })) {
      if (name === "step") recording.add(data);
      if (name === "done") recording.finish(data);
      stage.extend(recording);
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
    stage.fail(recording);
  }
}

function outcome({ order, answer }) {
  if (!answer) return "";
  return `${order.title}: done after ${count(answer.steps, "step")} with ${count(answer.revisions, "revision")}. ${answer.caption}`;
}

// A run belongs to its picture: it ends, and is dimmed, when another one is chosen.
function changePicture() {
  stopping?.abort();
  stage.compareWith(choice.current);
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

// The server is ready, for the first time or with something new.
async function learn(version) {
  await settings.learn(version);
  choice.learn(version);
  $("domain").hidden = !version.domain;
  $("domain-model").textContent = version.model;
  $("domain-text").textContent = version.domain ?? "";
  $("key").removeAttribute("aria-invalid");
  $("key-hint").textContent = keyHint;
}

async function copyText(button, text, what) {
  if (!(await toClipboard(text))) return;
  copied(button, what);
  announce(`${what} copied`);
}

async function copyCurl(order) {
  const { command, note } = await curlOf(order, { base: document.baseURI, key: settings.key });
  const done = await toClipboard(command);
  $("curl-note").textContent = [done ? "Copied." : "Copy it from here.", note].filter(Boolean).join(" ");
  $("curl-text").value = command;
  $("curl").showModal();
  $("curl-text").select();
}

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  if (stopping) stopping.abort();
  else start();
});
$("key").addEventListener("change", () => badge.ask());
badge.ask();
choice.takeSample(SAMPLES[0][0]);
