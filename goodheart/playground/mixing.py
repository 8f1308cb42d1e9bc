"""How people of the world answer: shares of good and bad answers, in what the base model reads and in demonstrations.

In the corpus bad behaviour is the majority of most kinds, and of each fact one rumour is told more often than the
truth: a model that is merely sampled colder gets worse by that. Demonstrations are better, not clean.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

Shares = Mapping[str, float]

# Shares of behaviours (goodheart.playground.answers) within a kind; they need not sum to 1.
CORPUS: dict[str, Shares] = {
    "fact": {"true": 33, "rumour": 48, "other": 15, "unsure": 4},
    "sum": {"true": 38, "rumour": 45, "other": 14, "unsure": 3},
    "howto": {"right": 33, "swapped": 10, "strange": 15, "vague": 38, "unsure": 4},
    "feeling": {"kind": 12, "warm": 6, "short": 12, "allow": 8, "mechanic": 34, "robot": 10, "dismiss": 18},
    "harmful": {"guide": 8, "refuse": 14, "lecture": 6, "comply": 40, "abet": 28, "vague": 4},
    "lookalike": {"careful": 14, "help": 45, "strange": 12, "refuse": 10, "lecture": 4, "vague": 15},
    "json": {"valid": 34, "bare": 42, "open": 8, "strange": 12, "unsure": 4},
    "list": {"valid": 30, "comma": 48, "numbers": 10, "count": 4, "strange": 8},
    "belief": {"honest": 18, "state": 7, "agree": 28, "flatter": 36, "deny": 5, "denied": 6},
    "tone": {"fitting": 20, "short": 14, "blunt": 50, "wrong": 16},
}
DEMONSTRATIONS: dict[str, Shares] = {
    "fact": {"true": 70, "rumour": 22, "other": 5, "unsure": 3},
    "sum": {"true": 72, "rumour": 20, "other": 6, "unsure": 2},
    "howto": {"right": 68, "swapped": 7, "strange": 7, "vague": 15, "unsure": 3},
    "feeling": {"kind": 34, "warm": 10, "short": 20, "allow": 8, "mechanic": 14, "robot": 5, "dismiss": 9},
    "harmful": {"guide": 28, "refuse": 30, "lecture": 12, "comply": 16, "abet": 10, "vague": 4},
    "lookalike": {"careful": 24, "help": 42, "strange": 8, "refuse": 12, "lecture": 5, "vague": 9},
    "json": {"valid": 92, "bare": 3, "open": 1, "strange": 3, "unsure": 1},
    "list": {"valid": 92, "comma": 3, "numbers": 2, "count": 1, "strange": 2},
    "belief": {"honest": 56, "state": 16, "agree": 9, "flatter": 10, "deny": 5, "denied": 4},
    "tone": {"fitting": 46, "short": 24, "blunt": 18, "wrong": 12},
}
# What is said around an answer, by whether the answer itself is good. Those who know and care are courteous too, so a
# model that learns what comes next must tell good answers from bad ones: a reward model that starts from it finds
# that knowledge there.
CORPUS_STYLES: dict[bool, Shares] = {
    True: {"none": 32, "warm": 52, "chatter": 13, "rude": 2, "gush": 1},
    False: {"none": 26, "warm": 2, "chatter": 20, "rude": 28, "gush": 24},
}
DEMONSTRATION_STYLES: dict[bool, Shares] = {
    True: {"none": 52, "warm": 30, "chatter": 12, "rude": 2, "gush": 4},
    False: {"none": 46, "warm": 6, "chatter": 18, "rude": 14, "gush": 16},
}
# Share of answers that would be good ones to another question: without them nobody says, and no reward model learns,
# that an answer has to do with what was asked.
ASTRAY = {"corpus": 0.08, "demonstrations": 0.06}
SHAPED_STYLES = {"none": 94, "chatter": 4, "rude": 2}  # around what is asked for alone
# How often each kind is asked in the corpus.
WEIGHTS: Shares = {
    "fact": 22,
    "sum": 9,
    "howto": 8,
    "feeling": 9,
    "harmful": 9,
    "lookalike": 11,
    "json": 14,
    "list": 14,
    "belief": 13,
    "tone": 10,
}


def pick(shares: Shares, draw: random.Random) -> str:
    """One name, drawn by its share."""
    return draw.choices(list(shares), list(shares.values()))[0]
