// Counts the seconds a person works on a task: not while the page is hidden, not after a minute without a sign of life.

export const IDLE_MS = 60_000;

export class Timer {
  constructor(now = () => performance.now()) {
    this.now = now;
    this.start(0);
  }

  start(seconds) {
    this.counted = seconds * 1000;
    this.since = this.now();
    this.until = this.since + IDLE_MS;
  }

  // A sign of life: the minute begins anew.
  touch() {
    this.settle();
    this.until = this.since + IDLE_MS;
  }

  pause() {
    this.settle();
    this.until = this.since;
  }

  settle() {
    const now = this.now();
    this.counted += Math.max(0, Math.min(now, this.until) - this.since);
    this.since = now;
  }

  get isRunning() {
    return this.now() < this.until;
  }

  seconds() {
    this.settle();
    return this.counted / 1000;
  }
}
