"""Policy gradients without a critic on a two-layer model with random weights: recipes learn, invariants hold."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from goodheart.errors import ConfigError, DataError, HealthError
from goodheart.losses.baselines import group_mean
from goodheart.stages import grpo, grpo_update
from goodheart.stages.grpo import GRPOConfig, train
from goodheart.stages.rollouts import Rollouts
from goodheart.stages.settings.grpo import RECIPES
from goodheart.train.config import build
from goodheart.train.metrics import read_metrics
from tests.stages.commands import assert_same_to_the_bit, in_processes, log, options, start, write_rows
from tests.stages.crash import pulled_plug
from tests.waits import Waits

VOWELS = "tests.stages.rewards:vowels"
ONE_ANSWER = ("reinforce++", "remax")  # recipes whose groups hold one answer


def config(tiny_model: Path, prompts: Path, out: Path, **changes: Any) -> GRPOConfig:
    settings: dict[str, Any] = {
        "model": str(tiny_model),
        "reward": VOWELS,
        "prompts": str(prompts),
        "out": out,
        "steps": 2,
        "batch_size": 16,
        "num_generations": 4,
        "sampling": {"max_new_tokens": 8},
        "learning_rate": 3e-3,
        "quiet": True,
    }
    return GRPOConfig(**(settings | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def seen(monkeypatch: pytest.MonkeyPatch) -> list[Rollouts]:
    """The batches of a run as its updates see them."""
    batches: list[Rollouts] = []
    real = grpo_update.advantages

    def spy(batch: Rollouts, *arguments: Any) -> dict[str, float]:
        metrics = real(batch, *arguments)
        batches.append(batch)
        return metrics

    monkeypatch.setattr("goodheart.stages.grpo.advantages", spy)
    return batches


@pytest.mark.parametrize("recipe", ["grpo", "rloo", "gspo", "reinforce++"])
def test_the_reward_rises(tiny_model: Path, prompts: Path, tmp_path: Path, recipe: str) -> None:
    kl = {"kl_coef": 0.002} if recipe in ("rloo", "reinforce++") else {"beta": 0.002}
    groups = {"num_generations": 1 if recipe in ONE_ANSWER else 8}
    settings: Any = {"steps": 10, "batch_size": 64, "learning_rate": 2e-2, **kl, **groups}
    run = train(config(tiny_model, prompts, tmp_path / "r", recipe=recipe, **settings))
    rows = read_metrics(run.path)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)  # the policy starts as its reference
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.08
    assert rows[-1]["objective/kl"] > 0.5
    assert run.results["reward"] == rows[-1]["reward"]
    assert max(row["sampler/logprob_diff_mean"] for row in rows) < 1e-4
    # one update of a batch: it is made by the policy that answered
    assert all(row["val/ratio"] == pytest.approx(1, abs=1e-5) for row in rows)
    assert all(row["policy/clipfrac_avg"] == row["clip_ratio/region_mean"] == 0 for row in rows)
    assert (run.path / "samples.jsonl").read_text().count("completion") >= 4


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_runs_and_its_settings_are_written_down(
    tiny_model: Path, prompts: Path, tmp_path: Path, recipe: str
) -> None:
    own = {} if recipe in ONE_ANSWER else {"num_generations": 4}
    settings = config(tiny_model, prompts, tmp_path / "r").model_dump(exclude_unset=True)
    for name in set(RECIPES[recipe]) | set(RECIPES["grpo"]) | {"num_generations"}:
        settings.pop(name, None)
    given = GRPOConfig(**(settings | own | {"recipe": recipe, "mini_batches": 2, "num_iterations": 2}))
    run = train(given)  # a first ratio off 1 would have raised
    written = yaml.safe_load((run.path / "config.yaml").read_text())
    assert {name: written[name] for name in RECIPES[recipe]} == RECIPES[recipe]
    rows = read_metrics(run.path)
    assert rows[0]["policy/updates"] == 4
    assert rows[1]["policy/approxkl_avg"] > 0  # later updates of a batch move away from the policy that answered
    assert not [name for name in rows[0] if name.startswith("critic/") or "vf" in name]
    again = build(GRPOConfig, file=run.path / "config.yaml")
    assert again == given


def test_a_setting_given_goes_before_the_recipe(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    made = config(tiny_model, prompts, tmp_path / "r", recipe="dapo", epsilon_high=0.5, dynamic_sampling=0)
    assert (made.epsilon_high, made.dynamic_sampling, made.overlong_zone) == (0.5, 0, 0.2)
    # one KL term takes the other's place
    assert config(tiny_model, prompts, tmp_path / "r", recipe="grpo", kl_coef=0.1).beta == 0
    assert config(tiny_model, prompts, tmp_path / "r", recipe="rloo", beta=0.1).kl_coef == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "reinforce++", "beta": 0.1, "num_generations": 1},
        {"recipe": "reinforce++-baseline", "kl_coef": 0.1},
        {"recipe": "reinforce++-baseline", "beta": 0.0},
        {"recipe": "remax", "kl_coef": 0.0},
    ],
)
def test_what_belongs_to_a_term_that_is_off_is_not_filled_in(
    tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = config(tiny_model, prompts, tmp_path / "r", **changes)
    assert (made.kl_estimator, made.kl_credit) == ("k3+", "answer")
    assert GRPOConfig(**made.model_dump()) == made  # as the run writes it down


def test_advantages_are_the_formula_of_the_paper(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    for number, recipe in enumerate(("grpo", "dr-grpo", "rloo")):
        train(config(tiny_model, prompts, tmp_path / f"{number}", recipe=recipe, steps=1))
    for batch, recipe in zip(batches, ("grpo", "dr-grpo", "rloo"), strict=True):
        scores = [float(x) for x in batch.scores_B]
        for row in range(16):
            group = scores[row // 4 * 4 : row // 4 * 4 + 4]
            mean = sum(group) / 4
            std = (sum((x - mean) ** 2 for x in group) / 3) ** 0.5
            others = (sum(group) - scores[row]) / 3
            expected = {
                "grpo": (scores[row] - mean) / (std + 1e-4),
                "dr-grpo": scores[row] - mean,
                "rloo": scores[row] - others,  # the policy is its reference: no KL to pay yet
            }[recipe]
            own = batch.advantages_BT[row][batch.mask_BT[row]]
            assert own.tolist() == pytest.approx([expected] * len(own), abs=1e-5), recipe


def test_whitening_takes_in_the_whole_batch_and_kl_to_come(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    settings: Any = {"num_generations": 1, "kl_coef": 0.3, "learning_rate": 2e-2, "steps": 2}
    train(config(tiny_model, prompts, tmp_path / "r", recipe="reinforce++", **settings))
    batch = batches[1]  # by now the policy has left its reference
    gains: list[list[float]] = []
    for row in range(16):
        kl = (batch.old_logps_BT - batch.ref_logps_BT)[row][batch.mask_BT[row]].double().tolist()
        gains.append([float(batch.scores_B[row]) - 0.3 * sum(kl[t:]) for t in range(len(kl))])
    everything = torch.tensor([x for row in gains for x in row], dtype=torch.float64)
    for row in range(16):
        expected = (torch.tensor(gains[row], dtype=torch.float64) - everything.mean()) / everything.std(correction=0)
        own = batch.advantages_BT[row][batch.mask_BT[row]].double()
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


def test_the_greedy_answer_is_the_baseline(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goodheart.data.template import Template
    from goodheart.models.load import load_causal
    from goodheart.stages.settings.sampling import SamplingSettings
    from goodheart.stages.writer import Writer

    batches = seen(monkeypatch)
    train(config(tiny_model, prompts, tmp_path / "r", recipe="remax", kl_coef=0.0, num_generations=2, steps=1))
    batch, sampling = batches[0], SamplingSettings(max_new_tokens=8, temperature=0.0)
    writer = Writer(load_causal(tiny_model, dtype=torch.float32), Template.load(tiny_model))
    for row in range(16):
        prompt = batch.prompts[row]
        made = writer.generate([writer.template.prompt_ids(prompt)], sampling, seed=0)[0]
        text = writer.answer(prompt, made).text
        greedy = sum(letter in "aeiou" for letter in text) / max(1, len(text))
        own = batch.advantages_BT[row][batch.mask_BT[row]]
        assert own.tolist() == pytest.approx([float(batch.scores_B[row]) - greedy] * len(own), abs=1e-6)
        assert batch.prompts[row] == batch.prompts[row // 2 * 2]


def test_answers_to_one_prompt_differ(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    train(config(tiny_model, prompts, tmp_path / "r", steps=1))
    texts = [answer.text for answer in batches[0].answers]
    assert len(set(texts)) == 16
    assert all(batches[0].prompts[row] == batches[0].prompts[row // 4 * 4] for row in range(16))


SPLITS: list[dict[str, Any]] = [
    {"recipe": "grpo"},
    {"recipe": "reinforce++-baseline", "mini_batches": 2},
    {"recipe": "gspo", "kl_coef": 0.05, "reward": "tests.stages.rewards:longer_without_e"},
    {"recipe": "dapo", "overlong_zone": 0.5, "reward": "tests.stages.rewards:any_vowel", "dynamic_sampling": 2},
]


def test_an_update_of_more_rows_waits_no_more_often(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def counted(*arguments: Any) -> dict[str, float]:
        with Waits() as waits:
            metrics = grpo_update.update(*arguments)
        found.append(waits.count)
        return metrics

    monkeypatch.setattr(grpo, "update", counted)
    for rows in (4, 16):
        changes = {"batch_size": rows, "mini_batches": 1, "steps": 1, "max_tokens": 100_000}
        train(config(tiny_model, prompts, tmp_path / f"{rows}", **changes))
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("changes", SPLITS, ids=lambda c: c["recipe"])
def test_every_micro_batch_split_learns_the_same(
    tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, split = (
        train(config(tiny_model, prompts, tmp_path / name, max_tokens=tokens, **changes))
        for name, tokens in (("whole", 16384), ("split", 30))
    )
    assert_close(whole.path, split.path)


def test_two_processes_learn_what_one_does(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 12, "num_generations": 3, "learning_rate": 3e-3}
    settings |= {"sampling": {"max_new_tokens": 8}, "dynamic_sampling": 2, "scale": "batch-std", "kl_coef": 0.05}
    arguments = ["grpo", "--model", tiny_model, "--prompts", prompts, "--quiet"]
    arguments += ["--reward", "tests.stages.rewards:any_vowel", *options(**settings)]
    alone = start(*arguments, "--out", tmp_path / "one")
    in_processes(2, *arguments, "--out", tmp_path / "two")
    assert alone.wait(timeout=240) == 0
    assert_close(tmp_path / "one", tmp_path / "two")


def test_a_process_may_be_without_a_row(tiny_model: Path, tmp_path: Path) -> None:
    # one prompt, two answers: the second process has no greedy answer to write, and nothing to ask its judge
    asked = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "The cat", "gold": 1}, {"prompt": "Who", "gold": 1}])
    settings: dict[str, Any] = {"recipe": "remax", "steps": 2, "batch_size": 2, "num_generations": 2}
    settings |= {"sampling": {"max_new_tokens": 8}, "learning_rate": 3e-3}
    arguments = ["grpo", "--model", tiny_model, "--prompts", asked, "--quiet"]
    arguments += ["--reward", "tests.stages.rewards:vowels_times_gold", *options(**settings)]
    alone = start(*arguments, "--out", tmp_path / "one")
    in_processes(2, *arguments, "--out", tmp_path / "two")
    assert alone.wait(timeout=240) == 0
    assert_close(tmp_path / "one", tmp_path / "two")


def assert_close(a: Path, b: Path) -> None:
    """Weights and metrics are the same but for the order of sums."""
    for name, tensor in weights(a / "model").items():
        torch.testing.assert_close(tensor, weights(b / "model")[name], atol=2e-4, rtol=0)
    for x, y in zip(log(a), log(b), strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name] == pytest.approx(y[name], abs=1e-3, rel=1e-3), name
    assert log(a)[0]["grad_norm"] == pytest.approx(log(b)[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "grpo", "num_iterations": 2},
        # rounds of dynamic sampling: the place in the prompts is part of what is saved
        {"recipe": "dapo", "reward": "tests.stages.rewards:any_vowel"},
        {"recipe": "remax", "num_generations": 1},
    ],
    ids=lambda c: c["recipe"],
)
def test_stopped_and_continued_equals_uninterrupted(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    settings: Any = {"steps": 4, "checkpoint_every": 1} | changes
    whole = train(config(tiny_model, prompts, tmp_path / "whole", **settings))
    with pulled_plug(monkeypatch, at=2):
        train(config(tiny_model, prompts, tmp_path / "cut", **settings))
    cut = train(config(tiny_model, prompts, tmp_path / "cut", **settings))
    assert_same_to_the_bit(whole.path, cut.path)
    assert (whole.path / "samples.jsonl").read_text() == (cut.path / "samples.jsonl").read_text()
    if changes["recipe"] == "dapo":
        assert max(row["sampling/groups"] for row in log(whole.path)) > 4  # groups were asked in place of others


def test_groups_without_spread_make_place_for_others(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    settings: Any = {"reward": "tests.stages.rewards:any_vowel", "steps": 3, "scale": "none", "baseline": "group"}
    run = train(config(tiny_model, prompts, tmp_path / "r", dynamic_sampling=8, **settings))
    rows = read_metrics(run.path)
    assert any(row["frac_reward_zero_std"] > 0 for row in rows)
    for row, batch in zip(rows, batches, strict=True):
        left_out = row["frac_reward_zero_std"] * row["sampling/groups"]
        assert row["sampling/groups"] == 4 + left_out  # every one of them was replaced, and by one that teaches
        assert all(len(set(batch.scores_B[g : g + 4].tolist())) > 1 for g in (0, 4, 8, 12))


def test_penalties_make_no_spread(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The filter asks whether answers are right (DAPO eq. 11), not how long they are.
    batches = seen(monkeypatch)
    settings: Any = {"reward": "tests.stages.rewards:always_a_third", "sampling": {"max_new_tokens": 40}}
    settings |= {"overlong_zone": 0.9, "missing_eos_penalty": 0.5, "dynamic_sampling": 1, "steps": 1}
    run = train(config(tiny_model, prompts, tmp_path / "r", recipe="dapo", **settings))
    assert len(set(batches[0].scores_B.tolist())) > 1  # penalties differ
    row = read_metrics(run.path)[0]
    assert (row["frac_reward_zero_std"], row["sampling/groups"], row["policy/updates"]) == (1, 8, 0)


def test_answers_weigh_the_same_in_the_precision_of_the_losses(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    given = config(tiny_model, prompts, tmp_path / "r", steps=1, beta=0.0)
    train(given)
    batch = batches[0]

    def exact(_policy: Any, ids_BT: torch.Tensor, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(logps_BT=batch.old_logps_BT[:, : ids_BT.shape[1]].double())

    monkeypatch.setattr(grpo_update, "completion_logprobs", exact)
    actors: Any = SimpleNamespace(policy=None)
    normalizer = grpo_update.NORMALIZERS["answers"]
    loss, _ = grpo_update.grpo_loss(actors, batch, given, normalizer, 16, list(range(16)))
    # the ratio is 1, so an answer's mean loss is minus its advantage: the first token's is that of all
    gains = [float(batch.advantages_BT[i][batch.mask_BT[i]][0]) for i in range(16)]
    assert float(loss) == pytest.approx(-sum(gains) / 16, abs=1e-12)


def test_later_tokens_pay_less_and_all_are_scaled_by_the_group(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    settings: Any = {"recipe": "grpo", "kl_coef": 0.3, "kl_credit": "token", "learning_rate": 2e-2, "steps": 2}
    train(config(tiny_model, prompts, tmp_path / "r", **settings))
    batch = batches[1]  # by now the policy has left its reference
    kl = [(batch.old_logps_BT - batch.ref_logps_BT)[i][batch.mask_BT[i]].double().tolist() for i in range(16)]
    totals = [float(batch.scores_B[i]) - 0.3 * sum(kl[i]) for i in range(16)]
    for row in range(16):
        group = totals[row // 4 * 4 : row // 4 * 4 + 4]
        mean = sum(group) / 4
        std = (sum((x - mean) ** 2 for x in group) / 3) ** 0.5
        # the answer's reward less the group's mean; what was spent before token t is no fault of its
        expected = [(totals[row] + 0.3 * sum(kl[row][:t]) - mean) / (std + 1e-4) for t in range(len(kl[row]))]
        own = batch.advantages_BT[row][batch.mask_BT[row]]
        assert own.tolist() == pytest.approx(expected, abs=1e-4)


def test_passes_end_when_the_policy_has_moved_far_enough(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    settings: Any = {"num_iterations": 4, "learning_rate": 2e-2, "beta": 0.0}
    free = read_metrics(train(config(tiny_model, prompts, tmp_path / "free", **settings)).path)
    held = read_metrics(train(config(tiny_model, prompts, tmp_path / "held", target_kl=1e-6, **settings)).path)
    assert [(row["policy/updates"], row["policy/stopped_early"]) for row in free] == [(4, 0), (4, 0)]
    # the first update is by the policy that answered, the second is made one step away from it
    assert [(row["policy/updates"], row["policy/stopped_early"]) for row in held] == [(2, 1), (2, 1)]


def test_a_step_without_any_spread_changes_nothing(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    for name, changes in (("kept", {}), ("replaced", {"dynamic_sampling": 1})):
        settings: Any = {"reward": "tests.stages.rewards:always_a_third", "beta": 0.0, **changes}
        run = train(config(tiny_model, prompts, tmp_path / name, **settings))
        for row in read_metrics(run.path):
            assert row["frac_reward_zero_std"] == 1
            assert row["reward_std"] == 0
            assert row.get("grad_norm", 0) == 0
        assert read_metrics(run.path)[0]["policy/updates"] == (0 if changes else 1)
        before, after = weights(tiny_model), weights(run.model_dir)
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_no_opinion_leaves_baseline_and_loss_and_zero_does_not(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    settings: Any = {"steps": 1, "scale": "none", "beta": 0.0}
    run = train(config(tiny_model, prompts, tmp_path / "r", reward="tests.stages.rewards:zero_one_none", **settings))
    batch = batches[0]  # 0, 1, None, 0 | 1, None, 0, 1 | None, 0, 1, None | 0, 1, None, 0
    means = [1 / 3, 2 / 3, 1 / 2, 1 / 3]
    for row in range(16):
        score = (0.0, 1.0, None)[row % 3]
        own = batch.advantages_BT[row][batch.mask_BT[row]]
        assert (len(own) == 0) == (score is None)
        assert own.tolist() == pytest.approx([(score or 0.0) - means[row // 4]] * len(own), abs=1e-6)
    assert read_metrics(run.path)[0]["reward"] == pytest.approx(5 / 11)
    with pytest.raises(DataError, match="no opinion"):
        train(config(tiny_model, prompts, tmp_path / "s", reward="tests.stages.rewards:silent"))


def test_cut_off_answers_are_compared_but_not_learnt_from(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    settings: Any = {"sampling": {"max_new_tokens": 60}, "steps": 1, "scale": "none"}
    run = train(config(tiny_model, prompts, tmp_path / "r", mask_truncated=True, **settings))
    batch = batches[0]
    cut_B = batch.ended_B == 0
    assert 0 < int(cut_B.sum()) < 16
    assert torch.equal(batch.mask_BT.any(1), ~cut_B)
    assert read_metrics(run.path)[0]["completions/clipped_ratio"] == pytest.approx(float(cut_B.float().mean()))
    gains_PK = batch.scores_B.view(4, 4) - group_mean(batch.scores_B.view(4, 4), torch.ones(4, 4, dtype=torch.bool))
    for row in range(16):
        own = batch.advantages_BT[row][batch.mask_BT[row]]
        assert own.tolist() == pytest.approx([float(gains_PK.view(-1)[row])] * len(own), abs=1e-6)


def test_long_answers_pay(tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = seen(monkeypatch)
    settings: Any = {"overlong_zone": 0.5, "overlong_penalty": 2.0, "missing_eos_penalty": 0.25, "steps": 1}
    train(config(tiny_model, prompts, tmp_path / "r", **settings))
    batch = batches[0]
    for row in range(16):
        made = int(batch.mask_BT[row].sum())  # room for 8, the last 4 are dear
        expected = 2.0 * max(0, made - 4) / 4 + (0.25 if batch.ended_B[row] == 0 else 0.0)
        assert float(batch.raw_scores_B[row] - batch.scores_B[row]) == pytest.approx(expected, abs=1e-6)


def test_no_reference_is_held_where_nothing_needs_it(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(monkeypatch)
    asked: list[bool] = []
    real = grpo_update.updates.update

    def spy(*arguments: Any, **named: Any) -> Any:
        asked.append(batches[-1].ref_logps_BT is not None)
        return real(*arguments, **named)

    monkeypatch.setattr(grpo_update.updates, "update", spy)
    plain = train(config(tiny_model, prompts, tmp_path / "with", recipe="dr-grpo"))
    bare = train(config(tiny_model, prompts, tmp_path / "without", recipe="dr-grpo", report_kl=False))
    assert asked == [True, True, False, False]
    a, b = weights(plain.model_dir), weights(bare.model_dir)
    assert all(torch.equal(a[name], b[name]) for name in a)  # to look changes nothing
    assert "objective/kl" in read_metrics(plain.path)[0]
    assert "objective/kl" not in read_metrics(bare.path)[0]
    assert all(batch.values_BT is None and batch.returns_BT is None for batch in batches)


def test_adapters_and_bfloat16(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = train(config(tiny_model, prompts, tmp_path / "lora", lora={"rank": 4, "alpha": 8.0}, beta=0.1))
    assert read_metrics(run.path)[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert (run.model_dir / "adapter_model.safetensors").exists()
    for recipe in ("grpo", "gspo"):  # the range of gspo is narrower than the rounding of bfloat16
        run = train(config(tiny_model, prompts, tmp_path / recipe, recipe=recipe, dtype="bfloat16", max_tokens=100))
        assert read_metrics(run.path)[0]["val/ratio"] == pytest.approx(1, abs=0.02)


def test_the_guard_works(tiny_model: Path, tmp_path: Path) -> None:
    many = tmp_path / "prompts.jsonl"  # a handful of prompts proves no fall
    asked = [
        f"{who} {what}" for who in ("The cat", "The dog", "The sun", "Who") for what in ("likes", "and", "is", "of")
    ]
    many.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked), encoding="utf-8")
    audit = {"judge": "tests.stages.rewards:few_vowels", "every": 4, "count": 16, "answers": 4}
    settings: Any = {"steps": 40, "batch_size": 64, "learning_rate": 2e-2, "beta": 0.0, "report_kl": False}
    run = train(config(tiny_model, many, tmp_path / "r", audit=audit, **settings))
    seen_looks = [json.loads(line) for line in (run.path / "audit.jsonl").read_text().splitlines()]
    assert run.results["ended_early"].startswith("audit: the audit score fell from")
    assert run.results["goodhart"]["kept_step"] == 0
    assert seen_looks[-1]["kl"] > 0.5  # the audit has its reference, though the steps report no KL
    assert (run.path / "best" / "step-0").is_dir()
    start_weights, kept = weights(tiny_model), weights(run.model_dir)
    assert all(torch.equal(start_weights[name], kept[name]) for name in kept)


def test_the_run_ends_when_kl_goes_over_its_limit(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    settings: Any = {"steps": 30, "beta": 0.0, "learning_rate": 3e-2, "max_kl": 0.3}
    run = train(config(tiny_model, prompts, tmp_path / "r", **settings))
    assert "went over max_kl" in run.results["ended_early"]


def test_randomness_in_the_forward_pass_is_caught(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = grpo_update.completion_logprobs

    def noisy(*arguments: Any, **named: Any) -> Any:
        out = exact(*arguments, **named)
        return out._replace(logps_BT=out.logps_BT + 0.3)

    monkeypatch.setattr(grpo_update, "completion_logprobs", noisy)
    with pytest.raises(HealthError, match=r"step 1: before the first update the probability ratio is 1\.3"):
        train(config(tiny_model, prompts, tmp_path / "r"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 1}, "num_generations 1 leaves an answer alone"),
        ({"num_generations": 1, "baseline": "leave-one-out", "scale": "none"}, "nothing to be compared with"),
        ({"num_generations": 1, "baseline": "none", "scale": "group-std"}, "scale group-std"),
        ({"num_generations": 1, "recipe": "remax", "dynamic_sampling": 1}, "dynamic_sampling 1"),
        ({"num_generations": 3}, "batch_size 16 is no multiple of num_generations 3"),
        ({"num_generations": 1, "batch_size": 1, "recipe": "reinforce++"}, "batch_size 1 leaves nothing"),
        ({"beta": 0.1, "kl_coef": 0.1}, "set one of them to 0"),
        ({"recipe": "gspo", "kl_coef": 0.1, "kl_credit": "token"}, "kl_credit token needs ratio token"),
        ({"recipe": "dapo", "epsilon": 0.4}, r"epsilon_high 0\.28 is below epsilon 0\.4"),
        ({"recipe": "dr-grpo", "report_kl": False, "max_kl": 3.0}, "max_kl needs the KL"),
        ({"sampling": {"top_p": 0.9}}, "must be off while training"),
        ({"sampling": {"top_k": 50}}, "must be off while training"),
        ({"sampling": {"min_p": 0.1}}, "must be off while training"),
        ({"sampling": {"temperature": 0}}, "temperature must be over 0"),
        ({"mini_batches": 99}, "mini_batches 99 is more than batch_size 16"),
        ({"parallel": "fsdp"}, "use parallel ddp"),
        ({"max_steps": 3}, "leave max_steps out"),
        ({"recipe": "grpa"}, "recipe"),
        ({"kl_estimator": "k1"}, "kl_estimator"),
        ({"kl_estimator": "k3"}, "kl_estimator"),
        ({"audit": {"judge": VOWELS}}, "audit.judge is a reward that is trained on"),
        ({"overlong_penalty": 2.0}, "overlong_penalty 2 needs an overlong_zone"),
        ({"overlong_zone": 0.05}, "is not one token"),  # of 8
        ({"recipe": "dr-grpo", "kl_estimator": "k2"}, "kl_estimator k2 is of the KL in the loss: set beta"),
        ({"recipe": "rloo", "beta": 0.1, "kl_credit": "token"}, "kl_credit token is of the KL in the reward"),
    ],
)
def test_impossible_settings_are_refused_before_work_starts(
    tiny_model: Path, prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(tiny_model, prompts, tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists()


def test_no_room_for_an_answer(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leaves no room for a prompt in 128 tokens"):
        train(config(tiny_model, prompts, tmp_path / "r", sampling={"max_new_tokens": 200}))
