"""The check report counts what is there, finds what is wrong, and cannot be made to drive a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from goodheart.data.check import CheckReport, Lengths, Overlap, SourceReport, check_data
from goodheart.data.files import read_rows
from goodheart.data.writing import write_rows
from goodheart.errors import DataError


def check(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> SourceReport:
    write_rows(tmp_path / "rows.jsonl", rows)
    return check_data(tmp_path / "rows.jsonl", **options).sources[0]


def shown(report: CheckReport, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    report.render(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_counts(tmp_path: Path) -> None:
    rows = [
        pair("p1", "long answer", "short"),
        pair("p1", "long answer", "short"),  # the same row again
        pair("p2", "same", "same"),
        pair("p2", "ab", "cd"),
        pair("p3", "", "x"),
        {"prompt": "p4", "completion": "only one"},
        {"question": "what?"},
    ]
    part = check(tmp_path, rows)
    assert (part.rows, part.records, part.bad_rows) == (7, 4, 3)
    assert part.kinds == {"preference": 3, "demonstration": 1}
    assert part.shapes == {"preference": 3, "prompt and completion": 1}
    assert part.columns == {"prompt": 6, "chosen": 5, "rejected": 5, "completion": 1, "question": 1}
    assert (part.duplicate_rows, part.identical_pairs, part.empty_answers, part.prompts) == (1, 1, 1, 3)
    assert part.reasons == {
        "chosen and rejected are identical": 1,
        "chosen is empty": 1,
        "columns question fit no known shape": 1,
    }
    assert [bad.line for bad in part.bad] == [3, 5, 7]


def test_longest_baseline(tmp_path: Path) -> None:
    """Longer is right twice, wrong once, and of equal length once: (2 + 0.5) / 4."""
    rows = [pair("a", "xxx", "x"), pair("b", "xx", "x"), pair("c", "x", "xx"), pair("d", "xy", "zz")]
    part = check(tmp_path, rows)
    assert (part.pairs, part.longer_chosen, part.same_length, part.longest_baseline) == (4, 2, 1, 0.625)
    # three answers, two of them tied: two ordered pairs, of which one is won by the longer answer
    part = check(tmp_path, [{"prompt": "p", "completions": ["xxx", "x", "xxxxx"], "ranks": [0, 1, 1]}])
    assert (part.pairs, part.tied_pairs, part.longer_chosen) == (2, 1, 1)
    assert check(tmp_path, [{"prompt": "p"}]).longest_baseline is None


def test_lengths_in_characters_and_tokens(tmp_path: Path) -> None:
    rows = [{"prompt": "a b", "completion": "c " * count} for count in range(1, 101)]
    part = check(tmp_path, rows, count_tokens=lambda text: len(text.split()))
    # 1..100 words: the middle is the 50th, 95 of 100 are at most 95 long, the sum is 5050
    assert part.lengths["answer tokens"] == Lengths(100, 1, 50, 95, 100, 5050)
    assert part.lengths["answer characters"].longest == 200
    assert part.lengths["prompt tokens"].median == 2
    assert "prompt tokens" not in check(tmp_path, rows).lengths


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a \ufffd b", "replacement characters (U+FFFD)"),
        ("Itâ€™s", "text decoded twice (mojibake)"),
        ("cafÃ©", "text decoded twice (mojibake)"),
        ("20Â°C", "text decoded twice (mojibake)"),
        ("ðŸ˜€", "text decoded twice (mojibake)"),
        ("锟斤拷", "text decoded twice (mojibake)"),
        ("a\x00b", "control characters"),
        ("a\x1b[2Jb", "control characters"),
        ("safe\u202eexe", "control characters"),
        ("It’s “fine”… €5, 20°C, café, Ångström, NÃO, 🙂, 苹果\n\ttab", None),
    ],
)
def test_encoding_damage(tmp_path: Path, text: str, kind: str | None) -> None:
    part = check(tmp_path, [{"messages": [{"role": "user", "content": text}]}, {"prompt": "fine"}])
    assert part.encoding == ({kind: 1} if kind else {})
    assert [bad.line for bad in part.damaged] == ([1] if kind else [])


def test_undecodable_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    part = check_data(tmp_path / "a.jsonl").sources[0]
    assert part.encoding == {"replacement characters (U+FFFD)": 1, "bytes that are no UTF-8": 1}


def test_overlap_of_prompts_and_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write_rows(tmp_path / "a.jsonl", [{"prompt": "One"}, {"prompt": "Two"}, {"prompt": turns[:1]}])
    write_rows(tmp_path / "b.jsonl", [{"prompt": "two "}, {"prompt": [*turns, {"role": "user", "content": "More"}]}])
    report = check_data([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    # "Two" is shared up to case and spacing; the chats are different prompts of one conversation
    assert report.overlaps == [Overlap(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), 1, 2)]
    assert "share 1 prompt and 2 conversations" in " ".join(report.warnings())


def test_splits_of_a_folder_are_compared(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": "both"}, {"prompt": name}])
    report = check_data(tmp_path, splits=["train", "test"])
    assert [part.source for part in report.sources] == [f"{tmp_path}:train", f"{tmp_path}:test"]
    assert report.overlaps[0].prompts == 1


def test_verdict(tmp_path: Path) -> None:
    write_rows(tmp_path / "good.jsonl", [{"prompt": "p"}])
    write_rows(tmp_path / "some.jsonl", [{"prompt": "p"}, {"prompt": ""}])
    write_rows(tmp_path / "none.jsonl", [{"promt": "p"}])
    (tmp_path / "empty.jsonl").write_text("")
    assert check_data(tmp_path / "good.jsonl").ok
    problems = check_data([tmp_path / f"{name}.jsonl" for name in ("some", "none", "empty")]).problems()
    assert problems[0].endswith("some.jsonl: 1 of 2 rows cannot be used")
    assert "none.jsonl: no row can be used. Found columns: promt." in problems[1]
    assert "'prompt' is missing (is 'promt' meant?)" in problems[1]
    assert problems[2].endswith("empty.jsonl: empty")
    with pytest.raises(DataError, match="no such file"):
        check_data(tmp_path / "missing.jsonl")


def test_warning_of_length_bias(tmp_path: Path) -> None:
    rows = [pair(str(index), "x" * (3 if index < 40 else 1), "xx") for index in range(50)]
    write_rows(tmp_path / "a.jsonl", rows)
    assert "the longer answer is the better one in 80.0% of pairs" in " ".join(
        check_data(tmp_path / "a.jsonl").warnings()
    )
    rows = [pair(str(index), "x" * (3 if index < 10 else 1), "xx") for index in range(50)]
    write_rows(tmp_path / "a.jsonl", rows)
    assert "the shorter answer is the better one in 80.0% of pairs" in " ".join(
        check_data(tmp_path / "a.jsonl").warnings()
    )


def test_report_as_json(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [pair("p", "aa", "b"), pair("p", "", "b")])
    plain = json.loads(json.dumps(check_data(tmp_path / "a.jsonl").to_dict()))
    assert (plain["ok"], plain["sources"][0]["longest_baseline"]) == (False, 1.0)
    assert plain["sources"][0]["bad"][0]["line"] == 2


def test_hostile_text_is_shown_harmlessly(tmp_path: Path) -> None:
    """Escape sequences, direction marks and markup in names, columns and values reach the terminal as plain text."""
    evil = "\x1b[2J\x1b]0;owned\x07[bold red]x[/]\u202e\r\n"
    rows = [{evil: evil}, {"prompt": evil, "completion": ""}, {"prompt": "p" + evil, "completion": "c"}]
    write_rows(tmp_path / "[red]a.jsonl", rows)
    text = shown(check_data(tmp_path / "[red]a.jsonl"), width=300)
    printable = text.replace("\n", "")
    assert not [sign for sign in printable if ord(sign) < 32 or 0x7F <= ord(sign) < 0xA0 or sign in "\u202e\u2066"]
    assert "\\x1b[2J" in text
    assert "[bold red]x[/]" in text
    assert "[red]a.jsonl" in text


def test_report_of_real_dirt(shared: Path) -> None:
    folder = shared / "data" / "hh_helpful_rejection_sampled"
    report = check_data(folder)
    part = report.sources[0]
    assert (part.rows, part.identical_pairs, part.bad_rows, part.duplicate_rows) == (1346, 14, 14, 0)
    # Counted without our reader: what stands after the last "Assistant:" of both transcripts.
    rows = [row.data for row in read_rows(folder)]
    ends = [[row[key].rsplit("\n\nAssistant:", 1)[1].strip() for key in ("chosen", "rejected")] for row in rows]
    pairs = [(len(chosen), len(rejected)) for chosen, rejected in ends if chosen != rejected]
    longer, equal = sum(a > b for a, b in pairs), sum(a == b for a, b in pairs)
    assert (longer, equal, len(pairs)) == (part.longer_chosen, part.same_length, part.pairs) == (751, 10, 1332)
    assert part.longest_baseline == (751 + 10 / 2) / 1332
    text = shown(report, width=140)
    assert "test.jsonl.gz:100" in text
    assert "chosen and rejected are identical (14)" in text
    assert "14 of 1,346 rows cannot be used" in text


def test_damage_and_repeats_in_real_data(shared: Path) -> None:
    """The data's README counts 17 replacement characters in dpo_demo_zh; they lie in 6 rows."""
    part = check_data(shared / "data" / "dpo_demo_zh").sources[0]
    assert part.encoding == {"replacement characters (U+FFFD)": 6}
    assert (part.duplicate_rows, part.bad_rows) == (11, 0)
    arena = check_data(shared / "data" / "arena_hard_v0_1").sources[0]
    assert arena.encoding == {"replacement characters (U+FFFD)": 2}  # 65 characters in two rows
