"""Gates: what holds, what fails with which evidence, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from goodheart.errors import ConfigError, GateError
from goodheart.loop.gates import Gate

STAGES = ["reward", "answers-ppo", "evaluate", "ppo", "7b", "if", "a.b", "a-b"]
RESULTS: dict[str, dict[str, Any]] = {
    "reward": {"accuracy": 0.61, "accuracy_low": 0.58, "always_longest": 0.66, "kind": "preference", "ok": True},
    "answers-ppo": {"rows": 12},
    "ppo": {"objective/kl": 3.5, "goodhart": {"peak": None}, "a/b": 1, "a-b": 2},
    "evaluate": {
        "models": {"ppo": {"harmful": {"value": 0.018, "low": 0.01, "high": 0.034, "n": 120}}},
        "leaderboard": [{"model": "ppo"}],
    },
}


def gate(text: str) -> Gate:
    return Gate.parse(text, "p.yaml:9: ", STAGES)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("reward.accuracy > 0.6", True),
        ("reward.accuracy > 0.61", False),
        ("reward.accuracy >= 0.61", True),
        ("reward.accuracy > 0.6 and reward.accuracy > reward.always_longest", False),
        ("reward.accuracy > 0.6 or reward.accuracy > reward.always_longest", True),
        ("not reward.accuracy > reward.always_longest", True),
        ("reward.accuracy - reward.always_longest > -0.1", True),  # -0.05
        ("reward.accuracy + 2 * reward.always_longest == 0.61 + 1.32", True),
        ("reward.accuracy / 0 < 1 or 0.5 < reward.accuracy", None),
        ("0.5 < reward.accuracy < 0.6", False),
        ("0.6 < reward.accuracy < 0.7", True),
        ("reward.kind == 'preference'", True),
        ("reward.kind != 'preference'", False),
        ("reward.ok", True),
        ("reward.ok == True and not reward.ok", False),
        ("evaluate.models.ppo.harmful.high < 0.02", False),
        ("evaluate.models.ppo.harmful < 0.02", True),  # a measured value counts as its value
        ("answers_ppo.rows >= 12", True),
        ("ppo.objective_kl < 4", True),
        ('ppo["objective/kl"] > 4', False),
        ("evaluate.models['ppo'].harmful.n >= 100", True),
    ],
)
def test_truth(text: str, holds: bool | None) -> None:
    if holds is None:
        with pytest.raises(ConfigError, match=r"`reward\.accuracy / 0` cannot be computed: float division by zero"):
            gate(text).check(RESULTS)
    else:
        assert gate(text).check(RESULTS).holds is holds


def test_evidence_has_values_and_intervals() -> None:
    verdict = gate("reward.accuracy > 0.6 and evaluate.models.ppo.harmful.high < 0.02").check(RESULTS)
    assert verdict.lines() == [
        "holds  reward.accuracy > 0.6    reward.accuracy = 0.61",
        "fails  evaluate.models.ppo.harmful.high < 0.02    "
        "evaluate.models.ppo.harmful.high = 0.034 (0.018, 95 % interval 0.01 to 0.034, n = 120)",
    ]


def test_stages_of_a_gate() -> None:
    assert gate("reward.accuracy > 0.1 and answers_ppo.rows > 1 and reward.ok").stages == ("reward", "answers-ppo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward.acuracy > 0.5", "`reward` has no result `acuracy`; did you mean `accuracy`?"),
        ("evaluate.models.pop.harmful > 0", "`evaluate.models` has no result `pop`; did you mean `ppo`?"),
        ("reward.accuracy.low > 0", "`reward.accuracy` is 0.61, it has no `low`"),
        ("evaluate.models.ppo > 0", "`evaluate.models.ppo` is no single value: name one of harmful"),
        ("evaluate.leaderboard > 0", "`evaluate.leaderboard` is no single value"),
        ("reward.kind > 0.5", "cannot be computed: '>' not supported"),
        ("reward.kind * 2 == 'x'", "cannot be computed: 'preference' is no number"),
        ("reward.accuracy and reward.ok", "`reward.accuracy` is 0.61, which is neither true nor false"),
        ("ppo.a_b > 0", '`ppo.a_b` may be several results: write ppo["a/b"] or ppo["a-b"]'),
        ("reward.accuracy * 1e308 * 1e308 > 1", "cannot be computed: the result is too large"),
        ("answers_ppo.objective > 0", "`answers_ppo` has no result `objective`"),
    ],
)
def test_results_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        gate(text).check(RESULTS)
    assert str(error.value).startswith(f"p.yaml:9: gate `{text}`: ")
    assert message in str(error.value)


def test_an_error_does_not_repeat_a_very_long_gate() -> None:
    with pytest.raises(ConfigError) as error:
        gate("-" * 400 + "reward.accuracy > 1")
    assert str(error.value).startswith("p.yaml:9: gate `" + "-" * 200 + "...`: too many parts")


def test_what_was_not_measured_does_not_pass() -> None:
    with pytest.raises(GateError, match="has no value: nothing was measured"):
        gate("ppo.goodhart.peak < 3").check(RESULTS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"value": float("nan"), "low": 0.1, "high": 0.2}])
@pytest.mark.parametrize("text", ["reward.x < 5", "not reward.x > 5", "reward.ok or reward.x != 1"])
def test_what_is_not_finite_does_not_pass(text: str, value: object) -> None:
    with pytest.raises(GateError, match=r"`reward\.x` is (nan|inf): not a finite number"):
        gate(text).check({"reward": {"ok": True, "x": value}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a gate is an expression such as"),
        (3, "a gate is an expression such as"),
        ("reward.accuracy >", "cannot be read: invalid syntax"),
        ("reward.accuracy = 1", "cannot be read"),
        ("rewrd.accuracy > 0.5", "no stage `rewrd`; did you mean `reward`?"),
        ("answers-ppo.rows > 1", "no stage `answers`; did you mean `answers_ppo`?"),
        ("0.5 > 0.4", "it names no result; begin with a stage: reward"),
        ("reward.accuracy", None),
        ("reward.accuracy + 1", "it compares nothing; write for example `reward.accuracy + 1 > 0.5`"),
        ("reward", "it compares nothing"),
        ("(reward.ok and reward.ok) > 0.5", "`reward.ok and reward.ok` is true or false: neither compare it nor"),
        ("(not reward.accuracy) == 0.7", "`not reward.accuracy` is true or false"),
        ("-(not reward.accuracy) < 0", "`not reward.accuracy` is true or false"),
        ("(reward.accuracy > 1) + 1 > 1", "`reward.accuracy > 1` is true or false"),
        ("1 + (reward.accuracy and reward.ok) > 1", "is true or false"),
        ("reward.ok and -(1 + (not reward.ok)) > 1", "`not reward.ok` is true or false"),
        ("-(reward.accuracy > 1)", "`reward.accuracy > 1` is true or false"),
        ("reward.accuracy < 1e999", "is not allowed"),
        ("-" * 480 + "reward.accuracy > 1", "too many parts inside each other; make several gates of it"),
        ("not " * 110 + "reward.ok", "too many parts inside each other"),
        ("+".join(["reward.accuracy"] * 30) + " > 1", None),
        ("7b.accuracy > 1", "a name cannot begin with a digit or be a word of Python; rename the stage `7b`"),
        ("reward.ok and if.rows > 1", "rename the stage `if`"),
        ("a_b.rows > 1", "`a_b` may be the stage `a.b` or `a-b`: rename one of them"),
        ("reward.accuracy > 1 7b", "rename the stage `7b`"),
        ("reward.accuracy7b > > 1", "cannot be read: invalid syntax"),
        ("__import__('os').system('x') > 0", "`__import__('os').system('x')` is not allowed"),
        ("reward.accuracy.__class__() > 0", "is not allowed"),
        ("(lambda: 1)() > reward.accuracy", "is not allowed"),
        ("[1][0] > reward.accuracy", "is not allowed"),
        ("reward[0] > 1", "`reward[0]` is not allowed"),
        ("reward.accuracy ** 9 > 1", "is not allowed"),
        ("reward.accuracy in (1, 2)", "is not allowed"),
        ("reward.accuracy if reward.ok else 2", "is not allowed"),
        ("f'{reward.accuracy}' == 'x'", "is not allowed"),
        ("(x := reward.accuracy) > 1", "is not allowed"),
        ("reward.accuracy > None", "`None` is not allowed"),
        ("reward.accuracy > b'x'", "is not allowed"),
        ("reward.accuracy > " + "(" * 300 + "1" + ")" * 300, "a gate of 619 characters; make several"),
        ("reward.accuracy > \0", "cannot be read"),
    ],
)
def test_refused_before_anything_runs(text: Any, message: str | None) -> None:
    if message is None:
        gate(text)  # it may be a result that is true or false
        return
    with pytest.raises(ConfigError) as error:
        gate(text)
    assert str(error.value).startswith("p.yaml:9: ")
    assert message in str(error.value)
