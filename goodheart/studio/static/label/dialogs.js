// Small windows over the page. Each resolves when it is closed, so that the page can wait for it.

import { wellFormed } from "./answer.js";
import { $, $$, make, say, setHtml } from "./page.js";

export const isOpen = () => document.querySelector("dialog[open]") !== null;

function ask(id) {
  const dialog = $(`#${id}`);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

export const help = () => ask("help");

// Why a task is put aside: {reason, more}, or null.
export async function skipping() {
  const more = $("#skipping textarea");
  more.value = "";
  if ((await ask("skipping")) !== "skip") return null;
  return { reason: $("#skipping [name=reason]:checked").value, more: wellFormed(more.value) };
}

// Two answers side by side with what differs marked. load(a, b) -> {sides: [html, html]}
export async function comparing(count, a, b, load) {
  const sides = $$("#comparing .side");
  const selects = [a, b].map((chosen, side) => {
    const select = make("select", { "aria-label": say(side ? "second_side" : "first_side") });
    for (let n = 0; n < count; n += 1) select.append(make("option", { value: n, selected: n === chosen }, say("answer", { n: n + 1 })));
    return select;
  });
  const draw = async () => {
    for (const side of sides) side.textContent = "…";
    try {
      const found = await load(Number(selects[0].value), Number(selects[1].value));
      sides.forEach((side, i) => setHtml(side, found.sides[i]));
    } catch (error) {
      sides[0].textContent = error.message;
    }
  };
  for (const select of selects) select.addEventListener("change", draw);
  $("#comparing .pick").replaceChildren(...selects);
  draw();
  await ask("comparing");
}

// After an answer of the training round: was it right, and why.
export function feedback({ right, ranks, why }) {
  $("#feedback-title").textContent = say(right ? "feedback.right" : "feedback.wrong");
  $("#feedback").classList.toggle("right", right);
  $("#feedback .verdict").textContent = say("feedback.ranks", { order: order(ranks) });
  setHtml($("#feedback .why"), why);
  return ask("feedback");
}

// [1, 0, 1] -> "2 > 1 = 3"
export function order(ranks) {
  const tiers = [...new Set(ranks)].sort((a, b) => a - b);
  return tiers.map((tier) => ranks.flatMap((rank, i) => (rank === tier ? [i + 1] : [])).join(" = ")).join(" > ");
}

// Links inside answers open only after a look at where they lead.
export function guardLinks(root) {
  root.addEventListener("click", (event) => {
    const link = event.target.closest?.(".text a[href]");
    if (!link) return;
    event.preventDefault();
    $("#leaving .address").textContent = link.href;
    const open = $("#leaving a");
    open.href = link.href;
    open.onclick = () => $("#leaving").close();
    ask("leaving").then(() => $("#main").focus({ preventScroll: true }));
  });
}
