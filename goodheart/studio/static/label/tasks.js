// Where tasks come from: the one to work on now, and the next one, which is fetched while this one is worked on.

const PATIENCE_MS = 10_000; // how long what is on its way to the server is waited for

export class Tasks {
  // fetch(besides) asks the server; outbox holds what it does not have yet; trouble(error) is told of lost connections
  constructor({ fetch, outbox, trouble, lockMs }) {
    Object.assign(this, { fetch, outbox, trouble, lockMs });
    this.ahead = null; // promise of the next task
    this.aheadSince = 0;
  }

  // What comes after a task. The server must first have what was handed in before.
  fetchAhead(besides) {
    const arrived = this.outbox.idle(PATIENCE_MS * 60);
    this.ahead = arrived.then((sent) => (sent ? this.fetch(besides) : null));
    this.aheadSince = Date.now();
    this.ahead.catch(() => {});
  }

  forget() {
    this.ahead = null;
  }

  // The one that was fetched ahead, if it is fresh and another one than the current; else the one the server gives now.
  async next(current) {
    const waiting = Date.now() - this.aheadSince < this.lockMs / 2 ? this.ahead : null;
    this.ahead = null;
    const found = waiting === null ? null : await waiting.catch(() => null);
    if (found !== null && found.task !== null && found.task.id !== current) return found;
    await this.outbox.idle(PATIENCE_MS); // the server must know of the last answer before it says what is next
    return this.now();
  }

  // Asks until there is an answer.
  async now() {
    for (let wait = 1000; ; wait = Math.min(wait * 2, 30_000)) {
      try {
        return await this.fetch(null);
      } catch (error) {
        if (error.kind === "refused") return { task: null, idle: { title: error.message, text: "", reason: null } };
        this.trouble(error);
        await new Promise((done) => setTimeout(done, wait));
      }
    }
  }
}
