"""`goodheart data export` and `data import`: labels of a campaign as a file, and a file as labels of a campaign."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from typer.testing import CliRunner

from goodheart.cli import app
from goodheart.data.formats import read_records, write_rows
from goodheart.data.layouts import to_rows
from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.errors import ConfigError, GoodheartError
from goodheart.feedback import campaigns
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.exporting import judgements
from goodheart.feedback.importing import import_judgements
from goodheart.feedback.store import open_store
from goodheart.feedback.tables import audit, labels
from goodheart.loop.campaign_data import digest
from goodheart.loop.campaign_place import Place
from goodheart.loop.lineage import trace
from goodheart.loop.pipeline import Pipeline
from goodheart.loop.settings import ExportConfig


def said(prompts: int = 8) -> Iterator[Judgement]:
    """Two who agree, and one who says the opposite."""
    for i in range(prompts):
        answers = (Answer(f"one {i}"), Answer(f"other {i}"))
        better = (0, 1) if i % 2 else (1, 0)
        for rater in ("ann", "bob", "cyd"):
            yield Judgement(Prompt(text=f"q{i}"), answers, better[::-1] if rater == "cyd" else better, rater=rater)


@pytest.fixture
def place(tmp_path: Path) -> str:
    store = open_store(tmp_path / "g.db")
    made = campaigns.create(store, CampaignSettings(name="helpful / first", overlap=3))
    import_judgements(store, made.id, said())
    store.close()
    return f"{tmp_path}/g.db/helpful / first"


def run(*words: str) -> str:
    told = CliRunner().invoke(app, ["data", *words])
    if told.exception is not None and not isinstance(told.exception, SystemExit):
        raise told.exception
    return told.stdout


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_way_from_labels_to_rows(place: str, tmp_path: Path) -> None:
    out = tmp_path / "out" / "labels.jsonl"
    told = run("export", place, str(out))
    assert told == f"24 labels of campaign 'helpful / first' read, 24 rows in {out}\n"
    assert len(rows(out)) == 24
    run("export", place, str(out), "--labels", "majority", "--to", "trl-preference")
    assert [row["chosen"] for row in rows(out)] == [f"{'one' if i % 2 else 'other'} {i}" for i in range(8)]
    run("export", place, str(out), "--labels", "soft")
    assert [row["probability"] for row in rows(out)] == [pytest.approx(2 / 3)] * 8
    run("export", place, str(out), "--labels", "trusted")
    assert all(row["probability"] > 0.9 for row in rows(out))  # type: ignore[operator]  # two who always agree
    run("export", place, str(out), "--labels", "scores", "--to", "ratings")
    assert len(rows(out)) == 16
    run("export", place, str(out), "--trust")
    weight = {row["rater"]: row["weight"] for row in rows(out)}
    assert weight["cyd"] < weight["ann"] == pytest.approx(weight["bob"])  # type: ignore[operator]
    (tmp_path / "trust.csv").write_text("rater,weight\ncyd,0\n*,1\n")
    run("export", place, str(out), "--weights", str(tmp_path / "trust.csv"))
    assert len(rows(out)) == 16


def test_a_store_of_one_campaign_needs_no_name(place: str, tmp_path: Path) -> None:
    database = tmp_path / "g.db"
    assert "24 rows in" in run("export", str(database), str(tmp_path / "a.jsonl"))
    assert "24 rows in" in run("export", f"sqlite:///{database}", str(tmp_path / "b.parquet"))
    store = open_store(database)
    campaigns.create(store, CampaignSettings(name="second"))
    store.close()
    with pytest.raises(GoodheartError, match=r"name the campaign.*second, helpful / first"):
        run("export", str(database), str(tmp_path / "a.jsonl"))


def test_nothing_to_write_leaves_what_was_there(place: str, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    out.write_text("kept")
    for more, message in (
        (("--to", "ratings"), "none of the labels can be held by ratings"),
        (("--phase", "gold"), "nobody has labelled there yet"),
        (("--phase", "golden"), r"`phases\.0`: input should be 'work', 'gold'"),
        (("--to", "xml"), "`to`: unknown layout 'xml'"),
        (("--labels", "some"), "`labels`: input should be 'each', 'majority'"),
        (("--weights", str(tmp_path / "none.csv")), "no such file"),
        (("--weights", str(tmp_path / "none.csv"), "--trust"), "give one of them"),
    ):
        with pytest.raises(GoodheartError, match=message):
            run("export", place, str(out), *more)
    with pytest.raises(ConfigError, match="unknown kind of file"):
        run("export", place, str(tmp_path / "out.exe"))
    with pytest.raises(ConfigError, match="no store of labels there"):
        run("export", str(tmp_path / "missing.db" / "x"), str(out))
    with pytest.raises(GoodheartError, match="there is no campaign 'x'"):
        run("export", f"{tmp_path}/g.db/x", str(out))
    assert out.read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []


def test_a_file_becomes_a_campaign_and_the_same_file_again(tmp_path: Path) -> None:
    source, where = tmp_path / "old.jsonl", f"{tmp_path}/new.db/old"
    bare = Judgement(Prompt(text="bare"), (Answer("a"), Answer("b")), (0, 1))
    write_rows(source, (row for each in [*said(), bare] for row in to_rows(each, "ranked")))
    assert run("import", str(source), where) == "25 labels on 9 new items, of 3 new people\n"
    again = run("import", str(source), where).splitlines()
    assert again == ["0 labels on 0 new items, of 0 new people", "25 labels were there already"]
    run("export", where, str(tmp_path / "back.jsonl"))
    first, second = (read_records(path, "preference").records for path in (source, tmp_path / "back.jsonl"))
    assert [(j.prompt, j.ranks, j.rater) for j in first] == [(j.prompt, j.ranks, j.rater) for j in second]
    store = open_store(tmp_path / "new.db")
    assert sum(1 for _ in judgements(store, campaigns.get(store, "old").id)) == 25
    store.close()


def test_where_a_campaign_is() -> None:
    found = Place.of("postgresql://me:secret@host:5432/labels/helpful/first")
    assert (found.store, found.campaign) == ("postgresql://me:secret@host:5432/labels", "helpful/first")
    assert Place.of("postgresql://host/labels").campaign is None
    with pytest.raises(ConfigError, match="DATABASE/CAMPAIGN"):
        Place.of("postgresql://host")
    with pytest.raises(ConfigError, match="write STORE/CAMPAIGN"):
        run("import", "x.jsonl", "postgresql://host/labels")


@pytest.mark.parametrize(
    ("text", "store", "campaign"),
    [
        ("postgresql:///labels/helpful", "postgresql:///labels", "helpful"),
        ("postgresql:///labels", "postgresql:///labels", None),
        ("postgresql:///labels/a b?host=/run/pg", "postgresql:///labels?host=/run/pg", "a b"),
        ("postgresql://me@host/labels?sslmode=require", "postgresql://me@host/labels?sslmode=require", None),
        ("postgresql://host:1/labels/you@home: better?", "postgresql://host:1/labels", "you@home: better?"),
    ],
)
def test_an_address_has_its_settings_at_the_end(text: str, store: str, campaign: str | None) -> None:
    found = Place.of(text)
    assert (found.store, found.campaign) == (store, campaign)
    assert Place.of(found.named("one")) == Place(store, "one")
    ExportConfig(campaign=text, out=Path("x.jsonl"))  # none of them holds a password


@pytest.mark.parametrize(
    "where",
    [
        "postgresql://ann:SECRET@db/labels/helpful",
        "postgresql://ann:SEC/RET@db/labels/helpful",
        "postgresql://:SECRET@db/labels",
        "postgresql+psycopg://ann:SECRET@db/labels/helpful?sslmode=require",
        "postgresql://db/labels/helpful?user=ann&password=SECRET",
    ],
)
def test_a_password_gets_into_no_file_and_no_message(where: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        f"out: {tmp_path}/out\nstages:\n  labels: {{stage: export, campaign: '{where}'}}\n"
    )
    for act in (
        lambda: Pipeline.load(tmp_path / "p.yaml").plan(),
        lambda: run("export", where, str(tmp_path / "x.jsonl")),
    ):
        with pytest.raises(ConfigError, match="PGPASSWORD") as told:
            act()
        assert "RET" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


@pytest.mark.parametrize("where", ["postgresql://ann:SECRET@db", "postgresql://ann:SECRET@db/labels"])
def test_what_names_no_campaign_is_told_without_its_password(where: str) -> None:
    with pytest.raises(ConfigError, match=r"ann:\*\*\*@db") as told:
        run("import", "x.jsonl", where)
    assert "SECRET" not in str(told.value)


def test_an_address_without_a_database_is_told_without_its_password() -> None:
    for where in ("postgresql://ann:SECRET@db", "postgresql://db?password=SECRET"):
        with pytest.raises(ConfigError, match="DATABASE/CAMPAIGN") as told:
            Place.of(where)
        assert "SECRET" not in str(told.value)


def test_a_row_that_comes_late_with_a_lower_number_changes_the_digest(place: str, tmp_path: Path) -> None:
    store = open_store(tmp_path / "g.db")
    digests = [digest(place)]
    for table, number in ((labels, 1000), (labels, 500), (audit, 1000), (audit, 500)):
        with store.begin() as connection:
            row = dict(connection.execute(select(table).limit(1)).mappings().one())
            row |= {"id": number} | ({"live": False} if table is labels else {})
            connection.execute(insert(table).values(row))
        digests.append(digest(place))
    store.close()
    assert len(set(digests)) == 5


PIPELINE = """\
out: out
stages:
  labels: {stage: export, campaign: "g.db/helpful / first", labels: majority}
  hard: {stage: difficulty, data: "${labels}"}
