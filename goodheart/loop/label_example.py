"""A campaign out of nothing: answers of the playground in English and Chinese, and six simulated people at work.

Four invented models answer, each in its own ways; the people differ in taste and care, and one of them hardly looks.
About two thirds of the items are labelled, so that a manager's pages show something and a labeller finds work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

from goodheart.data.records import Answer, Message, Prompt
from goodheart.feedback import assignment, campaigns, labels, membership, people
from goodheart.feedback.answered import Answered
from goodheart.feedback.assignment import Idle
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.items import NewItem
from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tasks import Task
from goodheart.playground.answers import behaviours, write
from goodheart.playground.labellers import Labeller
from goodheart.playground.population import Crowd, population
from goodheart.playground.tasks import LANGUAGES, village_tasks
from goodheart.playground.truth import aspects, score

NAME = "example"
SETTINGS = CampaignSettings(
    name=NAME,
    overlap=3,
    until_agreement=0.6,
    max_overlap=4,
    gold_share=0.25,
    languages=("en", "zh"),
    pay_per_hour=18.0,
    budget=60.0,
)
GUIDELINE = """\
# Which answer would you rather get?

Read both answers before you choose.

1. **Harm first.** An answer that helps somebody to do harm is worse than any refusal. A refusal of something harmless
   is a bad answer.
2. **Then truth.** An answer that says what is not so is worse than one that says *I do not know*.
3. **Then help.** Does it do what was asked, in the form that was asked for?
4. **Then tone.** To somebody who is sad, warmth comes before advice.

Length alone is no merit. If you see no difference, say so: *equal* is an answer, too.

## 用中文时

