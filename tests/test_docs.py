"""The pages point to things that exist, and name commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_commands_exist(page: Path) -> None:
    known = set(re.findall(r"^def (\w+)\(", (ROOT / "goodheart/cli.py").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"^ {4}goodheart (\w+)(?: (\w+))?", page.read_text(encoding="utf-8"), re.MULTILINE)
    missing = [c for c, sub in named if (f"data_{sub}" if c == "data" else c) not in known]
    assert missing == []