"""


def test_a_stage_of_a_pipeline_runs_again_when_there_are_more_labels(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    pipeline = Pipeline.load(Path("p.yaml"))
    assert [plan.runs for plan in pipeline.plan()] == [True, True]
    pipeline.run("labels")
    assert len(rows(tmp_path / "out" / "labels.jsonl")) == 8
    assert [plan.runs for plan in Pipeline.load(Path("p.yaml")).plan()] == [False, True]
    origin = trace(tmp_path / "out" / "labels.jsonl")
    assert (origin.stage, origin.warnings) == ("export", [])
    assert [(each.role, each.path, each.warnings) for each in origin.inputs] == [
        ("campaign", "g.db/helpful / first", [])
    ]
    store = open_store(tmp_path / "g.db")
    new = Judgement(Prompt(text="new"), (Answer("a"), Answer("b")), (0, 1), rater="ann")
    import_judgements(store, campaigns.get(store, "helpful / first").id, [new])
    store.close()
    again = Pipeline.load(Path("p.yaml"))
    plan = again.plan()[0]
    assert (plan.runs, plan.reason) == (True, "g.db/helpful / first changed")
    again.run("labels")
    assert len(rows(tmp_path / "out" / "labels.jsonl")) == 9


def test_a_pipeline_of_a_campaign_that_is_not_there_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    with pytest.raises(ConfigError, match=r"p.yaml:3: .*`campaign`: g.db/helpful / first: no store of labels there"):
        Pipeline.load(Path("p.yaml"))
