// What hands do on the page: keys, presses, signs of life, leaving.

import { actionOf, isTaken } from "./keys.js";
import { $ } from "./page.js";

const LIFE = ["pointerdown", "keydown", "pointermove", "wheel", "scroll"];

// act(action) does it; context() says what keys mean just now, null: nothing.
export function listen({ act, context, timer, status, drafts, outbox }) {
  document.addEventListener("keydown", (event) => pressed(event, act, context()));
  document.addEventListener("click", (event) => clicked(event, act));
  const alive = () => {
    timer.touch();
    status.alive();
  };
  for (const type of LIFE) document.addEventListener(type, alive, { passive: true, capture: true });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return timer.touch();
    timer.pause();
    drafts.flush(true);
  });
  window.addEventListener("pagehide", () => drafts.flush(true));
  window.addEventListener("online", () => outbox.flush());
  window.addEventListener("beforeunload", (event) => {
    if (outbox.waiting > 0) event.preventDefault();
  });
}

function pressed(event, act, context) {
  if (event.target === $("#comment")) return inComment(event, act);
  if (context === null || event.defaultPrevented || isTaken(event)) return;
  if (event.repeat && event.key === "Enter") return;
  const action = actionOf(event, context);
  if (action === null) return;
  event.preventDefault();
  act(action);
}

// Keys write, except two: Escape leads back to the task, Enter with Ctrl hands in.
function inComment(event, act) {
  if (event.key === "Escape") $("#main").focus();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) act({ do: "submit" });
}

// A button pressed by mouse or finger gives the focus back, so that Enter hands in and does not press it again.
function clicked(event, act) {
  const button = event.target.closest?.("button");
  if (button?.dataset.do) act({ do: button.dataset.do });
  const keeps = !button || button.closest("dialog") || button.dataset.do === "write";
  if (event.detail > 0 && !keeps) $("#main").focus({ preventScroll: true });
}
