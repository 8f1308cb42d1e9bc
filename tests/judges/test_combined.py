"""Several rewards as one: every combination by hand, what is logged, what is refused, what is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from goodheart.data.records import Answer, Prompt
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import ConfigError
from goodheart.judges.combinations import next_price, sigmoid
from goodheart.judges.combined import CombinedJudge
from goodheart.judges.judged import after_step, judged
from goodheart.judges.load import load_judge
from goodheart.judges.reward import RewardJudge
from goodheart.judges.settings import CombinedReward, RewardSetting, judge_names
from goodheart.loop.registry import STAGES
from goodheart.models.load import load_reward, new_reward, save_reward
from goodheart.stages.score import ScoreConfig, score
from goodheart.train.config import Settings, build

A, B = "tests.judges.rewards:a", "tests.judges.rewards:b"


def combined(combine: str, rewards: dict[str, Any], **settings: Any) -> CombinedJudge:
    judge = load_judge(CombinedReward.model_validate({"combine": combine, "rewards": rewards, **settings}))
    assert isinstance(judge, CombinedJudge)
    return judge


def rows(*columns: dict[str, Any]) -> tuple[list[Prompt], list[Answer]]:
    return [Prompt(text="Q", meta=c) for c in columns], [Answer("yes")] * len(columns)


def pair(*values: tuple[float | None, float | None], **more: Any) -> tuple[list[Prompt], list[Answer]]:
    return rows(*[{"a": a, "b": b} | more for a, b in values])


# Combinations ----------------------------------------------------------------------------------------------------


def test_a_sum_is_of_whitened_scores() -> None:
    judge = combined("sum", {"x": {"judge": A, "mean": 10, "std": 5}, "y": {"judge": B, "weight": -0.5}})
    # (20 - 10) / 5 - 0.5 * 3 = 0.5;  (5 - 10) / 5 - 0.5 * 0 = -1
    assert judge.score(*pair((20, 3), (5, 0))) == [0.5, -1.0]


def test_a_term_without_an_opinion_adds_nothing_and_no_opinion_at_all_stays_none() -> None:
    judge = combined("sum", {"x": {"judge": A, "mean": 10, "std": 5}, "y": {"judge": B}})
    assert judge.score(*pair((None, 3), (20, None), (None, None))) == [3.0, 2.0, None]


def test_a_gate_stops_what_misses_its_bound() -> None:
    judge = combined(
        "sum", {"x": {"judge": A}, "safe": {"judge": B, "weight": 0, "at_least": 0.5, "std": 2}}, otherwise=-3
    )
    asked = pair((7, 0.5), (7, 0.49), (7, None))
    assert judge.score(*asked) == [7.0, -3.0, 7.0]  # the bound itself passes; without an opinion nothing is stopped
    assert judge.judged(*asked).terms["stopped"] == [0.0, 1.0, 0.0]
    below = combined("sum", {"x": {"judge": A}, "harm": {"judge": B, "weight": 0, "at_most": 0}}, otherwise=0)
    assert below.score(*pair((7, 0), (7, 0.1))) == [7.0, 0.0]


def test_worst_and_lower_bound_over_the_terms() -> None:
    rewards = {"x": {"judge": A, "std": 2}, "y": {"judge": B, "weight": 2}}
    asked = pair((8, 1), (2, 4), (6, None))
    # whitened and weighted: (4, 2), (1, 8), (3)
    assert combined("worst", rewards).score(*asked) == [2.0, 1.0, 3.0]
    # mean - k * std of all: 3 - 1, 4.5 - 3.5, 3 - 0;  with k = 2: 3 - 2, 4.5 - 7, 3
    assert combined("lower-bound", rewards).score(*asked) == [2.0, 1.0, 3.0]
    assert combined("lower-bound", rewards, k=2).score(*asked) == pytest.approx([1.0, -2.5, 3.0])


@pytest.mark.parametrize("combine", ["worst", "lower-bound"])
def test_a_term_without_weight_adds_nothing_to_the_worst_and_the_lower_bound(combine: str) -> None:
    watched = {"judge": A, "mean": 100, "weight": 0}
    terms = {"x": {"judge": B}, "y": {"judge": B, "weight": 3}}
    judge = combined(combine, {**terms, "watched": watched})
    asked = pair((9, 2), (9, -2), (9, None))
    assert judge.score(*asked) == combined(combine, terms).score(*asked)
    assert judge.score(*asked)[2] is None  # only what counts for nothing has an opinion
    assert judge.judged(*asked).terms["watched"] == [9.0, 9.0, 9.0]


def test_llama2_lets_safety_rule_where_it_must() -> None:
    judge = combined(
        "llama2", {"helpful": {"judge": A}, "safe": {"judge": B}}, safety_prompts={"kind": ["harmful", "risky"]}
    )
    # With no scale of their own both logits have mean 0 and std 1, so that whitening changes nothing.
    # sigmoid(-1.73) = 0.1506, just safe enough; sigmoid(-1.74) = 0.1493, under 0.15.
    assert sigmoid(-1.73) == pytest.approx(0.15059, abs=1e-5)
    assert sigmoid(-1.74) == pytest.approx(0.14931, abs=1e-5)
    asked = rows(
        {"a": 2.0, "b": -1.73, "kind": "sum"},
        {"a": 2.0, "b": -1.74, "kind": "sum"},
        {"a": 2.0, "b": 1.5, "kind": "risky"},
        {"a": 40.0, "b": 5.0, "kind": "sum"},
        {"a": 2.0, "b": -40.0, "kind": "sum"},
    )
    found = judge.judged(*asked)
    # the last two are clipped: ln((1 - 1e-4) / 1e-4) = ln 9999 = 9.2102
    assert found.scores == pytest.approx([2.0, -1.74, 1.5, math.log(9999), -math.log(9999)])
    assert found.terms["by_safety"] == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert found.terms["helpful"] == [2.0, 2.0, 2.0, 40.0, 2.0]


def test_llama2_whitens_by_what_both_models_gave_their_training_answers() -> None:
    scales = {"helpful": {"judge": A, "mean": 1, "std": 1}, "safe": {"judge": B, "mean": 3, "std": 2}}
    # pooled: mean 2, mean of squares ((1 + 1) + (4 + 9)) / 2 = 7.5, variance 7.5 - 4 = 3.5
    assert combined("llama2", scales).score(*pair((4.0, 2.0))) == pytest.approx([2 / math.sqrt(3.5)])


def test_a_constraint_has_a_price_that_moves_once_a_step() -> None:
    judge = combined(
        "constrained",
        {"good": {"judge": A, "mean": 1, "std": 2}, "harm": {"judge": B, "at_most": 0.2, "std": 0.1}},
        multiplier=0.5,
        multiplier_rate=0.1,
    )
    # reward (5 - 1) / 2 = 2; excess (0.4 - 0.2) / 0.1 = 2 and (0.1 - 0.2) / 0.1 = -1
    # (2 - 0.5 * 2) / 1.5 = 2/3;  (2 + 0.5) / 1.5 = 5/3
    asked = pair((5, 0.4), (5, 0.1))
    assert judge.score(*asked) == pytest.approx([2 / 3, 5 / 3])
    # mean harm 0.25 is 0.5 std over the bound: 0.5 + 0.1 * 0.5 is held, 10 * 0.1 * 0.5 comes on top
    metrics = after_step(judge, judge.judged(*asked).terms, lambda x: x)
    price = 0.55 + 0.5
    assert metrics["rewards/harm/multiplier"] == pytest.approx(price)
    assert metrics["rewards/harm/mean"] == pytest.approx(0.25)
    assert metrics["rewards/good/std"] == 0
    assert judge.score(*asked) == pytest.approx([(2 - 2 * price) / (1 + price), (2 + price) / (1 + price)])
    # inside the bound the price falls
    after_step(judge, judge.judged(*pair((5, 0.0))).terms, lambda x: x)
    assert judge.multipliers["harm"] < price
    other = combined("constrained", {"good": {"judge": A}, "harm": {"judge": B, "at_most": 0.2, "std": 0.1}})
    other.load_state_dict(json.loads(json.dumps(judge.state_dict())))
    assert other.multipliers == judge.multipliers
    assert other.state_dict() == judge.state_dict()


def test_a_price_from_before_there_was_a_damping_goes_on() -> None:
    bounded = {"judge": B, "at_most": 0.2, "std": 0.1}
    judge = combined("constrained", {"good": {"judge": A}, "harm": bounded}, multiplier_rate=0.1)
    judge.load_state_dict({"multipliers": {"harm": 2.5}})
    assert judge.multipliers == {"harm": 2.5}
    # 0.05 is half a std over the bound: 2.5 + 0.1 * 0.5 is held, 10 * 0.1 * 0.5 comes on top
    assert judge.update({"harm": 0.25})["rewards/harm/multiplier"] == pytest.approx(2.55 + 0.5)


def moved(held: float, excess: float, steps: int, **settings: float) -> tuple[float, float]:
    """-> held, price"""
    price = held
    for _ in range(steps):
        held, price = next_price(held, excess, **{"rate": 0.05, "damping": 10.0, "most": 10.0} | settings)
    return held, price


def test_a_price_by_hand() -> None:
    # 1 + 0.05 * 0.5 = 1.025 is held, and 10 * 0.05 * 0.5 = 0.25 comes on top
    assert moved(1.0, 0.5, 1) == pytest.approx((1.025, 1.275))
    # inside: 1 - 0.05 * 0.4 = 0.98, less 10 * 0.05 * 0.4 = 0.2
    assert moved(1.0, -0.4, 1) == pytest.approx((0.98, 0.78))
    assert moved(1.0, 0.5, 3, damping=0.0) == pytest.approx((1.075, 1.075))
    assert moved(1.0, 0.5, 3, rate=0.0) == (1.0, 1.0)


def test_a_price_stays_between_its_bounds() -> None:
    assert moved(1.0, 50.0, 1000) == (10.0, 10.0)
    assert moved(10.0, -50.0, 1000) == (0.0, 0.0)


def test_one_step_counts_as_a_standard_deviation_at_most() -> None:
    for excess in (1.0, 1800.0):
        assert moved(2.0, excess, 1) == pytest.approx((2.05, 2.55))
        assert moved(2.0, -excess, 1) == pytest.approx((1.95, 1.45))


def test_a_price_comes_back_however_long_the_bound_was_kept() -> None:
    held, _ = moved(1.0, -1000.0, 100_000)
    # from 0 with 0.05 a step what is held takes 20 steps to 1; with 10 * 0.05 on top the price takes 10
    assert moved(held, 1000.0, 20)[0] == pytest.approx(1.0)
    assert moved(held, 1000.0, 10)[1] == pytest.approx(10 * 0.05 + 0.5)
    assert moved(held, 1000.0, 20, damping=0.0)[1] == pytest.approx(1.0)


def late(damping: float, pressure: float) -> tuple[list[float], list[float]]:
    """Excess of a policy of one number before and after the reward begins to push it over the bound, and its price.

    x is the excess; the policy follows the gradient of (pressure * x - price * x) / (1 + price), seen with noise by
    whoever moves the price. For 2,000 steps the reward itself pulls x down to -2 and the price falls to 0.
    """
    chance = Random("late")
    x, held, price, found, prices = -1.0, 1.0, 1.0, [], []
    for step in range(5000):
        push = pressure if step >= 2000 else -1.0
        x = max(x + 0.02 * (push - price) / (1 + price), -2.0)
        held, price = next_price(held, x + chance.gauss(0, 0.2), rate=0.05, damping=damping, most=10.0)
        found.append(x)
        prices.append(price)
    return found, prices


@pytest.mark.parametrize("pressure", [0.3, 1.0, 3.0])
def test_a_bound_that_is_reached_late_is_held_and_the_price_swings_no_more(pressure: float) -> None:
    x, prices = late(10.0, pressure)
    assert max(x[:2000]) < 0
    assert prices[1999] == 0
    first = next(i for i, value in enumerate(x) if value > 0)
    back = next(i for i in range(first, len(x)) if x[i] < 0) - first
    assert back < 250
    # at the price that the pressure is worth the policy stays at its bound
    assert max(abs(value) for value in x[-1000:]) < 0.2
    assert sum(prices[-1000:]) / 1000 == pytest.approx(pressure, rel=0.15, abs=0.02)
    # without damping the same swings on for thousands of steps
    swinging, _ = late(0.0, pressure)
    assert max(swinging[-1000:]) > 1.5 * max(x[-1000:])
    assert max(swinging) > max(x)


def test_a_bound_from_below_is_one_too() -> None:
    judge = combined("constrained", {"good": {"judge": A}, "safe": {"judge": B, "at_least": 2, "std": 1}}, multiplier=1)
    assert judge.score(*pair((1, 1), (1, 4))) == [0.0, 1.5]  # (1 - 1) / 2, (1 + 2) / 2


def test_the_price_finds_what_holds_the_mean_at_its_bound() -> None:
    """A policy of one number x in [0, 1] with reward x and harm x, harm to stay under 0.3: best is x = 0.3."""
    bounded = {"judge": B, "at_most": 0.3, "std": 1}
    judge = combined("constrained", {"good": {"judge": A}, "harm": bounded}, multiplier_rate=0.5)
    x, seen = 0.5, []
    for _ in range(3000):
        up, down = judge.score(*pair((x + 0.01, x + 0.01), (x - 0.01, x - 0.01)))
        assert up is not None
        assert down is not None
        x = min(max(x + 0.02 * (up - down) / 0.02, 0.0), 1.0)
        after_step(judge, {"good": [x], "harm": [x]}, lambda v: v)
        seen.append(x)
    assert sum(seen[-1000:]) / 1000 == pytest.approx(0.3, abs=0.02)


# Terms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [pair((1, 1)), pair((None, None)), ([], [])])
def test_the_same_names_are_told_in_every_call(asked: tuple[list[Prompt], list[Answer]]) -> None:
    gated = combined("sum", {"x": {"judge": A}, "y": {"judge": B, "at_least": 0}}, otherwise=0)
    ruled = combined("llama2", {"helpful": {"judge": A}, "safe": {"judge": B}})
    for judge, names in ((gated, ["x", "y", "stopped"]), (ruled, ["helpful", "safe", "by_safety"])):
        found = judge.judged(*asked)
        assert sorted(found.terms) == sorted(names) == sorted(judge.term_names)
        assert {len(values) for values in found.terms.values()} == {len(asked[0])}


def test_only_some_prompts_are_asked() -> None:
    judge = combined("sum", {"x": {"judge": A}, "json": {"judge": B, "only": {"kind": ["json", "list"]}}})
    asked = rows({"a": 1, "b": 5, "kind": "json"}, {"a": 1, "b": 5, "kind": "sum"}, {"a": 1, "b": 5})
    found = judge.judged(*asked)
    assert found.scores == [6.0, 1.0, 1.0]
    assert found.terms == {"x": [1.0, 1.0, 1.0], "json": [5.0, None, None]}


def test_options_reach_the_function() -> None:
    judge = combined("sum", {"x": {"judge": "tests.judges.rewards:times", "options": {"factor": 3}}})
    assert judge.score(*pair((2, 0))) == [6.0]
    with pytest.raises(ConfigError, match=r"unknown option `faktor`; did you mean `factor`\?"):
        combined("sum", {"x": {"judge": "tests.judges.rewards:times", "options": {"faktor": 3}}})


def test_terms_are_averaged_over_all_processes() -> None:
    judge = combined("sum", {"x": {"judge": A}, "y": {"judge": B}})
    mine = {"x": [1.0, None, 3.0], "y": [None, None, None]}
    values: list[float] = []

    def total(value: float) -> float:
        values.append(value)
        # x: another process has 3 answers that sum to 10; the mean of all 5 is 14 / 5 = 2.8, and around it the squares
        # are 3.24 + 0.04 here and, say, 6.6 there; y has an opinion nowhere
        return value + {0: 3.0, 1: 10.0, 2: 6.6}.get(len(values) - 1, 0.0)

    metrics = after_step(judge, mine, total)
    assert metrics == pytest.approx({"rewards/x/mean": 2.8, "rewards/x/std": math.sqrt(9.88 / 5)})


def test_a_single_reward_has_no_terms() -> None:
    judge = load_judge(A)
    found = judged(judge, *pair((2, 0)))
    assert (found.raw, found.scores, found.terms) == ([2.0], [2.0], {})
    assert after_step(judge, found.terms, lambda x: x) == {}


# Reward models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of three heads that recorded the scale of its training answers."""
    folder = tmp_path_factory.mktemp("reward") / "rm"
    save_reward(new_reward(tiny_model, num_heads=3, seed=4), folder, {"score_mean": 0.5, "score_std": 2.0})
    Template(load_tokenizer(tiny_model)).save(folder)
    return folder


