"""Curricula: what is open when, what is drawn how often, and runs that go by them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from goodheart.data.examples import Prepared, Skipped, comparisons
from goodheart.data.formats import read_records
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import ConfigError, DataError, RunError
from goodheart.stages import dpo, grpo, kto, online, ppo, reward
from goodheart.stages.curriculum import Laps, OpeningOrder, Window, levels, shuffled
from goodheart.stages.prompt_stream import BySpread, InTurn, Opening, prompt_stream, scores_of_rows
from goodheart.stages.settings.curriculum import CurriculumSettings, RowCurriculum
from goodheart.train.config import build
from goodheart.train.metrics import read_metrics
from tests.stages.commands import assert_same_to_the_bit, in_processes, log, options, start, write_rows
from tests.stages.crash import pulled_plug
from tests.stages.test_reward import pair_rows

TEXTS = ["The cat", "The dog likes", "Who", "Sun and milk", "Bones", "The sun likes the dog", "Milk", "The bones of"]
RATES = [0.875, 0.125, 0.5, 0.25, 0.625, 0.0, 1.0, 0.375]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with measured columns."""
    rows = [
        {"prompt": text, "pass_rate": rate, "reward_std": (rate * (1 - rate)) ** 0.5}
        for text, rate in zip(TEXTS, RATES, strict=True)
    ]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row | {"margin_measured": (n * 7) % 24 / 4} for n, row in enumerate(pair_rows(24))]
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


def window(values: list[float], steps: int = 8, least: int = 1, seed: int = 0, **settings: Any) -> Window:
    return Window(values, CurriculumSettings(by="x", **settings), steps=steps, least=least, seed=seed)


def opened(found: Window) -> list[int]:
    """Places in the order in which they are opened, one at each step."""
    order: list[int] = []
    for step in range(found.steps + 1):
        order += [i for i in torch.nonzero(found.open_N(step)).flatten().tolist() if i not in order]
    return order


# What is open ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "progress", "share"),
    [
        ({"start_share": 0.2, "full_at": 0.5}, 0.0, 0.2),
        # half of the way to 1: 0.2 + 0.8 / 2
        ({"start_share": 0.2, "full_at": 0.5}, 0.25, 0.6),
        ({"start_share": 0.2, "full_at": 0.5}, 0.5, 1.0),
        ({"start_share": 0.2, "full_at": 0.5}, 0.9, 1.0),
        # sqrt(0.36 + 0.64 * 0.4375) = sqrt(0.64)
        ({"schedule": "sqrt", "start_share": 0.6, "full_at": 1.0}, 0.4375, 0.8),
        ({"schedule": "sqrt", "start_share": 0.6, "full_at": 1.0}, 0.0, 0.6),
        # 0.49 of the way: one of four jumps is over, 0.2 + 0.8 / 4
        ({"schedule": "steps", "start_share": 0.2, "full_at": 1.0}, 0.49, 0.4),
        ({"schedule": "steps", "start_share": 0.2, "full_at": 1.0}, 0.5, 0.6),
        ({"schedule": "steps", "start_share": 0.2, "full_at": 1.0, "jumps": 1}, 0.99, 0.2),
    ],
)
def test_the_open_share_by_hand(settings: dict[str, Any], progress: float, share: float) -> None:
    assert CurriculumSettings(by="x", **settings).open_share(progress) == pytest.approx(share, abs=1e-12)


def test_what_is_opened_first() -> None:
    values = [0.9, 0.1, 0.6, 0.3]
    slow: dict[str, Any] = {"start_share": 0.01, "full_at": 1.0, "steps": 4}
    assert opened(window(values, **slow)) == [0, 2, 3, 1]
    assert opened(window(values, order="hard", **slow)) == [1, 3, 2, 0]
    assert opened(window(values, high_is="hard", **slow)) == [1, 3, 2, 0]
    assert opened(window(values, order="hard", high_is="hard", **slow)) == [0, 2, 3, 1]
    # distances from 0.5: 0.4 (a tie with 0.1's, told apart at random), 0.1, 0.2
    assert opened(window(values, order="middle", centre=0.5, **slow))[:2] == [2, 3]
    # the median of five is 0.3: distances 0.6, 0.2, 0.3, 0.0, 0.1
    assert opened(window([0.9, 0.1, 0.6, 0.3, 0.2], order="middle", **(slow | {"steps": 5}))) == [3, 4, 1, 2, 0]


