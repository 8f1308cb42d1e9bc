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
import { Scale } from "./scale.js";
import { Sheet } from "./sheet.js";
import { Status } from "./status.js";
import { Tasks } from "./tasks.js";
import { Timer } from "./timer.js";

const PATIENCE_MS = 10_000; // how long undo waits for what is on its way
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
const tasks = new Tasks({
  fetch: (besides) => api.get(`/api/c/${setup.campaign}/task${besides === null ? "" : `?besides=${besides}`}`),
  outbox,
  trouble: (error) => status.saved({ waiting: outbox.waiting, problem: error.kind ?? "later", refused: null }),
  lockMs: LOCK_MS,
});
const sheet = new Sheet({
  cards: new Cards(act),
  scale: new Scale(act),
  board: new Board(act, (position) => sheet.cards.look(position)),
  drafts,
  timer,
  compare: (task, a, b) => api.get(`/api/tasks/${task}/difference?a=${a}&b=${b}`),
});
const own = { submit, undo, skip, help: dialogs.help, guidelines: () => guide.toggle() };

let busy = false; // an answer is handed in, or taken back: no key may change anything

function act(action) {
  if (sheet.task === null || busy) return;
  if (own[action.do]) own[action.do](action);
  else sheet.act(action);
}

function setBusy(now) {
  busy = now;
  document.body.classList.toggle("busy", now);
}

// --- handing in ---------------------------------------------------------------------------------------------------

async function submit() {
  const { task, answer } = sheet;
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
  tasks.forget();
  await next();
}

// What the server says after an answer: gold may have paused this person.
function settle(saved) {
  if (["paused", "failed", "removed"].includes(saved.member)) fresh();
}

async function skip() {
  const said = await dialogs.skipping();
  const { task } = sheet;
  if (said === null || task === null) return;
  outbox.add(`/api/tasks/${task.id}/skip`, { request: newRequest(), ...said });
  drafts.forget(task.id);
  announce(say("skipped"));
  await next();
}

async function undo() {
  if (sheet.undo()) return;
  setBusy(true);
  drafts.flush();
  try {
    if (!(await outbox.idle(PATIENCE_MS))) return;
    const found = await api.send("POST", `/api/c/${setup.campaign}/undo`, {});
    tasks.forget();
    status.undone();
    show(found);
    announce(say("undone"));
  } catch (error) {
    status.notice(error.message, "undo");
  } finally {
    setBusy(false);
  }
}

function newRequest() {
  return crypto.randomUUID?.() ?? [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(16)).join("-");
}

// --- tasks --------------------------------------------------------------------------------------------------------

async function next() {
  setBusy(true);
  const found = await tasks.next(sheet.task?.id);
  setBusy(false);
  show(found);
}

// Forgets what was fetched ahead and asks anew.
async function fresh() {
  tasks.forget();
  if (outbox.waiting === 0) show(await tasks.now());
}

function show({ task, idle }) {
  for (const id of ["#prompt", "#desk"]) $(id).hidden = task === null;
  $("#nothing").hidden = task !== null;
  status.saved({ waiting: outbox.waiting, problem: null, refused: null });
  status.clear("undo");
  sheet.begin(task);
  if (task === null) return showIdle(idle);
  const isWork = task.phase === "work";
  $("#phase").hidden = isWork;
  $("#phase").textContent = isWork ? "" : say(`phase.${task.phase}`);
  $("#main").scrollTop = 0;
  $("#main").focus({ preventScroll: true });
  announce(say("new_task", { n: task.answers.length }));
  guide.inForce(task.guideline);
  if (isWork) tasks.fetchAhead(task.id);
}

function showIdle({ title, text, reason }) {
  $("#answers").replaceChildren();
  $("#nothing h2").textContent = title;
  $("#nothing p").textContent = [text, reason].filter(Boolean).join(" ");
  announce(title);
}

// --- the page -----------------------------------------------------------------------------------------------------

listen({ act, context: () => sheet.context(), timer, status, drafts, outbox });
dialogs.guardLinks(document);
$("#toggle-guidelines").addEventListener("click", () => guide.toggle());
$("#open-help").addEventListener("click", () => dialogs.help());
$("#look-again").addEventListener("click", () => fresh());
$("#comment").addEventListener("input", (event) => sheet.comment(event.target.value));
// Who reads for long without touching anything keeps the task as long as they give signs of life.
setInterval(() => {
  const isOld = Date.now() - sheet.draftSince > LOCK_MS / 3;
  if (sheet.task !== null && !busy && timer.isRunning && isOld) sheet.keepDraft();
}, 15_000);

async function begin() {
  await outbox.idle(PATIENCE_MS / 3); // answers of an earlier visit that never arrived
  const midnight = new Date();
  midnight.setHours(0, 0, 0, 0);
  const since = encodeURIComponent(midnight.toISOString());
  api.get(`/api/c/${setup.campaign}/me?since=${since}`).then((numbers) => status.begin(numbers), () => {});
  show(await tasks.now());
}

begin();
