// What can go wrong with a request, in words for the page.

const TITLES = {
  400: "The server refused the request",
  401: "An API key is needed",
  403: "The server refused the key",
  408: "Sending the picture took too long",
  413: "The picture is too large",
  415: "This is not a picture the server can read",
  422: "The server refused the request",
  429: "The server is busy",
  503: "The server is not available",
  504: "The caption took too long",
};

export class Problem extends Error {
  constructor(title, message, { status = 0, code = "", param = "", retryAfter = null, id = "" } = {}) {
    super(message);
    this.title = title;
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
    this.id = id;
  }

  // An answer that is not 200, in the server's error shape or not.
  static async fromResponse(response) {
    const body = await response.json().catch(() => null);
    return Problem.fromBody(body, {
      status: response.status,
      retryAfter: secondsUntil(response.headers.get("retry-after")),
      id: response.headers.get("x-request-id") ?? "",
    });
  }

  static fromBody(body, { status = 0, retryAfter = null, id = "" } = {}) {
    const { message, code, param } = body?.error ?? {};
    const title = TITLES[status] ?? (status >= 500 ? "The server failed" : "The caption failed");
    return new Problem(title, message ?? `The server answered ${status} without saying why.`, {
      status, code: code ?? "", param: param ?? "", retryAfter, id,
    });
  }

  static unreachable() {
    return new Problem(
      "No connection to the server",
      "The request did not get through, or the connection was lost on the way.",
      { code: "network" },
    );
  }

  static brokenOff() {
    return new Problem("The answer broke off", "The connection ended before the caption was done.", { code: "network" });
  }
}

// Retry-After is a number of seconds or a date.
function secondsUntil(header) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}
