"""One part of the benchmark in a process of its own: `python -m bench.gpu.part NAME SETTINGS RESULT`.

RESULT is written anew after each row, so that what was measured is there whatever happens next.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

# name -> module and function, which yields rows
PARTS = {
    "peaks": ("bench.gpu.alone", "peaks"),
    "tests": ("bench.gpu.alone", "tests"),
    "generation": ("bench.gpu.alone", "generation"),
    "packed": ("bench.gpu.alone", "packed"),
    "sft": ("bench.gpu.beside", "sft"),
    "dpo": ("bench.gpu.beside", "dpo"),
    "grpo": ("bench.gpu.beside", "grpo"),
    "ppo": ("bench.gpu.beside", "ppo"),
}


def main() -> None:
    name, told, result = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    module, function = PARTS[name]
    rows: dict[str, dict[str, Any]] = {}
    for row in getattr(importlib.import_module(module), function)(json.loads(told.read_text(encoding="utf-8"))):
        rows[row.get("what", "")] = row  # one told again replaces what was known before
        result.write_text(json.dumps(list(rows.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
