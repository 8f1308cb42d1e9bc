"""The pages point to things that exist, and name commands that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from goodheart.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links to them: small letters, signs left out, spaces as dashes."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_links_to_headings_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([\w./-]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [f"{to}#{name}" for to, name in links if name not in anchors(page.parent / to if to else page)] == []


def commands() -> dict[str, set[str]]:
    """`sft`, `data check` ... -> its options."""
    top: Any = typer.main.get_command(app)
    found: dict[str, set[str]] = {}
    for name, command in top.commands.items():
        for sub, each in [("", command), *getattr(command, "commands", {}).items()]:
            found[f"{name} {sub}".strip()] = {o for parameter in each.params for o in parameter.opts} | {"--help"}
    return found


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_commands_and_options_exist(page: Path) -> None:
    known = commands()
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^ {4}goodheart (.+)$", text, re.MULTILINE):
        words = line.partition("#")[0].split()
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in known), None)
        assert name is not None, line
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known[name] | {"--debug"}, line
