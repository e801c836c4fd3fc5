// A run's request as a shell command.

import { fieldsOf } from "./api.js";

// Above this many bytes a picture is named rather than written into the command.
const INLINE_BYTES = 200_000;

const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// { command, note }: `note` says what the command needs, if anything.
export async function curlOf(order, { base, key }) {
  const { picture } = order;
  const parts = [];
  const notes = [];
  if (key) {
    parts.push('-H "authorization: Bearer $REDIFF_API_KEY"');
    notes.push("Put your key into REDIFF_API_KEY first.");
  }
  let head = "curl -sS";
  if (picture.sample) {
    head = `curl -sS ${quote(picture.sample)} | ${head}`;
    parts.push("-F image=@-");
  } else if (picture.blob.size <= INLINE_BYTES) {
    head = `base64 -d <<'PICTURE' | ${head}`;
    parts.push("-F image=@-");
  } else {
    parts.push(`-F ${quote(`image=@"${picture.name.replaceAll(/(["\\])/g, "\\$1")}"`)}`);
    notes.push(`Run it in the folder that holds ${picture.name}.`);
  }
  for (const [name, value] of Object.entries(fieldsOf(order))) {
    parts.push(`--form-string ${quote(`${name}=${value}`)}`);
  }
  parts.push(quote(new URL("caption", base).href));
  const inline = head.startsWith("base64") ? `\n${await base64Lines(picture.blob)}\nPICTURE` : "";
  return { command: [head, ...parts].join(inline ? " " : " \\\n  ") + inline, note: notes.join(" ") };
}

async function base64Lines(blob) {
  const data = new Uint8Array(await blob.arrayBuffer());
  const text = btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""));
  return text.match(/.{1,76}/g).join("\n");
}