QUESTIONS = [Prompt(text="Who"), Prompt(text="The cat likes")], [Answer(" likes the sun"), Answer(" milk.")]


def heads_of(model: Path) -> torch.Tensor:
    template, network = Template(load_tokenizer(model)), load_reward(model)
    ids = [template.text_ids(p.text + a.text) for p, a in zip(*QUESTIONS, strict=True) if p.text is not None]
    return torch.stack([network(torch.tensor([row]), torch.tensor([len(row)]))[0] for row in ids]).detach()


@pytest.mark.parametrize("heads", ["mean", "worst", "lower-bound"])
def test_a_reward_model_stands_on_its_recorded_scale(model: Path, heads: str) -> None:
    term = {"judge": str(model), "heads": heads} | ({"k": 0.5} if heads == "lower-bound" else {})
    raw_BN = heads_of(model)
    expected = {
        "mean": raw_BN.mean(1),
        "worst": raw_BN.min(1).values,
        "lower-bound": raw_BN.mean(1) - 0.5 * raw_BN.std(1, unbiased=False),
    }[heads]
    found = combined("sum", {"rm": term}).judged(*QUESTIONS)
    assert found.terms["rm"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found.scores == pytest.approx(((expected - 0.5) / 2).tolist(), abs=1e-6)


def test_sampled_tokens_are_read_as_they_are(model: Path) -> None:
    judge = combined("sum", {"rm": {"judge": str(model)}, "x": {"judge": "tests.stages.rewards:vowels"}})
    single = load_judge(str(model))
    assert isinstance(single, RewardJudge)
    template = single.template
    # Another way to spell " milk.": what the text says does not matter, what was sampled does.
    rows_ = [[*template.text_ids("Who")[:-1], 70, 71], [*template.text_ids("The cat")[:-1], 80, 81]]
    found = judge.judged(*QUESTIONS, rows=rows_, template=template)
    assert found.terms["rm"] == pytest.approx(single.score_tokens(rows_).mean(1).tolist(), abs=1e-6)
    alone = judged(single, *QUESTIONS, rows=rows_, template=template)
    assert alone.raw == pytest.approx(found.terms["rm"], abs=1e-6)
    assert alone.scores == pytest.approx([(raw - 0.5) / 2 for raw in alone.raw if raw is not None], abs=1e-6)
    assert judged(single, *QUESTIONS, normalize=False).scores == single.score(*QUESTIONS)


def test_text_that_a_reward_model_cannot_read_has_no_score(model: Path) -> None:
    judge = combined("sum", {"rm": {"judge": str(model)}, "x": {"judge": "tests.stages.rewards:vowels"}})
    asked = [Prompt(text="The cat likes milk. " * 40), Prompt(text="Who")], [Answer("a"), Answer("b")]
    refused: dict[int, str] = {}
    found = judged(judge, *asked, on_refusal=refused.__setitem__)
    assert refused == {0: "rm: prompt leaves no room for an answer within max_length"}
    assert found.scores[0] is None
    assert found.scores[1] is not None


def test_beside_others_a_reward_model_needs_a_scale(tiny_model: Path, tmp_path: Path) -> None:
    """As any classifier of Hugging Face, whose folder says nothing of its scores."""
    save_reward(new_reward(tiny_model, seed=4), tmp_path)
    Template(load_tokenizer(tiny_model)).save(tmp_path)
    unknown, x = {"judge": str(tmp_path)}, {"judge": "tests.stages.rewards:vowels"}
    with pytest.raises(ConfigError, match=r"reward `rm`: .* add mean and std to `rm`"):
        combined("sum", {"rm": unknown, "x": x})
    with pytest.raises(ConfigError, match=r"add std to `rm`"):
        combined("worst", {"rm": unknown | {"mean": 1}, "x": x})
    with pytest.raises(ConfigError, match=r"add mean and std to `rm`"):  # the unit of the bound
        combined("constrained", {"rm": unknown | {"weight": 0, "at_least": 0}, "x": x})
    raw = combined("sum", {"rm": unknown}).score(*QUESTIONS)  # alone it is compared with nothing
    told = combined("sum", {"rm": unknown | {"mean": 1, "std": 2}, "x": x | {"weight": 0}})
    assert told.score(*QUESTIONS) == pytest.approx([(score - 1) / 2 for score in raw if score is not None])
    gate = combined("sum", {"rm": unknown | {"weight": 0, "at_least": -1e9}, "x": x}, otherwise=-1)
    assert gate.score(*QUESTIONS) == combined("sum", {"x": x}).score(*QUESTIONS)  # a gate is on the raw scale


@pytest.mark.parametrize("judge", [A, "single"])
def test_heads_of_what_has_none_are_refused(tiny_model: Path, tmp_path: Path, judge: str) -> None:
    if judge == "single":
        save_reward(new_reward(tiny_model, seed=4), tmp_path)
        Template(load_tokenizer(tiny_model)).save(tmp_path)
        judge = str(tmp_path)
    with pytest.raises(ConfigError, match="needs an ensemble"):
        combined("sum", {"x": {"judge": judge, "heads": "worst"}})


# Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": {}}, "at least 1 item"),
        ({"rewards": {"x": {"judge": A, "at_least": 1}}}, "go together"),
        ({"rewards": {"x": {"judge": A}}, "otherwise": 0}, "go together"),
        ({"rewards": {"x": {"judge": A, "at_least": 1, "at_most": 2}}, "otherwise": 0}, "not both"),
        ({"rewards": {"x": {"judge": A, "k": 2}}}, "belongs to heads: lower-bound"),
        ({"rewards": {"x": {"judge": A}}, "combine": "worst"}, "two rewards or more"),
        ({"rewards": {"x": {"judge": A}, "y": {"judge": B}}, "combine": "worst", "k": 2}, "k: not read with"),
        ({"rewards": {"x": {"judge": A}, "y": {"judge": B}}, "combine": "llama2"}, "named `helpful` and `safe`"),
        ({"rewards": {"x": {"judge": A}, "y": {"judge": B}}, "combine": "constrained"}, "one without that"),
        ({"rewards": {"x": {"judge": A}, "y": {"judge": B}}, "threshold": 0.2}, "threshold: not read with"),
        ({"rewards": {"stopped": {"judge": A}}}, "call the term something else"),
        (
            {"rewards": {"helpful": {"judge": A, "weight": 2}, "safe": {"judge": B}}, "combine": "llama2"},
            "weights mean nothing",
        ),
        (
            {"rewards": {"x": {"judge": A, "at_most": 0}, "y": {"judge": B}}, "combine": "worst"},
            "belong to combine: sum or constrained",
        ),
        (
            {
                "rewards": {"x": {"judge": A, "at_most": 0, "std": 1}, "y": {"judge": B}},
                "combine": "constrained",
                "multiplier": 99,
            },
            "over multiplier_most",
        ),
        (
            {"rewards": {"x": {"judge": A, "at_most": 0}, "y": {"judge": B}}, "combine": "constrained"},
            "`x` is a function, .* give its std",
        ),
        (
            {"rewards": {"x": {"judge": A, "weight": 0}, "y": {"judge": B}}, "combine": "lower-bound"},
            "two rewards or more whose weight is not 0",
        ),
        ({"rewards": {"x": {"judge": A}, "y": {"judge": B}}, "multiplier_damping": 1}, "multiplier_damping: not read"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CombinedReward.model_validate(settings)


class Stage(Settings):
    reward: RewardSetting


def write(path: Path, value: Any) -> Path:
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path


BLOCK = {"combine": "worst", "rewards": {"x": {"judge": A, "weight": 2.0}, "y": {"judge": B}}}


def test_a_block_a_file_and_a_name_are_settings(tmp_path: Path) -> None:
    block = build(Stage, file=write(tmp_path / "block.yaml", {"reward": BLOCK}))
    file = build(Stage, overrides={"reward": str(write(tmp_path / "rewards.yaml", BLOCK))})
    assert block == file
    assert judge_names(block.reward) == {"reward.x": A, "reward.y": B}
    assert judge_names(build(Stage, overrides={"reward": A}).reward) == {"reward": A}
    # what a run folder keeps reads back as the same settings
    kept = write(tmp_path / "config.yaml", block.model_dump(mode="json"))
    assert build(Stage, file=kept) == block
    loaded = load_judge(str(tmp_path / "rewards.yaml"))
    assert loaded.score(*pair((1, 3), (5, 3))) == [2.0, 3.0]


def test_errors_name_their_place(tmp_path: Path) -> None:
    wrong = write(tmp_path / "r.yaml", {"reward": {"combine": "sum", "rewards": {"x": {"judge": A, "wieght": 2.0}}}})
    with pytest.raises(ConfigError, match=r"reward\.rewards\.x\.wieght"):
        build(Stage, file=wrong)
    wrong = write(tmp_path / "s.yaml", {"reward": {"combine": "som", "rewards": {"x": {"judge": A}}}})
    with pytest.raises(ConfigError, match=r"s\.yaml:2: `reward\.combine`: input should be 'sum', 'worst'"):
        build(Stage, file=wrong)
    file = write(tmp_path / "t.yaml", {"combine": "sum", "rewards": {"x": {"weight": 1}}})
    with pytest.raises(ConfigError, match=r"t\.yaml: `rewards\.x\.judge` is missing"):
        build(Stage, overrides={"reward": str(file)})
    with pytest.raises(ConfigError, match="no such file"):
        load_judge(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="`reward`: "):
        build(Stage, overrides={"reward": 3})


def test_pipelines_see_every_judge() -> None:
    settings = {"reward": CombinedReward.model_validate(BLOCK).model_dump(mode="json"), "data": "d.jsonl"}
    found = [(".".join(map(str, path)), text) for path, text, is_data in STAGES["score"].inputs(settings)]
    assert found == [("reward.rewards.x.judge", A), ("reward.rewards.y.judge", B), ("data", "d.jsonl")]


# Through the command ---------------------------------------------------------------------------------------------


def test_score_writes_each_term_apart(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"prompt": "Q", "completion": "1", "a": 1, "b": 4},
        {"prompt": "Q", "chosen": "1", "rejected": "2", "a": 3, "b": 1},
        {"prompt": "Q", "completions": ["1", "2"], "a": 5, "b": None},
    ]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    config = ScoreConfig(reward=BLOCK, data=str(data), out=tmp_path / "s.jsonl", quiet=True)
    score(config)
    found = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    # worst of 2 a and b: 2 of (2, 4), 1 of (6, 1), 10 of (10)
    assert found[0] == given[0] | {"score": 2.0, "terms": {"x": 1.0, "y": 4.0}}
    one = {"x": 3.0, "y": 1.0}
    expected = {"score_chosen": 1.0, "score_rejected": 1.0, "terms_chosen": one, "terms_rejected": one}
    assert found[1] == given[1] | expected
    assert found[2] == given[2] | {"scores": [10.0, 10.0], "terms": [{"x": 5.0, "y": None}] * 2}
