// Talks to the server: what it offers, and captions as a stream of events.

import { Problem } from "./problems.js";

// The server sends a comment every ten seconds when nothing else happens.
const SILENCE_MS = 45_000;

const authorization = (key) => (key ? { authorization: `Bearer ${key}` } : {});

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Problem.unreachable();
  }
  if (!response.ok) throw await Problem.fromResponse(response);
  return response;
}

export async function getJson(path, key) {
  const response = await request(path, { headers: authorization(key) });
  return response.json();
}

// The fields of POST /caption as the form sends them.
export function fieldsOf({ sampling, prompt }) {
  const fields = {};
  if (Object.keys(sampling).length) fields.sampling = JSON.stringify(sampling);
  if (prompt) fields.prompt = prompt;
  return fields;
}

// Yields [name, data] of every event up to and with `done`; throws a Problem.
export async function* captionEvents(order, { key, signal }) {
  const form = new FormData();
  form.append("image", order.picture.blob, order.picture.name);
  for (const [name, value] of Object.entries(fieldsOf(order))) form.append(name, value);
  form.append("stream", "true");
  form.append("return_tokens", "true");
  const headers = { accept: "text/event-stream", ...authorization(key) };
  const response = await request("caption", { method: "POST", body: form, headers, signal });
  const id = response.headers.get("x-request-id") ?? "";
  for await (const [name, data] of events(response.body)) {
    if (name === "error") throw Problem.fromBody(data, { id });
    yield [name, data];
    if (name === "done") return;
  }
  throw Problem.brokenOff();
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await soon(reader);
      if (done) return;
      const blocks = (text + value).split(/\r?\n\r?\n/);
      text = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function soon(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(Problem.brokenOff()), SILENCE_MS);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw Problem.brokenOff();
  } finally {
    clearTimeout(timer);
  }
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
