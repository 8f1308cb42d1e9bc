"""Which prompt runs when: long ones first, in groups of similar length, into slots as they become free.

Longest first for two reasons: the stragglers of a batch are started early, and rows that run side by side have similar
lengths, so attention over the longest of them wastes little on the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from goodheart.errors import ModelError

# Tokens, padding included, that one prefill may hold: enough to fill the machine, little enough for its memory.
_PREFILL_TOKENS = 8192
# A prefill takes prompts at least this share of its longest one.
_SIMILAR = 0.5
# While prompts wait, a prefill starts when this share of the slots is free: one for each freed slot would double the
# number of passes of a small model, and waiting for more leaves slots idle.
_REFILL_SHARE = 1 / 16


@dataclass(slots=True)
class Row:
    """One sequence on its way: a prompt, and what has been generated after it."""

    index: int  # place of its prompt in the call
    prompt: list[int]
    limit: int  # most new tokens
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class Scheduler:
    """The queue of waiting prompts of one call."""

    def __init__(self, rows: Sequence[Row], slots: int, prefill_tokens: int = _PREFILL_TOKENS) -> None:
        self.slots, self.prefill_tokens = slots, prefill_tokens
        self._waiting = deque(sorted(rows, key=lambda r: (-len(r.prompt) - r.limit, -len(r.prompt), r.index)))

    def __len__(self) -> int:
        return len(self._waiting)

    def next_group(self, active: int) -> list[Row]:
        """The rows to start now, [] to go on decoding.

        active: rows running. The group fits in the free slots and in the budget of padded prompt tokens; copies of one
        prompt count once, since they are computed once.
        """
        free = self.slots - active
        if not self._waiting or free < min(len(self._waiting), max(1, int(self.slots * _REFILL_SHARE))):
            return []
        group: list[Row] = []
        distinct, longest = 0, 0
        while self._waiting and len(group) < free:
            row = self._waiting[0]
            new = not group or row.prompt != group[-1].prompt
            longest = max(longest, len(row.prompt))
            if group and new:
                over_budget = (distinct + 1) * longest > self.prefill_tokens
                shortest = min(len(row.prompt), len(group[0].prompt))
                if over_budget or shortest < _SIMILAR * longest:
                    break
            distinct += new
            group.append(self._waiting.popleft())
        return group


def requests(prompts: Sequence[Sequence[int]], limits: Sequence[int], max_length: int | None, vocab: int) -> list[Row]:
    """Rows for the prompts, after checking that each can be generated from at all.

    limits: most new tokens per prompt. max_length: tokens a sequence may have, None = no limit. vocab: number of ids.
    Raises ModelError naming the prompt, for an empty one, one too long, and an id that the model does not have.
    """
    rows = []
    for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not len(prompt):
            raise ModelError(f"prompt {index} is empty: start it with at least one token, such as the BOS token")
        if max_length is not None and len(prompt) + limit > max_length:
            raise ModelError(
                f"prompt {index} has {len(prompt)} tokens, and with {limit} new tokens it exceeds the limit of "
                f"{max_length}: shorten the prompt or lower max_new_tokens"
            )
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= vocab:
            wrong = low if low < 0 else high
            raise ModelError(f"prompt {index} holds token id {wrong}, but the model has ids 0 to {vocab - 1} only")
        rows.append(Row(index, list(prompt), limit))
    return rows


def moves(order: Sequence[int]) -> tuple[list[int], list[int]]:
    """Which rows change place when row i becomes what row order[i] was. -> (new places, old places)."""
    changed = [(new, old) for new, old in enumerate(order) if new != old]
    return [new for new, _ in changed], [old for _, old in changed]


def compact(alive: Sequence[bool]) -> list[int]:
    """An order of the rows that are alive which moves as few as possible: the last ones fill the holes.

    compact([True, False, True, False, True]) == [0, 4, 2]
    """
    count = sum(alive)
    tail = [i for i in range(count, len(alive)) if alive[i]]
    return [i if alive[i] else tail.pop() for i in range(count)]
