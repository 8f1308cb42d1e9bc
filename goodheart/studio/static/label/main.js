// The labelling page: fetches tasks, turns keys, presses and drags into one answer, and hands it in.

import { Api } from "./api.js";
import * as says from "./answer.js";
import { Board } from "./board.js";
import { Cards } from "./cards.js";
import * as dialogs from "./dialogs.js";
import { Drafts } from "./drafts.js";
import { Guide } from "./guide.js";
import { listen } from "./hands.js";
import { Outbox } from "./outbox.js";
import { $, announce, say, setup } from "./page.js";
import { fromRanks } from "./ranking.js";
import { Scale } from "./scale.js";
import { Status } from "./status.js";
import { Timer } from "./timer.js";

const PATIENCE_MS = 10_000; // how long undo and training wait for what is on its way
const LOCK_MS = setup.lock_minutes * 60_000; // how long the server keeps a task for its reader
const mine = `${setup.person} ${setup.campaign}`;
const api = new Api(setup);
const status = new Status();
const timer = new Timer();
const guide = new Guide(api, localStorage, status);
const outbox = new Outbox({
  storage: localStorage,
  key: `goodheart outbox ${mine}`,
  send: (entry) => api.send("POST", entry.url, entry.body),
  tell: (what) => status.saved(what),
});
const drafts = new Drafts({
  storage: localStorage,
  prefix: `goodheart draft ${setup.person} `,
  send: (url, draft, leaving) => api.send("PUT", url, draft, leaving),
});
const cards = new Cards(act);
const scale = new Scale(act);
const board = new Board(act, (position) => cards.look(position));

let task = null; // on the page
let answer = null; // what is said of it so far
let past = []; // answers before each change, for undo
let ahead = null; // promise of the next task
let aheadSince = 0; // when it was fetched
let draftSince = 0; // when the draft was last sent
let busy = false; // an answer is handed in, or taken back: no key may change anything

// --- what is done -------------------------------------------------------------------------------------------------

function act(action) {
  if (task === null || busy) return;
  const own = { submit, undo, skip, difference, back, slide, look, raw, showAll, write, help: dialogs.help, flagNumber };
  if (action.do === "guidelines") guide.toggle();
  else if (own[action.do]) own[action.do](action);
  else set(says.change(answer, action), action.do !== "focus");
}

function setBusy(now) {
  busy = now;
  document.body.classList.toggle("busy", now);
}

function set(next, kept = true) {
  if (next === answer) return;
  if (kept) past.push(answer);
  answer = next;
  if (!kept) return;
  mark();
  keepDraft();
}

function keepDraft() {
  draftSince = Date.now();
  drafts.keep(task.id, `/api/tasks/${task.id}/draft`, { answer, seconds: timer.seconds() });
}

function mark() {
  cards.mark(answer);
  if (task.answers.length === 2) scale.mark(answer);
  else board.mark(answer);
  const missing = says.missing(answer, setup);
  $("#missing").textContent = missing ? say(missing) : "";
  $("#submit").setAttribute("aria-disabled", String(missing !== null));
  $("#both-bad").setAttribute("aria-pressed", String(answer.bothBad));
  $("#write").classList.toggle("filled", answer.comment !== "");
  if ($("#comment").value !== answer.comment) $("#comment").value = answer.comment;
}

const slide = ({ step }) => set(says.change(answer, scale.next(answer, step)));
const raw = () => {
  cards.setRaw(!cards.raw);
  $("#raw").setAttribute("aria-pressed", String(cards.raw));
};
const showAll = () => cards.unfold();

function look({ step }) {
  const count = task.answers.length;
  const at = answer.focus === null ? (step > 0 ? 0 : count - 1) : (answer.focus + step + count) % count;
  set(says.change(answer, { do: "focus", position: at }), false);
  cards.look(at);
}

function back() {
  const last = answer.ranking.tiers.at(-1)?.at(-1);
  if (task.answers.length === 2) set(says.change(answer, { do: "clear" }));
  else if (last !== undefined) set(says.change(answer, { do: "remove", position: last }));
}

