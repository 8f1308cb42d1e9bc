// Answers on their way to the server. Each is kept in the browser's storage until the server has said that it has it,
// and is sent again with the same request id until then, so that none is lost and none counts twice.

const WAITS_MS = [500, 1000, 2000, 5000, 10_000, 30_000];

export class Outbox {
  // send(entry) -> promise of the server's answer, or ApiError. tell(status) hears of every change:
  // {waiting: number, problem: null | "later" | "login", refused: null | ApiError}
  constructor({ storage, key, send, tell }) {
    Object.assign(this, { storage, key, send, tell });
    this.entries = this.read();
    this.waiters = new Map();
    this.failures = 0;
    this.timer = null;
    this.sending = false;
  }

  // What was left by an earlier visit, oldest first. Another tab may be sending it, too: it counts once all the same.
  read() {
    try {
      const keys = Array.from({ length: this.storage.length }, (_, i) => this.storage.key(i));
      return keys
        .filter((key) => key.startsWith(`${this.key} `))
        .map((key) => this.parsed(key))
        .filter((entry) => entry?.body?.request && entry.url)
        .sort((a, b) => a.at - b.at);
    } catch {
      return [];
    }
  }

  parsed(key) {
    try {
      return JSON.parse(this.storage.getItem(key));
    } catch {
      return null;
    }
  }

  // Each entry has a key of its own: tabs that write at the same time take nothing away from each other.
  place(entry) {
    return `${this.key} ${entry.body.request}`;
  }

  keep(entry) {
    try {
      this.storage.setItem(this.place(entry), JSON.stringify(entry));
    } catch {
      // Storage is full or forbidden: the entry lives as long as the page does, which warns before it closes.
    }
  }

  drop(entry) {
    try {
      this.storage.removeItem(this.place(entry));
    } catch {
      // Nothing was kept there.
    }
  }

  // Resolves with the server's answer to this entry; rejects if it is refused.
  add(url, body) {
    const entry = { url, body, at: Date.now() };
    this.entries.push(entry);
    this.keep(entry);
    const answer = new Promise((resolve, reject) => this.waiters.set(body.request, { resolve, reject }));
    answer.catch(() => {}); // whoever does not wait for it hears of a refusal through `tell`
    this.flush();
    return answer;
  }

  get waiting() {
    return this.entries.length;
  }

  // Resolves when nothing waits any more, or after so many milliseconds.
  async idle(patience) {
    const end = Date.now() + patience;
    this.flush();
    while (this.entries.length && Date.now() < end) await new Promise((done) => setTimeout(done, 25));
    return this.entries.length === 0;
  }

  async flush() {
    if (this.sending) return;
    clearTimeout(this.timer);
    this.sending = true;
    let problem = null;
    while (this.entries.length && problem === null) problem = await this.sendFirst();
    this.sending = false;
    if (problem !== null) this.again();
  }

  async sendFirst() {
    const entry = this.entries[0];
    this.tell({ waiting: this.waiting, problem: null, refused: null });
    try {
      const answer = await this.send(entry);
      this.done(entry);
      this.waiters.get(entry.body.request)?.resolve(answer);
      this.tell({ waiting: this.waiting, problem: null, refused: null });
    } catch (error) {
      if (error.kind !== "refused") {
        this.tell({ waiting: this.waiting, problem: error.kind ?? "later", refused: null });
        this.wait = error.wait;
        return error.kind ?? "later";
      }
      this.done(entry);
      this.waiters.get(entry.body.request)?.reject(error);
      this.tell({ waiting: this.waiting, problem: null, refused: error });
    }
    this.failures = 0;
    return null;
  }

  done(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    this.drop(entry);
  }

  again() {
    const wait = Math.max(WAITS_MS[Math.min(this.failures, WAITS_MS.length - 1)], (this.wait || 0) * 1000);
    this.failures += 1;
    this.timer = setTimeout(() => this.flush(), wait);
  }
}
