"""The arrows of the layout: who may import whom, read from the source, imports inside functions included."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "goodheart"

# From top to bottom; a part may import what stands below it. Parts of one line never import each other.
LEVELS = (
    ("cli",),
    ("loop",),
    ("stages", "evaluate", "studio", "serve"),
    ("judges", "feedback", "playground"),
    ("train", "generate"),
    ("models",),
    ("losses", "data"),
    ("errors",),
)
LEVEL = {part: i for i, level in enumerate(LEVELS) for part in level}
# What a part may import of goodheart besides the levels: narrower than "everything below".
ONLY = {
    "playground": {"playground", "judges", "feedback", "data", "errors"},
    "studio": {"studio", "feedback", "data", "errors", "judges"},
    "feedback": {"feedback", "data", "errors"},
    "losses": {"losses", "errors"},
}


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
    return found


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def wrong_arrows(part: str, lines: list[tuple[int, str]]) -> list[str]:
    """What is wrong with one file's imports."""
    found = []
    for line, name in lines:
        target = name.split(".")[1] if name.startswith("goodheart.") else None
        if target is None or part in ("__init__", "__main__"):
            continue
        if part in ONLY and target not in ONLY[part]:
            found.append(f"line {line}: {part} may not import {target}")
        elif target != part and LEVEL[target] <= LEVEL[part] and not (part in ONLY and target in ONLY[part]):
            found.append(f"line {line}: {part} imports {target}, which does not stand below it")
        elif target == "stages" and part == "serve":
            found.append(f"line {line}: serve never imports stages")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_arrows(path: Path) -> None:
    assert wrong_arrows(part_of(path), imports(path)) == []


def test_a_wrong_arrow_is_seen() -> None:
    assert wrong_arrows("models", [(3, "goodheart.train.run")])
    assert wrong_arrows("train", [(3, "goodheart.generate.engine")])
    assert wrong_arrows("losses", [(3, "goodheart.data.records")])
    assert not wrong_arrows("stages", [(3, "goodheart.judges.load")])


def test_every_part_has_a_level() -> None:
    parts = {part_of(p) for p in FILES} - {"__init__", "__main__"}
    assert parts <= set(LEVEL), "give the new part its place in LEVELS"


@pytest.mark.parametrize("name", ["errors.py", "data/records.py"])
def test_standard_library_alone(name: str) -> None:
    for line, imported in imports(PACKAGE / name):
        assert imported.split(".")[0] in sys.stdlib_module_names, f"{name}:{line} imports {imported}"


def test_losses_see_tensors_only() -> None:
    for path in (PACKAGE / "losses").glob("*.py"):
        for line, name in imports(path):
            allowed = name.split(".")[0] in sys.stdlib_module_names | {"torch"} or name.startswith("goodheart.")
            assert allowed, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("part", ["models", "generate"])
def test_no_text_below_the_stages(part: str) -> None:
    for path in (PACKAGE / part).glob("*.py"):
        for line, name in imports(path):
            assert not name.startswith("tokenizers"), f"{path.name}:{line}"
            assert not name.startswith("goodheart.data"), (
                f"{part}/{path.name}:{line} imports {name}: it never sees text"
            )


def test_only_parallel_talks_to_other_processes() -> None:
    for path in FILES:
        for line, name in imports(path):
            if name.startswith("torch.distributed"):
                assert path.relative_to(PACKAGE).as_posix() == "train/parallel.py", f"{path}:{line}"


@pytest.mark.parametrize("part", ["studio", "feedback"])
def test_starts_without_torch(part: str) -> None:
    for path in (PACKAGE / part).glob("*.py"):
        assert not [line for line, name in imports(path) if name.split(".")[0] == "torch"], path
