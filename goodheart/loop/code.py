"""Which code made an output: every file that a stage's module imports, directly or through others, by content.

Only that code counts, so that work on one stage leaves the others' outputs standing. Comments, docstrings and layout do
not count, nor does the version number, so that better words and releases cost nobody a training. What other packages do
(torch, transformers) is noted in the lineage and does not count either.

What a file does is found by parsing it, which for a stage's hundred files takes most of a second; so that is remembered
in the user's cache folder, by the content of the file.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import goodheart
from goodheart.models.cache import cache_folder
from goodheart.train.files import replace_text, sha256_of

_PACKAGE = Path(goodheart.__file__).parent
_VERSION = _PACKAGE / "__init__.py"
_COMPILED = "*/*.[ch]"  # sources in C lie in a folder beside the module that compiles them
_MOST_REMEMBERED = 5000  # files; more begin anew
_MEMORY = f"code-{sys.version_info[0]}.{sys.version_info[1]}"  # another Python parses otherwise

Read = tuple[str, tuple[str, ...]]  # hash of what a file does, and the modules it may import


def code_of(module: str) -> dict[str, str]:
    """Every file of our own that a module needs, as `goodheart/stages/ppo.py` -> hash; empty where it cannot be found.

    Own are goodheart, the package that the module is part of, and what it imports that is not installed: files beside
    it, in the current folder, or elsewhere on the path.
    """
    start = _locate(module)
    if start is None:
        return {}
    found: dict[str, str] = {}
    open_ = [(module, start)]
    own = cache(_own)
    while open_:
        name, file = open_.pop()
        root, known = _place(name, file)
        if known in found or file == _VERSION:
            continue
        found[known], imported = _read(name, file)
        open_ += _ours_of(imported) if _is_ours(name) else own(imported, name.partition(".")[0], root)
    _remember()
    folders = {(_PACKAGE.parent / name).parent for name in found if name.startswith("goodheart/")}
    for source in sorted(source for folder in folders for source in _compiled(folder)):
        found[source.relative_to(_PACKAGE.parent).as_posix()] = _content(source, source.stat().st_mtime_ns)
    return found


def changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The files that differ."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def exists(module: str) -> bool:
    """Whether a module can be found, without importing anything of the user's."""
    return _locate(module) is not None or (not module.startswith("goodheart.") and _known_to_python(module))


def _own(imported: tuple[str, ...], importers: str, root: str) -> list[tuple[str, Path]]:
    """The modules, with their files, that are our own or the user's.

    Args:
        imported: by a module of the user's.
        importers: outermost package of the module that imports them.
        root: the folder that the importer's name counts from.
    """
    found = [(name, path) for name in imported if not _is_ours(name) and (path := _file(name, root) or _locate(name))]
    mine = [(name, path) for name, path in found if name.partition(".")[0] == importers or not _is_installed(path)]
    return [*_ours_of(imported), *mine]


@cache
def _ours_of(imported: tuple[str, ...]) -> list[tuple[str, Path]]:
    """The modules that are goodheart's own, with their files."""
    return [(name, path) for name in imported if _is_ours(name) and (path := _ours(name)) is not None]


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == "goodheart"


@cache
def _is_installed(file: Path) -> bool:
    """Whether a file came with Python or with a package."""
    folders = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return bool({"site-packages", "dist-packages"} & set(file.parts)) or not folders.isdisjoint(file.resolve().parents)


@cache
def _place(name: str, file: Path) -> tuple[str, str]:
    """The folder that a module's dotted name counts from, and the file as seen from there."""
    depth = name.count(".") + (file.name == "__init__.py")
    return str(file.parents[depth]), "/".join(file.parts[-depth - 1 :])


@cache
def _ours(name: str) -> Path | None:
    """The file of one of goodheart's modules; while a process runs there will be no others."""
    return _file(name, str(_PACKAGE.parent))


def _file(name: str, root: str) -> Path | None:
    # asked thousands of times: in text, which is ten times as fast as with paths
    base = os.path.join(root, *name.split("."))
    return next((Path(p) for p in (f"{base}.py", os.path.join(base, "__init__.py")) if os.path.isfile(p)), None)


@cache
def _compiled(folder: Path) -> list[Path]:
    """Sources in C below a folder of goodheart."""
    return list(folder.glob(_COMPILED))


@lru_cache(maxsize=128)
def _content(file: Path, changed: int) -> str:
    return sha256_of(file)[:16]


def _locate(module: str) -> Path | None:
    """Where the source of a module lies, found by its name alone."""
    if _is_ours(module):
        return _ours(module)
    for folder in (*sys.path, ""):
        found = _file(module, str(Path(folder or ".").resolve())) if Path(folder or ".").is_dir() else None
        if found is not None:
            return found
    return None


def _known_to_python(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _read(name: str, file: Path) -> Read:
    return _known(name, file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _known(name: str, file: Path, changed: int) -> Read:
    """What a file does, parsed or remembered; `changed` makes an edited file a new question."""
    text = file.read_text(encoding="utf-8", errors="replace")
    key = hashlib.sha256(f"{name} {file.name}\n{text}".encode()).hexdigest()
    remembered, _ = _memory()
    if key not in remembered:
        remembered[key] = _parsed(name, file, text)
    return remembered[key]


@cache
def _memory() -> tuple[dict[str, Read], list[int]]:
    """What is remembered of files by their content, and how much of it is on disk."""
    found: dict[str, Read] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # none there, or damaged
        for key, (digest, imported) in json.loads(_memory_file().read_text(encoding="utf-8")).items():
            found[str(key)] = (str(digest), tuple(map(str, imported)))
    return found, [len(found)]


def _remember() -> None:
    """Puts what is new on disk, where of two processes the last one's stays; what an earlier version left goes."""
    remembered, on_disk = _memory()
    if len(remembered) == on_disk[0]:
        return
    if len(remembered) > _MOST_REMEMBERED:
        remembered.clear()
    with contextlib.suppress(OSError):  # without a cache it takes longer
        file = _memory_file()
        replace_text(file, json.dumps(remembered))
        for older in set(file.parent.glob(f"{_MEMORY}-*.json")) - {file}:
            older.unlink(missing_ok=True)
    on_disk[0] = len(remembered)


def _memory_file() -> Path:
    """Its name says how files are parsed: by which version of this module, and of Python."""
    return cache_folder() / f"{_MEMORY}-{sha256_of(Path(__file__))[:16]}.json"


def _parsed(name: str, file: Path, text: str) -> Read:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return hashlib.sha256(text.encode()).hexdigest()[:16], ()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    imported = tuple(dict.fromkeys(_imports(tree, package)))
    return hashlib.sha256(ast.dump(_without_words(tree)).encode()).hexdigest()[:16], imported


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Names that may be modules: `from a import b` may mean the module a.b or a name in a. Parents run first."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _without_words(tree: ast.Module) -> ast.Module:
    """The tree less its docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0].value if node.body and isinstance(node.body[0], ast.Expr) else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                node.body = node.body[1:]
    return tree
