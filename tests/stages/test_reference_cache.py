"""The reference's log-probabilities that another run computed: the same to the bit, or not used."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from goodheart.models.cache import cache_folder
from goodheart.models.load import load_causal, save_causal
from goodheart.stages import offline, reference_cache, references
from goodheart.stages.dpo import DPOConfig
from goodheart.stages.dpo import train as train_dpo
from goodheart.stages.kto import KTOConfig
from goodheart.stages.kto import train as train_kto
from goodheart.stages.reference_cache import Kept, leave, read, recall, write
from goodheart.train.run import Run
from tests.stages.commands import assert_same_to_the_bit, log, write_rows
from tests.stages.test_dpo import other_model  # noqa: F401 (a fixture)
from tests.stages.test_reward import pair_rows

STAGES: dict[str, tuple[type[DPOConfig] | type[KTOConfig], Callable[[Any], Run]]] = {
    "dpo": (DPOConfig, train_dpo),
    "kto": (KTOConfig, train_kto),
}
KEY = "ab" * 32


@pytest.fixture
def ran(tiny_model: Path, other_model: Path, tmp_path: Path) -> Callable[..., Run]:  # noqa: F811
    """Trains on 16 pairs with another model as the reference."""
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(16))

    def run(name: str, stage: str = "dpo", **changes: Any) -> Run:
        settings: dict[str, Any] = {"model": str(tiny_model), "data": str(data), "reference": str(other_model)}
        settings |= {"batch_size": 4, "learning_rate": 1e-3, "quiet": True, "held_out": 0.25, "out": tmp_path / name}
        kind, train = STAGES[stage]
        return train(kind(**(settings | changes)))

    return run


def told(run: Run) -> str:
    return (run.path / "log.txt").read_text()


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a reference was loaded or asked")


def asked_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no reference can come into memory, and none is asked."""
    real = references.logps_of
    monkeypatch.setattr(references, "load_causal", never)
    monkeypatch.setattr(references, "logps_of", lambda *a: never() if a[-1] == "reference" else real(*a))


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_what_another_run_computed_is_the_same_to_the_bit(
    ran: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    first = ran("first", stage)
    with monkeypatch.context() as patch:
        asked_nobody(patch)
        second = ran("second", stage)
    assert_same_to_the_bit(first.path, second.path)
    assert (first.results["reference_from_cache"], second.results["reference_from_cache"]) == (False, True)
    assert "reference log-probs: from cache" in told(second)
    assert "from cache" not in told(first)
    # without the cache it is what it was
    for file in cache_folder("references").iterdir():
        file.unlink()
    third = ran("third", stage)
    assert_same_to_the_bit(first.path, third.path)
    assert not third.results["reference_from_cache"]


def test_the_policys_own_start_is_known_too(ran: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    first = ran("first", reference=None)
    asked_nobody(monkeypatch)
    assert_same_to_the_bit(first.path, ran("second", reference=None).path)
    sweep = [ran("rate", reference=None, learning_rate=1e-2), ran("beta", reference=None, beta=0.5, loss="ipo")]
    assert all(run.results["reference_from_cache"] for run in sweep)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 100},  # other batches: the last bits may differ
        {"dtype": "bfloat16"},
        {"max_length": 20},  # other tokens
        {"seed": 1},  # other rows are held out
        {"reference": None},
    ],
)
def test_other_circumstances_are_no_hit(ran: Callable[..., Run], changes: dict[str, Any]) -> None:
    first = ran("first")
    second = ran("second", **changes)
    assert not second.results["reference_from_cache"]
    assert "is not used" not in told(second)
    # each has its own place: neither is in the other's way
    assert len(list(cache_folder("references").iterdir())) == 2
    assert_same_to_the_bit(first.path, ran("third").path)
    assert "reference log-probs: from cache" in told(ran("fourth", **changes))