def test_how_many_are_open() -> None:
    found = window([float(i) for i in range(25)], steps=10, start_share=0.28, full_at=1.0)
    assert int(found.open_N(0).sum()) == 7  # 0.28 * 25, which is a little over 7 in floating point
    assert int(found.open_N(5).sum()) == 16  # 0.28 + 0.72 / 2 = 0.64 of 25
    assert found.open_N(10).all()
    # never fewer than a step takes, nor more than there are
    assert int(window([1.0, 2.0, 3.0, 4.0], least=3).open_N(0).sum()) == 3
    assert int(window([1.0, 2.0], least=3).open_N(0).sum()) == 2


def test_ties_are_told_apart_by_the_seed_and_not_by_the_file() -> None:
    values = [1.0] * 10 + [0.0] * 10
    firsts = [tuple(opened(window(values, seed=seed, start_share=0.1, full_at=1.0, steps=20))[:5]) for seed in range(4)]
    assert len(set(firsts)) == 4
    assert all(place < 10 for first in firsts for place in first)
    assert firsts[0] == tuple(opened(window(values, seed=0, start_share=0.1, full_at=1.0, steps=20))[:5])


def test_thirds_are_by_difficulty_whatever_comes_first() -> None:
    values = [0.9, 0.1, 0.5, 0.3, 0.7, 0.2]
    for order in ("easy", "hard", "middle"):
        found = window(values, order=order)
        assert [found.third(i) for i in range(6)] == ["easy", "hard", "middle", "middle", "easy", "hard"]


def test_laps_take_every_open_place_once() -> None:
    laps = Laps(range(10), seed=3)
    first = laps.draw(3, 4)
    assert len(set(first)) == 3
    assert max(first) < 4
    # two more are opened and join the lap: the three that are left come before any comes again
    second = laps.draw(3, 6)
    assert sorted(first + second) == list(range(6))
    assert sorted(laps.draw(12, 6)) == sorted([*range(6), *range(6)])
    laps.draw(2, 6)
    again = Laps(range(10), seed=3)
    again.load_state_dict(json.loads(json.dumps(laps.state_dict())))
    assert [again.draw(5, count) for count in (6, 8, 10)] == [laps.draw(5, count) for count in (6, 8, 10)]
    # what is opened first is in the order, not in the place
    assert sorted(Laps([5, 2, 0, 1, 4, 3], seed=0).draw(3, 3)) == [0, 2, 5]


def test_a_step_over_the_end_of_a_lap_takes_none_twice() -> None:
    laps = Laps(range(29), seed=0)
    laps.draw(26, 29)
    # three are left of the lap; the 17 of the next lap are among the other 26
    step = laps.draw(20, 29)
    assert len(set(step)) == 20
    # a further round of the step: the nine that did not come, and then some that did
    more = laps.draw(11, 29, step)
    assert len({*step, *more}) == 29
    assert len(set(more)) == 11
    # the lap goes on where it was: 17 + 11 of it came, one is left
    assert set(laps.draw(1, 29)) == set(range(29)) - set(step[3:]) - set(more)


def test_what_is_open_and_left_is_equally_likely() -> None:
    # 12 of 20 open, one drawn; then all open, two drawn: a late one has 2 of 19, an early one 1/12 + 11/12 * 2/19
    found: Counter[int] = Counter()
    for seed in range(1500):
        laps = Laps(range(20), seed)
        found.update(laps.draw(1, 12))
        found.update(laps.draw(2, 20))
    early, late = (sum(found[i] for i in places) / 1500 for places in (range(12), range(12, 20)))
    assert early == pytest.approx(12 * (1 / 12 + 11 / 12 * 2 / 19), abs=0.08)  # over four standard errors of 0.018
    assert late == pytest.approx(8 * 2 / 19, abs=0.08)


