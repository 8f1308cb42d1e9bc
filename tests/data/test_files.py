"""Rows out of every kind of file, and back; damage never passes for data."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from goodheart.data.files import read_rows
from goodheart.data.streams import mended, visible
from goodheart.data.writing import write_rows
from goodheart.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a fruit.", "completion": "An apple"},
    {"prompt": "说一种水果。", "completion": "苹果 🍎"},
    {"prompt": 'two\nlines, "quoted"', "completion": "a\tb\r\nc"},
]


def data_of(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    rows = list(read_rows(path, **options))
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.data for row in rows]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_write_then_read_gives_the_same_rows(tmp_path: Path, suffix: str, packing: str) -> None:
    path = tmp_path / f"rows{suffix}{packing}"
    assert write_rows(path, iter(ROWS)) == 3
    assert data_of(path) == ROWS
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # no temporary file stays


def test_packed_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        for name in ("a", "b"):
            write_rows(tmp_path / f"{name}.jsonl{suffix}", ROWS)
        assert (tmp_path / f"a.jsonl{suffix}").read_bytes() == (tmp_path / f"b.jsonl{suffix}").read_bytes()


def test_line_numbers_count_blank_and_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n{"a": 3}\n[1, 2]\n"words"\nnull\n{"a": x}\n')
    rows = list(read_rows(path))
    assert [(row.number, row.data) for row in rows if row.error is None] == [
        (1, {"a": 1}),
        (4, {"a": 3}),
        (6, {"text": "words"}),
    ]
    bad = {row.number: row.error for row in rows if row.error}
    assert bad == {
        3: "not valid JSON: the line ends in the middle",
        5: "the row is a list, not an object",
        7: "the row is null, not an object",
        8: "not valid JSON: Expecting value at column 7",
    }
    assert next(row.raw for row in rows if row.number == 3).startswith('{"a":')


def test_byte_order_mark_is_dropped_and_utf16_refused(tmp_path: Path) -> None:
    for suffix, text in ((".jsonl", '{"a": "é"}\n'), (".json", '[{"a": "é"}]'), (".csv", "a\né\n")):
        path = tmp_path / f"mark{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert data_of(path) == [{"a": "é"}]
    path.write_bytes("a\né\n".encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16; save it as UTF-8"):
        data_of(path)


def test_invalid_bytes_become_replacement_characters_and_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "caf\xe9"}\n{"a": "ok"}\n')
    assert [(row.data["a"], row.damaged) for row in read_rows(path)] == [("caf\ufffd", True), ("ok", False)]
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\nok,"two\nlines \xff"\nfine,x\n')
    assert [(row.number, row.damaged) for row in read_rows(path)] == [(2, True), (4, False)]


def test_half_a_surrogate_pair_is_mended_and_a_whole_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "\\ud83d\\ude42"}\n{"a": ["x\\ud83d"], "b\\udc00": {"c": 1}}\n')
    first, second = read_rows(path)
    assert (first.data, first.damaged) == ({"a": "🙂"}, False)
    assert (second.data, second.damaged) == ({"a": ["x\ufffd"], "b\ufffd": {"c": 1}}, True)


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_mended_values_can_always_be_encoded(value: Any) -> None:
    fixed, changed = mended(value)
    json.dumps(fixed, ensure_ascii=False).encode()
    assert changed or fixed == value


class TestJson:
    @pytest.mark.parametrize(
        ("text", "rows"),
        [
            ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
            ('{"data": [{"a": 1}], "version": 3}', [{"a": 1}]),
            ('{"x": {"a": 1}, "y": {"a": 2, "id": "z"}}', [{"id": "x", "a": 1}, {"id": "z", "a": 2}]),
            ('{"a": 1, "b": "text"}', [{"a": 1, "b": "text"}]),
            ('["one", "two"]', [{"text": "one"}, {"text": "two"}]),
            ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),  # JSON lines under the wrong name
        ],
    )
    def test_forms(self, tmp_path: Path, text: str, rows: list[dict[str, Any]]) -> None:
        path = tmp_path / "rows.json"
        path.write_text(text)
        assert data_of(path) == rows

    def test_an_array_under_a_jsonl_name(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        for text in ('[{"a": 1},\n {"a": 2}]\n', '[{"a": 1}, {"a": 2}]', '[\n{"a": 1}, {"a": 2}\n]'):
            path.write_text(text)
            assert data_of(path) == [{"a": 1}, {"a": 2}]
        path.write_text("[1]\n[2]\n")  # neither: each line is a bad row, and nothing loops
        assert [row.error for row in read_rows(path)] == ["the row is a list, not an object"] * 2

    def test_splits_inside_one_file(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        path.write_text('{"train": [{"a": 1}], "test": [{"a": 2}]}')
        assert data_of(path) == [{"a": 1}]
        assert data_of(path, split="test") == [{"a": 2}]

    def test_broken_json_names_the_line(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        path.write_text('[{"a": 1},\n {"a": }]')
        with pytest.raises(DataError, match=r"rows.json:2: not valid JSON: Expecting value at column 8"):
            data_of(path)

    def test_very_deep_nesting_is_a_bad_row(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + '}\n{"a": 1}\n')
        assert [row.error for row in read_rows(path)] == ["not valid JSON: nested too deeply", None]


class TestCsv:
    def test_rows_that_do_not_fit_the_header_and_stray_quotes(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        path.write_text('prompt,completion\na,b\na\na,b,c\n"a"x,b\nc,"d\ne"\nf,g\n')
        rows = list(read_rows(path))
        assert [(row.number, row.error) for row in rows] == [
            (2, None),
            (3, "1 cells where the header names 2 columns"),
            (4, "3 cells where the header names 2 columns"),
            (5, "not valid CSV: ',' expected after '\"'"),
            (6, None),
            (8, None),
        ]
        assert rows[4].data == {"prompt": "c", "completion": "d\ne"}

    def test_an_unclosed_quote_does_not_swallow_the_file_silently(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        path.write_text('a,b\n1,2\n3,"open\n5,6\n')
        rows = list(read_rows(path))
        assert (rows[0].data, rows[1].number, rows[1].error) == (
            {"a": "1", "b": "2"},
            3,
            "not valid CSV: unexpected end of data",
        )

    def test_cells_larger_than_the_usual_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        write_rows(path, [{"text": "x" * 300_000}])
        assert len(data_of(path)[0]["text"]) == 300_000

    def test_lists_booleans_and_null(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        write_rows(path, [{"m": [{"role": "user"}], "label": True, "x": None}, {"m": [], "label": False, "y": 1.5}])
        with path.open(newline="") as file:
            assert list(csv.reader(file)) == [
                ["m", "label", "x", "y"],
                ['[{"role": "user"}]', "true", "", ""],
                ["[]", "false", "", "1.5"],
            ]

    def test_header_faults(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("a,b,a\n1,2,3\n")
        with pytest.raises(DataError, match="column names appear twice: 'a'"):
            data_of(path)
        path.write_text(",text\n0,hello\n")  # an index column as pandas writes it
        assert data_of(path) == [{"index": "0", "text": "hello"}]


class TestText:
    def test_documents_between_markers(self, tmp_path: Path) -> None:
        path = tmp_path / "stories.txt"
        path.write_text(
            "One.\n\nStill one.\n<|endoftext|>\nTwo.\n<|endoftext|>\n\n<|endoftext|>Three.<|endoftext|>Four.\n"
        )
        rows = list(read_rows(path))
        assert [(row.number, row.data["text"]) for row in rows] == [
            (1, "One.\n\nStill one."),
            (5, "Two."),
            (8, "Three."),
            (8, "Four."),
        ]

    def test_documents_between_blank_lines_when_there_is_no_marker(self, tmp_path: Path) -> None:
        path = tmp_path / "poems.txt"
        path.write_bytes(b"\r\nOne\r\nmore of one\r\n \r\n\r\n  Two, indented\r\n")
        rows = [(row.number, row.data["text"]) for row in read_rows(path)]
        assert rows == [(2, "One\nmore of one"), (6, "  Two, indented")]

    def test_one_row_for_each_line(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.txt"
        path.write_text("first\n\nsecond \n")
        rows = list(read_rows(path, text_lines=True))
        assert [(row.number, row.data["text"]) for row in rows] == [(1, "first"), (3, "second ")]

    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "documents.txt.gz"
        documents = [{"text": "a\n\nb"}, {"text": "  c"}]
        write_rows(path, documents)
        assert data_of(path) == documents

    def test_only_text_can_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"row 1 has no text to put into a \.txt file"):
            write_rows(tmp_path / "a.txt", ROWS)
        assert list(tmp_path.iterdir()) == []


class TestDamagedFiles:
    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    @pytest.mark.parametrize("keep", [0.3, 0.9])
    def test_a_packed_file_cut_off_is_an_error_and_not_a_short_file(
        self, tmp_path: Path, suffix: str, keep: float
    ) -> None:
        path = tmp_path / f"rows.jsonl{suffix}"
        write_rows(path, ({"a": os.urandom(40).hex()} for _ in range(5000)))
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(DataError, match=r"rows\.jsonl\.\w+: the compressed file is damaged or cut off"):
            list(read_rows(path))

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_not_packed_at_all(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"rows.jsonl{suffix}"
        path.write_text('{"a": 1}\n')
        with pytest.raises(DataError, match="damaged or cut off"):
            list(read_rows(path))

    def test_several_frames_are_one_file(self, tmp_path: Path) -> None:
        gz, zst = tmp_path / "a.jsonl.gz", tmp_path / "a.jsonl.zst"
        gz.write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
        zst.write_bytes(zstandard.compress(b'{"a": 1}\n') + zstandard.compress(b'{"a": 2}\n'))
        assert data_of(gz) == data_of(zst) == [{"a": 1}, {"a": 2}]

    def test_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        write_rows(path, ROWS)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match=r"rows.parquet: not a readable Parquet file"):
            list(read_rows(path))


class TestFinding:
    def test_missing_file_names_its_neighbours(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "train.jsonl", ROWS)
        with pytest.raises(DataError, match=r"tran\.jsonl: no such file or folder; did you mean .*/train\.jsonl\?"):
            list(read_rows(tmp_path / "tran.jsonl"))
        with pytest.raises(DataError, match=r"the folder .*/nowhere does not exist"):
            list(read_rows(tmp_path / "nowhere" / "train.jsonl"))

    def test_unknown_kind_of_file(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_bytes(b"\x00")
        with pytest.raises(DataError, match=r"model\.bin: unknown kind of file; readable are \.jsonl"):
            list(read_rows(tmp_path / "model.bin"))

    def test_folder_reads_its_data_files_in_order(self, tmp_path: Path) -> None:
        for name in ("b.jsonl", "a.csv", "sub/c.jsonl.gz", ".hidden.jsonl", "_temp/x.jsonl"):
            write_rows(tmp_path / name, [{"text": name}])
        (tmp_path / "README.md").write_text("about")
        assert [data["text"] for data in data_of(tmp_path)] == ["a.csv", "b.jsonl", "sub/c.jsonl.gz"]

    def test_folder_with_splits_never_mixes_them(self, tmp_path: Path) -> None:
        for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "dev.jsonl"):
            write_rows(tmp_path / name, [{"text": name.split("-")[0]}])
        assert data_of(tmp_path) == [{"text": "train"}]
        assert data_of(tmp_path, split="test") == [{"text": "test"}]
        assert data_of(tmp_path, split="validation") == [{"text": "dev.jsonl"}]
        with pytest.raises(DataError, match="no file for the split 'extra'; the folder has test, train, validation"):
            data_of(tmp_path, split="extra")

    def test_folder_with_a_single_split_is_read_as_it_is(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "test.jsonl", [{"text": "only"}])
        assert data_of(tmp_path) == [{"text": "only"}]

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no data file in this folder"):
            data_of(tmp_path)

    def test_pattern(self, tmp_path: Path) -> None:
        for index in (2, 1):
            write_rows(tmp_path / f"part-{index}.jsonl", [{"n": index}])
        assert data_of(f"{tmp_path}/part-*.jsonl") == [{"n": 1}, {"n": 2}]
        assert data_of(f"{tmp_path}/**/part-[2-9].jsonl") == [{"n": 2}]
        with pytest.raises(DataError, match="no readable data file matches this pattern"):
            data_of(f"{tmp_path}/none-*.jsonl")


class TestHub:
    """The Hub is reached through `datasets` alone; here its answers come from local files."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        import datasets

        real = datasets.load_dataset
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        write_rows(tmp_path / "stored" / "train.jsonl", ROWS)
        write_rows(tmp_path / "stored" / "test.jsonl", ROWS[:1])
        calls: list[tuple[Any, ...]] = []

        def load_dataset(name: str, subset: str | None, *, split: str | None, streaming: bool) -> Any:
            calls.append((name, subset, split, streaming))
            if name != "owner/name":
                raise FileNotFoundError(f"Couldn't find any data file for {name}")
            return real(str(tmp_path / "stored"), split=split, streaming=streaming, cache_dir=str(tmp_path / "cache"))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    @pytest.mark.parametrize("streaming", [False, True])
    def test_rows(self, hub: list[tuple[Any, ...]], streaming: bool) -> None:
        rows = list(read_rows("owner/name", streaming=streaming))
        assert [row.data for row in rows] == ROWS
        assert [(row.source, row.number) for row in rows] == [("owner/name", 1), ("owner/name", 2), ("owner/name", 3)]
        assert hub == [("owner/name", None, None, streaming)]

    def test_split_and_subset(self, hub: list[tuple[Any, ...]]) -> None:
        assert data_of("owner/name:test", subset="small") == ROWS[:1]
        assert data_of("owner/name", split="test") == ROWS[:1]
        assert hub == [("owner/name", "small", "test", False), ("owner/name", None, "test", False)]

    def test_unreachable(self, hub: list[tuple[Any, ...]]) -> None:
        with pytest.raises(DataError, match=r"owner/other: no file here, and no data set to be had from the Hub"):
            data_of("owner/other")

    def test_a_folder_of_the_same_name_comes_first(self, hub: list[tuple[Any, ...]], tmp_path: Path) -> None:
        (tmp_path / "owner").mkdir()
        with pytest.raises(
            DataError, match="owner/name: no such file or folder; if a data set on the Hub is meant, write hub:"
        ):
            data_of("owner/name")
        assert data_of("hub:owner/name:test") == ROWS[:1]
        with pytest.raises(DataError, match=r"nothing: no such file or folder$"):
            data_of("nothing")
        assert len(hub) == 1

    def test_a_saved_data_set(self, tmp_path: Path) -> None:
        import datasets

        saved = datasets.DatasetDict(
            {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
        )
        saved.save_to_disk(str(tmp_path / "both"))
        saved["test"].save_to_disk(str(tmp_path / "one"))
        assert data_of(tmp_path / "both") == ROWS
        assert data_of(tmp_path / "both", split="test") == data_of(tmp_path / "one") == ROWS[:1]
        with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
            data_of(tmp_path / "both", split="dev")


class TestWriting:
    def test_a_failure_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        write_rows(path, ROWS)

        def broken() -> Any:
            yield {"a": 1}
            raise DataError("the source ended in the middle")

        with pytest.raises(DataError, match="in the middle"):
            write_rows(path, broken())
        assert data_of(path) == ROWS
        assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]

    def test_disk_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(number: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"rows\.jsonl: cannot be written: No space left on device"):
            write_rows(tmp_path / "rows.jsonl", ROWS)
        assert list(tmp_path.iterdir()) == []

    def test_refused_values_and_suffixes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="unknown kind of file to write"):
            write_rows(tmp_path / "rows.xlsx", ROWS)
        with pytest.raises(DataError, match="a value that JSON cannot"):
            write_rows(tmp_path / "rows.jsonl", [{"a": object()}])
        with pytest.raises(DataError, match=r"do not fit the columns of a Parquet file.*write \.jsonl instead"):
            write_rows(tmp_path / "rows.parquet", [{"a": 1}, {"a": "text"}])

    def test_reading_and_writing_the_same_file(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        write_rows(path, ROWS)
        write_rows(path, ({**row.data, "seen": True} for row in read_rows(path)))
        assert data_of(path) == [{**row, "seen": True} for row in ROWS]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text(), min_size=3), min_size=1, max_size=4))
