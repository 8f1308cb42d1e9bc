// A ranking in the making. Pure functions: each returns a new ranking and changes nothing.
//
// {count: 4, tiers: [[1], [0, 3]], joining: false} says: of four answers the second is best, the first and the last
// tie behind it, and the third has no place yet. `joining`: the next answer placed ties with the last tier.

export function empty(count) {
  return { count, tiers: [], joining: false };
}

export function unranked(ranking) {
  const placed = new Set(ranking.tiers.flat());
  return [...Array(ranking.count).keys()].filter((position) => !placed.has(position));
}

export function isComplete(ranking) {
  return unranked(ranking).length === 0;
}

export function tierOf(ranking, position) {
  return ranking.tiers.findIndex((tier) => tier.includes(position));
}

// One rank per answer, 0 is best, equal numbers tie; null while answers are without a place.
export function ranks(ranking) {
  if (!isComplete(ranking)) return null;
  return [...Array(ranking.count).keys()].map((position) => tierOf(ranking, position));
}

export function fromRanks(given) {
  const values = [...new Set(given)].sort((a, b) => a - b);
  const tiers = values.map((value) => given.flatMap((rank, position) => (rank === value ? [position] : [])));
  return { count: given.length, tiers, joining: false };
}

export function remove(ranking, position) {
  const tiers = ranking.tiers.map((tier) => tier.filter((other) => other !== position)).filter((tier) => tier.length);
  return { ...ranking, tiers, joining: false };
}

// A key or a click: the answer comes after those placed before it (or beside the last of them, after `tie`); when one
// answer is left over it is the last. An answer that has a place loses it. Of two answers the one named is the better.
export function place(ranking, position) {
  if (ranking.count === 2) return { count: 2, tiers: [[position], [1 - position]], joining: false };
  if (tierOf(ranking, position) >= 0) return remove(ranking, position);
  const last = ranking.tiers.length - 1;
  const tiers = ranking.joining
    ? ranking.tiers.map((tier, i) => (i === last ? [...tier, position] : tier))
    : [...ranking.tiers, [position]];
  const next = { ...ranking, tiers, joining: false };
  const rest = unranked(next);
  return rest.length === 1 ? { ...next, tiers: [...tiers, rest] } : next;
}

// `=`: while answers are without a place, the next one ties with the last. When all have one, `focus` and the tier
// before it are joined, or parted again.
export function tie(ranking, focus) {
  if (ranking.count === 2) return { count: 2, tiers: [[0, 1]], joining: false };
  if (!isComplete(ranking)) return ranking.tiers.length ? { ...ranking, joining: !ranking.joining } : ranking;
  const tier = tierOf(ranking, focus);
  if (tier < 0) return ranking;
  if (ranking.tiers[tier].length > 1) return put(ranking, focus, tier + 1, true);
  return tier > 0 ? put(ranking, focus, tier - 1, false) : ranking;
}

// A drop: into tier `at` (a tie), or as a tier of its own in front of tier `at`.
export function put(ranking, position, at, alone) {
  const target = ranking.tiers[at];
  if (!alone && target?.includes(position)) return ranking;
  const tiers = ranking.tiers.map((tier) => tier.filter((other) => other !== position));
  if (alone) tiers.splice(at, 0, [position]);
  else tiers[at] = [...tiers[at], position].sort((a, b) => a - b);
  return { ...ranking, tiers: tiers.filter((tier) => tier.length), joining: false };
}

// Half a step up (-1) or down (+1): out of a tie first, then into the next tier.
export function move(ranking, position, step) {
  const tier = tierOf(ranking, position);
  if (tier < 0) return step < 0 ? put(ranking, position, ranking.tiers.length, true) : ranking;
  if (ranking.tiers[tier].length > 1) return put(ranking, position, step < 0 ? tier : tier + 1, true);
  const to = tier + step;
  return to < 0 || to >= ranking.tiers.length ? ranking : put(ranking, position, to, false);
}
