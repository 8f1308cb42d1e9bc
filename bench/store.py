"""The store of labels: how fast it gives and keeps, how fast it writes a million labels out, what a kill costs.

    python -m bench store export            # 1,000,000 labels on 100,000 items to JSON lines
    python -m bench store work              # 100,000 items, half of them done; labellers at the same time
    python -m bench store kills             # 20 kills under load
    python -m bench store pause             # whom the rule of gold pauses, and whom a plain threshold would

Each but the last runs on SQLite and on a PostgreSQL of its own (`--only sqlite`, `--only postgres`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from bench import machine
from bench.private_postgres import Server
from bench.store_work import check_after_kills, fill, label_until_killed, timed_labelling
from goodheart.feedback.expired import release
from goodheart.feedback.exporting import export
from goodheart.feedback.gold import must_pause
from goodheart.feedback.store import Store, open_store, utcnow

KINDS = ("sqlite", "postgres")


@contextmanager
def places(only: str | None, folder: Path | None) -> Iterator[list[tuple[str, str]]]:
    """(name, address) of an empty store of each kind."""
    home = Path(tempfile.mkdtemp(prefix="goodheart-", dir=folder or "/tmp"))
    home.chmod(0o755)
    server = None
    try:
        made = [("SQLite", str(home / "store.db"))] if only != "postgres" else []
        if only != "sqlite":
            (home / "pg").mkdir()
            server = Server(home / "pg")
            made.append(("PostgreSQL", server.new_schema("bench")))
        yield made
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(home, ignore_errors=True)


def run_export(store: Store, options: argparse.Namespace, out: Path) -> None:
    overlap = options.labels // options.items
    began = time.perf_counter()
    campaign, _ = fill(store, options.items, done=options.items, people=50, overlap=overlap, words=options.words)
    print(f"- made in {time.perf_counter() - began:.0f} s", flush=True)
    child = multiprocessing.get_context("fork").Process(
        target=_export, args=(str(store.engine.url), campaign, str(out))
    )
    # The child opens the store anew, so that its memory and time are its own.
    store.close()
    child.start()
    child.join()


def _export(place: str, campaign: int, out: str) -> None:
    place = place.replace("***", "")
    began, used = time.perf_counter(), time.process_time()
    store = open_store(place.removeprefix("sqlite:///") if place.startswith("sqlite") else place)
    done = export(store, campaign, out)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = os.path.getsize(out) / 2**20
    print(
        f"- {done.rows} labels in {wall:.1f} s ({cpu:.1f} s of processor, {done.rows / wall:.0f} a second), "
        f"peak {peak:.2f} GiB, file {size:.0f} MiB",
        flush=True,
    )


def run_work(place: str, options: argparse.Namespace) -> None:
    store = open_store(place)
    began = time.perf_counter()
    campaign, people = fill(store, options.items, done=options.items // 2, people=options.people, words=options.words)
    store.close()
    print(f"- made in {time.perf_counter() - began:.0f} s", flush=True)
    before = time.perf_counter()
    times = timed_labelling(place, campaign, people, options.each, options.pause)
    wall = time.perf_counter() - before
    for name, seconds in times.items():
        cuts = statistics.quantiles(seconds, n=100)
        middle, slow, slowest = 1000 * cuts[49], 1000 * cuts[94], 1000 * max(seconds)
        print(f"- {name}: median {middle:.1f} ms, p95 {slow:.1f} ms, slowest {slowest:.0f} ms ({len(seconds)} calls)")
    print(f"- {len(times['save']) / wall:.0f} labels a second by {len(people)} people at once", flush=True)


def run_kills(place: str, options: argparse.Namespace, log: Path) -> None:
    store = open_store(place)
    campaign, people = fill(store, options.items, done=0, people=8, overlap=2)
    fork, chance, went_on = multiprocessing.get_context("forkserver"), random.Random(0), 0
    for _ in range(options.kills):
        child = fork.Process(target=label_until_killed, args=(place, campaign, people, str(log)))
        child.start()
        time.sleep(1.0 + 2 * chance.random())
        assert child.pid is not None
        went_on += child.is_alive()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        found = check_after_kills(store, campaign, str(log))
    freed = release(store, campaign, now=utcnow() + timedelta(minutes=21))
    print(
        f"- {options.kills} kills, {went_on} of them in the middle of work: {found['acknowledged']} labels were "
        f"acknowledged, {found['kept']} are kept, none lost or doubled; {found['held']} items were held at the end, "
        f"{freed} of them free when their locks ran out",
        flush=True,
    )
    store.close()


def run_pause() -> None:
    """Share of people whom each rule pauses within 100 gold items, by how often they are right."""
    chance = random.Random(0)
    print("| right | paused by the interval | after (median) | paused by the threshold | after (median) |")
    print("|---|---|---|---|---|")
    for right in (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.3):
        after: dict[str, list[int]] = {"interval": [], "threshold": []}
        for _ in range(2000):
            window: list[bool] = []
            stopped: set[str] = set()
            for seen in range(1, 101):
                window = [*window, chance.random() < right][-20:]
                paused = {"interval": must_pause(sum(window), len(window), 0.7),
                          "threshold": len(window) >= 5 and sum(window) / len(window) < 0.7}  # fmt: skip
                for rule, yes in paused.items():
                    if yes and rule not in stopped:
                        stopped.add(rule)
                        after[rule].append(seen)
        cells = [f"{100 * len(x) / 2000:.1f} % | {statistics.median(x) if x else '-'}" for x in after.values()]
        print(f"| {right:.2f} | {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("export", "work", "kills", "pause", "all"), nargs="?", default="all")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--folder", type=Path, help="where the databases lie for a while (default /tmp)")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=40, help="length of an answer")
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--each", type=int, default=25, help="labels of each of them")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between fetching and saving, on average")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    print(f"{machine._processor()}, {os.cpu_count()} cores, load {machine.load():.1f}", flush=True)
    if options.what in ("pause", "all"):
        run_pause()
    for what in ("export", "work", "kills"):
        if options.what not in (what, "all"):
            continue
        with places(options.only, options.folder) as found:
            for name, place in found:
                print(f"{what} on {name} (load {machine.load():.1f}):", flush=True)
                home = Path(tempfile.mkdtemp(prefix="goodheart-", dir=options.folder or "/tmp"))
                try:
                    if what == "export":
                        run_export(open_store(place), options, home / "labels.jsonl")
                    elif what == "work":
                        run_work(place, options)
                    else:
                        run_kills(place, options, home / "acknowledged")
                finally:
                    shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