def test_any_text_survives_csv_and_jsonl(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    rows = [{key: mended(value)[0] for key, value in row.items()} for row in rows]
    write_rows(folder / "a.jsonl", rows)
    assert data_of(folder / "a.jsonl") == rows
    filled = [row for row in rows if any(row.values())]  # CSV cannot tell a row of empty cells from a blank line
    if filled:
        write_rows(folder / "a.csv", filled)
        assert data_of(folder / "a.csv") == [{key: row[key] for key in filled[0]} for row in filled]


def test_line_formats_are_read_in_constant_memory(tmp_path: Path) -> None:
    """6 MB of rows pass through less than 4 MB of memory, packed or not."""
    names = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.txt")
    for name in names[:4]:
        write_rows(tmp_path / name, ({"id": os.urandom(300).hex(), "text": "p" * 600} for _ in range(5_000)))
    (tmp_path / "a.txt").write_text(("word " * 240 + "\n\n") * 5_000)
    for name in names:
        next(read_rows(tmp_path / name))
        tracemalloc.start()
        for _ in read_rows(tmp_path / name):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 2**20, (name, peak)


def test_visible_text_cannot_drive_a_terminal() -> None:
    assert visible("\x1b[31mred\x07\n\u202eabc\ud800") == "\\x1b[31mred\\x07\\n\\u202eabc\\ud800"
    assert visible("x" * 500, 20) == "x" * 19 + "…"
    assert visible("苹果🙂") == "苹果🙂"


def test_row_counts_of_the_real_data(shared: Path) -> None:
    """Every row file of the shared data gives as many rows as its manifest says (text there is counted in lines)."""
    own_form = {"cdial_dialogues_zh", "chinese_classics", "sysprompt_extraction_attacks"}  # dicts of lists of their own
    counted = 0
    for line in (shared / "data" / "MANIFEST.tsv").read_text().splitlines()[1:]:
        name, _, rows, _ = line.split("\t")
        if not rows or name.split("/")[0] in own_form:
            continue
        is_text = ".txt" in name and "stories" not in name
        found = list(read_rows(shared / "data" / name, text_lines=is_text))
        if not is_text:
            assert (name, len(found), sum(row.error is not None for row in found)) == (name, int(rows), 0)
            counted += 1
    assert counted >= 85
