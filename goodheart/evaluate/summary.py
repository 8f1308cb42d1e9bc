"""The minute's reading at the top of a report: what was made, whether it is better, by how much, what to beware of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from goodheart.evaluate.plot import percent
from goodheart.evaluate.runs import RunRecord, Story
from goodheart.evaluate.wording import SHARES, aspect_name, known, shown, with_interval

_MOST_STYLE = 3  # changes of style told at the top
_NOTICEABLE = 0.05  # change of a share that takes the shine off a headline
_FEW_PROMPTS = 100  # below this an evaluation says little
_SAMPLER_ALARM = 0.01  # nats per token that sampler and trainer may differ by

_THAN = {"better": "better than", "worse": "worse than", "unclear": "not clearly different from"}

Results = Mapping[str, Any]


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
    summary.cautions += [*_about_gates(story), *_about_runs(story.runs), *_about_evaluation(found or {}, story.runs)]
    return summary


def _compared(found: Results) -> Summary:
    names = list(found["models"])
    last, rivals = names[-1], _rivals(names)
    verdicts = [_verdict(found["wins"][last][rival]["rate"]) for rival in rivals]
    joined = " and ".join(rivals)
    if all(v == "better" for v in verdicts):
        summary = Summary(f"{last} is better than {joined}", "good")
    elif all(v == "worse" for v in verdicts):
        summary = Summary(f"{last} is worse than {joined}", "bad")
    else:
        told = [f"{_THAN[verdict]} {rival}" for verdict, rival in zip(verdicts, rivals, strict=True)]
        summary = Summary(f"{last}: {', '.join(told)}", "bad" if "worse" in verdicts else "plain")
    worse = [aspect_name(a) for a in SHARES if _shares_worse(found, last, rivals, a)]
    if worse and summary.tone == "good":
        summary.headline, summary.tone = f"{summary.headline}, but worse in {', '.join(worse)}", "plain"
    for rival in rivals:
        record = found["wins"][last][rival]
        rate, tone = record["rate"], {"better": "good", "worse": "bad"}.get(_verdict(record["rate"]), "plain")
        summary.tiles.append(
            Tile(percent(rate["value"]), f"of comparisons with {rival} are won by {last}", _range(rate), tone)
        )
    summary.tiles += list(_aspect_tiles(found, names[0], last))
    summary.findings += [_win_sentence(found, last, other) for other in reversed(names[:-1])]
    return summary


def _shares_worse(found: Results, last: str, rivals: list[str], aspect: str) -> bool:
    """Whether a share that people ask about became surely and noticeably worse than with one of the rivals."""
    lower = aspect in found["lower_is_better"]
    changes = [_changes(found, last, rival).get(aspect) for rival in rivals]
    return any(c and known(c) and _tone(c, lower) == "bad" and abs(c["value"]) >= _NOTICEABLE for c in changes)


def _changes(found: Results, last: str, rival: str) -> Results:
    return found["differences"].get(last, {}).get(rival, {})


def _rivals(names: list[str]) -> list[str]:
    """The base, and what the last model was made from (the one before it)."""
    return [names[0]] if len(names) == 2 else [names[-2], names[0]]


def _verdict(rate: Results) -> str:
    if not known(rate):
        return "unclear"
    return "better" if rate["low"] > 0.5 else "worse" if rate["high"] < 0.5 else "unclear"


def _range(measure: Results) -> str:
    low, high = (percent(measure[key]).removesuffix(" %") for key in ("low", "high"))
    return f"95 % interval {low} to {high} %, {measure['n']} prompts"


def _win_sentence(found: Results, last: str, other: str) -> str:
    record = found["wins"][last][other]
    rate, equal = record["rate"], record["length_controlled"]
    if not known(rate):
        return f"{last} and {other} could not be compared: the judge has no opinion on their answers."
    text = f"{last} is {_THAN[_verdict(rate)]} {other}: preferred in {with_interval(rate, '%')} of the comparisons"
    return text + (f"; at equal length in {with_interval(equal, '%')}." if known(equal) else ".")


def _aspect_tiles(found: Results, base: str, last: str) -> Iterator[Tile]:
    """Shares that people ask about, from the first model to the last."""
    lower = found["lower_is_better"]
    for aspect in [a for a in SHARES if a in found["models"][last]][:4]:
        before, after = found["models"][base][aspect], found["models"][last][aspect]
        change = _changes(found, last, base).get(aspect)
        if change is None or not (known(before) and known(after) and known(change)):
            continue
        tone = _tone(change, aspect in lower)
        note = f"{percent(before['value'])} with {base}; {_range(after)}"
        yield Tile(percent(after["value"]), aspect_name(aspect), note, tone)


def _tone(change: Results, lower_is_better: bool) -> str:
    if change["low"] <= 0 <= change["high"]:
        return "plain"
    return "good" if (change["value"] < 0) == lower_is_better else "bad"


def _about_gates(story: Story) -> Iterator[str]:
    for text, verdict in story.gates.items():
        if not verdict.get("holds", True):
            values = "; ".join(v for f in verdict.get("findings", ()) if not f["holds"] for v in f["values"])
            yield f"A gate failed: {text} ({values})." if values else f"A gate failed: {text}."


def _about_runs(runs: list[RunRecord]) -> Iterator[str]:
    for run in runs:
        if not run.done:
            yield f"The stage {run.name} is not finished; its numbers are those so far."
        guard = run.results.get("goodhart")
        if run.stage == "ppo" and run.done and not (guard or run.audit):
            yield f"{run.name} was trained without an audit judge: nobody watched whether it cheats its reward."
        if guard and guard.get("turned_down"):
            kept = f"; kept was the model of step {guard['kept_step']}" if "kept_step" in guard else ""
            yield f"{run.name} was pushed too far: {guard['turned_down']}{kept}."
        off = run.metrics[-1].get("sampler/logprob_diff_mean") if run.metrics else None
        if off is not None and off > _SAMPLER_ALARM:
            yield f"In {run.name} sampler and trainer differ by {off:.3f} nats per token (over 0.01 is broken)."
        accuracy, ruler = run.results.get("accuracy_low"), run.results.get("always_longest")
        if run.stage == "reward" and accuracy is not None and ruler is not None and accuracy <= ruler:
            yield (
                f"The reward model of the stage {run.name} is not clearly better than choosing the longer answer "
                f"({percent(run.results['accuracy'])} against {percent(ruler)})."
            )


def _about_evaluation(found: Results, runs: list[RunRecord]) -> Iterator[str]:
    if not found:
        return
    names = list(found["models"])
    last = names[-1]
    rewards = {str(run.settings.get("reward")): run.name for run in runs if run.settings.get("reward")}
    if found.get("judge") in rewards:
        yield (
            f"The judge of this evaluation ({found['judge']}) is what {rewards[found['judge']]} was trained to please: "
            "its verdict proves nothing. Evaluate with another judge or with people."
        )
    if found["prompts"] < _FEW_PROMPTS:
        yield f"Only {found['prompts']} prompts were evaluated; small differences cannot be seen."
    left_out = {name: n for name, n in found["left_out"].items() if n}
    if left_out:
        counted = ", ".join(f"{n} of {name}" for name, n in left_out.items())
        yield f"Prompts that not every model answered were left out ({counted})."
    if len(names) > 1:
        yield from _about_rivals(found, names)
    yield from _about_reward_model(found.get("reward_model", {}), last)


def _about_rivals(found: Results, names: list[str]) -> Iterator[str]:
    """Where the last model is no better than the others, or is not what it seems."""
    last = names[-1]
    for other in names[:-1]:
        verdict = _verdict(found["wins"][last][other]["rate"])
        if other not in _rivals(names) and verdict != "better":
            yield f"{last} is {_THAN[verdict]} {other}."
    for rival in _rivals(names):
        record = found["wins"][last][rival]
        rate, equal = record["rate"], record["length_controlled"]
        if known(rate) and known(equal) and rate["low"] > 0.5 >= equal["low"]:
            yield f"The lead of {last} over {rival} is not certain at equal length: it may only have grown longer."
        worse = list(_worse_aspects(found, last, rival))
        if worse:
            yield f"Worse than {rival}: {'; '.join(worse)}."
    told = names[-2]
    style = [row["words"] for row in found["tics_changed"] if row["from"] == told and row["to"] == last]
    if style:
        more = f" ({len(style) - _MOST_STYLE} more under Style)" if len(style) > _MOST_STYLE else ""
        yield f"Its style changed: {'; '.join(style[:_MOST_STYLE])}{more}."


def _worse_aspects(found: Results, last: str, rival: str) -> Iterator[str]:
    lower = found["lower_is_better"]
    for aspect, change in _changes(found, last, rival).items():
        if aspect == "score" or not known(change) or _tone(change, aspect in lower) != "bad":
            continue
        before, after = found["models"][rival][aspect], found["models"][last][aspect]
        yield f"{aspect_name(aspect)} {shown(after['value'], aspect)} after {shown(before['value'], aspect)}"


def _about_reward_model(report: Results, last: str) -> Iterator[str]:
    flagged = [row["words"].partition(":")[0] for row in report.get("probes", ()) if row["flagged"]]
    if flagged:
        yield f"The reward model can be cheated: {'; '.join(flagged)}. Expect a policy to learn it."
    by_model = report.get("against_judge", {}).get("by_model", {})
    best = max(by_model, key=lambda name: by_model[name]["accuracy"], default="")
    if last in by_model and by_model[last]["accuracy_high"] < by_model[best]["accuracy_low"]:
        now, before = (percent(by_model[name]["accuracy"]) for name in (last, best))
        yield (
            f"The reward model tells the answers of {last} apart less well: it agrees with the judge on {now} of their "
            f"pairs, on {before} of those of {best}; either they are more alike, or it has lost its eye."
        )
