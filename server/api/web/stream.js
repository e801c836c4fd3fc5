// One request whose answer is a stream of events; XMLHttpRequest, for fetch tells no upload progress.

import { Problem } from "./problems.js";

// The server sends a comment every ten seconds when nothing else happens.
const SILENCE_MS = 45_000;
const HEADERS_RECEIVED = 2;
const DONE = 4;

// Yields [name, data] of every event; `onSent(part)` is called as the body goes out, 0 to 1.
export async function* post(path, form, { headers, signal, onSent }) {
  const request = new XMLHttpRequest();
  const activity = activityOf(request);
  request.upload.addEventListener("progress", ({ loaded, total }) => onSent(total ? loaded / total : 1));
  request.open("POST", path);
  for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
  const abort = () => request.abort();
  signal.addEventListener("abort", abort);
  try {
    request.send(form);
    let read = 0;
    for (let over = false; !over; ) {
      await activity.next();
      signal.throwIfAborted();
      over = request.readyState === DONE;
      if (request.readyState < HEADERS_RECEIVED) continue;
      if (over && request.status === 0) throw read ? Problem.brokenOff() : Problem.unreachable();
      if (request.status !== 200) {
        if (over) throw await Problem.fromResponse(responseOf(request));
        continue;
      }
      for (;;) {
        const text = request.responseText;
        const gap = /\r?\n\r?\n/g;
        gap.lastIndex = read;
        const found = gap.exec(text);
        if (!found) break;
        const event = parse(text.slice(read, found.index));
        read = gap.lastIndex;
        if (event) yield event;
      }
    }
    throw Problem.brokenOff();
  } finally {
    signal.removeEventListener("abort", abort);
    request.abort();
  }
}

// `next()` settles at the next thing that happens to the request, and fails after a long silence.
function activityOf(request) {
  let pending = false;
  let wake = () => {};
  const notify = () => {
    pending = true;
    wake();
  };
  for (const name of ["readystatechange", "progress", "loadend"]) request.addEventListener(name, notify);
  request.upload.addEventListener("progress", notify);
  return {
    async next() {
      let timer;
      await new Promise((resolve, reject) => {
        wake = resolve;
        if (pending) resolve();
        timer = setTimeout(() => reject(Problem.brokenOff()), SILENCE_MS);
      }).finally(() => clearTimeout(timer));
      pending = false;
    },
  };
}

function responseOf(request) {
  const headers = {};
  for (const name of ["retry-after", "x-request-id"]) {
    const value = request.getResponseHeader(name);
    if (value !== null) headers[name] = value;
  }
  return new Response(request.responseText, { status: request.status, headers });
}

function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? [name, JSON.parse(data.join("\n"))] : null;
}
