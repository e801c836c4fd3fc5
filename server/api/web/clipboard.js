// Copies texts, and says on the button that it did.

const SHOWN_MS = 2000;

// False where the browser gives pages no clipboard, such as plain HTTP to another machine.
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

// Shows for a while on `button` that `what` was copied.
export function copied(button, what) {
  button.dataset.label ??= button.textContent;
  button.textContent = `${what} copied`;
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => (button.textContent = button.dataset.label), SHOWN_MS);
}
