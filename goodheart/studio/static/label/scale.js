// Two answers: one row of buttons from "the first is much better" over "equal" to "the second is much better".

import { scaleOf } from "./answer.js";
import { $, $$, make, say, setup } from "./page.js";

export class Scale {
  constructor(act) {
    this.act = act;
    this.root = $("#scale");
    this.values = setup.strength ? [-4, -3, -2, -1, 0, 1, 2, 3, 4] : [-1, 0, 1];
    this.label = make("p", { class: "chosen", "aria-hidden": "true" });
    const row = make("div", { class: "steps" }, ...this.values.map((value) => this.step(value)));
    this.root.replaceChildren(this.label, make("div", { class: "row" }, end(1), row, end(2)));
    this.slide(row);
  }

  step(value) {
    const side = value < 0 ? "first" : value > 0 ? "second" : "middle";
    const button = make(
      "button",
      { type: "button", role: "radio", "aria-checked": "false", "data-value": value, "data-side": side },
      make("span", { class: "bar-of", "data-strength": Math.abs(value) }),
      make("span", { class: "words" }, short(value)),
    );
    button.setAttribute("aria-label", words(value));
    button.addEventListener("click", () => this.act({ do: "scale", value }));
    return button;
  }

  // Press and slide along the row.
  slide(row) {
    let pressed = false;
    const under = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest?.("#scale [data-value]");
    row.addEventListener("pointerdown", (event) => (pressed = event.isPrimary));
    row.addEventListener("pointermove", (event) => {
      const step = pressed ? under(event) : null;
      if (step) this.act({ do: "scale", value: Number(step.dataset.value) });
    });
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => (pressed = false));
  }

  mark(answer) {
    const value = scaleOf(answer);
    const open = setup.strength && value !== null && value !== 0 && answer.strength === null; // side chosen, degree not
    for (const button of $$("[data-value]", this.root)) {
      const own = Number(button.dataset.value);
      const here = value !== null && !open && own === value;
      button.setAttribute("aria-checked", String(here));
      button.classList.toggle("side", value !== null && value !== 0 && own !== 0 && Math.sign(own) === Math.sign(value));
      button.classList.toggle("upto", !open && value !== null && Math.sign(own) === Math.sign(value) && Math.abs(own) <= Math.abs(value));
      button.tabIndex = here || ((value === null || open) && own === 0) ? 0 : -1;
    }
    this.root.classList.toggle("open", open);
    this.label.textContent = value === null ? say("scale_empty") : open ? say("scale_open") : words(value);
  }

  next(answer, step) {
    const value = scaleOf(answer);
    const at = value === null ? 0 : value;
    const to = Math.max(this.values[0], Math.min(this.values.at(-1), at + step));
    return { do: "scale", value: to };
  }
}

function short(value) {
  if (value === 0) return say("equal");
  return setup.strength ? say(`strength.${Math.abs(value)}`) : say("is_better", { n: value < 0 ? 1 : 2 });
}

function words(value) {
  if (value === 0) return say("both_equal");
  const n = value < 0 ? 1 : 2;
  return setup.strength ? say(`is_better.${Math.abs(value)}`, { n }) : say("is_better", { n });
}

function end(number) {
  return make("span", { class: "end", "aria-hidden": "true" }, String(number));
}
