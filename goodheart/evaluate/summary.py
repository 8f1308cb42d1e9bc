"""The minute's reading at the top of a report: what was made, whether it is better, by how much, what to beware of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from goodheart.evaluate.cautions import cautions
from goodheart.evaluate.comparison import THAN, Results, changes, doubtful_at_equal_length, rivals, tone, verdict
from goodheart.evaluate.plot import percent
from goodheart.evaluate.runs import Story
from goodheart.evaluate.wording import aspect_name, known, with_interval

_MOST_SHARES = 4  # shares of yes told at the top
_NOTICEABLE = 0.05  # change of a share that takes the shine off a headline

_NO_EQUAL_LENGTH = "at equal length it cannot be told, the answers of one being longer by far nearly always."


@dataclass(frozen=True, slots=True)
class Tile:
    """One number that a reader sees first. `tone` is good, bad or plain."""

    value: str
    label: str
    note: str
    tone: str = "plain"


@dataclass
class Summary:
    """The top of the page."""

    headline: str
    tone: str
    tiles: list[Tile] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)


def summarise(story: Story) -> Summary:
    """Everything said at the top of the page."""
    found = story.evaluation
    if found is None:
        finished = sum(run.done for run in story.runs)
        stages = "stage" if len(story.runs) == 1 else "stages"
        summary = Summary(f"{finished} of {len(story.runs)} {stages} finished; nothing is evaluated yet", "plain")
    elif len(found["models"]) < 2:
        (name,) = found["models"]
        summary = Summary(f"{name} was evaluated alone: there is nothing to compare it with", "plain")
    else:
        summary = _compared(found)
    summary.cautions += cautions(story)
    return summary


def _compared(found: Results) -> Summary:
    names = list(found["models"])
    last = names[-1]
    summary = Summary(*_headline(found, names))
    for rival in rivals(names):
        record = found["wins"][last][rival]
        rate = record["rate"]
        if not known(rate):
            continue
        colour = {"better": "good", "worse": "bad"}.get(verdict(rate), "plain")
        label = f"win rate over {rival} (ties count half; {_won_and_tied(record)})"
        summary.tiles.append(Tile(percent(rate["value"]), label, _range(rate), colour))
    summary.tiles += list(_aspect_tiles(found, names[0], last))
    summary.findings += [_win_sentence(found, last, other) for other in reversed(names[:-1])]
    return summary


def _headline(found: Results, names: list[str]) -> tuple[str, str]:
    """What is told first, and its tone: green only where nothing that was measured speaks against it."""
    last, near = names[-1], rivals(names)
    verdicts = {other: verdict(found["wins"][last][other]["rate"]) for other in names[:-1]}
    joined = " and ".join(near)
    if all(verdicts[rival] == "worse" for rival in near):
        return f"{last} is worse than {joined}", "bad"
    if any(verdicts[rival] != "better" for rival in near):
        told = [f"{THAN[verdicts[rival]]} {rival}" for rival in near]
        return f"{last}: {', '.join(told)}", "bad" if "worse" in verdicts.values() else "plain"
    doubts = ", ".join(_doubts(found, last, verdicts))
    if not doubts:
        return f"{last} is better than {joined}", "good"
    return f"{last} is better than {joined}, but {doubts}", "bad" if "worse" in verdicts.values() else "plain"


def _doubts(found: Results, last: str, verdicts: dict[str, str]) -> Iterator[str]:
    """What a headline of success must not hide."""
    equal = [other for other, v in verdicts.items() if v == "unclear"]
    if equal:
        yield f"not than {' and '.join(equal)}"
    ahead = [other for other, v in verdicts.items() if v == "worse"]
    if ahead:
        yield f"worse than {' and '.join(ahead)}"
    longer = [other for other in verdicts if doubtful_at_equal_length(found["wins"][last][other])]
    if longer:
        yield f"not surely than {' and '.join(longer)} at equal length"
    worse = [
        aspect_name(aspect) for aspect in _shares(found, last) if _share_is_worse(found, last, list(verdicts), aspect)
    ]
    if worse:
        yield f"worse in {', '.join(worse)}"


def _shares(found: Results, last: str) -> list[str]:
    """Questions of yes or no that people ask, harms first."""
    own = [a for a in found["yes_no"] if a in found["models"][last] and a != "score"]
    return sorted(own, key=lambda aspect: aspect not in found["lower_is_better"])


def _share_is_worse(found: Results, last: str, others: list[str], aspect: str) -> bool:
    """Whether a share that people ask about is surely and noticeably worse than with one of the others."""
    lower = aspect in found["lower_is_better"]
    looked = [changes(found, last, other).get(aspect) for other in others]
    return any(c and known(c) and tone(c, lower) == "bad" and abs(c["value"]) >= _NOTICEABLE for c in looked)


def _range(measure: Results) -> str:
    low, high = (percent(measure[key]).removesuffix(" %") for key in ("low", "high"))
    return f"95 % interval {low} to {high} %, {measure['n']} prompts"


def _win_sentence(found: Results, last: str, other: str) -> str:
    record = found["wins"][last][other]
    rate, equal = record["rate"], record["length_controlled"]
    if not known(rate):
        return f"{last} and {other} could not be compared: the judge has no opinion on their answers."
    text = f"{last} is {THAN[verdict(rate)]} {other}: win rate {with_interval(rate, share=True)}, ties counting half"
    text += f" ({_won_and_tied(record)}); "
    return text + (f"at equal length {with_interval(equal, share=True)}." if known(equal) else _NO_EQUAL_LENGTH)


def _won_and_tied(record: Results) -> str:
    """Of the pairs of answers."""
    pairs = record["wins"] + record["ties"] + record["losses"]
    return f"{percent(record['wins'] / pairs)} won, {percent(record['ties'] / pairs)} tied"


def _aspect_tiles(found: Results, base: str, last: str) -> Iterator[Tile]:
    """Shares that people ask about, from the first model to the last."""
    lower = found["lower_is_better"]
    for aspect in _shares(found, last)[:_MOST_SHARES]:
        before, after = found["models"][base][aspect], found["models"][last][aspect]
        change = changes(found, last, base).get(aspect)
        if change is None or not (known(before) and known(after) and known(change)):
            continue
        colour = tone(change, aspect in lower)
        note = f"{percent(before['value'])} with {base}; {_range(after)}"
        yield Tile(percent(after["value"]), aspect_name(aspect), note, colour)
