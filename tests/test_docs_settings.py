"""What the pages say of settings is so: names, defaults, and in docs/settings.md every setting there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from goodheart.evaluate.settings import EvaluateConfig
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.judges.settings import CombinedReward, Term
from goodheart.loop.registry import STAGES
from goodheart.stages.settings.audit import AuditSettings
from goodheart.stages.settings.curriculum import CurriculumSettings
from goodheart.stages.settings.dpo import DPOConfig
from goodheart.stages.settings.grpo import GRPOConfig
from goodheart.stages.settings.kto import KTOConfig
from goodheart.stages.settings.measured import MeasuredSettings
from goodheart.stages.settings.online import OnlineConfig
from goodheart.stages.settings.policy_gradient import PolicyGradientSettings
from goodheart.stages.settings.ppo import PPOConfig
from goodheart.stages.settings.pretrain import PretrainConfig
from goodheart.stages.settings.rejection import RejectionConfig
from goodheart.stages.settings.reward import RewardConfig
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.settings.sft import SFTConfig
from goodheart.train.config import LoraSettings, TrainingSettings
from goodheart.train.elsewhere import NAMES

DOCS = Path(__file__).resolve().parents[1] / "docs"
Kind = type[BaseModel]

# ---- docs/settings.md: all of them ----

# heading -> its settings; those of the class of an earlier heading that it derives from stand there
SHARED: dict[str, Kind] = {
    "Every stage that trains": TrainingSettings,
    "Learning from what is given: sft, reward, dpo, kto": MeasuredSettings,
    "Learning from own answers: ppo, grpo, online": PolicyGradientSettings,
}
BLOCKS: dict[str, Kind] = {
    "`lora:`": LoraSettings,
    "`sampling:`": SamplingSettings,
    "`audit:`": AuditSettings,
    "`curriculum:`": CurriculumSettings,
    "`reward:` with several rewards": CombinedReward,
    "One of several rewards": Term,
}
SECTIONS = SHARED | {f"`{name}`": stage.load_settings() for name, stage in STAGES.items()} | BLOCKS


def told(default: Any) -> str:
    """A default as the page says it."""
    if default is None or default == [] or default == ():
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return f"{default:g}"
    if isinstance(default, list | tuple):
        return ", ".join(map(told, default))
    return str(default) if isinstance(default, str) else "see there"


def between(schema: dict[str, Any]) -> str:
    """The numbers that a schema lets in."""
    least, over = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, under = schema.get("maximum"), schema.get("exclusiveMaximum")
    low = f"{least:g}" if least is not None else f"over {over:g}" if over is not None else ""
    high = f"to {most:g}" if most is not None else f"to under {under:g}" if under is not None else ""
    whole = {"integer": "whole number", "number": "number"}[schema["type"]]
    return " ".join(filter(None, (low, high))) if high else f"{low} or more" if least is not None else low or whole


def may_be(schema: dict[str, Any]) -> str:
    """What a schema lets in, in few words."""
    if "anyOf" in schema:
        return " or ".join(may_be(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") in ("integer", "number"):
        return between(schema)
    return {"boolean": "true, false", "string": "text", "array": "list", "object": "block"}.get(
        schema.get("type", ""), "block"
    )


def rows(kind: Kind) -> list[tuple[str, str, str]]:
    """The rows of a class as far as the program knows them: name, default, what it may be."""
    above = max(
        (c for c in SHARED.values() if c is not kind and issubclass(kind, c)), key=lambda c: len(c.mro()), default=None
    )
    fields = {} if above is None else above.model_fields
    schema = kind.model_json_schema()["properties"]
    return [
        (
            f"`{name}`",
            "" if field.is_required() else told(field.get_default(call_default_factory=True)),
            may_be(schema[name]),
        )
        for name, field in kind.model_fields.items()
        if name not in fields or fields[name].default != field.default or fields[name].annotation != field.annotation
    ]


def cells(line: str) -> list[str]:
    """Of a row of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def sections(page: str) -> dict[str, list[list[str]]]:
    """heading -> the cells of each row of its table."""
    found: dict[str, list[list[str]]] = {}
    for part in (DOCS / page).read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        found[heading] = [cells(line) for line in text.splitlines() if line.startswith("| `")]
    return found


def test_every_setting_is_on_the_page_of_settings() -> None:
    assert list(sections("settings.md")) == [*SECTIONS, "Names elsewhere"]


@pytest.mark.parametrize("heading", SECTIONS)
def test_what_the_page_of_settings_says_is_so(heading: str) -> None:
    table = sections("settings.md")[heading]
    assert [tuple(row[:3]) for row in table] == rows(SECTIONS[heading])
    assert all(row[3] for row in table), "each says what it is"


