"""Ctrl-C waits for the end of the step; the second one does not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from goodheart.train.interrupt import stop_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_name == number.name
    assert signal.getsignal(number) is before


def test_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_it_is_silent() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_signal() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
