// One task on the page and what is said of it so far: actions change it, every change is shown and kept as a draft.

import * as says from "./answer.js";
import * as dialogs from "./dialogs.js";
import { $, say, setup } from "./page.js";
import { fromRanks } from "./ranking.js";

export class Sheet {
  constructor({ cards, scale, board, drafts, timer, compare }) {
    Object.assign(this, { cards, scale, board, drafts, timer, compare });
    this.task = null; // on the page
    this.answer = null; // what is said of it so far
    this.past = []; // answers before each change, for undo
    this.draftSince = 0; // when the draft was last sent
    // What keys and buttons do beside changing the answer itself.
    this.own = {
      difference: () => this.difference(),
      back: () => this.back(),
      slide: ({ step }) => this.set(says.change(this.answer, this.scale.next(this.answer, step))),
      look: ({ step }) => this.look(step),
      raw: () => this.raw(),
      showAll: () => this.cards.unfold(),
      write: () => this.write(),
      flagNumber: (action) => this.flagNumber(action),
    };
  }

  get isPair() {
    return this.task.answers.length === 2;
  }

  // Shows a task, null for none, with the answer as it was left.
  begin(given) {
    this.task = given;
    this.past = [];
    if (given === null) return;
    const [answer, seconds] = begun(given, this.drafts.kept(given.id) ?? given.draft);
    this.answer = answer;
    this.cards.show(given);
    $("#scale").hidden = !this.isPair;
    $("#ranking").hidden = this.isPair;
    $("#comment").hidden = answer.comment === "";
    this.mark();
    this.timer.start(seconds);
    this.draftSince = Date.now();
  }

  act(action) {
    if (this.own[action.do]) this.own[action.do](action);
    else this.set(says.change(this.answer, action), action.do !== "focus");
  }

  set(next, kept = true) {
    if (next === this.answer) return;
    if (kept) this.past.push(this.answer);
    this.answer = next;
    if (kept) this.changed();
  }

  // Takes back the last change; false where there is none.
  undo() {
    if (!this.past.length) return false;
    this.answer = this.past.pop();
    this.changed();
    return true;
  }

  comment(text) {
    this.answer = says.change(this.answer, { do: "comment", text });
    this.changed();
  }

  changed() {
    this.mark();
    this.keepDraft();
  }

  keepDraft() {
    this.draftSince = Date.now();
    this.drafts.keep(this.task.id, `/api/tasks/${this.task.id}/draft`, { answer: this.answer, seconds: this.timer.seconds() });
  }

  mark() {
    const { answer } = this;
    this.cards.mark(answer);
    (this.isPair ? this.scale : this.board).mark(answer);
    const missing = says.missing(answer, setup);
    $("#missing").textContent = missing ? say(missing) : "";
    $("#submit").setAttribute("aria-disabled", String(missing !== null));
    $("#both-bad").setAttribute("aria-pressed", String(answer.bothBad));
    $("#write").classList.toggle("filled", answer.comment !== "");
    if ($("#comment").value !== answer.comment) $("#comment").value = answer.comment;
  }

  raw() {
    this.cards.setRaw(!this.cards.raw);
    $("#raw").setAttribute("aria-pressed", String(this.cards.raw));
  }

  look(step) {
    const count = this.task.answers.length;
    const { focus } = this.answer;
    const at = focus === null ? (step > 0 ? 0 : count - 1) : (focus + step + count) % count;
    this.set(says.change(this.answer, { do: "focus", position: at }), false);
    this.cards.look(at);
  }

  back() {
    const last = this.answer.ranking.tiers.at(-1)?.at(-1);
    if (this.isPair) this.set(says.change(this.answer, { do: "clear" }));
    else if (last !== undefined) this.set(says.change(this.answer, { do: "remove", position: last }));
  }

  flagNumber({ number, position }) {
    const name = setup.flags[number];
    if (name !== undefined) this.set(says.change(this.answer, { do: "flag", name, position }));
  }

  write() {
    const comment = $("#comment");
    comment.hidden = !comment.hidden && document.activeElement === comment;
    $("#write").setAttribute("aria-expanded", String(!comment.hidden));
    if (!comment.hidden) comment.focus();
  }

  difference() {
    const { id, answers } = this.task;
    const [a, b] = this.isPair ? [0, 1] : this.compared();
    dialogs.comparing(answers.length, a, b, (x, y) => this.compare(id, x, y));
  }

  // The answer last touched and the one ranked just before it.
  compared() {
    const order = this.answer.ranking.tiers.flat();
    const a = this.answer.focus ?? 0;
    const b = order[order.indexOf(a) - 1] ?? (a + 1) % this.task.answers.length;
    return [Math.min(a, b), Math.max(a, b)];
  }

  // What decides the meaning of a key; null where there is no task.
  context() {
    if (this.task === null) return null;
    return {
      count: this.task.answers.length,
      strength: setup.strength,
      chosen: this.answer.ranking.tiers.length === 2,
      focus: this.answer.focus,
      flags: setup.flags.length,
    };
  }
}

// The answer as it was left, and its seconds: in this browser, on the server, or in the label that was taken back.
function begun(given, kept) {
  const count = given.answers.length;
  if (kept?.said) {
    const { ranks, both_bad: bothBad, ...rest } = kept.said;
    return [{ ...says.blank(count), ...rest, bothBad, ranking: fromRanks(ranks) }, kept.seconds];
  }
  const revived = kept ? says.revive(kept.answer, count) : null;
  return revived ? [revived, kept.seconds] : [says.blank(count), 0];
}
