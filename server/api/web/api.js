// Talks to the server: what it offers, and captions as a stream of events.

import { Problem } from "./problems.js";
import { post } from "./stream.js";

const authorization = (key) => (key ? { authorization: `Bearer ${key}` } : {});

export async function getJson(path, key) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", headers: authorization(key) });
  } catch {
    throw Problem.unreachable();
  }
  if (!response.ok) throw await Problem.fromResponse(response);
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
export async function* captionEvents(order, { key, signal, onSent }) {
  const form = new FormData();
  form.append("image", order.picture.blob, order.picture.name);
  for (const [name, value] of Object.entries(fieldsOf(order))) form.append(name, value);
  form.append("stream", "true");
  form.append("return_tokens", "true");
  const headers = { accept: "text/event-stream", ...authorization(key) };
  for await (const [name, data] of post("caption", form, { headers, signal, onSent })) {
    if (name === "error") throw Problem.fromBody(data);
    yield [name, data];
    if (name === "done") return;
  }
}
