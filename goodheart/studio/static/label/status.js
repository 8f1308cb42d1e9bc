// What the top of the page says: is everything saved, how much was done today, how fast, when to rest.

import { $, announce, say } from "./page.js";

const BREAK_AFTER_S = 45 * 60;
const REST_MS = 5 * 60_000;

export class Status {
  constructor() {
    this.times = [];
    this.count = 0;
    this.training = null;
    this.worked = 0;
    this.lastSeen = Date.now();
  }

  // From the server, once; afterwards the page counts on.
  begin({ count, seconds, training, share }) {
    this.count = count;
    this.times = seconds;
    this.training = training;
    this.share = share;
    this.show();
  }

  done(seconds, right) {
    this.count += 1;
    this.times.push(seconds);
    this.worked += seconds;
    if (right !== undefined && this.training) {
      this.training.seen += 1;
      this.training.right += right ? 1 : 0;
    }
    this.show();
  }

  undone() {
    this.count = Math.max(0, this.count - 1);
    this.times.pop();
    this.show();
  }

  show() {
    $("#today").textContent = say("today", { n: this.count });
    const middle = median(this.times);
    $("#speed").textContent = middle === null ? "" : say("speed", { n: Math.round(middle) });
    const trained = this.training?.seen ? say("training", this.training) : "";
    $("#gold").textContent = trained;
    $("#progress").value = this.share ?? 0;
  }

  saved({ waiting, problem, refused }) {
    const line = $("#saved");
    if (refused) this.notice(say("refused", { reason: refused.message }), "refused");
    line.dataset.state = problem ?? (waiting ? "sending" : "saved");
    line.textContent = problem ? say(`unsaved.${problem}`, { n: waiting }) : waiting ? say("saving") : say("saved");
    if (problem === "login") this.notice(say("login_again"), "login");
    else if (!problem) this.clear("login");
  }

  notice(text, kind) {
    const notice = $("#notice");
    notice.textContent = text;
    notice.dataset.kind = kind;
    notice.hidden = false;
  }

  clear(kind) {
    const notice = $("#notice");
    if (kind === undefined || notice.dataset.kind === kind) notice.hidden = true;
  }

  // Called at every sign of life. Five minutes without one are a rest.
  alive() {
    const now = Date.now();
    if (now - this.lastSeen > REST_MS) {
      this.worked = 0;
      this.clear("rest");
    }
    this.lastSeen = now;
  }

  remindOfRest() {
    if (this.worked < BREAK_AFTER_S) return;
    this.worked = 0;
    this.notice(say("rest"), "rest");
    announce(say("rest"));
  }
}

function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}
