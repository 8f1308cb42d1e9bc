"""Several processes that serve one studio on one socket. Each is a whole server; they share the database alone.

Ctrl-C ends them all, each after the requests that it is answering. One that dies is started again. If the first
process, which only watches, is killed, the others end by themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

from goodheart.errors import ConfigError

# Runs one server on the socket until it is told to end; calls the function when it answers. A function of a module.
Serve = Callable[[socket.socket, Callable[[], None]], None]

_SPAWN = multiprocessing.get_context("spawn")  # a fork would share connections and locks
_STARTING_S = 60.0
_ENDING_S = 15.0  # more than the server itself gives to requests
_LASTED_S = 5.0  # one that dies sooner will die again


class _Worker:
    """One of the processes."""

    def __init__(self, serve: Serve, listening: socket.socket) -> None:
        self.began = time.monotonic()
        self._ready, theirs = _SPAWN.Pipe(duplex=False)
        self.process: SpawnProcess = _SPAWN.Process(target=_work, args=(serve, listening, theirs))
        self.process.start()
        theirs.close()

    def answers(self) -> bool:
        """Waits until it does; False where it ended before."""
        with contextlib.suppress(EOFError):
            return self._ready.poll(_STARTING_S) and bool(self._ready.recv())
        return False

    def end(self) -> None:
        self.process.join(_ENDING_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._ready.close()


def run(serve: Serve, listening: socket.socket, count: int, ready: Callable[[], None] | None) -> None:
    """Serves by `count` processes until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: a process ends as soon as it begins; what it said is above.
    """
    with _signals(), _workers(serve, listening, count) as workers:
        if not all(worker.answers() for worker in workers):
            raise ConfigError("a process of the studio does not start; what it said stands above")
        if ready is not None:
            ready()
        while True:
            wait([worker.process.sentinel for worker in workers])
            for place, worker in enumerate(workers):
                if worker.process.is_alive():
                    continue
                if time.monotonic() - worker.began < _LASTED_S:
                    raise ConfigError("a process of the studio ends as soon as it begins; what it said stands above")
                worker.end()
                workers[place] = _Worker(serve, listening)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Both signals are heard, as the servers hear them, also where a shell started this with SIGINT ignored."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _workers(serve: Serve, listening: socket.socket, count: int) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            workers.append(_Worker(serve, listening))
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


def _work(serve: Serve, listening: socket.socket, ready: Connection) -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: whatever it is at, it closes what it has opened
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        serve(listening, lambda: ready.send(True))


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os.kill(os.getpid(), signal.SIGTERM)
