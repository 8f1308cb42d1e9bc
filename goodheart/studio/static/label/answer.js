// What a person has said about one task so far. Keys, buttons and dragging all become actions on this one object:
//
//   answer = change(answer, { do: "place", position: 2 });
//
// Pure: `change` returns a new object, or the same one where nothing changed.

import * as ranking from "./ranking.js";

export function blank(count) {
  return {
    ranking: ranking.empty(count),
    strength: null, // 1 negligibly .. 4 significantly better; of two answers only
    bothBad: false,
    flags: {}, // {"harmful": [0, 2]}: positions
    ratings: {}, // {"coherence": [4, null, 3]}: by position
    comment: "",
    focus: null, // the position last touched
  };
}

const ACTIONS = {
  place: (a, { position }) => ({ ...ranked(a, ranking.place(a.ranking, position)), focus: position }),
  remove: (a, { position }) => ranked(a, ranking.remove(a.ranking, position)),
  put: (a, { position, at, alone }) => ({ ...ranked(a, ranking.put(a.ranking, position, at, alone)), focus: position }),
  move: (a, { position, step }) => ({ ...ranked(a, ranking.move(a.ranking, position, step)), focus: position }),
  tie: (a) => ranked(a, ranking.tie(a.ranking, a.focus ?? -1)),
  clear: (a) => ({ ...ranked(a, ranking.empty(a.ranking.count)), strength: null }),
  scale: (a, { value }) => onScale(a, value),
  strength: (a, { value }) => (isTie(a) ? a : { ...a, strength: value }),
  bothBad: (a) => ({ ...a, bothBad: !a.bothBad }),
  flag: (a, { name, position }) => ({ ...a, focus: position, flags: toggled(a.flags, name, position) }),
  rate: (a, { name, position, value }) => ({ ...a, ratings: rated(a, name, position, value) }),
  comment: (a, { text }) => ({ ...a, comment: text }),
  focus: (a, { position }) => ({ ...a, focus: position }),
};

export function change(answer, action) {
  return ACTIONS[action.do](answer, action);
}

function ranked(answer, next) {
  if (next === answer.ranking) return answer;
  const kept = next.count === 2 && next.tiers.length === 2 ? answer.strength : null;
  const turned = JSON.stringify(next.tiers) !== JSON.stringify(answer.ranking.tiers);
  return { ...answer, ranking: next, strength: turned ? null : kept };
}

// -4 .. -1: the first of two is better, 0: they tie, 1 .. 4: the second is. Without degrees -1, 0 and 1.
export function scaleOf(answer) {
  const tiers = answer.ranking.tiers;
  if (!tiers.length) return null;
  if (tiers.length === 1) return 0;
  return (tiers[0][0] === 0 ? -1 : 1) * (answer.strength ?? 1);
}

function onScale(answer, value) {
  if (value === 0) return { ...ranked(answer, ranking.tie(answer.ranking)), strength: null };
  return { ...ranked(answer, ranking.place(answer.ranking, value < 0 ? 0 : 1)), strength: Math.abs(value) };
}

function isTie(answer) {
  return answer.ranking.tiers.length !== 2;
}

function toggled(flags, name, position) {
  const held = flags[name] ?? [];
  const now = held.includes(position) ? held.filter((p) => p !== position) : [...held, position].sort((a, b) => a - b);
  const { [name]: _, ...others } = flags;
  return now.length ? { ...others, [name]: now } : others;
}

function rated(answer, name, position, value) {
  const row = answer.ratings[name] ?? Array(answer.ranking.count).fill(null);
  return { ...answer.ratings, [name]: row.map((old, p) => (p === position ? value : old)) };
}

// What is missing before it can be handed in: a key of the words, or null.
export function missing(answer, settings) {
  if (!answer.bothBad || answer.ranking.tiers.length) {
    if (!ranking.isComplete(answer.ranking)) return answer.ranking.count === 2 ? "missing.choice" : "missing.ranks";
    if (settings.strength && answer.ranking.count === 2 && !isTie(answer) && answer.strength === null) {
      return "missing.strength";
    }
  }
  const unrated = settings.rubric.some(({ name }) => {
    const row = answer.ratings[name];
    return !row || row.some((value) => value === null);
  });
  return unrated ? "missing.ratings" : null;
}

// The body of the request. All bad and nothing else said: they tie.
export function body(answer, request, seconds, settings) {
  const all = ranking.ranks(answer.ranking) ?? Array(answer.ranking.count).fill(0);
  return {
    request,
    ranks: all,
    strength: settings.strength && answer.ranking.count === 2 && !isTie(answer) ? answer.strength : null,
    both_bad: answer.bothBad,
    flags: answer.flags,
    ratings: settings.rubric.length ? answer.ratings : null,
    comment: wellFormed(answer.comment),
    seconds: Math.round(seconds * 10) / 10,
  };
}

// Half an emoji, left by a broken editor, is no text that can be sent.
export function wellFormed(text) {
  return text.toWellFormed?.() ?? text;
}

// A draft kept elsewhere, read back; null where it is not of this task's shape.
export function revive(draft, count) {
  const tiers = draft?.ranking?.tiers;
  if (!Array.isArray(tiers) || draft.ranking.count !== count) return null;
  const placed = tiers.flat();
  const sound = placed.every((p) => Number.isInteger(p) && p >= 0 && p < count) && new Set(placed).size === placed.length;
  return sound ? { ...blank(count), ...draft, ranking: { ...draft.ranking, joining: false } } : null;
}
