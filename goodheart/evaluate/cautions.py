"""What to beware of: every rule that a report's numbers can break, each with its evidence."""

from __future__ import annotations

from collections.abc import Iterator

from goodheart.evaluate.comparison import THAN, Results, changes, doubtful_at_equal_length, rivals, tone, verdict
from goodheart.evaluate.plot import percent
from goodheart.evaluate.provenance import outdated, trained_to_please
from goodheart.evaluate.runs import RunRecord, Story
from goodheart.evaluate.wording import aspect_name, fixed, known, shown

_MOST_STYLE = 3  # changes of style told at the top
_MOST_KINDS = 3  # kinds of prompts named that became worse
_FEW_PROMPTS = 100  # below this an evaluation says little
_SAMPLER_ALARM = 0.01  # nats per token that sampler and trainer may differ by
_GUARDED = ("ppo", "grpo", "online")  # stages that push a reward and can have an audit judge
_NO_REWARD = "demonstration"  # as the reward of online: it learns from answers in the data, and nothing can be cheated


def cautions(story: Story) -> Iterator[str]:
    """The sentences, gates first."""
    yield from _about_gates(story)
    yield from _about_runs(story.runs)
    if story.evaluated is not None and story.evaluation is not None:
        yield from outdated(story, story.evaluated)
        judge = story.evaluation["judge"]
        for run in trained_to_please(story, story.evaluated):
            yield (
                f"The judge of this evaluation ({judge}) is what {run.name} was trained to please: "
                "its verdict proves nothing. Evaluate with another judge or with people."
            )
        yield from _about_evaluation(story.evaluation)


def _about_gates(story: Story) -> Iterator[str]:
    for text, found in story.gates.items():
        if not found.get("holds", True):
            values = "; ".join(v for f in found.get("findings", ()) if not f["holds"] for v in f["values"])
            yield f"A gate failed: {text} ({values})." if values else f"A gate failed: {text}."


def _about_runs(runs: list[RunRecord]) -> Iterator[str]:
    for run in runs:
        if not run.done:
            yield f"The stage {run.name} is not finished; its numbers are those so far."
        guard = run.results.get("goodhart")
        pushes = run.stage in _GUARDED and run.settings.get("reward") != _NO_REWARD
        if pushes and run.done and not (guard or run.audit):
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


def _about_evaluation(found: Results) -> Iterator[str]:
    names = list(found["models"])
    last = names[-1]
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
        found_here = verdict(found["wins"][last][other]["rate"])
        if other not in rivals(names) and found_here != "better":
            yield f"{last} is {THAN[found_here]} {other}."
    for other in reversed(names[:-1]):
        record = found["wins"][last][other]
        if doubtful_at_equal_length(record):
            told = "certain" if known(record["length_controlled"]) else "known"
            yield f"The lead of {last} over {other} is not {told} at equal length: it may only have grown longer."
        worse = list(_worse_aspects(found, last, other))
        if worse:
            yield f"Worse than {other}: {'; '.join(worse)}."
    for rival in rivals(names):
        yield from _about_kinds(found, last, rival)
    told = names[-2]
    style = [row["words"] for row in found["tics_changed"] if row["from"] == told and row["to"] == last]
    if style:
        more = f" ({len(style) - _MOST_STYLE} more under Style)" if len(style) > _MOST_STYLE else ""
        yield f"Its style changed: {'; '.join(style[:_MOST_STYLE])}{more}."


def _worse_aspects(found: Results, last: str, other: str) -> Iterator[str]:
    lower = found["lower_is_better"]
    for aspect, change in changes(found, last, other).items():
        if aspect == "score" or not known(change) or tone(change, aspect in lower) != "bad":
            continue
        before, after, share = found["models"][other][aspect], found["models"][last][aspect], aspect in found["yes_no"]
        yield f"{aspect_name(aspect)} {shown(after['value'], share)} after {shown(before['value'], share)}"


def _about_kinds(found: Results, last: str, rival: str) -> Iterator[str]:
    """Kinds of prompts on which the score collapsed, which a rising mean hides."""
    before, after = (found["by_kind"].get(name, {}) for name in (rival, last))
    scores = {kind: (before.get(kind, {}).get("score"), own.get("score")) for kind, own in after.items()}
    fallen = [(kind, b, a) for kind, (b, a) in scores.items() if known(b) and known(a) and a["high"] < b["low"]]
    fallen.sort(key=lambda row: row[2]["value"] - row[1]["value"])
    if fallen:
        told = [f"{kind} ({_score(a)} after {_score(b)})" for kind, b, a in fallen[:_MOST_KINDS]]
        more = f" and {len(fallen) - _MOST_KINDS} more" if len(fallen) > _MOST_KINDS else ""
        yield f"Kinds of prompts on which {last} scores lower than {rival}: {', '.join(told)}{more}."


def _score(measure: Results) -> str:
    return fixed(measure["value"], measure["low"], measure["high"])


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
