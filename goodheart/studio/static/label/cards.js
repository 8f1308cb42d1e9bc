// The prompt and the answers as cards: built once per task, then only marked anew as the ranking changes.

import { tierOf } from "./ranking.js";
import { $, $$, make, nameOf, say, setHtml, setup } from "./page.js";

const SCORES = [1, 2, 3, 4, 5];

export class Cards {
  // act(action): what a press on a card means
  constructor(act) {
    this.act = act;
    this.root = $("#answers");
    this.raw = false;
  }

  show(task) {
    this.task = task;
    showPrompt(task.prompt);
    this.cards = task.answers.map((answer, position) => this.build(answer, position));
    this.root.replaceChildren(...this.cards);
    this.root.dataset.count = Math.min(task.answers.length, 4);
    this.root.classList.toggle("many", task.answers.length > 2);
    if (this.raw) this.setRaw(true);
  }

  build(answer, position) {
    const card = $("#card").content.firstElementChild.cloneNode(true);
    const choose = $(".choose", card);
    card.dataset.position = choose.dataset.position = position;
    card.setAttribute("aria-label", say("answer", { n: position + 1 }));
    $("kbd", choose).textContent = position < 9 ? position + 1 : position === 9 ? 0 : "·";
    $(".title", choose).textContent = say("answer", { n: position + 1 });
    $(".model", card).textContent = answer.model ?? "";
    choose.addEventListener("click", () => this.act({ do: "place", position }));
    card.addEventListener("focusin", () => this.act({ do: "focus", position }));
    fill(card, answer, answer.html);
    $(".flags", card).append(...setup.flags.map((name, number) => this.flag(name, number, position)));
    $(".ratings", card).append(...setup.rubric.map(({ name, about }) => this.rating(name, about, position)));
    return card;
  }

  flag(name, number, position) {
    const keys = number < 9 ? `Shift+${number + 1}` : null;
    const button = make(
      "button",
      { type: "button", class: "flag", "data-flag": name, "aria-pressed": "false", title: keys, "aria-keyshortcuts": keys },
      nameOf("flag", name),
    );
    button.addEventListener("click", () => this.act({ do: "flag", name, position }));
    return button;
  }

  rating(name, about, position) {
    const steps = SCORES.map((value) => {
      const input = make("input", { type: "radio", name: `${name} ${position}`, value, "aria-label": value });
      input.addEventListener("change", () => this.act({ do: "rate", name, position, value }));
      return make("label", {}, input, make("span", {}, String(value)));
    });
    const legend = make("legend", { title: about }, nameOf("score", name));
    return make("fieldset", { class: "rating", "data-score": name }, legend, make("div", { class: "steps" }, ...steps));
  }

  // Marks ranks, flags and scores.
  mark(answer) {
    const pair = answer.ranking.count === 2;
    this.cards.forEach((card, position) => {
      const tier = tierOf(answer.ranking, position);
      const tied = tier >= 0 && answer.ranking.tiers[tier].length > 1;
      card.dataset.rank = tier < 0 ? "none" : tier === 0 ? "first" : "later";
      card.classList.toggle("tied", tied);
      $(".rank", card).textContent = rankWords(tier, tied, pair);
      $(".choose", card).setAttribute("aria-pressed", String(pair ? tier === 0 && !tied : tier >= 0));
      for (const button of $$(".flag", card)) {
        const held = answer.flags[button.dataset.flag] ?? [];
        button.setAttribute("aria-pressed", String(held.includes(position)));
      }
      for (const group of $$(".rating", card)) {
        const value = answer.ratings[group.dataset.score]?.[position] ?? null;
        for (const input of $$("input", group)) input.checked = Number(input.value) === value;
      }
    });
  }

  setRaw(raw) {
    this.raw = raw;
    this.cards.forEach((card, i) => fill(card, this.task.answers[i], (raw && this.task.answers[i].raw) || this.task.answers[i].html));
  }

  // Moves the focus to a card and brings it into view.
  look(position) {
    this.cards[position]?.focus({ preventScroll: true });
    this.cards[position]?.scrollIntoView({ block: "nearest" });
  }

  unfold() {
    for (const more of $$(".more:not([hidden]) button", $("#main"))) more.click();
  }
}

function rankWords(tier, tied, pair) {
  if (tier < 0) return "";
  if (pair) return tied ? say("equal") : tier === 0 ? say("better") : "";
  return say(tied ? "rank_tied" : "rank", { n: tier + 1 });
}

function showPrompt(turns) {
  const root = $("#prompt");
  const shown = turns.map((turn) => {
    const text = make("div", { class: "text reading", dir: "auto" });
    const part = make("div", { class: "turn", "data-role": turn.role }, make("p", { class: "role" }, roleOf(turn.role)), text);
    part.append(make("p", { class: "more", hidden: true }, make("button", { type: "button" })));
    fill(part, turn, turn.html);
    return part;
  });
  root.replaceChildren(...shown);
  root.classList.toggle("conversation", turns.length > 1);
  root.hidden = false;
}

function roleOf(role) {
  return setup.words[`role.${role}`] ?? role;
}

// Puts a text into a card or a turn; a long one is folded until the reader asks for all of it.
function fill(part, shown, html) {
  const text = $(".text", part);
  setHtml(text, html);
  text.lang = shown.language ?? "";
  for (const pre of $$("pre:not(.raw)", text)) pre.prepend(copyButton(pre));
  if (shown.left_out) text.append(make("p", { class: "hint" }, say("left_out", { n: shown.left_out.toLocaleString() })));
  const more = $(".more", part);
  const folded = shown.folded && !part.classList.contains("unfolded");
  text.classList.toggle("folded", folded);
  more.hidden = !folded;
  const button = $("button", more);
  button.textContent = say("show_all", { n: shown.characters.toLocaleString() });
  button.onclick = () => {
    part.classList.add("unfolded");
    text.classList.remove("folded");
    more.hidden = true;
  };
}

function copyButton(pre) {
  const button = make("button", { type: "button", class: "copy" }, say("copy"));
  button.addEventListener("click", async () => {
    await navigator.clipboard?.writeText($("code", pre)?.textContent ?? "");
    button.textContent = say("copied");
    setTimeout(() => (button.textContent = say("copy")), 1500);
  });
  return button;
}
