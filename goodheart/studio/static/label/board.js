// Three answers or more: a row of tiers, best first, into which answers are dragged or moved by key.

import { tierOf, unranked } from "./ranking.js";
import { dragging } from "./drag.js";
import { $, make, say } from "./page.js";

export class Board {
  constructor(act, look) {
    this.act = act;
    this.look = look;
    this.root = $("#ranking");
    dragging(document, {
      handle: "#ranking .chip, #answers.many .choose",
      zone: "#ranking [data-drop]",
      drop: (position, zone) => this.drop(Number(position), zone.dataset),
    });
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  drop(position, { drop, at }) {
    if (drop === "pool") this.act({ do: "remove", position });
    else this.act({ do: "put", position, at: Number(at), alone: drop === "gap" });
  }

  // Arrow keys on a chip move it; Delete takes it out; Enter brings its card into view.
  key(event) {
    const chip = event.target.closest(".chip");
    if (!chip || event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
    const position = Number(chip.dataset.position);
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (step) this.act({ do: "move", position, step });
    else if (event.key === "Delete") this.act({ do: "remove", position });
    else return;
    event.preventDefault();
    event.stopPropagation();
    $(`.chip[data-position="${position}"]`, this.root)?.focus();
  }

  mark(answer) {
    const held = document.activeElement?.closest?.("#ranking .chip")?.dataset.position;
    const { tiers, joining } = answer.ranking;
    const parts = [gap(0)];
    tiers.forEach((tier, i) => {
      const chips = tier.flatMap((position, j) => (j ? [sign("="), this.chip(position, answer)] : [this.chip(position, answer)]));
      const last = joining && i === tiers.length - 1;
      const label = make("span", { class: "label" }, say("rank", { n: i + 1 }));
      parts.push(make("li", { class: last ? "tier joining" : "tier", "data-drop": "tier", "data-at": i }, label, ...chips, ...(last ? [sign("= ?")] : [])));
      parts.push(gap(i + 1));
    });
    $("#tiers").replaceChildren(...parts);
    $("#tiers").classList.toggle("empty", tiers.length === 0);
    if (!tiers.length) parts[0].textContent = say("board_empty");
    const rest = unranked(answer.ranking);
    const pool = $("#pool");
    pool.dataset.drop = "pool";
    pool.classList.toggle("none", rest.length === 0);
    $(".chips", pool).replaceChildren(...rest.map((position) => this.chip(position, answer)));
    if (held !== undefined) $(`.chip[data-position="${held}"]`, this.root)?.focus();
  }

  chip(position, answer) {
    const tier = tierOf(answer.ranking, position);
    const tied = tier >= 0 && answer.ranking.tiers[tier].length > 1;
    const words = tier < 0 ? say("no_rank") : say(tied ? "rank_tied" : "rank", { n: tier + 1 });
    const chip = make(
      "button",
      { type: "button", class: "chip", "data-position": position, "aria-label": `${say("answer", { n: position + 1 })}: ${words}` },
      String(position + 1),
    );
    chip.addEventListener("click", () => (tier < 0 ? this.act({ do: "place", position }) : this.look(position)));
    return chip;
  }
}

function gap(at) {
  return make("li", { class: "gap", "data-drop": "gap", "data-at": at, "aria-hidden": "true" });
}

function sign(text) {
  return make("span", { class: "sign", "aria-hidden": "true" }, text);
}
