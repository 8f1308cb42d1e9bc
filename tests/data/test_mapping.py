"""Files of other columns than known: mappings, votes for statistics, and the real data sets they are made for."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from goodheart.cli import app
from goodheart.data.crowd import read_votes, votes_of
from goodheart.data.formats import RowError, read_records, read_rows, to_rows, write_rows
from goodheart.data.mapping import KNOWN, ColumnMap, load_mapping
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.errors import ConfigError, DataError

WIDE = {"prompt": ["q", "more"], "answers": ["r1", "r2"], "label": ["ann", "bob"], "item": "n",
        "means": {0: [0, 0], 1: [0, 1], 2: {"ranks": [1, 0], "strength": 3, "flags": ["sure"]}}}  # fmt: skip
NESTED = {"prompt": "in.text", "answers": "outs", "each": "votes", "label": "v", "rater": "who", "item": "n",
          "gold": "gold", "notes": {"comment": "why", "batch": "b"}, "means": {"l": [0, 1], "r": [1, 0]}}  # fmt: skip


class TestColumns:
    def test_several_raters_in_a_row(self) -> None:
        data = {"q": "Name it.", "more": "", "r1": "Apple", "r2": "Stone", "ann": 2.0, "bob": "0", "n": 7}
        ann, bob = ColumnMap.model_validate(WIDE).read(data)
        prompt, answers = Prompt(text="Name it."), (Answer("Apple"), Answer("Stone"))
        assert ann == Judgement(prompt, answers, (1, 0), rater="ann", item_id="7", strength=3, flags={"sure": True})
        assert bob == Judgement(prompt, answers, (0, 0), rater="bob", item_id="7")
        assert ColumnMap.model_validate(WIDE).read({**data, "ann": None, "bob": ""}) == []

    def test_annotations_in_a_list(self) -> None:
        votes = [{"v": "l", "who": "ann", "why": "so"}, {"v": "r", "who": 9}]
        data = {"in": {"text": "p"}, "outs": ["a", "b"], "votes": votes, "n": "i", "gold": "l", "b": "b1"}
        first, second = ColumnMap.model_validate(NESTED).read(data)
        assert (first.rater, first.ranks, first.comment, first.batch) == ("ann", (0, 1), "so", "b1")
        assert (second.rater, second.ranks, second.comment) == ("9", (1, 0), None)
        assert ColumnMap.model_validate(NESTED).votes(data) == ([("i", "ann", "l"), ("i", "9", "r")], {"i": "l"})

    def test_pairwise_verdicts_become_a_ranking_where_they_are_one(self) -> None:
        mapping = ColumnMap.model_validate({
            "prompt": "q", "answers": ["a", "b", "c"], "label": "v", "pairwise": True,
            "means": {0: [0, 0], 1: [0, 1], 2: [1, 0]},
        })  # fmt: skip
        data = {"q": "p", "a": "A", "b": "B", "c": "C"}
        (whole,) = mapping.read({**data, "v": [1, 0, 2]})  # A over B, A = C, C over B
        assert [whole.ranks[i] for i in map([a.text for a in whole.answers].index, "ABC")] == [0, 1, 0]
        circle = mapping.read({**data, "v": [1, 2, 1]})  # A over B over C over A
        assert [each.ranks for each in circle] == [(0, 1), (1, 0), (0, 1)]
        assert len({each.group_id for each in circle}) == 1
        with pytest.raises(RowError, match="3 answers make 3 pairs, found 2 verdicts"):
            mapping.read({**data, "v": [1, 2]})

    @pytest.mark.parametrize(
        ("change", "why"),
        [({"ann": 3}, "label 3 has no meaning; known are 0, 1, 2"), ({"r2": " "}, "r2 is empty"),
         ({"r1": True}, "r1 must be text or a list of messages, found bool"), ({"q": ""}, "the prompt is empty")],
    )  # fmt: skip
    def test_faults_of_rows(self, change: dict[str, Any], why: str) -> None:
        data = {"q": "Name it.", "r1": "Apple", "r2": "Stone", "ann": 1, "bob": 1, "n": 7, **change}
        with pytest.raises(RowError) as caught:
            ColumnMap.model_validate(WIDE).read(data)
        assert str(caught.value) == why

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            (
                "lable: x",
                "m.yaml: `label`: Field required; `lable`: Extra inputs are not permitted; known keys are prompt",
            ),
            ("label: x\nprompt: p", "`prompt` and `answers` belong together"),
            ("label: [a, b]\nrater: x\nitem: n", "several `label` columns are several raters: leave `rater` out"),
            ("label: a\nitem: n\nnotes: {mood: x}", "`notes`: mood is no note; known are margin"),
            ("label: a", "labels of single items need `item`"),
            ("label: a\nitem: n\npairwise: true", "`pairwise` needs `means`"),
            ("- a", "a mapping is `key: value` lines"),
            ("a: [", "cannot be read as YAML"),
        ],
    )
    def test_faults_of_mappings(self, tmp_path: Path, text: str, why: str) -> None:
        (tmp_path / "m.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_mapping(tmp_path / "m.yaml")
        assert why in str(caught.value)

    def test_unknown_names_list_the_known(self) -> None:
        with pytest.raises(ConfigError, match=r"no such mapping; give a YAML file, or one of .*pandalm"):
            load_mapping("pandalmm")
        for name in KNOWN:
            load_mapping(name)

    def test_the_command(self, tmp_path: Path) -> None:
        rows = [{"q": f"p{n}", "r1": "a", "r2": "b" if n else "", "ann": 1, "bob": 2, "n": n} for n in range(3)]
        write_rows(tmp_path / "in.jsonl", rows)
        (tmp_path / "m.yaml").write_text(
            "prompt: q\nanswers: [r1, r2]\nlabel: [ann, bob]\nmeans: {1: [0, 1], 2: [1, 0]}\n"
        )
        out = tmp_path / "out.jsonl"
        given = ["data", "convert", str(tmp_path / "in.jsonl"), str(out), "--to", "ranked"]
        done = CliRunner().invoke(app, [*given, "--map", str(tmp_path / "m.yaml")])
        assert done.exit_code == 0, done.output
        assert f"set aside {tmp_path}/in.jsonl:1: r2 is empty" in done.output
        assert [(row.data["rater"], row.data["ranks"]) for row in read_rows(out)] == [
            ("ann", [0, 1]),
            ("bob", [1, 0]),
        ] * 2

    def test_check_reads_by_a_mapping_too(self, shared: Path) -> None:
        source = str(shared / "data" / "tulu_human_eval" / "eval_annotations_tulu_1.jsonl.gz")
        done = CliRunner().invoke(app, ["data", "check", source, "--map", "tulu-human-eval"])
        assert done.exit_code == 1  # 18 rows cannot be used
        assert re.search(r"rows +602, usable 584, bad 18", done.output)
        assert re.search(r"shapes +mapped \(584\)", done.output)


class TestVotes:
    def test_crowd_kit_tables(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("task,worker,label\n1,w1,cat\n1,w2,dog\n2,w1,\n3,,cat\n")
        votes = read_votes(tmp_path / "a.csv")
        assert votes.columns() == [("1", "w1", "cat"), ("1", "w2", "dog")]
        assert [(bad.line, bad.reason) for bad in votes.bad] == [(4, "label is empty"), (5, "worker or rater is empty")]
        (tmp_path / "b.csv").write_text("worker,left,right,label\nw1,x,y,x\nw2,y,x,x\nw3,x,y,z\n")
        votes = read_votes(tmp_path / "b.csv")
        assert votes.columns() == [("x | y", "w1", "x"), ("x | y", "w2", "x")]
        assert votes.bad[0].reason == "the label must be the left or the right one, found 'z'"
        (tmp_path / "c.csv").write_text("task,worker,label\n1,w1,\n")
        with pytest.raises(DataError, match=r"no vote in 1 rows; the first row: label is empty"):
            read_votes(tmp_path / "c.csv")

    def test_comparisons_are_votes_whichever_side_an_answer_stood(self, tmp_path: Path) -> None:
        prompt, a, b = Prompt(text="p"), Answer("a", model="m1"), Answer("b", model="m2")
        judged = [Judgement(prompt, (a, b), (0, 1), rater="ann"), Judgement(prompt, (b, a), (1, 0), rater="bob"),
                  Judgement(prompt, (b, a), (0, 0), rater="eve")]  # fmt: skip
        ann, bob, eve = votes_of(judged)
        assert ann.item == bob.item == eve.item
        assert ann.label == bob.label != eve.label == "tie"
        assert [vote.label for vote in votes_of(judged, by="model")] == ["m1", "m1", "tie"]
        with pytest.raises(DataError, match="an answer has no model"):
            list(votes_of([Judgement(prompt, (Answer("a"), b), (0, 1))], by="model"))
        # through a file in crowd-kit's columns, and through our own layout
        for layout in ("crowd-kit", "ranked"):
            write_rows(tmp_path / "v.csv", [row for each in judged for row in to_rows(each, layout)])
            assert list(read_votes(tmp_path / "v.csv")) == [ann, bob, eve]
        rows = [row for each in judged for row in to_rows(each, "crowd-kit-pairs")]
        assert [row["worker"] for row in rows] == ["ann", "bob"]  # it has no ties
        assert rows[0]["label"] == rows[1]["label"] == rows[0]["left"] == rows[1]["right"]

    def test_as_training_data_they_are_refused_with_a_word_on_what_reads_them(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("task,worker,label\n1,w1,cat\n")
        with pytest.raises(
            DataError, match=r"labels of single items compare no answers; `goodheart\.data\.crowd\.read_votes`"
        ):
            read_records(tmp_path / "a.csv", "preference")


class TestRealData:
    """Counts of the data's README: every row is a record, or set aside for a reason; raters are kept apart."""

    @pytest.mark.parametrize(
        ("folder", "name", "rows", "records", "raters", "reasons"),
        [
            ("pandalm_testset", "pandalm", 499, 464 * 3, 3, {
                "response1 is empty": 16, "response2 is empty": 13,
                "response1 must be text or a list of messages, found bool": 4,
                "response2 must be text or a list of messages, found bool": 2}),
            ("tulu_human_eval/eval_annotations_tulu_1.jsonl.gz", "tulu-human-eval", 602, 584, 16,
             {"chosen and rejected are identical": 18}),
            ("finegrained_rlhf", "qa-feedback", 262, 249 + 13 * 6, 1, {}),  # 13 rows run in circles: their 6 pairs
            ("llmbar", "llmbar", 419, 419, 1, {}),
            ("oasst_en_trees", None, 66, 145, 1, {}),
        ],
    )  # fmt: skip
    def test_comparisons(
        self, shared: Path, folder: str, name: str | None, rows: int, records: int, raters: int, reasons: dict[str, int]
    ) -> None:
        mapping = None if name is None else load_mapping(name)
        loaded = read_records(shared / "data" / folder, "preference", mapping=mapping)
        assert (loaded.counts["rows"], loaded.counts["records"]) == (rows, records)
        assert (loaded.counts["bad"], loaded.reasons()) == (sum(reasons.values()), reasons)
        assert len({record.rater for record in loaded.records}) == raters
        assert all(bad.line > 0 and Path(bad.source).exists() for bad in loaded.bad)

    def test_ukp(self, shared: Path) -> None:
        source, mapping = shared / "data" / "ukp_convarg_crowd", load_mapping("ukp-convarg")
        votes = read_votes(source, mapping)
        assert (votes.rows, len(votes), len(set(votes.items)), len(votes.gold), votes.bad) == (
            11288,
            56308,
            11288,
            10774,
            [],
        )
        assert Counter(votes.labels) == {"a1": 22384, "a2": 21960, "equal": 11964}
        assert Counter(Counter(votes.items).values()) == {5: 11156, 4: 132}
        loaded = read_records(source, "preference", mapping=mapping, limit=500)
        assert {len(record.answers) for record in loaded.records} == {2}
        assert len({record.item_id for record in loaded.records}) == 100
        assert loaded.records[0].comment is not None
        assert loaded.records[0].rater == "w0001"

    @pytest.mark.parametrize(
        ("folder", "name", "votes", "raters", "items", "gold"),
        [
            ("pandalm_testset", "pandalm", 1497, 3, 499, 0),  # those with an empty answer too
            ("hatecheck_annotations", "hatecheck", 9065, 10, 1813, 1813),
            ("crowd_hitspam_mturk/labels.tsv.gz", None, 28354, 135, 5840, 0),
            ("tulu_human_eval/eval_annotations_tulu_1.jsonl.gz", "tulu-human-eval", 602, 16, 172, 0),
            ("finegrained_rlhf", "qa-feedback", 1572, 1, 1572, 0),
            ("xstest_completions_2annot/xstest_v2_completions_gpt4.csv.gz", "xstest", 900, 2, 450, 450),
        ],
    )
    def test_votes(
        self, shared: Path, folder: str, name: str | None, votes: int, raters: int, items: int, gold: int
    ) -> None:
        found = read_votes(shared / "data" / folder, None if name is None else load_mapping(name))
        counts = (len(found), len(set(found.raters)), len(set(found.items)), len(found.gold), found.bad)
        assert counts == (votes, raters, items, gold, [])
