"""Three languages that say the same, and no words outside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from goodheart.studio import labelling, manage
from goodheart.studio.words import FOLDER, LANGUAGES, Words, script_of, wanted

STUDIO = FOLDER.parent
TEMPLATES = sorted((STUDIO / "templates").rglob("*.html"))
SCRIPTS = sorted((STUDIO / "static").rglob("*.js"))
ENGLISH = Words.of("en").table


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != "en"])
def test_same_keys_and_placeholders(language: str) -> None:
    table = Words.of(language).table
    assert table.keys() == ENGLISH.keys()
    for key, text in table.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", ENGLISH[key])), key
        assert text.strip() == text != "", key


def test_taiwan_and_the_mainland_have_their_own_words() -> None:
    traditional, simplified = (json.loads((FOLDER / f"{code}.json").read_text()) for code in ("zh-Hant", "zh-Hans"))
    assert script_of("".join(traditional.values())) == "zh-Hant"
    assert script_of("".join(simplified.values())) == "zh-Hans"
    assert traditional["login.title"] == "登入"
    assert simplified["login.title"] == "登录"


def test_a_short_text_is_of_the_script_of_what_stands_beside_it() -> None:
    assert script_of("松，柏。", "写一个列表：2个。") == "zh-Hans"  # both scripts have these signs
    assert script_of("松，柏。", "寫一個列表") == "zh-Hant"
    assert script_of("這個", "写一个") == "zh-Hant"  # what a text says itself counts more
    assert script_of("松，柏。", "日本語で書いて") == "ja"
    assert script_of("松，柏。", "Two trees?") == script_of("松，柏。") == "zh-Hant"
    assert script_of("Pine.", "写一个列表") is None


def _said(text: str) -> str:
    """What a template says by itself: without tags, expressions, comments and entities."""
    text = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", "", text, flags=re.DOTALL)
    spoken = re.findall(r'\s(?:title|alt|placeholder|aria-label)="([^"]*)"', text)
    text = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    return " ".join([*spoken, re.sub(r"<[^>]*>", " ", text)])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_words_of_their_own(path: Path) -> None:
    words = re.findall(r"[^\W\d_]{2,}", _said(path.read_text(encoding="utf-8")))
    assert set(words) <= {"goodheart"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_words_of_their_own(path: Path) -> None:
    text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    assert not re.findall(r'textContent = "[^"]*[A-Za-z]{2}', text)
    assert not re.findall(r'"aria-label": "[^"]*[A-Za-z]{2}', text)


def _used() -> set[str]:
    """Keys that pages and scripts ask for; an entry with a star stands for all that begin like it."""
    used: set[str] = set()
    for path in [*TEMPLATES, *STUDIO.rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'"([a-z]+\.[a-z_.]+)"', text)) & ENGLISH.keys()
        used |= {f"{start}*" for start in re.findall(r"""["']([a-z]+\.[a-z_]*)["'] [+~]""", text)}
        used |= {f"{start}*" for start in re.findall(r'f"([a-z]+\.[a-z_]*)\{', text)}
        used |= set(re.findall(r"'([a-z]+\.[a-z_.]+)'", text)) & ENGLISH.keys()
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        used |= {f"js.{key}" for key in re.findall(r'"([a-z_.]+)"', text) if f"js.{key}" in ENGLISH}
        used |= {f"js.{start}*" for start in re.findall(r"`([a-z_]+\.)\$\{", text)}
        used |= {f"js.{kind}.*" for kind in re.findall(r'nameOf\("(\w+)"', text)}
    return used


def test_every_key_is_used() -> None:
    used = _used()
    stars = tuple(key[:-1] for key in used if key.endswith("*"))
    idle = {f"idle.{why}.{part}" for why in labelling.assignment.Why.__args__ for part in ("title", "text")}
    assert idle <= ENGLISH.keys()
    assert {key for key in ENGLISH if key not in used and not key.startswith(stars)} - idle == set()
    assert all(key in ENGLISH for key, _ in manage.NAVIGATION)


@pytest.mark.parametrize(
    ("chosen", "header", "language"),
    [
        (None, None, "en"),
        ("zh-Hans", "en", "zh-Hans"),
        ("xx", "zh-TW,zh;q=0.9,en;q=0.8", "zh-Hant"),
        (None, "zh-CN,en;q=0.5", "zh-Hans"),
        (None, "zh-Hant-HK", "zh-Hant"),
        (None, "fr,de;q=0.9,zh;q=0.3,en;q=0.5", "en"),
        (None, "en;q=0,zh", "zh-Hans"),
        (None, ";;;=,q=1;,\x00", "en"),
    ],
)
def test_the_language_of_a_page(chosen: str | None, header: str | None, language: str) -> None:
    assert wanted(chosen, header) == language
