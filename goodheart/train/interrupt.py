"""Ctrl-C that waits for the end of the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether the user (or the machine) asked this process to stop."""

    def __init__(self) -> None:
        self.requested = False
        self.signal_name: str | None = None


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into `stop.requested`; a second SIGINT raises KeyboardInterrupt at once.

    The loop reads `stop.requested` at each step boundary, saves a checkpoint and raises `errors.Interrupted`. The
    handlers that stood before are put back on leaving. Outside the main thread, where Python allows no handlers, the
    object stays unset.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True
        stop.signal_name = signal.Signals(number).name

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