def test_names_of_other_libraries_are_told_and_lead_to_settings() -> None:
    told_here = {
        name: here
        for there, here in sections("settings.md")["Names elsewhere"]
        for name in re.findall(r"`(\w+)`", there)
    }
    assert told_here == {name: f"`{here}`" + (f": {note}" if note else "") for name, (here, note) in NAMES.items()}
    stages = [stage.load_settings() for stage in STAGES.values()]
    for name, (here, _) in NAMES.items():
        outer, _, inner = here.partition(".")
        have = [kind for kind in stages if outer in kind.model_fields]
        assert have, here
        assert not any(name in kind.model_fields for kind in have), f"{name} is a setting of its own"
        assert not inner or inner in BLOCKS[f"`{outer}:`"].model_fields, here


# ---- the tables of the stages' own pages: the settings one may want to change ----

PAGES: dict[str, tuple[Kind, ...]] = {
    "curriculum.md": (CurriculumSettings,),
    "dpo.md": (DPOConfig,),
    "evaluate.md": (EvaluateConfig,),
    "generation.md": (SamplingSettings,),
    "goodhart.md": (AuditSettings,),
    "grpo.md": (GRPOConfig,),
    "kto.md": (KTOConfig,),
    "online.md": (OnlineConfig,),
    "ppo.md": (PPOConfig,),
    "rejection.md": (RejectionConfig,),
    "reward.md": (RewardConfig,),
    "rewards.md": (Term,),
    "sft.md": (SFTConfig, PretrainConfig),
    "store.md": (CampaignSettings,),
}
_OFF = {"top_p": 1.0}  # what switches a setting off where that is neither none, 0 nor false


def default_of(kind: Kind, name: str) -> Any:
    """Of `setting` or `block.setting`."""
    outer, _, inner = name.partition(".")
    field = kind.model_fields[outer]
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return getattr(value, inner) if inner else value


def agrees(name: str, text: str, default: Any) -> bool:
    """Whether a page's word for a default is true; what None means is told in words of its own."""
    text = text.strip().strip("`")
    if default is None:
        return re.fullmatch(r"[-+.\de]+", text) is None and text not in ("on", "true", "false")
    if text in ("off", "none", "on", "true", "false"):
        wanted = text in ("on", "true")
        return default == _OFF[name] if name in _OFF else bool(default) == wanted
    if isinstance(default, int | float):
        return re.fullmatch(r"[-+.\de]+", text) is not None and float(text) == default
    return text == told(default)


@pytest.mark.parametrize(
    ("text", "default", "right"),
    [
        ("1e-5", 1e-5, True),
        ("1e-4", 1e-5, False),
        ("off", 0.0, True),
        ("off", 0.5, False),
        ("on", True, True),
        ("the loss's own", None, True),
        ("0.1", None, False),
        ("`auto`", "auto", True),
        ("auto", "sigmoid", False),
    ],
)
def test_the_comparison_can_fail(text: str, default: Any, right: bool) -> None:
    assert agrees("beta", text, default) == right


def claims(page: str) -> list[tuple[str, str]]:
    """(setting, default as told) of every table of settings with their defaults."""
    found: list[tuple[str, str]] = []
    inside = False
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if re.match(r"\| (setting|setting \(`\w+\.`\)|of a term) \| default \|", line):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and line.startswith("| `"):
            first, text = cells(line)[:2]
            names = re.findall(r"`([\w.]+)`", first)
            parts = text.split(", ")
            if names and len(parts) != len(names):  # a number is of the first; words are of all
                parts = [text, *[""] * (len(names) - 1)] if re.match(r"[\d.]", text) else [text] * len(names)
            found += [(name, part) for name, part in zip(names, parts, strict=bool(names)) if part != "by recipe"]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_pages_name_exist_with_the_default_told(page: str) -> None:
    told_here = claims(page)
    assert told_here
    for name, text in told_here:
        assert name.partition(".")[0] in {n for kind in PAGES[page] for n in kind.model_fields}, name
        by_stage = {stage: part for part, stage in re.findall(r"(\S+) \((\w+)\)", text)}  # 1e-4 (sft), 5e-4 (pretrain)
        for kind in PAGES[page]:
            part = by_stage.get(kind.__name__.removesuffix("Config").lower(), text)
            assert agrees(name, part, default_of(kind, name)), (name, part)


def test_every_table_of_settings_is_looked_at() -> None:
    pages = {page.name for page in DOCS.glob("*.md") if claims(page.name)}
    assert pages == {*PAGES, "settings.md"}


def test_every_stage_is_named_where_pipelines_are_told() -> None:
    text = (DOCS / "pipeline.md").read_text(encoding="utf-8")
    listed = re.search(r"^Stages: (.*?);", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert sorted(re.findall(r"`(\w+)`", listed.group(1))) == sorted(STAGES)
