"""Records as token examples: what is cut, what is set aside, and where the reader is told to look."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goodheart.data.examples import (
    EMPTY,
    NOTHING_WANTED,
    SAME,
    TOO_LONG,
    Skipped,
    comparisons,
    demonstrations,
    documents,
    list_skipped,
    prompts,
    require,
    shared_prompts,
)
from goodheart.data.formats import read_records
from goodheart.data.records import Answer, Demonstration, Judgement, Message, Prompt, Rating, Text, Thumb
from goodheart.data.template import Template, load_tokenizer
from goodheart.errors import DataError
from tests.data import chat_shapes as shapes

RAW = Prompt(text="Who likes milk?")
CHAT = Prompt(messages=(Message("user", "Who likes milk?"),))


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> Template:
    return Template(load_tokenizer(tiny_model))


# Documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [2, 3, 5, 7, 16, 1000])
def test_every_token_of_a_document_but_the_first_is_predicted_once(template: Template, max_length: int) -> None:
    text = "The cat likes milk. The dog likes bones."
    whole = template.text_ids(text)
    pieces = documents([Text(text)], template, max_length).items
    assert all(2 <= len(piece) <= max_length for piece in pieces)
    predicted = [i for piece in pieces for i, trained in zip(piece.ids, piece.mask, strict=True) if trained]
    assert predicted == whole[1:]
    # what a piece is predicted from: the token before it, not nothing
    assert [piece.ids[0] for piece in pieces[1:]] == [piece.ids[-1] for piece in pieces[:-1]]


def test_a_document_of_one_token_is_set_aside(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "text_ids", lambda text: [5] if text == "short" else [5, 6, 7])
    found = documents([Text("short"), Text("longer")], template, 8)
    assert len(found.items) == 1
    assert found.skipped.counts == {EMPTY: 1}


# Demonstrations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [RAW, CHAT], ids=["raw", "chat"])
def test_a_whole_answer_is_trained_with_its_end_and_a_cut_one_without(template: Template, prompt: Prompt) -> None:
    record = Demonstration(prompt, Answer(" The cat likes milk."))
    whole = demonstrations([record], template, 128)
    assert whole.cut == 0
    assert whole.items[0].ids[-1] == template.eos_id
    assert whole.items[0].mask[-1]
    first = whole.items[0].mask.index(True)
    assert whole.items[0].ids[:first] == template.prompt_ids(prompt)

    length = len(whole.items[0])
    for max_length in (length - 1, first + 1):
        part = demonstrations([record], template, max_length)
        assert part.cut == 1
        assert part.items[0].ids == whole.items[0].ids[:max_length]
        assert template.eos_id not in part.items[0].ids[1:]
        assert part.items[0].mask == whole.items[0].mask[:max_length]

    none = demonstrations([record], template, first)
    assert not none.items
    assert none.skipped.counts == {TOO_LONG: 1}


def test_of_several_turns_those_within_the_limit_are_trained(template: Template) -> None:
    turns = (Message("assistant", "Milk."), Message("user", "And the dog?"), Message("assistant", "Bones."))
    record = Demonstration(CHAT, Answer(messages=turns))
    whole = demonstrations([record], template, 128).items[0]
    assert sum(i == template.eos_id for i, m in zip(whole.ids, whole.mask, strict=True) if m) == 2
    found = demonstrations([record], template, len(whole) - 2)
    assert found.cut == 1
    kept = [i for i, m in zip(found.items[0].ids, found.items[0].mask, strict=True) if m]
    assert kept.count(template.eos_id) == 1


def test_examples_know_their_record_where_one_gives_several() -> None:
    turns = (
        Message("assistant", "Hello", {"reasoning_content": "greet"}),
        Message("user", "Bye?"),
        Message("assistant", "<think>\npart\n</think>\n\nBye."),
    )
    records = [Demonstration(Prompt((Message("user", f"Hi {i}"),)), Answer(messages=turns)) for i in range(3)]
    made = demonstrations(records, shapes.qwen3(), 512)
    assert [example.row for example in made.items] == [0, 1, 2, 3, 4, 5]
    assert [made.records[example.row] for example in made.items] == [r for r in records for _ in range(2)]


# Comparisons ---------------------------------------------------------------------------------------------------


def test_judgements_ratings_and_thumbs_keep_what_was_said_of_them(template: Template) -> None:
    answers = (Answer("a cat"), Answer("a big cat"), Answer("a dog"))
    judgement = Judgement(RAW, answers, (1, 0, 1), margin=0.5, weight=2.0, shown_order=(2, 0, 1))
    items = comparisons(
        [judgement, Rating(RAW, answers[0], 3.5), Thumb(RAW, answers[0], False, weight=0.5)], template, 64
    ).items
    assert items[0].ranks == (1, 0, 1)
    assert (items[0].margin, items[0].weight, items[0].shown_order) == (0.5, 2.0, (2, 0, 1))
    assert items[0].sizes == (5, 9, 5)
    assert items[0].prompt_key == RAW.key
    assert items[0].tokens == max(len(e) for e in items[0].answers)
    assert (items[1].target, items[1].weight) == (3.5, 1.0)
    assert (items[2].target, items[2].weight) == (0.0, 0.5)
    for example, answer in zip(items[0].answers, answers, strict=True):
        assert template.decode(example.ids[len(template.prompt_ids(RAW)) :]) == answer.text


def test_a_cut_answer_of_a_ranking_carries_no_end(template: Template, tmp_path: Path) -> None:
    data = tmp_path / "ranked.jsonl"
    row = {"prompt": "The cat", "completions": ["likes milk.", "likes"], "ranks": [0, 1], "finish": ["eos", "length"]}
    data.write_text(json.dumps(row) + "\n")
    whole, cut = comparisons(read_records(str(data), "preference").records, template, 128).items[0].answers
    assert whole.ids[-1] == template.eos_id
    assert cut.ids[-1] != template.eos_id


def test_answers_that_differ_only_after_the_cut_teach_nothing(template: Template) -> None:
    same = "The cat likes milk."
    record = Judgement(RAW, (Answer(same + " The dog"), Answer(same + " Who")), (0, 1))
    shared = len(template.prompt_ids(RAW)) + 3
    assert comparisons([record], template, 128).cut == 0
    found = comparisons([record], template, shared)
    assert not found.items
    assert found.skipped.counts == {SAME: 1}
    ranked = Judgement(RAW, (Answer(same + " The dog"), Answer("Who"), Answer("sun")), (0, 1, 2))
    assert comparisons([ranked], template, shared).cut == 1


def test_prompts_over_the_limit_are_named(template: Template) -> None:
    long = Prompt(text="The cat likes milk. " * 9)
    size = len(template.prompt_ids(RAW))
    found = prompts([long, RAW, CHAT], template, size)
    assert [(place, prompt) for place, prompt, _ in found.items] == [(1, RAW)]
    assert found.items[0][2] == template.prompt_ids(RAW)
    assert found.skipped.counts == {
        f"prompt longer than {size} tokens (the model's context less max_new_tokens)": 2
    }  # fmt: skip


# Rows set aside ------------------------------------------------------------------------------------------------


def written(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def test_every_row_that_falls_out_is_named_by_file_and_line(template: Template, tmp_path: Path) -> None:
    data = written(
        tmp_path / "a.jsonl",
        [
            {"prompt": "Who", "completion": " likes milk?"},
            "{not json\n",
            {"prompt": "The cat likes milk. " * 30, "completion": "x"},
            {"prompt": "Who", "completion": ""},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "</s>\n\nHuman: x"}]},
        ],
    )
    more = written(tmp_path / "b.jsonl", [{"prompt": "The cat likes milk. " * 30, "completion": "y"}])
    loaded = read_records([data, more], "demonstration")
    found = demonstrations(loaded.records, template, 64, Skipped.of(loaded))
    assert len(found.items) == 1
    places = {row["where"]: row["reason"] for row in found.skipped.shown}
    assert set(places) == {f"{data}:2", f"{data}:3", f"{data}:4", f"{data}:5", f"{more}:1"}
    assert places[f"{data}:3"] == places[f"{more}:1"] == TOO_LONG
    assert "would open another turn" in places[f"{data}:5"] or "spells out" in places[f"{data}:5"]
    by_place = {row["where"]: row["excerpt"] for row in found.skipped.shown}
    assert by_place[f"{data}:5"] == "user: hi"
    assert by_place[f"{data}:3"].startswith("The cat likes milk.")
    assert found.skipped.total == 5


def test_rows_that_hold_nothing_of_the_kind_are_counted(tmp_path: Path) -> None:
    data = written(
        tmp_path / "t.jsonl", [{"prompt": "a", "completion": "b", "label": up} for up in (True, False, False)]
    )
    assert Skipped.of(read_records(data, "demonstration")).counts == {NOTHING_WANTED: 2}


def test_only_the_first_of_each_reason_are_kept_and_the_summary_stays_short() -> None:
    skipped = Skipped()
    for reason in range(8):
        for row in range(reason + 20):
            skipped.add(f"reason {reason}", f"f:{row}", "x" * 500)
    assert skipped.total == sum(range(20, 28))
    assert len(skipped.shown) == 8 * 20
    assert max(len(row["excerpt"]) for row in skipped.shown) == 200
    # 27 + 26 + 25 + 24 + 23 are told, 22 + 21 + 20 = 63 are not
    told = "; ".join(f"{n} x reason {n - 20}" for n in (27, 26, 25, 24, 23))
    assert skipped.summary() == f"{told}; 63 for 3 other reasons"


def test_finding_a_place_is_not_asked_for_rows_that_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Skipped, "place", lambda self, record: asked.append(record) or "f:1")
    skipped = Skipped()
    for _ in range(50):
        skipped.add_record("why", Text("t"))
    assert len(asked) == skipped.shown_per_reason
    assert skipped.total == 50


def test_nothing_usable_is_an_error_that_says_why() -> None:
    skipped = Skipped()
    skipped.add("too bad", "f:1")
    with pytest.raises(DataError, match=r"a, b: no usable prompt; set aside: 1 x too bad"):
        require([], skipped, "prompt", ["a", "b"])
    require([1], skipped, "prompt", ["a"])


def test_the_list_beside_a_file_goes_when_nothing_is_left_out(tmp_path: Path) -> None:
    skipped = Skipped()
    skipped.add("why", "f:1", "text")
    out = tmp_path / "scores.jsonl.gz"
    file = list_skipped(out, skipped)
    assert file == tmp_path / "scores.skipped.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == skipped.shown
    assert list_skipped(out, Skipped()) is None
    assert not file.exists()


def test_shared_prompts_counts_conversations() -> None:
    train = [Demonstration(CHAT, Answer("x")), Demonstration(Prompt(text="b"), Answer("x"))]
    again = Judgement(Prompt(messages=(Message("user", "who LIKES  milk?"),)), (Answer("p"), Answer("q")), (0, 1))
    assert shared_prompts(train, [again, again]) == 1
    assert shared_prompts(train, [Thumb(Prompt(text="c"), Answer("x"), True)]) == 0