function flagNumber({ number, position }) {
  const name = setup.flags[number];
  if (name !== undefined) set(says.change(answer, { do: "flag", name, position }));
}

function write() {
  const comment = $("#comment");
  comment.hidden = !comment.hidden && document.activeElement === comment;
  $("#write").setAttribute("aria-expanded", String(!comment.hidden));
  if (!comment.hidden) comment.focus();
}

function difference() {
  const [a, b] = task.answers.length === 2 ? [0, 1] : compared();
  const url = `/api/tasks/${task.id}/difference`;
  dialogs.comparing(task.answers.length, a, b, (x, y) => api.get(`${url}?a=${x}&b=${y}`));
}

// The answer last touched and the one ranked just before it.
function compared() {
  const order = answer.ranking.tiers.flat();
  const a = answer.focus ?? 0;
  const b = order[order.indexOf(a) - 1] ?? (a + 1) % task.answers.length;
  return [Math.min(a, b), Math.max(a, b)];
}

// --- handing in ---------------------------------------------------------------------------------------------------

async function submit() {
  const missing = says.missing(answer, setup);
  if (missing) {
    announce(say(missing));
    $("#missing").classList.remove("nudge");
    requestAnimationFrame(() => $("#missing").classList.add("nudge"));
    return;
  }
  const seconds = timer.seconds();
  const body = says.body(answer, newRequest(), seconds, setup);
  const handedIn = outbox.add(`/api/tasks/${task.id}/label`, body);
  drafts.forget(task.id);
  handedIn.then(settle, () => {}); // a refusal is told at the top of the page
  if (task.phase === "work") {
    status.done(seconds);
    await next();
  } else await learn(handedIn, seconds);
  status.remindOfRest();
}

// In the training round the answer is looked at together before the next task.
async function learn(handedIn, seconds) {
  setBusy(true);
  const saved = await handedIn.catch(() => null);
  setBusy(false);
  status.done(seconds, saved?.feedback?.right);
  if (saved?.feedback) await dialogs.feedback(saved.feedback);
  ahead = null;
  await next();
}

// What the server says after an answer: gold may have paused this person.
function settle(saved) {
  if (["paused", "failed", "removed"].includes(saved.member)) fresh();
}

async function skip() {
  const said = await dialogs.skipping();
  if (said === null || task === null) return;
  outbox.add(`/api/tasks/${task.id}/skip`, { request: newRequest(), ...said });
  drafts.forget(task.id);
  announce(say("skipped"));
  await next();
}

async function undo() {
  if (past.length) {
    answer = past.pop();
    mark();
    keepDraft();
    return;
  }
  setBusy(true);
  drafts.flush();
  try {
    if (!(await outbox.idle(PATIENCE_MS))) return;
    const found = await api.send("POST", `/api/c/${setup.campaign}/undo`, {});
    ahead = null;
    status.undone();
    show(found);
    announce(say("undone"));
  } catch (error) {
    status.notice(error.message, "undo");
  } finally {
    setBusy(false);
  }
}

// --- tasks --------------------------------------------------------------------------------------------------------

function fetchTask(besides = null) {
  const query = besides === null ? "" : `?besides=${besides}`;
  return api.get(`/api/c/${setup.campaign}/task${query}`);
}

// The next task: the one that was fetched ahead, or a new one.
async function next() {
  setBusy(true);
  const waiting = Date.now() - aheadSince < LOCK_MS / 2 ? ahead : null;
  ahead = null;
  let found = waiting === null ? null : await waiting.catch(() => null);
  if (found === null || found.task === null || found.task.id === task?.id) {
    await outbox.idle(PATIENCE_MS); // the server must know of the last answer before it says what is next
    found = await fetched();
  }
  setBusy(false);
  show(found);
}

// What comes after a task, asked for while it is worked on; the server must first have what was handed in before.
async function prefetched(besides) {
  return (await outbox.idle(PATIENCE_MS * 60)) ? fetchTask(besides) : null;
}

