"""The pages point to things that exist, and name commands that exist."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
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


def code_of(page: Path) -> list[str]:
    """What a page shows of Python: fenced blocks, and indented ones that begin with an import."""
    text = page.read_text(encoding="utf-8")
    indented = re.findall(r"(?:^ {4}(?:from|import) .+\n)(?:^ {4}.+\n|^\n)*", text, re.MULTILINE)
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL) + [textwrap.dedent(block) for block in indented]


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_what_python_examples_import_exists(page: Path) -> None:
    for code in code_of(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("goodheart"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], node.module


def named_in(page: Path) -> set[str]:
    """The files of this repository that a page names between backticks."""
    text = page.read_text(encoding="utf-8")
    return set(re.findall(r"`((?:goodheart|tests|recipes|experiments|bench|docs)/[\w./-]+\.\w+)`", text))


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_files_that_pages_name_exist(page: Path) -> None:
    assert [name for name in sorted(named_in(page)) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_functions_that_pages_name_as_judges_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module, name in re.findall(r"\b(goodheart(?:\.\w+)+):([a-z_]\w*)", text):
        assert hasattr(importlib.import_module(module), name), f"{module}:{name}"