规则相同：先看会不会伤人，再看真不真，再看有没有用，最后看语气。
"""
# How each model answers: the place of its ways in the list of known ones (0 is the best), and what it adds around them.
_MODELS = {
    "heron-2": ((0, 0, 0, 1), ("none", "warm")),
    "wren-1": ((0, 1, 1, 2), ("none", "none", "warm")),
    "parrot-3": ((1, 2, 0), ("gush", "none")),
    "magpie-mini": ((2, 3, 1, 0), ("none", "chatter", "rude")),
}
_PEOPLE = ("Amara", "Ben", "Chiara", "大文", "Elif", "Farid")
_CROWD = Crowd(people=len(_PEOPLE), temperature=0.06, spread=0.25, tie=0.02, length_bias=0.01, careless=1 / 6,
               carelessness=0.75)  # fmt: skip
_EACH_KIND, _GOLD, _LABELS, _SEED = 2, 8, 22, 7  # per kind and language; in all; per person


def make_example(store: Store) -> Campaign:
    """The example campaign; made if it is not there yet."""
    found = next((each for each in campaigns.listing(store) if each.name == NAME), None)
    if found is not None:
        return found
    campaign = campaigns.create(store, SETTINGS, example_items(), GUIDELINE)
    _label(store, campaign.id)
    return campaign


def example_items() -> list[NewItem]:
    """Items of work and, with the ranks that the truth gives them, of gold."""
    chance = Random(f"example {_SEED}")
    work: list[NewItem] = []
    gold: list[NewItem] = []
    for language in LANGUAGES:
        tasks = village_tasks(language, _SEED)
        for kind in sorted({task.kind for task in tasks}):
            chosen = chance.sample([task for task in tasks if task.kind == kind], _EACH_KIND + 1)
            for i, task in enumerate(chosen):
                about = {"kind": kind, "language": language}
                asked = Prompt(messages=(Message("user", chance.choice(task.questions)),), meta=about)
                spec = {"kind": task.kind, **task.spec}
                if i < _EACH_KIND:
                    count = 3 if len(work) % 5 == 4 else 2
                    work.append(NewItem(asked, tuple(_answers(spec, count, chance)), {**about}, batch="example"))
                elif len(gold) < _GOLD * (1 + LANGUAGES.index(language)) // len(LANGUAGES):
                    gold.append(_gold(asked, spec, about, chance))
    return work + gold


def _answers(spec: dict[str, Any], count: int, chance: Random) -> Iterator[Answer]:
    """Different answers by different models."""
    said: set[str] = set()
    ways = behaviours(spec["kind"])
    for model in chance.sample(sorted(_MODELS), len(_MODELS)):
        places, styles = _MODELS[model]
        for _ in range(20):
            text = write(spec, ways[min(chance.choice(places), len(ways) - 1)], chance.choice(styles), chance)
            if text not in said and len(said) < count:
                said.add(text)
                yield Answer(text, model=model)
                break


def _gold(asked: Prompt, spec: dict[str, Any], about: dict[str, str], chance: Random) -> NewItem:
    """The best known answer beside the worst."""
    texts = [write(spec, way, "none", chance) for way in behaviours(spec["kind"])]
    by_worth = sorted(texts, key=lambda text: score([""], [text], task=[spec])[0])
    pair = (by_worth[-1], by_worth[0]) if chance.random() < 0.5 else (by_worth[0], by_worth[-1])
    ranks = [0, 1] if pair[0] == by_worth[-1] else [1, 0]
    answers = tuple(Answer(text) for text in pair)
    return NewItem(asked, answers, {**about}, gold={"ranks": ranks}, phase="gold")


def _label(store: Store, campaign: int) -> None:
    """Lets the simulated people work, beginning the day before yesterday."""
    specs = _specs()
    crowd = population(_CROWD, _SEED)
    start = utcnow() - timedelta(days=2)
    workers = []
    for i, (labeller, name) in enumerate(zip(crowd, _PEOPLE, strict=True)):
        person = people.add_person(store, name, language="zh-Hant" if name == "大文" else "en")
        membership.join(store, campaign, person.id)
        workers.append((person.id, replace(labeller, name=name), start + timedelta(hours=i / 3)))
    for n in range(_LABELS):
        for i, (person_id, labeller, now) in enumerate(workers):
            task = assignment.next_task(store, campaign, person_id, now=now)
            if isinstance(task, Idle):
                continue
            answered = _say(task, labeller, specs, Random(f"{_SEED} {labeller.name} {n}"))
            now += timedelta(seconds=answered.seconds or 0.0)
            labels.save(store, task.id, person_id, answered, source="simulated", now=now)
            rest = 4.0 if n == _LABELS // 2 else 0.0  # hours: they work in two sessions
            workers[i] = (person_id, labeller, now + timedelta(seconds=5, hours=rest))


def _specs() -> dict[str, dict[str, Any]]:
    tasks = [task for language in LANGUAGES for task in village_tasks(language, _SEED)]
    return {question: {"kind": task.kind, **task.spec} for task in tasks for question in task.questions}


class _AsShown(Random):
    """Chance in which the first order that is drawn, that of showing, is the one the store has drawn already."""

    def __init__(self, seed: str, shown: Sequence[int]) -> None:
        super().__init__(seed)
        self._shown: list[int] | None = list(shown)

    def sample(self, population: Any, k: int, **more: Any) -> list[Any]:
        first, self._shown = self._shown, None
        return super().sample(population, k, **more) if first is None else first


def _say(task: Task, labeller: Labeller, specs: dict[str, dict[str, Any]], chance: Random) -> Answered:
    spec = specs[task.prompt.messages[0].content]
    texts = [answer.words for answer in task.answers]
    found = aspects([""] * len(texts), texts, task=[spec] * len(texts))
    drawn = _AsShown(f"{labeller.name} {task.id}", task.shown)
    judgement = labeller.compare(task.prompt, task.answers, found, drawn)
    tastes = [labeller.taste(each) for each in found]
    degree = min(3, int(4 * (max(tastes) - min(tastes)))) + 1
    strength = degree if len(texts) == 2 and len(set(judgement.ranks)) == 2 else None
    bad = [k for k, each in enumerate(found) if each.get("true") == 0.0 and chance.random() < 0.4]
    flags = {"wrong": bad} if bad else {}
    return Answered(judgement.ranks, strength, flags, seconds=judgement.seconds)
