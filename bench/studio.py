"""The studio under load: its real server, and people who label over HTTP.

    python -m bench studio load --only sqlite       # 200 people at once, 100,000 tasks, 10 s of thought for each
    python -m bench studio load --only postgres     # 1,000 people at once, 20 s of thought
    python -m bench studio most                     # 32 people who never think: how many labels a second there can be
    python -m bench studio kills                    # the server is killed 20 times under load

Each person fetches a task, saves a draft, thinks, saves the label and fetches the next; nothing is fetched ahead, so
the fetch is timed as somebody waits for it. All people are one process, which shares the machine with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import func, select

from bench import machine
from bench.store import KINDS, places
from bench.store_work import check_kept, fill
from bench.studio_client import Crowd, Seen, Ticket, admit
from goodheart.feedback.bulk import copy
from goodheart.feedback.expired import release
from goodheart.feedback.store import Store, open_store, utcnow
from goodheart.feedback.tables import assignments, items, labels
from goodheart.studio.app import serve

LOADS = {"SQLite": (200, 10.0), "PostgreSQL": (1000, 20.0)}  # people at once, seconds they think on average
MOST_MS = 300  # that 95 of 100 fetches and saves must not exceed
_FORK = multiprocessing.get_context("forkserver")


def _serve(place: str, port: int, workers: int, ready: Connection) -> None:
    os.setpgrp()  # with the processes that it starts, so that all of them can be killed
    serve(open_store(place), port=port, accounts=True, workers=workers, ready=lambda: ready.send(True))


class Studio:
    """The server in processes of its own, on a port of its own that stays the same after a kill."""

    def __init__(self, place: str, workers: int = 1) -> None:
        _FORK.set_forkserver_preload(["goodheart.studio.app"])
        self._place, self._workers = place, workers
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.start()

    def start(self) -> None:
        ready, theirs = _FORK.Pipe(duplex=False)
        self._process: BaseProcess = _FORK.Process(target=_serve, args=(self._place, self.port, self._workers, theirs))
        self._process.start()
        theirs.close()
        ready.recv()  # EOFError where it ended before it answered

    def kill(self) -> None:
        """As if the power failed: it is told nothing and finishes nothing."""
        assert self._process.pid is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()

    def seconds(self) -> float:
        """Of processor that it has used."""
        used = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self._process.pid:  # its process group
                    used += int(fields[11]) + int(fields[12])
        return used / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _running(place: str, workers: int = 1) -> Iterator[Studio]:
    studio = Studio(place, workers)
    try:
        yield studio
    finally:
        studio.kill()


async def _timed(studio: Studio, crowd: Crowd, seconds: float) -> tuple[float, float, float]:
    """Lets people work for so long after all have begun; seconds on the clock, of the server, of the people."""
    working = asyncio.create_task(crowd.work())
    await asyncio.sleep(max(crowd.pause, 2.0))
    began, served, used = time.perf_counter(), studio.seconds(), time.process_time()
    crowd.seen.counts = True
    await asyncio.sleep(seconds)
    crowd.seen.counts = False
    spent = time.perf_counter() - began, studio.seconds() - served, time.process_time() - used
    crowd.stop.set()
    await working
    return spent


def load(place: str, *, count: int, people: int, pause: float, seconds: float, words: int, workers: int = 1) -> Seen:
    """People who label at the same time, on a campaign half of which is done. Prints and returns what they saw."""
    campaign, tickets = _filled(place, count, people, words)
    with _running(place, workers) as studio:
        crowd = Crowd(studio.port, campaign, tickets, pause)
        wall, served, used = asyncio.run(_timed(studio, crowd, seconds))
    seen = crowd.seen
    print(
        f"- {people} people, {pause:g} s of thought on average, {count} tasks, {wall:.0f} s; load {machine.load():.1f}"
    )
    for kind, took in seen.seconds.items():
        if len(took) > 1:
            cuts = statistics.quantiles([1000 * each for each in took], n=100)
            print(f"- {kind}: p50 {cuts[49]:.0f} ms, p95 {cuts[94]:.0f} ms, p99 {cuts[98]:.0f} ms ({len(took)} calls)")
    rate = len(seen.seconds["save"]) / wall
    print(f"- {rate:.1f} labels a second; cores used: server {served / wall:.2f}, people {used / wall:.2f}")
    print(f"- {len(seen.errors)} errors {seen.errors[:3] or ''}", flush=True)
    return seen


def _filled(place: str, count: int, people: int, words: int) -> tuple[int, list[Ticket]]:
    """A campaign that is half done, and its labellers; made in SQLite first, where that is much quicker."""
    with tempfile.TemporaryDirectory(prefix="goodheart-") as folder, contextlib.ExitStack() as opened:
        made = opened.enter_context(
            contextlib.closing(open_store(Path(folder) / "made.db" if "://" in place else place))
        )
        campaign, _ = fill(made, count, done=count // 2, people=20, words=words)
        tickets = admit(made, campaign, people)
        if "://" in place:
            target = opened.enter_context(contextlib.closing(open_store(place)))
            copy(made, target)
            with target.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("ANALYZE")  # as its own housekeeping does after a while
        return campaign, tickets


async def _killed(studio: Studio, crowd: Crowd, kills: int, store: Store) -> int:
    """Kills the server while people work; how many labels were kept and not yet acknowledged at those instants."""
    chance, unanswered = random.Random(0), 0
    working = asyncio.create_task(crowd.work())
    for _ in range(kills):
        before = len(crowd.seen.acknowledged)
        while len(crowd.seen.acknowledged) < before + 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5 * chance.random())
        studio.kill()
        await asyncio.sleep(0.05)  # the answers that were on their way arrive
        with store.read() as connection:
            kept = connection.execute(select(func.count()).select_from(labels).where(labels.c.live)).scalar_one()
        unanswered += kept - len(crowd.seen.acknowledged)
        await asyncio.to_thread(studio.start)
    crowd.stop.set()
    await working
    return unanswered


def kills(place: str, *, count: int, people: int, times: int) -> dict[str, int]:
    """Kills the server under load again and again. Returns what was counted.

    Raises:
        AssertionError: an acknowledged label was lost, one was doubled, or an item is held longer than its lock.
    """
    with contextlib.closing(open_store(place)) as store:
        campaign, _ = fill(store, count, done=0, people=1, overlap=2)
        tickets = admit(store, campaign, people)
        with _running(place) as studio:
            crowd = Crowd(studio.port, campaign, tickets, 0.02, patient=True)
            unanswered = asyncio.run(_killed(studio, crowd, times, store))
        seen = crowd.seen
        assert not seen.errors, seen.errors[:3]
        with store.read() as connection:
            item_of = dict(connection.execute(select(assignments.c.id, assignments.c.item_id)).tuples().all())
            held = select(func.max(assignments.c.expires_at)).where(assignments.c.state == "given")
            last = connection.execute(held).scalar()
        assert last is None or last <= utcnow() + timedelta(minutes=20), "an item is held longer than its lock"
        told = [(label, item_of[task], person, request) for label, task, person, request in seen.acknowledged]
        found = check_kept(store, campaign, told)
        found |= {"again": seen.again, "unanswered": unanswered}
        found["freed"] = release(store, campaign, now=utcnow() + timedelta(minutes=20))
        with store.read() as connection:
            stuck = connection.execute(select(func.sum(items.c.held)).where(items.c.campaign_id == campaign)).scalar()
        assert stuck == 0, f"{stuck} items are held after every lock ran out"
    print(
        f"- {times} kills: {found['acknowledged']} labels were acknowledged, {found['kept']} are kept, none lost or "
        f"doubled; {found['unanswered']} were on the disk when the server died before it answered, saves were sent "
        f"again {found['again']} times; {found['held']} items were held at the end, all free when their locks ran out",
        flush=True,
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "most", "kills", "all"), nargs="?", default="all")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--folder", type=Path, help="where the databases lie for a while (default /tmp)")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=60, help="length of an answer")
    parser.add_argument("--people", type=int, help="at once (default: 200 on SQLite, 1,000 on PostgreSQL)")
    parser.add_argument("--pause", type=float, help="seconds of thought (default: 10 on SQLite, 20 on PostgreSQL)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long is measured")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server, on PostgreSQL")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    print(f"{machine._processor()}, {os.cpu_count()} cores, load {machine.load():.1f}", flush=True)
    slow = 0
    for what in ("load", "most", "kills") if options.what == "all" else (options.what,):
        with places(options.only, options.folder) as found:
            for name, place in found:
                print(f"{what} on {name} (load {machine.load():.1f}):", flush=True)
                people, pause = LOADS[name]
                people, pause = options.people or people, pause if options.pause is None else options.pause
                if what == "kills":
                    kills(place, count=2000, people=16, times=options.kills)
                    continue
                if what == "most":
                    people, pause = options.people or 32, 0.0
                seen = load(
                    place,
                    count=options.items,
                    people=people,
                    pause=pause,
                    seconds=options.seconds,
                    words=options.words,
                    workers=options.workers if name == "PostgreSQL" else 1,
                )
                slow |= what == "load" and any(_p95(seen, kind) > MOST_MS for kind in ("fetch", "save"))
    return int(slow)


def _p95(seen: Seen, kind: str) -> float:
    return 1000 * statistics.quantiles(seen.seconds[kind], n=100)[94]


if __name__ == "__main__":
    raise SystemExit(main())
