"""Labels of several people made one: majority, shares, trust."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from goodheart.cli import app
from goodheart.data.formats import convert, gather, read_records, read_rows, read_weights, write_rows
from goodheart.data.layouts import to_rows
from goodheart.data.records import Answer, Judgement, Prompt, Rating, Thumb
from goodheart.errors import DataError

PROMPT = Prompt(text="Name a fruit.")
X, Y, Z = Answer("Apple"), Answer("Stone"), Answer("Pear")


def said(rater: str, ranks: tuple[int, ...], *answers: Answer, **more: Any) -> Judgement:
    return Judgement(PROMPT, answers or (X, Y), ranks, rater=rater, **more)


def together(records: list[Any], labels: Any, weights: dict[str, float] | None = None) -> list[Any]:
    return list(gather(records, labels, weights))


class TestMajority:
    def test_by_hand(self) -> None:
        # two for Apple, one for Stone (who saw the two the other way round), one tie: Apple
        votes = [said("a", (0, 1)), said("b", (0, 1), Y, X), said("c", (1, 0), Y, X), said("d", (0, 0))]
        (one,) = together(votes, "majority")
        assert (one.answers, one.ranks, one.weight, one.rater) == ((X, Y), (0, 1), 1.0, None)
        assert one.prompt.meta == {"votes": 4, "agree": 2}

    @pytest.mark.parametrize(
        ("ranks", "expected"),
        [
            ([(0, 1), (1, 0)], (0, 0)),  # as many for either
            ([(0, 1), (0, 0)], (0, 1)),  # half of them call it a tie: not more than half
            ([(0, 1), (0, 0), (0, 0)], (0, 0)),
            ([(0, 1), (1, 0), (1, 0), (0, 0)], (1, 0)),
        ],
    )
    def test_ties(self, ranks: list[tuple[int, int]], expected: tuple[int, int]) -> None:
        (one,) = together([said(str(n), r) for n, r in enumerate(ranks)], "majority")
        assert one.ranks == expected

    def test_trust_outweighs_numbers(self) -> None:
        votes = [said("careful", (0, 1)), said("hasty", (1, 0)), said("idle", (1, 0))]
        (one,) = together(votes, "majority", {"careful": 1.0, "hasty": 0.4, "*": 0.4})
        assert one.ranks == (0, 1)
        assert together(votes, "majority", {"careful": 0, "*": 0}) == []  # nobody is trusted with it

    def test_rankings_of_three(self) -> None:
        # Apple over Stone 3:0, Apple over Pear 2:1, Pear over Stone 2:1 -> Apple 2 wins, Pear 0 = 1 - 1, Stone -2
        votes = [
            said("a", (0, 2, 1), X, Y, Z),
            said("b", (1, 2, 0), X, Y, Z),
            said("c", (1, 0, 2), Y, X, Z),
        ]
        (one,) = together(votes, "majority")
        assert one.ranks == (0, 2, 1)
        circle = [said("a", (0, 1, 2), X, Y, Z), said("b", (2, 0, 1), X, Y, Z), said("c", (1, 2, 0), X, Y, Z)]
        assert together(circle, "majority")[0].ranks == (0, 0, 0)  # nobody wins: a tie, not an accident of order

    def test_the_winner_of_every_pair_is_first(self) -> None:
        """Against counting, over random ballots of four answers: what beats each other one comes first, alone."""
        rng = random.Random(0)
        answers = [Answer(c) for c in "abcd"]
        for _ in range(200):
            ballots = [tuple(rng.sample(range(4), 4)) for _ in range(5)]
            (one,) = together([said(str(n), b, *answers) for n, b in enumerate(ballots)], "majority")
            beats = {(i, j) for i, j in itertools.permutations(range(4), 2) if sum(b[i] < b[j] for b in ballots) >= 3}
            for i in range(4):
                if all((i, j) in beats for j in range(4) if j != i):
                    assert one.ranks[i] == 0
                    assert one.ranks.count(0) == 1

    def test_what_all_say_is_kept(self) -> None:
        votes = [
            said("a", (0, 1), strength=4, margin=2.0, item_id="7", source="person", flags={"both_bad": True}),
            said("b", (0, 1), strength=3, margin=1.0, item_id="7", source="person", flags={"both_bad": True}),
            said("c", (1, 0), strength=1, margin=9.0, item_id="7", source="person", seconds=3.0),
        ]
        (one,) = together(votes, "majority")
        assert (one.strength, one.margin, one.item_id, one.source) == (4, 1.5, "7", "person")  # of those who agree
        assert (one.flags, one.seconds) == ({"both_bad": True}, None)

    def test_an_adjudication_is_the_last_word(self) -> None:
        votes = [said("a", (0, 1)), said("b", (0, 1)), said("judge", (1, 0), kind="adjudication")]
        assert together(votes, "majority")[0].ranks == (1, 0)
        assert together(votes, "soft")[0].probability == 1.0

    def test_places_and_other_records(self) -> None:
        other = replace(said("a", (0, 1)), prompt=Prompt(text="Other?"))
        thumb, rating = Thumb(PROMPT, X, True, rater="a"), Rating(PROMPT, X, 3.0, "a")
        records = [said("a", (0, 1)), thumb, other, said("b", (1, 0)), rating]
        made = together(records, "majority", {"a": 0.5, "b": 1})
        assert [type(each).__name__ for each in made] == ["Judgement", "Thumb", "Judgement", "Rating"]
        assert (made[0].ranks, made[1].weight, made[3].weight) == ((1, 0), 0.5, 0.5)


class TestSoft:
    def test_by_hand(self) -> None:
        # Apple 2, Stone 1, ties half each: (2 + 1/2) / 4
        votes = [said("a", (0, 1)), said("b", (0, 1)), said("c", (1, 0)), said("d", (0, 0))]
        (one,) = together(votes, "soft")
        assert (one.ranks, one.probability) == ((0, 1), 0.625)
        # careless c and d count a quarter: (2 + 1/8) / 2.5
        (one,) = together(votes, "soft", {"a": 1, "b": 1, "c": 0.25, "d": 0.25})
        assert one.probability == pytest.approx(0.85)
        (turned,) = together([said("a", (1, 0)), said("b", (1, 0)), said("c", (0, 1))], "soft")
        assert (turned.ranks, turned.probability) == ((1, 0), pytest.approx(2 / 3))

    def test_as_many_for_either_is_an_even_chance_and_only_ties_are_a_tie(self) -> None:
        (one,) = together([said("a", (0, 1)), said("b", (1, 0))], "soft")
        assert (one.ranks, one.probability) == ((0, 1), 0.5)
        assert len(list(to_rows(one, "trl-preference"))) == 1
        (tie,) = together([said("a", (0, 0)), said("b", (0, 0))], "soft")
        assert (tie.ranks, tie.probability) == ((0, 0), None)

    def test_labels_that_are_soft_already(self) -> None:
        votes = [said("a", (0, 1), probability=0.9), said("b", (1, 0), probability=0.7)]
        assert together(votes, "soft")[0].probability == pytest.approx((0.9 + 0.3) / 2)

    def test_of_more_answers_each_order_weighs_its_share(self) -> None:
        votes = [said("a", (0, 1, 2), X, Y, Z), said("b", (1, 0, 2), Y, X, Z), said("c", (0, 0, 1), X, Y, Z)]
        made = together(votes, "soft", {"a": 1, "b": 1, "c": 2})
        assert [(each.ranks, each.weight) for each in made] == [((0, 1, 2), 0.5), ((0, 0, 1), 0.5)]


def test_each_keeps_everybody_apart() -> None:
    votes = [said("a", (0, 1), weight=2.0), said("b", (1, 0)), said("c", (0, 0))]
    made = together(votes, "each", {"a": 0.5, "b": 0, "c": 1})
    assert [(each.rater, each.weight) for each in made] == [("a", 1.0), ("c", 1.0)]
    assert together(votes, "each") == votes
    with pytest.raises(DataError, match=r'no weight for rater c: name them, or give "\*" for everybody'):
        together(votes, "each", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="no weight for labels without a rater"):
        together([replace(votes[0], rater=None)], "each", {"a": 1})


class TestWeights:
    def test_forms(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(json.dumps({"ann": 0.5, "*": 1}))
        (tmp_path / "a.csv").write_text("rater,weight\nann,0.5\n7,1\n")
        assert read_weights(tmp_path / "a.json") == {"ann": 0.5, "*": 1.0}
        assert read_weights(tmp_path / "a.csv") == {"ann": 0.5, "7": 1.0}

    @pytest.mark.parametrize(
        ("text", "why"),
        [("rater,weight\nann,1\nbob,x\n", r"a\.csv:3: the weight of bob must be a number, found 'x'"),
         ("rater,weight\nann,-1\n", r"a\.csv:2: a weight is below 0; 0 leaves a rater out"),
         ("rater,weight\n", r"a\.csv: no weights")],
    )  # fmt: skip
    def test_faults(self, tmp_path: Path, text: str, why: str) -> None:
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(DataError, match=why):
            read_weights(tmp_path / "a.csv")


class TestConvert:
    def rows(self, tmp_path: Path) -> Path:
        votes = [("ann", [0, 1]), ("bob", [0, 1]), ("eve", [1, 0])]
        rows = [{"prompt": f"p{n}", "completions": ["a", "b"], "ranks": r, "rater": who}
                for n in range(3) for who, r in votes]  # fmt: skip
        write_rows(tmp_path / "in.jsonl", [*rows, {"prompt": "p9", "completions": ["a", ""], "ranks": [0, 1]}])
        return tmp_path / "in.jsonl"

    def test_the_command(self, tmp_path: Path) -> None:
        source, out, trust = self.rows(tmp_path), tmp_path / "out.jsonl", tmp_path / "trust.json"
        trust.write_text('{"*": 1, "eve": 6}')
        given = ["data", "convert", str(source), str(out), "--labels", "soft", "--weights", str(trust)]
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 0, done.output
        # two against one who is trusted three times as much as both together
        assert [(row.data["chosen"], row.data["probability"]) for row in read_rows(out)] == [("b", 0.75)] * 3

    def test_soft_rows_train_as_they_come_back(self, tmp_path: Path) -> None:
        source = self.rows(tmp_path)
        done = convert(source, tmp_path / "out.jsonl", to="trl-preference", through=partial(gather, labels="soft"))
        assert (done.rows, done.written, len(done.bad)) == (10, 3, 1)
        rows = [row.data for row in read_rows(tmp_path / "out.jsonl")]
        assert rows[0] == {"prompt": "p0", "chosen": "a", "rejected": "b", "probability": pytest.approx(2 / 3),
                           "votes": 3, "agree": 2}  # fmt: skip
        back = read_records(tmp_path / "out.jsonl", "preference").records
        assert back[0].probability == pytest.approx(2 / 3)