async function fetched() {
  for (let wait = 1000; ; wait = Math.min(wait * 2, 30_000)) {
    try {
      return await fetchTask();
    } catch (error) {
      if (error.kind === "refused") return { task: null, idle: { title: error.message, text: "", reason: null } };
      status.saved({ waiting: outbox.waiting, problem: error.kind ?? "later", refused: null });
      await new Promise((done) => setTimeout(done, wait));
    }
  }
}

// Forgets what was fetched ahead and asks anew.
async function fresh() {
  ahead = null;
  if (outbox.waiting === 0) show(await fetched());
}

function show({ task: given, idle }) {
  task = given;
  past = [];
  for (const id of ["#prompt", "#desk"]) $(id).hidden = given === null;
  $("#nothing").hidden = given !== null;
  status.saved({ waiting: outbox.waiting, problem: null, refused: null });
  status.clear("undo");
  if (given === null) return showIdle(idle);
  const [draft, seconds] = begun(given);
  answer = draft;
  cards.show(given);
  const pair = given.answers.length === 2;
  $("#scale").hidden = !pair;
  $("#ranking").hidden = pair;
  $("#phase").hidden = given.phase === "work";
  $("#phase").textContent = given.phase === "work" ? "" : say(`phase.${given.phase}`);
  $("#comment").hidden = answer.comment === "";
  mark();
  $("#main").scrollTop = 0;
  $("#main").focus({ preventScroll: true });
  timer.start(seconds);
  draftSince = Date.now();
  announce(say("new_task", { n: given.answers.length }));
  guide.inForce(given.guideline);
  if (given.phase === "work") {
    ahead = prefetched(given.id);
    aheadSince = Date.now();
    ahead.catch(() => {});
  }
}

function showIdle({ title, text, reason }) {
  $("#answers").replaceChildren();
  $("#nothing h2").textContent = title;
  $("#nothing p").textContent = [text, reason].filter(Boolean).join(" ");
  announce(title);
}

// The answer as it was left: in this browser, on the server, or in the label that was taken back.
function begun(given) {
  const count = given.answers.length;
  const kept = drafts.kept(given.id) ?? given.draft;
  if (kept?.said) {
    const { ranks, both_bad: bothBad, ...rest } = kept.said;
    return [{ ...says.blank(count), ...rest, bothBad, ranking: fromRanks(ranks) }, kept.seconds];
  }
  const revived = kept ? says.revive(kept.answer, count) : null;
  return revived ? [revived, kept.seconds] : [says.blank(count), 0];
}

// --- the page -----------------------------------------------------------------------------------------------------

function newRequest() {
  return crypto.randomUUID?.() ?? [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(16)).join("-");
}

// What decides the meaning of a key; null where there is no task.
function context() {
  if (task === null) return null;
  return {
    count: task.answers.length,
    strength: setup.strength,
    chosen: answer.ranking.tiers.length === 2,
    focus: answer.focus,
    flags: setup.flags.length,
  };
}

listen({ act, context, timer, status, drafts, outbox });
dialogs.guardLinks(document);
$("#toggle-guidelines").addEventListener("click", () => guide.toggle());
$("#open-help").addEventListener("click", () => dialogs.help());
$("#look-again").addEventListener("click", () => fresh());
$("#comment").addEventListener("input", (event) => {
  answer = says.change(answer, { do: "comment", text: event.target.value });
  mark();
  keepDraft();
});
// Who reads for long without touching anything keeps the task as long as they give signs of life.
setInterval(() => {
  if (task !== null && !busy && timer.isRunning && Date.now() - draftSince > LOCK_MS / 3) keepDraft();
}, 15_000);

async function begin() {
  await outbox.idle(PATIENCE_MS / 3); // answers of an earlier visit that never arrived
  const midnight = new Date();
  midnight.setHours(0, 0, 0, 0);
  const since = encodeURIComponent(midnight.toISOString());
  api.get(`/api/c/${setup.campaign}/me?since=${since}`).then((numbers) => status.begin(numbers), () => {});
  show(await fetched());
}

begin();
