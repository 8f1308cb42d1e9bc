"""Several rewards as one judge: asks every term, puts each on its own scale, and combines them.

Scores of different reward models have nothing in common, so every term is first put on its own scale: (score - mean) /
std of the training answers, which a reward folder records; a function has no scale unless one is given. The settings
are in settings.py, the formulas in combinations.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from goodheart.data.records import Answer, Prompt
from goodheart.data.template import Template
from goodheart.judges.combinations import (
    Combine,
    Pieces,
    constrained,
    gated_sum,
    llama2,
    lower_bound,
    lowest,
    next_price,
    over_terms,
)
from goodheart.judges.function import FunctionJudge
from goodheart.judges.reward import RewardJudge
from goodheart.judges.settings import CombinedReward, Term

Rows = Sequence[Sequence[int]]


@dataclass
class Judged:
    """What a judge says of B answers; None where it has no opinion.

    raw: on the judge's own scale.  scores: what is optimised, on the scale of the training answers where one is known.
    terms: of each reward of several its raw scores, and what the combination did (`stopped`, `by_safety`: 1 or 0); of
        one judge the same names in every call.
    """

    raw: list[float | None]
    scores: list[float | None]
    terms: dict[str, list[float | None]] = field(default_factory=dict)


class CombinedJudge:
    """Several judges as one. Its scores are whitened already; only `constrained` has a state."""

    def __init__(self, settings: CombinedReward, judges: Mapping[str, FunctionJudge | RewardJudge]) -> None:
        self.settings, self.judges = settings, dict(judges)
        self.name = f"{settings.combine} of {', '.join(judges)}"
        bounded = [name for name, term in settings.rewards.items() if term.bounded]
        self.multipliers = dict.fromkeys(bounded if settings.combine == "constrained" else (), settings.multiplier)
        self._held = dict(self.multipliers)  # of each price the part that does not follow the last step alone
        self._scales = {name: _scale(settings.rewards[name], judge) for name, judge in self.judges.items()}
        self._combine = self._combination()

    def score(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        on_refusal: Callable[[int, str], None] | None = None,
    ) -> list[float | None]:
        """One combined score per answer; None where no term has an opinion, or a reward model cannot read the text.

        on_refusal: told the place and the reason where a text cannot be read.
        """
        return self.judged(prompts, answers, on_refusal).scores

    def judged(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        on_refusal: Callable[[int, str], None] | None = None,
        *,
        rows: Rows | None = None,
        template: Template | None = None,
    ) -> Judged:
        """As `score`, with every term apart.

        rows: prompt and answer as sampled tokens of `template`, for the reward models that read the same tokens.
        """
        refused: dict[int, str] = {}
        terms = {name: self._raw(name, prompts, answers, refused.setdefault, rows, template) for name in self.judges}
        if on_refusal is not None:
            for i in sorted(refused):
                on_refusal(i, refused[i])
        scores: list[float | None] = []
        told: dict[str, list[float | None]] = {name: [None] * len(prompts) for name in self.term_names}
        told |= terms
        for i, prompt in enumerate(prompts):
            raw = {name: value for name, values in terms.items() if (value := values[i]) is not None}
            score, notes = (None, {}) if i in refused or not raw else self._combine(self._pieces(raw, prompt))
            scores.append(score)
            for name, value in notes.items():
                told[name][i] = value
        return Judged(scores, scores, told)

    def update(self, means: Mapping[str, float]) -> dict[str, float]:
        """Moves the price of every constraint once, after a training step; returns the prices for the log.

        means: mean raw score of each term over the whole step and all processes.
        """
        for name in self.multipliers:
            if name in means:
                self._held[name], self.multipliers[name] = next_price(
                    self._held[name],
                    self._excess(name, means[name]),
                    rate=self.settings.multiplier_rate,
                    damping=self.settings.multiplier_damping,
                    most=self.settings.multiplier_most,
                )
        return {f"rewards/{name}/multiplier": value for name, value in self.multipliers.items()}

    @property
    def term_names(self) -> list[str]:
        """What is logged, the same on every process whatever its answers are."""
        notes = {"llama2": ["by_safety"], "sum": ["stopped"] * (self.settings.otherwise is not None)}
        return [*self.judges, *notes.get(self.settings.combine, [])]

    def state_dict(self) -> dict[str, Any]:
        return {"multipliers": dict(self.multipliers), "held": dict(self._held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.multipliers = {name: float(state["multipliers"][name]) for name in self.multipliers}
        held = state.get("held", state["multipliers"])  # checkpoints without it held the whole price
        self._held = {name: float(held[name]) for name in self.multipliers}

    def _raw(
        self,
        name: str,
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        refuse: Callable[[int, str], Any],
        rows: Rows | None,
        template: Template | None,
    ) -> list[float | None]:
        """Scores of one term on its own scale, of those prompts that it is for."""
        term, judge = self.settings.rewards[name], self.judges[name]
        wanted = [i for i, p in enumerate(prompts) if term.only is None or says(p, term.only)]
        found: list[float | None] = [None] * len(prompts)
        mine, said = [prompts[i] for i in wanted], [answers[i] for i in wanted]
        if isinstance(judge, FunctionJudge):
            scores = judge.score(mine, said) if wanted else []
        else:
            if rows is not None and template is not None and judge.reads_tokens_of(template):
                heads: list[list[float] | None] = list(judge.score_tokens([rows[i] for i in wanted]).tolist())
            else:
                heads = judge.score_heads(mine, said, lambda n, why: refuse(wanted[n], f"{name}: {why}"))
            scores = [None if each is None else _of_heads(each, term) for each in heads]
        for i, score in zip(wanted, scores, strict=True):
            found[i] = score
        return found

    def _pieces(self, raw: Mapping[str, float], prompt: Prompt) -> Pieces:
        rewards = self.settings.rewards
        return Pieces(
            raw=raw,
            scaled={name: (raw[name] - self._scales[name][0]) / self._scales[name][1] for name in raw},
            weights={name: rewards[name].weight for name in raw},
            excess={name: self._excess(name, raw[name]) for name in raw if rewards[name].bounded},
            safety_prompt=self.settings.safety_prompts is not None and says(prompt, self.settings.safety_prompts),
        )

    def _excess(self, name: str, score: float) -> float:
        """How far a score, or a mean of scores, breaks its bound, in standard deviations; negative inside."""
        term, (_, std) = self.settings.rewards[name], self._scales[name]
        if term.at_most is not None:
            return (score - term.at_most) / std
        assert term.at_least is not None
        return (term.at_least - score) / std

    def _combination(self) -> Combine:
        settings = self.settings
        return {
            "sum": partial(gated_sum, otherwise=settings.otherwise),
            "worst": partial(over_terms, least=lowest),
            "lower-bound": partial(over_terms, least=partial(lower_bound, k=settings.k)),
            "llama2": partial(
                llama2, threshold=settings.threshold, clip=settings.clip, scale=pooled(list(self._scales.values()))
            ),
            "constrained": partial(constrained, multipliers=lambda: self.multipliers),
        }[settings.combine]


def says(prompt: Prompt, columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether each of these columns of a prompt has one of the values that count."""
    return all(prompt.meta.get(name) in values for name, values in columns.items())


def pooled(scales: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation of scores that come from each of several (mean, std) equally often."""
    mean = sum(m for m, _ in scales) / len(scales)
    square = sum(s * s + m * m for m, s in scales) / len(scales)
    return mean, max(square - mean * mean, 0.0) ** 0.5


def _scale(term: Term, judge: FunctionJudge | RewardJudge) -> tuple[float, float]:
    mean, std = (judge.mean, judge.std) if isinstance(judge, RewardJudge) else (0.0, 1.0)
    return mean if term.mean is None else term.mean, std if term.std is None else term.std


def _of_heads(scores: Sequence[float], term: Term) -> float:
    """One raw score from those of the heads."""
    if term.heads == "worst":
        return lowest(scores)
    return lower_bound(scores, k=term.k if term.heads == "lower-bound" else 0.0)
