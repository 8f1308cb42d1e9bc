// Talks to the server. Every failure is one of three kinds, which is all that the rest of the page needs to know:
//   "later"   no network, server busy or restarting: try the same request again
//   "login"   the session has ended (or is another one now): log in, load the page anew, and it is sent again
//   "refused" the server said no, and will say no again

export class ApiError extends Error {
  constructor(kind, status, message, wait = 0) {
    super(message);
    Object.assign(this, { kind, status, wait });
  }
}

const PATIENCE_MS = 20_000;

export class Api {
  constructor({ csrf, language }) {
    this.csrf = csrf;
    this.language = language;
  }

  get(url) {
    return this.send("GET", url);
  }

  async send(method, url, body = undefined, keepalive = false) {
    const headers = { Accept: "application/json", "X-CSRF-Token": this.csrf };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(url, {
        method,
        headers,
        keepalive,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
    } catch (error) {
      throw new ApiError("later", 0, String(error));
    }
    if (response.status === 204) return null;
    const answer = await response.json().catch(() => null);
    if (response.ok && answer !== null) return answer;
    const message = answer?.error?.message ?? `HTTP ${response.status}`;
    throw new ApiError(kindOf(response.status), response.status, message, Number(response.headers.get("Retry-After")));
  }
}

function kindOf(status) {
  if (status === 401 || status === 403) return "login";
  return status === 429 || status >= 500 || status === 408 || status < 400 ? "later" : "refused";
}
