"""Peers are installed apart, each in a throw-away environment: none of them is a dependency of the project."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def default_folder() -> Path:
    """Where environments are kept unless told otherwise: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goodheart" / "bench"


def python_with(
    folder: Path, packages: Mapping[str, str], *, constrained: bool = True, without: Sequence[str] = ()
) -> Path:
    """The interpreter of an environment that holds these packages; made, or completed, where it does not.

    folder: of the environment. packages: name -> version. constrained: whatever they need besides comes in the versions
    of constraints.txt, so that peers and we stand on the same torch and transformers. without: of what comes with them,
    packages that are taken out again.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making an environment in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
    if not _has(python, packages):
        wanted = [f"{name}=={version}" for name, version in packages.items()]
        print(f"installing {', '.join(wanted)} there", file=sys.stderr)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        limits = ["--constraint", str(_CONSTRAINTS)] if constrained else []
        subprocess.run([*command, *limits, *wanted], check=True)
        if without:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *without], check=True)
    return python


def _has(python: Path, packages: Mapping[str, str]) -> bool:
    """Local parts of a version (`+cpu`) do not matter."""
    lines = "; ".join(f"assert version({name!r}).split('+')[0] == {version!r}" for name, version in packages.items())
    code = f"from importlib.metadata import version; {lines}"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0
