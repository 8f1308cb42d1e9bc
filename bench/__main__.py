"""`python -m bench` runs every benchmark; `python -m bench NAME [OPTIONS]` runs one (see `python -m bench NAME -h`).

Only when named: vllm, which takes gigabytes. A GPU has a benchmark of its own: `python -m bench.gpu`.
"""

from __future__ import annotations

import importlib
import sys

NAMES = ("generation", "ppo", "trainers", "losses", "growth", "memory", "store", "studio", "aggregation")
APART = ("vllm",)


def main() -> int:
    asked, options = sys.argv[1:2], sys.argv[2:]
    if asked and asked[0] not in NAMES + APART:
        print(f"benchmarks: {', '.join(NAMES + APART)}", file=sys.stderr)
        return 2
    failed = 0
    for name in asked or NAMES:
        sys.argv = [f"bench {name}", *options]
        failed |= importlib.import_module(f"bench.{name}").main() or 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
