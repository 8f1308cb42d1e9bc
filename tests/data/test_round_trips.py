"""Every comparison through every layout and back: it is the same, but for what the layout says that it loses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goodheart.data import layouts
from goodheart.data.formats import LAYOUTS, Loaded, RowError, convert, iter_records, read_records, to_rows, write_rows
from goodheart.data.layouts import LOSES, losses
from goodheart.data.notes import DEFAULTS, NOTES
from goodheart.data.records import Answer, Judgement, Message, Prompt

ROOT = Path(__file__).resolve().parents[2]
U, A = (lambda text: Message("user", text)), (lambda text: Message("assistant", text))
PAIR_LAYOUTS = [name for name in LOSES if layouts.TIES in LOSES[name]]

words = st.text("ab é中{\n", min_size=1, max_size=8).map(str.strip).filter(bool)
plain_values = st.integers(0, 9) | words | st.booleans()
nested_values = (
    plain_values | st.lists(words, max_size=2) | st.dictionaries(words, st.integers(), min_size=1, max_size=2)
)
prompts = st.one_of(
    st.builds(Prompt, text=words, meta=st.dictionaries(st.sampled_from(["tag", "lang"]), words)),
    st.builds(lambda q, m: Prompt(messages=(U(q),), meta=m), words, st.dictionaries(st.just("topic"), nested_values)),
    st.builds(lambda s, q, a, r: Prompt(messages=(Message("system", s), U(q), A(a), U(r))), words, words, words, words),
    st.builds(lambda q, a, r: Prompt(messages=(U(q), A(a), U(r))), words, words, words),
)
abouts = st.fixed_dictionaries(
    {},
    optional={
        "sampling": st.fixed_dictionaries({"temperature": st.sampled_from([0.7, 1.0]), "top_p": st.just(0.9)}),
        "logprob": st.floats(-9, 0, width=16),
        "finish": st.sampled_from(["eos", "length"]),
    },
)


@st.composite
def answers_to(draw: Any, prompt: Prompt, place: int) -> Answer:
    """Answers that begin with another letter each, so that it is clear where the prompt ends."""
    text = "xyzw"[place] + draw(words)
    about = {"model": draw(st.none() | st.sampled_from(["m1", "m2"])), "meta": draw(abouts)}
    if prompt.is_chat and draw(st.integers(0, 5)) == 0:
        return Answer(messages=(A(text), U(draw(words)), A(draw(words))), **about)
    return Answer(text, **about)


@st.composite
def judgements(draw: Any) -> Judgement:
    prompt, size = draw(prompts), draw(st.integers(2, 4))
    given_ranks = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    tiers = sorted(set(given_ranks))
    notes = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "margin": st.sampled_from([0.0, 0.5, 2.0]),
                "weight": st.sampled_from([0.0, 0.25]),
                "rater": st.sampled_from(["ann", "9"]),
                "rater_attributes": st.just({"culture": "zh", "age": 30}),
                "guideline": st.just("v2"),
                "shown_order": st.permutations(range(size)).map(tuple),
                "seconds": st.sampled_from([0.0, 12.5]),
                "flags": st.sampled_from([{"both_bad": True}, {"harmful": [0], "wrong": True}, {"confidence": 7}]),
                "gold": st.just(True),
                "batch": st.just("b7"),
                "strength": st.integers(1, 4),
                "probability": st.sampled_from([0.0, 0.75]),
                "ratings": st.just({"helpful": list(range(size))}),
                "comment": words,
                "source": st.sampled_from(["person", "ai", "simulated", "import"]),
                "kind": st.just("adjudication"),
                "created_at": st.sampled_from(["2026-11-21T10:00:00+00:00", "2026-11-21T10:00:00.250000+00:00", "May"]),
                "item_id": st.just("item-3"),
                "group_id": st.just("g1"),
            },
        )
    )
    for name in ("probability", "group_id"):  # of pairs alone
        if size > 2:
            notes.pop(name, None)
    answers = tuple(draw(answers_to(prompt, place)) for place in range(size))
    return Judgement(prompt, answers, tuple(tiers.index(rank) for rank in given_ranks), **notes)


def as_kept(record: Judgement, lost: Sequence[str]) -> Judgement:
    """What is left of a record without the parts named in `lost`."""
    empty: dict[str, Any] = {"rater_attributes": {}, "flags": {}, "ratings": {}}
    notes: dict[str, Any] = {n: empty.get(n, DEFAULTS.get(n)) for n in NOTES if n in lost}
    answers = tuple(
        replace(
            answer,
            model=None if layouts.MODELS in lost else answer.model,
            meta={} if layouts.ABOUT in lost else answer.meta,
        )
        for answer in record.answers
    )
    prompt = record.prompt
    if layouts.RAW in lost and prompt.text is not None:
        prompt = Prompt(messages=(U(prompt.text),), meta=prompt.meta)
    if layouts.NESTED in lost:
        prompt = replace(prompt, meta={k: v for k, v in prompt.meta.items() if not isinstance(v, (list, dict))})
    if layouts.FLAGS in lost:
        notes.setdefault("flags", {name: flag for name, flag in record.flags.items() if flag is True})
    if layouts.SHOWN in lost and len(answers) > 2:
        notes["shown_order"] = None
    return replace(record, prompt=prompt, answers=answers, **notes)


def in_one_order(record: Judgement) -> Judgement:
    """The same with its answers sorted by text."""
    order = sorted(range(len(record.answers)), key=lambda place: record.answers[place].turns()[0].content)
    shown = None if record.shown_order is None else tuple(order.index(place) for place in record.shown_order)
    ranks = tuple(record.ranks[place] for place in order)
    return replace(record, answers=tuple(record.answers[place] for place in order), ranks=ranks, shown_order=shown)


def read_back(path: Path) -> list[Any]:
    loaded = Loaded()
    records = list(iter_records(path, "any", loaded=loaded))
    assert loaded.bad == []
    assert loaded.counts["records"] == len(records)
    return records


@pytest.mark.parametrize("layout", LOSES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=judgements())
def test_there_and_back(tmp_path: Path, layout: str, record: Judgement) -> None:
    try:
        rows = to_rows(record, layout)
    except RowError:  # refused as a whole: counted, not bent
        return
    expected = as_kept(record, LOSES[layout])
    if not rows:
        assert layouts.TIES in LOSES[layout]
        assert len(set(record.ranks)) == 1
        return
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (back,) = read_back(tmp_path / "a.jsonl")
    if layouts.ORDER in LOSES[layout]:
        back, expected = in_one_order(back), in_one_order(expected)
    assert back == expected
    assert set(losses(back, layout)) <= {layouts.TIES, layouts.ORDER}  # what is lost is lost once


MANY = [
    Judgement(
        Prompt(messages=(Message("system", "Be brief."), U("Name a fruit.")), meta={"lang": "en"}),
        (Answer("Apple", model="m1"), Answer("Stone", model="m2"), Answer("Pear", model="m1")),
        (0, 1, 0),
        rater="ann",
        strength=3,
        comment='two are right,\nand "one" is not',
        flags={"wrong": True},
        item_id="7",
        shown_order=(2, 0, 1),
    ),
    Judgement(
        Prompt(messages=(U("Hi"),), meta={"lang": "en"}), (Answer("Hello!"), Answer("Go away.")), (1, 0), seconds=2.5
    ),
    Judgement(
        Prompt(text="2 + 2 =", meta={"lang": "en"}),
        (Answer("= 4", meta={"logprob": -0.5}), Answer("= 5")),
        (0, 1),
        probability=0.75,
    ),
    Judgement(
        Prompt(text="Say it", meta={"lang": "en"}),
        (Answer("a"), Answer("b")),
        (0, 0),
        flags={"both_bad": True},
        rater="bob",
    ),
]


@pytest.mark.parametrize("layout", LOSES)
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json", ".csv", ".tsv", ".parquet"])
def test_every_layout_in_every_kind_of_file(tmp_path: Path, layout: str, suffix: str) -> None:
    """Rows of several shapes in one file: tables fill what is missing with nulls, and write what is mixed as JSON."""
    if suffix in (".csv", ".tsv") and layout == "alpaca":
        pytest.skip("a list of outputs in a cell is the text of one output as well: refused, see test_formats")
    held, rows = [], []
    for record in MANY:
        try:
            made = to_rows(record, layout)
        except RowError:
            continue
        rows += made
        held += [as_kept(record, LOSES[layout])] if made else []
    write_rows(tmp_path / f"a{suffix}", rows)
    back = read_back(tmp_path / f"a{suffix}")
    if layouts.ORDER in LOSES[layout]:
        back, held = [in_one_order(each) for each in back], [in_one_order(each) for each in held]
    assert back == held
    assert len(held) >= 2


def test_a_ranking_is_its_pairs_and_its_pairs_are_the_ranking(tmp_path: Path) -> None:
    # ranks 1 0 2 1: b over a, c, d; a over c; d over c; a and d tie: of 4 * 3 / 2 = 6 pairs 5 have an order
    record = Judgement(Prompt(text="p"), tuple(map(Answer, "abcd")), (1, 0, 2, 1), rater="ann")
    rows = to_rows(record, "trl-preference")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        ("b", "a"), ("b", "d"), ("b", "c"), ("a", "c"), ("d", "c")
    ]  # fmt: skip
    assert len({row["group_id"] for row in rows}) == 1
    assert {row["rater"] for row in rows} == {"ann"}
    with_ties = to_rows(record, "fastchat")
    assert len(with_ties) == 6
    for made in (rows, with_ties):
        write_rows(tmp_path / "a.jsonl", [*made, {"prompt": "p", "chosen": "x", "rejected": "y"}, *made])
        first, lone, second = read_records(tmp_path / "a.jsonl", "preference").records
        ranks = dict(zip((answer.text for answer in first.answers), first.ranks, strict=True))
        assert ranks == {"a": 1, "b": 0, "c": 2, "d": 1}
        assert (first.group_id, lone.group_id, second) == (None, None, first)


def test_pairs_that_are_no_ranking_stay_pairs(tmp_path: Path) -> None:
    pairs = [("a", "b"), ("b", "c"), ("c", "a")]  # in a circle
    write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": x, "rejected": y, "group_id": "g"} for x, y in pairs])
    records = read_records(tmp_path / "a.jsonl", "preference").records
    assert [tuple(answer.text for answer in each.answers) for each in records] == pairs
    # of two people; of two prompts; one that says the opposite of another; one that says the same again
    for other in ({"rater": "bob"}, {"prompt": "q"}, {"chosen": "b", "rejected": "a"}, {}):
        row = {"prompt": "p", "chosen": "a", "rejected": "b", "group_id": "g"}
        write_rows(tmp_path / "a.jsonl", [row, {**row, **other}])
        assert len(read_records(tmp_path / "a.jsonl", "preference").records) == 2


def test_soft_labels_and_votes_are_said_to_be_lost(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row for record in MANY for row in to_rows(record, "ranked")])
    done = convert(tmp_path / "in.jsonl", tmp_path / "out.jsonl", to="alpaca")
    assert done.left_out == {"a ranked Alpaca row cannot hold ties": 2}
    assert done.lost == {
        layouts.ORDER: 1, "seconds": 1, "probability": 1, layouts.ABOUT: 1, layouts.RAW: 1
    }  # fmt: skip


def test_the_page_names_what_each_layout_loses() -> None:
    """The table of docs/formats.md is LOSES."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w-]+)` \|[^|]*\| ([^|]*) \|$", page, re.MULTILINE))
    for layout in LAYOUTS:
        assert layout in told, f"docs/formats.md does not speak of {layout}"
    kept_by_pairs = ", ".join(layouts._KEPT_BY_PAIRS)
    assert f"Pairs keep {kept_by_pairs}" in page.replace("`", "").replace("\n", " ")
    for layout, lost in LOSES.items():
        words = set(told[layout].replace("`", "").split("; "))
        if set(layouts._PAIRS) <= set(lost):
            lost = ("what pairs lose", *(each for each in lost if each not in layouts._PAIRS))
        elif set(NOTES) <= set(lost):
            lost = ("all notes", *(each for each in lost if each not in NOTES))
        assert words == (set(lost) or {"nothing"}), layout