def test_other_code_is_no_hit(ran: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    ran("first")
    monkeypatch.setattr(references, "code_hash", lambda: "other")
    assert not ran("second").results["reference_from_cache"]


def test_a_continued_run_still_says_where_they_came_from(
    ran: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran("first")
    second = ran("second")
    for file in cache_folder("references").iterdir():
        file.unlink()
    (second.path / "DONE").unlink()
    asked_nobody(monkeypatch)
    # its own copy is for the same numbers, however they are batched by now
    assert ran("second", max_tokens=100).results["reference_from_cache"]


def flip(file: Path) -> None:
    """Another number in the middle of it."""
    content = bytearray(file.read_bytes())
    content[-60] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def foreign(file: Path) -> None:
    """The numbers of other answers, as many, under this name."""
    write(file, "cd" * 32, Kept(torch.randn(32), shared=False))


def shorter(file: Path) -> None:
    write(file, "cd" * 32, Kept(torch.randn(3), shared=False))


def another_kind(file: Path) -> None:
    from safetensors.torch import save_file

    save_file({"logps": torch.zeros(32)}, file)


@pytest.mark.parametrize("spoil", [flip, cut, empty, foreign, shorter, another_kind])
def test_a_file_that_cannot_be_trusted_is_told_of_and_computed_anew(
    ran: Callable[..., Run], spoil: Callable[[Path], None]
) -> None:
    first = ran("first")
    (file,) = cache_folder("references").iterdir()
    good = file.read_bytes()
    spoil(file)
    second = ran("second")
    assert_same_to_the_bit(first.path, second.path)
    assert not second.results["reference_from_cache"]
    assert f"{file} is not used: " in told(second)
    assert file.read_bytes() == good  # mended for the next
    # the run's own copy is no more trusted
    (own,) = second.path.glob("reference-*.safetensors")
    spoil(own)
    (second.path / "DONE").unlink()
    assert ran("second").results["reference_from_cache"]
    assert f"{own} is not used: " in told(second)


def test_a_cache_that_others_write_into_is_not_used(ran: Callable[..., Run]) -> None:
    first = ran("first")
    cache_folder("references").chmod(0o777)
    second = ran("second")
    assert not second.results["reference_from_cache"]
    assert "references may be written to by others" in told(second)
    assert_same_to_the_bit(first.path, second.path)


def test_without_a_cache_a_run_works(ran: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GOODHEART_CACHE", str(tmp_path / "file" / "cache"))
    run = ran("r")
    assert not run.results["reference_from_cache"]
    assert "the cache of reference log-probabilities is not used: " in told(run)
    assert "are not put into the cache: " in told(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_not_left_for_others(value: float) -> None:
    notes: list[str] = []
    leave(KEY, torch.tensor([-1.0, value, -2.0]), notes.append)
    assert notes == ["reference log-probabilities are not put into the cache: some are not finite"]
    assert recall(KEY, 3, never) is None
    leave(KEY, torch.tensor([-1.0, -3e38, -2.0]), never)
    assert recall(KEY, 3, never) is not None


def then(function: Callable[..., Any], act: Callable[[], Any], *, first: bool = False) -> Callable[..., Any]:
    """The function, and beside it an act of somebody else's."""

    def both(*arguments: Any, **settings: Any) -> Any:
        if first:
            act()
        found = function(*arguments, **settings)
        act()
        return found

    return both


@pytest.mark.parametrize("when", ["policy loaded", "reference hashed", "reference loaded", "base loaded"])
def test_a_model_that_is_written_over_meanwhile_leaves_nothing_to_others(
    ran: Callable[..., Run], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder, newer = (shutil.copytree(tiny_model, tmp_path / name) for name in ("m", "newer"))
    weights = load_causal(newer)
    for parameter in weights.parameters():
        parameter.data *= 1.5
    save_causal(weights, newer)
    named: dict[str, Any] = {"model": str(folder), "reference": None}
    if when.startswith("reference"):
        named = {"reference": str(folder)}
    if when == "base loaded":
        adapter = ran("adapter", **named, lora={"rank": 2}).path
        named["model"] = str(adapter)
        for file in cache_folder("references").iterdir():
            file.unlink()
    write_over = partial(shutil.copytree, newer, folder, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        if when == "policy loaded":
            patch.setattr(offline, "load_policy", then(offline.load_policy, write_over))
        elif when == "base loaded":
            patch.setattr(references, "logps_of", then(references.logps_of, write_over))
        else:
            load = then(references.load_causal, write_over, first=when == "reference hashed")
            patch.setattr(references, "load_causal", load)
        first = ran("first", **named)
    assert "has changed since this run was started" in told(first)
    assert list(cache_folder("references").iterdir()) == []
    assert list(first.path.glob("reference-*")) == []
    second, third = ran("second", **named), ran("third", **named)
    assert "has changed" not in told(second)
    assert [run.results["reference_from_cache"] for run in (first, second, third)] == [False, False, True]
    assert log(second.path) == log(third.path)


def test_many_may_write_and_read_at_once(tmp_path: Path) -> None:
    logps_N, notes = torch.randn(5000), list[str]()
    file = tmp_path / "f.safetensors"
    write(file, KEY, Kept(logps_N, shared=False))

    def work(turn: int) -> bool:
        if turn % 2:
            write(file, KEY, Kept(logps_N, shared=False))
            return True
        found = read(file, KEY, 5000, notes.append)
        return found is not None and torch.equal(found.logps_N, logps_N)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(80)))
    assert not notes
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_those_not_asked_for_longest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    keys = [f"{n}" * 64 for n in range(4)]
    for age, key in enumerate(keys[:3]):
        leave(key, torch.zeros(100), notes.append)
        os.utime(cache_folder("references") / f"{key[:32]}.safetensors", (age, age))
    size = next(cache_folder("references").iterdir()).stat().st_size
    assert recall(keys[0], 100, notes.append) is not None  # the oldest is asked for now
    monkeypatch.setattr(reference_cache, "_MOST_BYTES", 3 * size)
    leave(keys[3], torch.zeros(100), notes.append)
    found = [recall(key, 100, notes.append) is not None for key in keys]
    assert (found, notes) == ([True, False, True, True], [])


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, with no room for more than one file."""
    leave(KEY, torch.zeros(100), never)
    (file,) = cache_folder("references").iterdir()
    os.utime(file, (0, 0))
    monkeypatch.setattr(reference_cache, "_MOST_BYTES", file.stat().st_size)
    return file


def test_what_another_process_is_writing_stays_and_what_a_killed_one_left_goes(full: Path) -> None:
    writing, left, foreign = (full.with_name(name) for name in (".ab-1.partial", ".ab-2.partial", "notes.txt"))
    for each in (writing, left, foreign):
        each.write_bytes(bytes(10_000))
    os.utime(left, (time.time() - 90_000,) * 2)  # a day has 86,400 seconds
    os.utime(writing, (time.time() - 80_000,) * 2)
    leave("cd" * 32, torch.zeros(100), never)
    kept = full.with_name(f"{'cd' * 16}.safetensors")
    assert set(full.parent.iterdir()) == {kept, writing, foreign}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_another_process_removes_meanwhile_is_no_error(
    full: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    real = Path.stat

    def stat(path: Path, **how: Any) -> os.stat_result:
        if path == full and when == "before":
            os.remove(path)
        found = real(path, **how)
        if path == full:
            os.remove(path)
        return found

    monkeypatch.setattr(Path, "stat", stat)
    leave("cd" * 32, torch.zeros(100), never)
    assert [file.name for file in full.parent.iterdir()] == [f"{'cd' * 16}.safetensors"]


def test_numbers_that_were_read_count_though_their_file_goes_meanwhile(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reference_cache.read
    monkeypatch.setattr(reference_cache, "read", lambda file, *more: (real(file, *more), file.unlink())[0])
    kept = recall(KEY, 100, never)
    assert kept is not None
    assert torch.equal(kept.logps_N, torch.zeros(100))
