// Numbers and tokens as the page writes them.

export const percent = (value) => {
  const shown = (value * 100).toFixed(1);
  // Nothing but certainty reads as 100 %.
  return `${shown === "100.0" && value < 1 ? "99.9" : shown.replace(/\.0$/, "")} %`;
};

export const seconds = (value) => value.toFixed(value < 10 ? 2 : 1);

export const bytes = (value) =>
  value < 1024 ** 2 ? `${Math.max(1, Math.round(value / 1024))} kB` : `${(value / 1024 ** 2).toFixed(1)} MB`;

export function describe(kind, text) {
  if (kind === "mask") return "mask";
  if (text === "") return "end of caption";
  return `“${text.trim() || "space"}”`;
}

export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
