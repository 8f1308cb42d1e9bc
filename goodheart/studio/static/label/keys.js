// Which key means what. A pure function from a key event to an action, so that it can be tested without a page.
//
// context: {count, strength: asked for, chosen: a better one of two is named, focus: position or null, flags: number}

export function actionOf(event, context) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return null;
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code ?? "")?.[1];
  if (digit !== undefined) return ofDigit(Number(digit), event.shiftKey, context);
  const pair = context.count === 2;
  switch (event.key) {
    case "=":
    case "t":
      return { do: "tie" };
    case "ArrowLeft":
    case "ArrowRight":
      return { do: pair ? "slide" : "look", step: event.key === "ArrowLeft" ? -1 : 1 };
    case "ArrowUp":
    case "ArrowDown":
      if (pair || !event.shiftKey || context.focus === null) return null;
      return { do: "move", position: context.focus, step: event.key === "ArrowUp" ? -1 : 1 };
    case "Backspace":
      return { do: "back" };
    case "Enter":
      return { do: "submit" };
    default:
      return LETTERS[event.key.length === 1 ? event.key.toLowerCase() : ""] ?? null;
  }
}

const LETTERS = {
  u: { do: "undo" },
  b: { do: "bothBad" },
  s: { do: "skip" },
  d: { do: "difference" },
  g: { do: "guidelines" },
  r: { do: "raw" },
  c: { do: "write" },
  a: { do: "showAll" },
  "?": { do: "help" },
};

// 1-9 are the answers, 0 is the tenth. Of two answers 1 and 2 choose; then 1 to 4 say how much better it is.
// With shift: the first, second ... flag on the answer last touched.
function ofDigit(digit, shift, context) {
  const number = digit === 0 ? 10 : digit;
  if (shift) {
    const fits = number <= context.flags && context.focus !== null;
    return fits ? { do: "flagNumber", number: number - 1, position: context.focus } : null;
  }
  if (context.count === 2 && context.strength && context.chosen) {
    return number <= 4 ? { do: "strength", value: number } : null;
  }
  return number <= context.count ? { do: "place", position: number - 1 } : null;
}

// Keys belong to the field, button or dialog that has the focus.
export function isTaken(event) {
  const target = event.target;
  if (!(target instanceof Element)) return false;
  if (target.closest("dialog[open]")) return true;
  if (target.matches("textarea, select, input:not([type=radio]):not([type=checkbox])")) return true;
  if (target.matches("input[type=radio]")) return event.key.startsWith("Arrow");
  return target.closest("button, a, summary, input") !== null && (event.key === "Enter" || event.key === " ");
}