def test_another_number_of_prompts_is_refused() -> None:
    streams: list[tuple[Any, Any]] = [
        (BySpread(1, 0, floor=0.2, memory=0.5), BySpread(5, 0, floor=0.2, memory=0.5)),
        (Opening(window([1.0, 2.0]), 0), Opening(window([1.0, 2.0, 3.0, 4.0, 5.0]), 0)),
    ]
    for few, many in streams:
        with pytest.raises(RunError, match=r"started with [12] prompts and there are 5 now"):
            many.load_state_dict(few.state_dict())


def test_prompts_come_once_before_any_comes_twice() -> None:
    stream = InTurn(10, seed=3)
    drawn = [place for step in range(7) for place in stream.draw(4, step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert drawn[:10] == shuffled(10, 3, 0).tolist()
    assert sorted(InTurn(3, seed=0).draw(6, 0)) == [0, 0, 1, 1, 2, 2]


def test_in_turn_the_step_says_where_it_stands() -> None:
    assert InTurn(10, seed=3).draw(4, 6) == drawn_by(InTurn(10, seed=3), [(4, step) for step in range(7)])[-1]
    # further rounds of a step are known from the state alone
    rounds = [(4, 0), (3, 0), (4, 1), (2, 1)]
    whole, part = InTurn(10, seed=3), InTurn(10, seed=3)
    drawn_by(whole, rounds)
    part.load_state_dict({"drawn": 13})
    assert part.draw(4, 2) == whole.draw(4, 2)


def drawn_by(stream: InTurn, draws: list[tuple[int, int]]) -> list[list[int]]:
    return [stream.draw(number, step) for number, step in draws]


def test_every_row_comes_once_in_an_epoch_that_opens_fast_enough() -> None:
    values = [float(i % 13) for i in range(50)]
    found = window(values, steps=7, least=8, order="hard", full_at=0.6)
    order = OpeningOrder([1] * 50, 8, seed=0, window=found)
    rows = [order[step] for step in range(7)]
    assert [len(each) for each in rows] == [8, 8, 8, 8, 8, 8, 2]
    assert sorted(place for each in rows for place in each) == list(range(50))
    means = [sum(values[i] for i in each) / len(each) for each in rows]
    assert means[0] < means[2] < means[4]  # hard is low
    assert order.metrics(6)["epoch"] == 1.0
    assert order.metrics(0)["curriculum/open"] == 0.26  # ceil(0.25 * 50) of 50
    assert order.metrics(0)["curriculum/level"] == pytest.approx(means[0])


# Adaptive --------------------------------------------------------------------------------------------------------


def test_shares_and_spreads_by_hand() -> None:
    stream = BySpread(4, seed=0, floor=0.2, memory=0.5)
    assert stream.share_N.tolist() == [0.25] * 4  # nothing is known
    stream.learn([(0, [0.0, 1.0, 0.0, 1.0]), (1, [2.0, 2.0]), (2, [])])
    # variance of 0 1 0 1: 4 * 0.25 / 3; of 2 2: 0. The others are taken to have the mean spread of these two.
    high = (1 / 3) ** 0.5
    assert stream.spread_N.tolist() == pytest.approx([high, 0.0, high / 2, high / 2])
    # a fifth to all alike, four fifths by spread: 1/2, 0, 1/4, 1/4
    assert stream.share_N.tolist() == pytest.approx([0.05 + 0.4, 0.05, 0.05 + 0.2, 0.05 + 0.2])
    # asked again: half of what was known and half of what is new, 0 and 2
    stream.learn([(0, [1.0, 1.0]), (1, [0.0, 2.0]), (2, [0.0, 4.0])])
    before = high**2 / 4  # 2 had the mean spread, high / 2
    assert stream.variance_N[:3].tolist() == pytest.approx([1 / 6, 1.0, (before + 8) / 2])
    stream.draw(1, 0)
    found = stream.metrics()
    assert found["curriculum/seen"] == 0.75  # the last was never asked
    known = [(1 / 6) ** 0.5, 1.0, ((before + 8) / 2) ** 0.5]  # and is taken to have the mean spread of the others
    assert found["curriculum/spread"] == pytest.approx(sum(known) / 3)


def test_single_answers_are_held_against_those_before() -> None:
    stream = BySpread(3, seed=0, floor=0.2, memory=0.75)
    stream.learn([(0, [1.0]), (1, [1.0])])
    assert stream.variance_N.isnan().all()  # one answer has no spread
    stream.learn([(0, [3.0]), (1, [1.0])])
    # nothing was known of any spread: what is new alone, (3 - 1)^2 and 0
    assert stream.variance_N[:2].tolist() == [4.0, 0.0]
    stream.learn([(0, [1.5])])
    # the mean was 0.75 * 1 + 0.25 * 3 = 1.5: no distance, 0.75 * 4 is left
    assert stream.variance_N[0] == pytest.approx(3.0)


def test_two_rows_of_one_prompt_are_one_group() -> None:
    stream = BySpread(2, seed=0, floor=0.5, memory=0.0)
    stream.learn([(0, [1.0]), (0, [3.0])])
    assert stream.variance_N[0] == pytest.approx(2.0)


def test_infinite_scores_teach_nothing() -> None:
    stream = BySpread(3, seed=0, floor=0.2, memory=0.5)
    stream.learn([(0, [0.0, 2.0, math.inf]), (1, [-math.inf]), (2, [math.nan, 1e200])])
    assert stream.variance_N[0] == 2.0
    assert stream.mean_N.isnan().tolist() == [False, True, True]
    assert stream.share_N.tolist() == pytest.approx([1 / 3] * 3)  # the others are taken to have the spread of the first
    assert len(stream.draw(2, 0)) == 2


def test_what_was_measured_before_is_where_it_starts() -> None:
    stream = BySpread(3, seed=0, floor=0.3, memory=0.5, start=[1.0, 0.0, 3.0])
    assert stream.share_N.tolist() == pytest.approx([0.1 + 0.7 / 4, 0.1, 0.1 + 0.7 * 3 / 4])
    stream.learn([(2, [0.0, 2.0])])
    assert stream.variance_N[2] == pytest.approx((9 + 2) / 2)
    # effective share: 1 / (N sum of squares); of equal shares 1
    flat = BySpread(3, seed=0, floor=0.3, memory=0.5, start=[2.0, 2.0, 2.0])
    flat.draw(1, 0)
    assert flat.metrics()["curriculum/effective_share"] == pytest.approx(1.0)


def test_draws_follow_the_shares_and_forget_nobody() -> None:
    stream = BySpread(5, seed=1, floor=0.25, memory=0.5, start=[0.0, 0.0, 1.0, 2.0, 1.0])
    expected = [0.05, 0.05, 0.05 + 0.1875, 0.05 + 0.375, 0.05 + 0.1875]
    assert stream.share_N.tolist() == pytest.approx(expected)
    found = Counter(place for step in range(1500) for place in stream.draw(1, step))
    chi2 = sum((found[i] - 1500 * share) ** 2 / (1500 * share) for i, share in enumerate(expected))
    assert chi2 < 18.5  # four degrees of freedom: over that in one of a thousand seeds


def test_none_comes_twice_in_a_step_before_all_came() -> None:
    stream = BySpread(5, seed=1, floor=0.01, memory=0.5, start=[0.0, 0.0, 0.0, 0.0, 9.0])
    first = stream.draw(3, 0)
    second = stream.draw(4, 0)  # a further round in the same step
    assert sorted([*first, *second][:5]) == list(range(5))
    assert stream.draw(1, 1) == [4]  # a new step


def test_a_stream_goes_on_from_its_state() -> None:
    def answers(places: list[int]) -> list[tuple[int, list[float]]]:
        return [(place, [0.0, float(place)]) for place in places]

    whole = BySpread(6, seed=2, floor=0.2, memory=0.5)
    drawn = []
    for step in range(6):
        if step == 3:
            state = json.loads(json.dumps(whole.state_dict()))
            part = BySpread(6, seed=2, floor=0.2, memory=0.5)
            part.load_state_dict(state)
        drawn.append(whole.draw(2, step))
        whole.learn(answers(drawn[-1]))
    for step in range(3, 6):
        assert part.draw(2, step) == drawn[step]
        part.learn(answers(drawn[step]))
    assert part.state_dict() == whole.state_dict()


def test_scores_of_rows_leave_out_what_has_no_opinion() -> None:
    batch: Any = SimpleNamespace(
        mask_BT=torch.tensor([[False, True], [False, False], [False, True]]), raw_scores_B=torch.tensor([0.0, 0.0, 2.0])
    )
    world: Any = SimpleNamespace(size=1, gather_objects=lambda own: [own])
    assert scores_of_rows(batch, world, [5, 6, 5]) == [(5, [0.0]), (6, []), (5, [2.0])]


def test_rewards_by_third() -> None:
    stream = Opening(window([0.9, 0.1, 0.5, 0.3, 0.7, 0.2], start_share=0.9), seed=0)
    stream.draw(2, 0)
    stream.learn([(0, [1.0, 0.0]), (4, [1.0]), (1, []), (5, [0.25])])
    found = stream.metrics()
    assert found["curriculum/reward_easy"] == pytest.approx(2 / 3)
    assert found["curriculum/reward_hard"] == 0.25
    assert "curriculum/reward_middle" not in found  # nobody was asked
    stream.draw(2, 1)
    assert "curriculum/reward_easy" not in stream.metrics()  # another step


# Runs ------------------------------------------------------------------------------------------------------------


def settings_of(kind: Any, model: Path, prompts: Path, out: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "model": str(model),
        "reward": "tests.stages.rewards:any_vowel",
        "prompts": str(prompts),
        "out": out,
        "steps": 4,
        "batch_size": 8,
        "sampling": {"max_new_tokens": 6},
        "learning_rate": 3e-3,
        "checkpoint_every": 1,
        "quiet": True,
    }
    if kind is grpo.GRPOConfig:
        settings |= {"num_generations": 4}
    return kind(**(settings | changes))


CURRICULA: list[dict[str, Any]] = [
    {"by": "pass_rate", "order": "easy", "full_at": 1.0},
    {"by": "pass_rate", "order": "middle", "centre": 0.5, "schedule": "steps"},
    {"order": "adaptive"},
]


@pytest.mark.parametrize("curriculum", CURRICULA, ids=["easy", "middle", "adaptive"])
def test_grpo_stopped_and_continued_equals_uninterrupted(
    tiny_model: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curriculum: dict[str, Any]
) -> None:
    changes: Any = {"curriculum": curriculum, "dynamic_sampling": 2}
    whole = grpo.train(settings_of(grpo.GRPOConfig, tiny_model, measured, tmp_path / "whole", **changes))
    with pulled_plug(monkeypatch, at=2):
        grpo.train(settings_of(grpo.GRPOConfig, tiny_model, measured, tmp_path / "cut", **changes))
    cut = grpo.train(settings_of(grpo.GRPOConfig, tiny_model, measured, tmp_path / "cut", **changes))
    assert_same_to_the_bit(whole.path, cut.path)
    rows = read_metrics(whole.path)
    if curriculum["order"] == "adaptive":
        assert 0 < rows[0]["curriculum/seen"] <= rows[-1]["curriculum/seen"]
        assert min(row["curriculum/spread_asked"] for row in rows) > 0
    else:
        assert rows[0]["curriculum/open"] == 0.25
        assert all(0 <= row["curriculum/level"] <= 1 for row in rows)
    assert build(grpo.GRPOConfig, file=whole.path / "config.yaml").curriculum == CurriculumSettings(**curriculum)


def test_two_processes_ask_what_one_does(tiny_model: Path, measured: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 3, "batch_size": 5, "mini_batches": 1, "learning_rate": 3e-3}
    settings |= {"sampling": {"max_new_tokens": 6}, "curriculum": CURRICULA[2]}
    arguments = ["ppo", "--model", tiny_model, "--prompts", measured, "--quiet"]
    arguments += ["--reward", "tests.stages.rewards:vowels", *options(**settings)]
    alone = start(*arguments, "--out", tmp_path / "one")
    in_processes(2, *arguments, "--out", tmp_path / "two")
    assert alone.wait(timeout=240) == 0
    for x, y in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        names = [name for name in x if name.startswith("curriculum/")]
        assert len(names) == 4
        assert [x[name] for name in names] == pytest.approx([y[name] for name in names], rel=1e-4)
        assert x["objective/scores"] == pytest.approx(y["objective/scores"], abs=1e-3)


def test_only_what_is_open_is_asked(
    tiny_model: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[float]] = []
    real = grpo.collect_groups

    def spy(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        asked.append({prompt.meta["pass_rate"] for prompt in found[0].prompts})
        return found

    monkeypatch.setattr(grpo, "collect_groups", spy)
    curriculum = {"by": "pass_rate", "order": "hard", "start_share": 0.25, "full_at": 0.75}
    run = grpo.train(settings_of(grpo.GRPOConfig, tiny_model, measured, tmp_path / "r", curriculum=curriculum))
    # open at steps 0 to 3 of 4: 0.25, 0.5, 0.75, 1 of eight
    for step, count in enumerate((2, 4, 6, 8)):
        assert asked[step] <= set(sorted(RATES)[:count])
    rows = read_metrics(run.path)
    assert [row["curriculum/open"] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    assert rows[0]["curriculum/level"] == 0.0625  # both of the two that are open, 0 and 0.125
    assert {"curriculum/reward_hard"} == {name for name in rows[0] if name.startswith("curriculum/reward")}


def test_ppo_adapts_and_online_opens(
    tiny_model: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: Any = {"curriculum": {"order": "adaptive", "by": "reward_std"}, "reward": "tests.stages.rewards:vowels"}
    whole = ppo.train(settings_of(ppo.PPOConfig, tiny_model, measured, tmp_path / "whole", **changes))
    with pulled_plug(monkeypatch, at=2):
        ppo.train(settings_of(ppo.PPOConfig, tiny_model, measured, tmp_path / "cut", **changes))
    cut = ppo.train(settings_of(ppo.PPOConfig, tiny_model, measured, tmp_path / "cut", **changes))
    assert_same_to_the_bit(whole.path, cut.path)
    rows = read_metrics(whole.path)
    spreads = [(rate * (1 - rate)) ** 0.5 for rate in RATES]
    assert rows[0]["curriculum/seen"] == 1  # eight answers to eight prompts
    assert rows[0]["curriculum/spread"] == pytest.approx(sum(spreads) / 8)  # of one answer nothing is learnt yet
    assert rows[-1]["curriculum/spread"] != rows[0]["curriculum/spread"]

    run = online.train(
        settings_of(online.OnlineConfig, tiny_model, measured, tmp_path / "online", curriculum=CURRICULA[0])
    )
    rows = read_metrics(run.path)
    assert rows[0]["curriculum/open"] == 0.5  # 0.25 of eight, but a step asks four
    assert rows[0]["curriculum/level"] == pytest.approx((1 + 0.875 + 0.625 + 0.5) / 4)


def test_dpo_kto_and_the_reward_model_open_pairs(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same: dict[str, Any] = {"model": str(tiny_model), "data": str(pairs), "held_out": 0, "batch_size": 4, "quiet": True}
    same |= {"curriculum": {"by": "margin_measured", "full_at": 0.8}, "checkpoint_every": 1}
    kinds: list[tuple[str, Any, Any]] = [
        ("dpo", dpo.DPOConfig, dpo.train),
        ("kto", kto.KTOConfig, kto.train),
        ("reward", reward.RewardConfig, reward.train),
    ]
    for name, kind, train in kinds:
        run = train(kind(**same, out=tmp_path / name))
        rows = read_metrics(run.path)
        shares = [row["curriculum/open"] for row in rows]
        assert shares == sorted(shares)
        assert shares[-1] == 1
        assert rows[0]["curriculum/level"] > 4  # the largest margins of 0 to 5.75
        assert sum(row["curriculum/level"] for row in rows) / len(rows) == pytest.approx(2.875)  # each row once
    with pulled_plug(monkeypatch, at=2):
        dpo.train(dpo.DPOConfig(**same, out=tmp_path / "cut"))
    cut = dpo.train(dpo.DPOConfig(**same, out=tmp_path / "cut"))
    assert_same_to_the_bit(tmp_path / "dpo", cut.path)


def test_without_a_curriculum_nothing_is_said_of_one(
    tiny_model: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, stage, kind in (("ppo", ppo, ppo.PPOConfig), ("online", online, online.OnlineConfig)):
        with pulled_plug(monkeypatch, at=1):
            stage.train(settings_of(kind, tiny_model, measured, tmp_path / name, steps=2))
        states = list((tmp_path / name / "checkpoints").glob("*/state.json"))
        assert states
        assert all("prompts" not in json.loads(state.read_text())["objects"] for state in states)
    run = grpo.train(settings_of(grpo.GRPOConfig, tiny_model, measured, tmp_path / "r", steps=1))
    assert not [name for name in read_metrics(run.path)[0] if "curriculum" in name]


# What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "order easy needs `by`"),
        ({"by": "x", "start_share": 0}, "greater than 0"),
        ({"by": "x", "start_share": 1}, "less than 1"),
        ({"by": "x", "full_at": 0}, "greater than 0"),
        ({"by": "x", "floor": 0.5}, "floor is not read with order easy"),
        ({"by": "x", "memory": 0.9}, "memory is not read with order easy"),
        ({"by": "x", "centre": 0.5}, "centre is not read with order easy"),
        ({"by": "x", "jumps": 3}, "jumps is not read with schedule linear"),
        ({"by": "x", "order": "middle", "high_is": "hard"}, "high_is is not read with order middle"),
        ({"order": "adaptive", "start_share": 0.5}, "start_share is not read with order adaptive"),
        ({"order": "adaptive", "schedule": "sqrt"}, "schedule is not read with order adaptive"),
        ({"order": "adaptive", "floor": 0}, "greater than 0"),
    ],
)
def test_settings_that_nothing_reads_or_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CurriculumSettings(**settings)


def test_adaptive_is_for_answers_drawn_on_the_way(tiny_model: Path, measured: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="this stage draws none"):
        RowCurriculum(order="adaptive")
    with pytest.raises(ValidationError, match="in grpo and ppo"):
        settings_of(online.OnlineConfig, tiny_model, measured, tmp_path, curriculum={"order": "adaptive"})
    with pytest.raises(ConfigError, match=r"unknown key `curriculum.bye`; did you mean `by`"):
        build(dpo.DPOConfig, overrides={"model": "m", "data": "d", "out": "o"}, sets=["curriculum.bye=x"])


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"prompt": "a"}, {"prompt": "b"}], {}, r"p.jsonl:1: curriculum.by: there is no column `x`"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": None}], {}, r"p.jsonl:2: .*column `x` is empty here"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": ""}], {}, r"p.jsonl:2: .*column `x` is empty here"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "so"}], {}, r"p.jsonl:2: .*column `x` must be a number"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": 1.0}], {}, r"column `x` is 1 in every row"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": -1}], {"order": "adaptive"}, r"p.jsonl:2: .*cannot be -1"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "inf"}], {}, r"p.jsonl:2: .*cannot be inf"),
        (
            [{"prompt": "a", "x": 1}, {"prompt": "b", "x": 1e200}],
            {"order": "adaptive"},
            r"p.jsonl:2: .*cannot be 1e\+200",
        ),
    ],
    ids=["missing", "null", "empty", "text", "equal", "negative-spread", "infinite", "square-too-large"],
)
def test_columns_that_say_nothing(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    loaded = read_records([str(write_rows(tmp_path / "p.jsonl", rows))], "prompt")
    prepared = Prepared(list(loaded.records), Skipped.of(loaded), loaded.records, [False] * 2)
    with pytest.raises(DataError, match=message):
        prompt_stream(prepared, CurriculumSettings(by="x", **settings), steps=4, per_step=1, seed=0)


def test_a_run_without_the_column_ends_before_it_starts(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts.jsonl:1: curriculum.by: there is no column `pass_rate`"):
        grpo.train(settings_of(grpo.GRPOConfig, tiny_model, prompts, tmp_path / "r", curriculum=CURRICULA[0]))


def test_the_margin_that_people_gave_is_a_column_too(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "cat", "rejected": "dog", "margin": m} for m in (0.5, 2.0)]
    loaded = read_records([str(write_rows(tmp_path / "p.jsonl", rows))], "preference")
    prepared = comparisons(loaded.records, Template(load_tokenizer(tiny_model)), 64, Skipped.of(loaded))
    assert levels(prepared, CurriculumSettings(by="margin")) == [0.5, 2.0]
    assert math.isclose(sum(levels(prepared, RowCurriculum(by="margin"))), 2.5)
