// Half-made answers, saved a moment after every change: on the server, and in the browser while the server has not
// answered. After a refresh, a crash or on another machine the work goes on where it was.

const QUIET_MS = 400;

export class Drafts {
  constructor({ storage, prefix, send }) {
    Object.assign(this, { storage, prefix, send });
    this.timer = null;
    this.waiting = null;
    this.version = 0;
  }

  // url: where to; draft: anything that can be JSON
  keep(task, url, draft) {
    this.version += 1;
    this.waiting = { task, url, draft, version: this.version };
    this.store(task, draft);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), QUIET_MS);
  }

  async flush(leaving = false) {
    clearTimeout(this.timer);
    const held = this.waiting;
    if (held === null) return;
    this.waiting = null;
    try {
      await this.send(held.url, held.draft, leaving);
      if (this.version === held.version) this.storage.removeItem(this.prefix + held.task);
    } catch {
      // It stays in the browser, and the next change is sent anew.
    }
  }

  // After the answer itself is handed in.
  forget(task) {
    if (this.waiting?.task === task) this.waiting = null;
    clearTimeout(this.timer);
    this.version += 1;
    this.storage.removeItem(this.prefix + task);
  }

  store(task, draft) {
    try {
      this.storage.setItem(this.prefix + task, JSON.stringify(draft));
    } catch {
      // No room: the server's copy has to do.
    }
  }

  // What the browser kept because the server did not get it; null mostly.
  kept(task) {
    try {
      return JSON.parse(this.storage.getItem(this.prefix + task));
    } catch {
      return null;
    }
  }
}
