"""Settings: what a wrong file or option says to the person who wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import Field, model_validator

from goodheart.errors import ConfigError
from goodheart.train.config import LoraSettings, Settings, TrainingSettings, build


class Inner(Settings):
    depth: int = Field(1, ge=1)


class Example(TrainingSettings):
    data: str
    inner: Inner = Inner()


def write(folder: Path, text: str) -> Path:
    file = folder / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_file_options_and_sets_in_that_order(tmp_path: Path) -> None:
    file = write(tmp_path, "model: m\ndata: from-file\nout: o\nseed: 1\ninner:\n  depth: 2\n")
    built = build(Example, file=file, overrides={"seed": 2, "data": None}, sets=["inner.depth=3", "learning_rate=1e-3"])
    assert (built.data, built.seed, built.inner.depth, built.learning_rate) == ("from-file", 2, 3, 0.001)


def test_blocks_are_made_where_they_were_absent() -> None:
    built = build(Example, sets=["model=m", "data=d", "out=o", "lora.rank=4"])
    assert built.lora == LoraSettings(rank=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: m\ndata: d\nout: o\nlerning_rate: 1\n",
            "c.yaml:4: unknown key `lerning_rate`; did you mean `learning_rate`?",
        ),
        ("model: m\ndata: d\nout: o\nlr: 1\n", "c.yaml:4: unknown key `lr`; here it is `learning_rate`"),
        ("model: m\ndata: d\nout: o\nlearn: 1\n", "c.yaml:4: unknown key `learn`; did you mean `learning_rate`?"),
        ("model: m\ndata: d\nout: o\ninner:\n  dept: 1\n", "c.yaml:5: unknown key `inner.dept`; did you mean `depth`?"),
        (
            "model: m\ndata: d\nout: o\ninner:\n  depth: 0\n",
            "c.yaml:5: `inner.depth`: input should be greater than or equal to 1 (got 0)",
        ),
        ("model: m\ndata: d\nout: o\nbatch_size: many\n", "c.yaml:4: `batch_size`: input should be a valid integer"),
        ("model: m\nout: o\n", "c.yaml: `data` is missing"),
        ("model: m\nmodel: n\n", "c.yaml:2: key `model` is given twice"),
        ("model: m\n? [a, b]\n: c\n", "c.yaml:2: not valid YAML: a key must be one word, not a list or a block"),
        ("model: m\n? {a: b}\n: c\n", "c.yaml:2: not valid YAML: a key must be one word"),
        ("model: m\ninner: &here\n  deeper: *here\n", "not valid YAML: a block that contains itself"),
        ("model: m\ninner: &here [1, [*here]]\n", "c.yaml:2: not valid YAML: a block that contains itself"),
        ("model: [m\n", "c.yaml:2: not valid YAML"),
        ("- a\n- b\n", "c.yaml: expected `key: value` lines, found list"),
        ("model: m\ndata: d\nout: o\nadam_betas: [0.9, 1.0]\n", "c.yaml:4: `adam_betas`: each must lie in [0, 1)"),
    ],
)
def test_errors_name_the_line_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(Example, file=write(tmp_path, text))
    assert message in str(error.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        build(Example, file=write(tmp_path, "model: m\ndata: d\nout: o\nseed: x\nepochs: -1\n"))
    assert "`seed`" in str(error.value)
    assert "`epochs`" in str(error.value)


def test_missing_file_names_a_near_one(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"no such file; did you mean `c.yaml`\?"):
        build(Example, file=tmp_path / "cc.yaml")


@pytest.mark.parametrize("item", ["novalue", "=3", "model.x=1"])
def test_bad_set(item: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        build(Example, sets=["model=m", "data=d", "out=o", item])


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1.5e3", 1500.0), ("3", 3.0), (".5", 0.5), ("2E-2", 0.02)]
)
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    assert build(Example, sets=["model=m", "data=d", "out=o", f"learning_rate={text}"]).learning_rate == value


class Weighed(Settings):
    weights: dict[str, float]
    more: dict[str, dict[str, float]]


def test_keys_are_names_whatever_yaml_makes_of_such_words(tmp_path: Path) -> None:
    text = "weights: &w {true: 2, no: 1, 1: 3, 1e-3: 4, null: 5, 2026-01-01: 6}\nmore:\n  on: {<<: *w, true: 0}\n"
    built = build(Weighed, file=write(tmp_path, text), sets=["more.off={yes: 1}"])
    assert built.weights == {"true": 2, "no": 1, "1": 3, "1e-3": 4, "null": 5, "2026-01-01": 6}
    assert built.more == {"on": built.weights | {"true": 0}, "off": {"yes": 1}}
    # what is written back is read again, here and by any reader of YAML
    again = yaml.safe_load(yaml.safe_dump(built.model_dump()))
    assert again == built.model_dump()


def test_a_word_of_yaml_twice_is_an_error_like_any(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:3: key `true` is given twice"):
        build(Weighed, file=write(tmp_path, 'weights:\n  true: 2\n  "true": 3\n'))


class Paired(Settings):
    low: float
    high: float
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _in_order(self) -> Paired:
        if self.low > self.high:
            raise ValueError("`low` is over `high`")
        return self


def test_what_is_wrong_with_several_settings_names_them_and_no_class(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        build(Paired, sets=["low=2", "high=1"])
    assert str(told.value) == "`low` is over `high`"
    file = write(tmp_path, "low: 2\nhigh: 1\n")
    with pytest.raises(ConfigError) as told:
        build(Paired, file=file)
    assert str(told.value) == f"{file}: `low` is over `high`"


def test_a_word_in_the_place_of_a_block_is_told_of() -> None:
    with pytest.raises(ConfigError, match=r"^`inner`: must be a block of `key: value` \(got 'deep'\)$"):
        build(Paired, sets=["low=1", "high=2", "inner=deep"])


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(value: str) -> None:
    named = ["model=m", "data=d", "out=o"]
    with pytest.raises(ConfigError, match="`learning_rate`: input should be a finite number"):
        build(Example, sets=[*named, f"learning_rate={value}"])


def test_a_limit_may_be_infinite() -> None:
    named = ["model=m", "data=d", "out=o"]
    assert build(Example, sets=[*named, "max_grad_norm=.inf"]).max_grad_norm == float("inf")
    with pytest.raises(ConfigError, match="max_grad_norm"):
        build(Example, sets=[*named, "max_grad_norm=.nan"])
