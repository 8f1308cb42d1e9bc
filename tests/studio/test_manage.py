"""The managers' pages without a browser: what they show, who may see and do what, what is refused."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, date, datetime
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from goodheart.data.layouts import LAYOUTS
from goodheart.errors import ConflictError, MissingError
from goodheart.feedback import (
    assignment,
    audit,
    campaigns,
    guidelines,
    label_rows,
    labels,
    logins,
    membership,
    people,
    quality,
)
from goodheart.feedback.answered import Answered
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.progress import by_day, progress
from goodheart.feedback.store import Store
from goodheart.feedback.tables import items
from goodheart.feedback.tasks import Task
from goodheart.studio.manage import leaving, overview
from goodheart.studio.manage.rules import Typed, typed
from goodheart.studio.words import Words
from tests.studio.conftest import by_letter, item, label_all

HOSTILE = "<script>alert(1)</script>\u202e<img src=x onerror=alert(1)>"
PAGES = ("", "/people", "/agreement", "/disputes", "/disputes?show=all", "/guidelines/edit", "/models", "/coverage",
         "/export", "/audit")  # fmt: skip
Visit = Callable[..., TestClient]


@pytest.fixture
def manager(visit: Visit, labelled: Campaign) -> TestClient:
    return visit("mia", "manager")


def beside(page: str) -> dict[str, str]:
    """What is said to be wrong, by the field it stands beside; the field names it as its description."""
    found = dict(re.findall(r'<p class="wrong" id="wrong-(\w*)">(.*?)</p>', page, re.DOTALL))
    for name in found:
        assert re.search(rf'name="{name}"[^>]* aria-invalid="true" aria-describedby="wrong-{name}"', page), name
    return found


def post(client: TestClient, path: str, **fields: Any) -> Any:
    return client.post(path, data={"csrf": client.headers["X-CSRF-Token"], **fields})


@pytest.mark.parametrize("page", [*PAGES, "/disputes/1"])
def test_only_managers_see_the_pages(visit: Visit, labelled: Campaign, page: str) -> None:
    address = f"/c/{labelled.id}{page}"
    assert visit("mia", "manager").get(address).status_code == 200
    assert visit("ann").get(address).status_code == 404  # a labeller of the campaign
    seen = visit("ada", "adjudicator", labelled.id).get(address).status_code
    assert seen == (200 if page.startswith("/disputes") else 404)
    assert visit("oda", "adjudicator").get(address).status_code == 404  # of no campaign
    stranger = visit().get(address)
    assert (stranger.status_code, stranger.headers["location"].partition("?")[0]) == (303, "/login")
    assert visit("mia", "manager").get(f"/c/{labelled.id + 1}{page}").status_code == 404


WRITES = {
    "/c/1/state": {"state": "paused"},
    "/c/1/rules": {"budget": "5"},
    "/c/1/people": {"person": "1"},
    "/c/1/people/1/state": {"state": "paused"},
    "/c/1/invites": {"role": "manager"},
    "/c/1/invites/1/revoke": {},
    "/c/1/disputes/1": {"rank": ["1", "2"]},
    "/c/1/guidelines/edit": {"text": "new", "after": "1"},
    "/new": {"name": "more"},
    "/add/1": {"phase": "work"},
}


@pytest.mark.parametrize("address", WRITES)
def test_only_managers_write_and_only_from_our_pages(
    visit: Visit, labelled: Campaign, store: Store, address: str
) -> None:
    before = len(audit.entries(store, limit=1000))
    labeller = visit("ann")
    assert post(labeller, address, **WRITES[address]).status_code == 404
    assert visit("mia", "manager").post(address, data=WRITES[address]).status_code == 403  # without the token
    stranger = visit()
    assert stranger.post(address, data=WRITES[address]).status_code in (303, 403)
    assert len(audit.entries(store, limit=1000)) == before + 1  # mia was added, nothing else


def test_the_addresses_above_are_all_that_write(visit: Visit) -> None:
    paths = visit().app.openapi()["paths"]  # type: ignore[attr-defined]
    ours = ("/new", "/add/", "/c/")
    found = {re.sub(r"\{\w+\}", "1", path) for path, ways in paths.items() if "post" in ways and path.startswith(ours)}
    assert found - {"/c/1/join"} == set(WRITES)


def test_overview(manager: TestClient, labelled: Campaign) -> None:
    text = manager.get(f"/c/{labelled.id}").text
    assert "<dd>24 / 24</dd>" in text  # finished items
    assert "<dd>72</dd>" in text
    # 48 labels of 9 s and 24 of 1 s are 456 s; at 36 an hour: 4.56
    assert "4.56 / 4.56" in text
    assert re.search(r'<th scope="row">zh</th>.*?<td class="number">12 / 12</td>', text, re.DOTALL)


def test_days_count_what_the_number_of_labels_counts(visit: Visit, store: Store) -> None:
    """Three labels of work, two of training, one of qualification: 3 above, 3 in the picture, 3 on known answers."""
    phases = ("training", "training", "qualification")
    known = [item(f"K{i}?", "yes", "no", phase=each, gold={"ranks": [0, 1]}) for i, each in enumerate(phases)]
    rows = [*(item(f"Q{i}?", "yes", "no") for i in range(3)), *known]
    made = campaigns.create(store, CampaignSettings(name="known", training=2, qualification=1), rows)
    label_all(store, made, ["ann"], by_letter)
    text = visit("mia", "manager").get(f"/c/{made.id}").text
    assert re.search(r"<dd>3 <span class=\"hint\">\+ 3 on known answers", text)
    assert sum(map(int, re.findall(r"<title>\d{4}-\d\d-\d\d: (\d+)</title>", text))) == 3
    mine = visit("ann").get(f"/c/{made.id}/me").text  # who labels must not see which answers are known
    assert sum(map(int, re.findall(r"<title>\d{4}-\d\d-\d\d: (\d+)</title>", mine))) == 6


def test_days_are_whole_days_and_older_ones_are_left_out(store: Store) -> None:
    made = campaigns.create(store, CampaignSettings(name="days"), [item(f"Q{i}?", "yes", "no") for i in range(4)])
    ann = people.add_person(store, "ann")
    membership.join(store, made.id, ann.id)
    for at in ("2026-03-01T23:59:59", "2026-03-02T00:00:00", "2026-03-03T23:59:59", "2026-03-04T00:00:00"):
        now = datetime.fromisoformat(f"{at}+00:00")
        task = assignment.next_task(store, made.id, ann.id, now=now)
        assert isinstance(task, Task)
        labels.save(store, task.id, ann.id, Answered([0, 1]), now=now)
    found = by_day(store, made.id, date(2026, 3, 3), days=2)
    assert found == [(date(2026, 3, 2), 1), (date(2026, 3, 3), 1)]
    assert by_day(store, made.id, date(2026, 3, 3), days=2, person=ann.id + 1) == [(day, 0) for day, _ in found]


def test_the_course_of_agreement() -> None:
    agrees = np.array([1, 1, 1, 1, 0, np.nan, 0, 0, 0, 0, 1])
    assert quality.shares_over_time(agrees) == (4 / 5, 1 / 5)  # five known ones each, the unknown one is left out
    assert quality.shares_over_time(agrees[:9]) == ()  # eight known: one part alone is no course
    assert len(quality.shares_over_time(np.ones(1000))) == 12


def test_pause_resume_close_and_rules(manager: TestClient, labelled: Campaign, store: Store) -> None:
    for state in ("paused", "open", "closed"):
        assert post(manager, f"/c/{labelled.id}/state", state=state).status_code == 303
        assert campaigns.get(store, labelled.id).state == state
    assert post(manager, f"/c/{labelled.id}/state", state="gone").status_code == 422
    given = {"gold_share": "0.2", "pay_per_hour": "", "budget": "80", "deadline": "2031-01-02T03:04"}
    assert post(manager, f"/c/{labelled.id}/rules", **given).status_code == 303
    settings = campaigns.get(store, labelled.id).settings
    assert (settings.gold_share, settings.pay_per_hour, settings.budget) == (0.2, None, 80)
    assert settings.deadline is not None
    assert settings.deadline.isoformat() == "2031-01-02T03:04:00+00:00"
    wrong = post(manager, f"/c/{labelled.id}/rules", **given | {"gold_share": "2", "budget": "much"})
    assert wrong.status_code == 422
    assert beside(wrong.text) == {"gold_share": "must be 0.5 or less", "budget": "must be a number"}
    assert 'name="budget" value="much"' in wrong.text
    assert campaigns.get(store, labelled.id).settings == settings


def test_people_and_what_is_measured_of_them(manager: TestClient, labelled: Campaign, store: Store) -> None:
    rows = {row.name: row for row in quality.person_rows(store, labelled.id)}
    assert rows["ann"].labels == 24
    zed = rows["zed"]
    assert zed.position is not None
    assert zed.position.sure  # he always takes the first
    assert rows["ann"].position is not None
    assert zed.position.value > 0 > rows["ann"].position.value
    text = manager.get(f"/c/{labelled.id}/people").text
    assert text.index("ann") < text.index("zed")
    assert rows["ann"].course[0] > rows["zed"].course[0]
    assert "Share that agrees with the others, oldest first: " in text
    person = people.find_person(store, "zed")
    assert person is not None
    address = f"/c/{labelled.id}/people/{person.id}/state"
    assert post(manager, address, state="paused", reason="Please read the guidelines").status_code == 303
    member = membership.member(store, labelled.id, person.id)
    assert member is not None
    assert (member.state, member.reason) == ("paused", "Please read the guidelines")
    assert "Please read the guidelines" in manager.get(f"/c/{labelled.id}/people").text
    assert "Labellers who are paused: 1" in manager.get(f"/c/{labelled.id}").text
    assert post(manager, address, state="working").status_code == 303
    assert post(manager, address, state="boss").status_code == 422
    assert post(manager, f"/c/{labelled.id}/people/999/state", state="paused").status_code == 404


def test_an_invitation_is_shown_once_and_works(visit: Visit, manager: TestClient, labelled: Campaign) -> None:
    shown = post(manager, f"/c/{labelled.id}/invites", role="adjudicator", name="Ünal")
    [link] = re.findall(r'value="(http://studio\.test/invite/[^"]+)"', shown.text)
    assert link not in manager.get(f"/c/{labelled.id}/people").text
    stranger = visit()
    form = stranger.get(link)
    assert form.status_code == 200
    [token] = set(re.findall(r'name="csrf" value="([^"]+)"', form.text))
    joined = stranger.post(link, data={"csrf": token, "name": "x", "password": "a long enough one"})
    assert joined.status_code == 303
    assert stranger.get(f"/c/{labelled.id}/disputes").status_code == 200
    assert post(manager, f"/c/{labelled.id}/invites", role="king").status_code == 422
    assert post(manager, f"/c/{labelled.id}/invites", role="labeller", name="\u202e").status_code == 422


def test_no_invitations_without_accounts(alone: TestClient, labelled: Campaign) -> None:
    page = alone.get(f"/c/{labelled.id}/people")
    [token] = set(re.findall(r'name="csrf" value="([^"]+)"', page.text))
    assert "/invites" not in page.text
    refused = alone.post(f"/c/{labelled.id}/invites", data={"csrf": token, "role": "labeller"})
    assert refused.status_code == 422


def test_somebody_with_an_account_is_added(manager: TestClient, labelled: Campaign, store: Store) -> None:
    person = people.add_person(store, "new")
    assert post(manager, f"/c/{labelled.id}/people", person=str(person.id)).status_code == 303
    assert membership.member(store, labelled.id, person.id) is not None
    assert post(manager, f"/c/{labelled.id}/people", person="9999").status_code == 404
    assert post(manager, f"/c/{labelled.id}/people", person="-1").status_code == 422


def test_agreement_with_intervals_slices_and_pairs(manager: TestClient, labelled: Campaign, store: Store) -> None:
    found = quality.agreement_of(store, labelled.id)
    assert found is not None
    pairs = {frozenset((pair.a, pair.b)): pair for pair in found.pairs}
    assert pairs[frozenset(("ann", "bo"))].raw.value == 1
    assert quality.agreement_of(store, labelled.id) is found  # kept until something changes
    text = manager.get(f"/c/{labelled.id}/agreement").text
    assert "3 people, 24 pairs" in text
    assert found.whole.alpha.value is not None
    assert f"<strong>{found.whole.alpha.value:.2f}</strong>" in text
    assert ">zh<" in text


def test_nothing_is_said_where_nothing_is_known(manager: TestClient, store: Store) -> None:
    empty = campaigns.create(store, CampaignSettings(name="empty"), [item("Q?", "a", "b")])
    for page in PAGES:
        assert manager.get(f"/c/{empty.id}{page}").status_code == 200, page
    assert "Nothing to compare yet" in manager.get(f"/c/{empty.id}/agreement").text
    assert "No labels yet" in manager.get(f"/c/{empty.id}/models").text
    assert manager.get(f"/c/{empty.id}/export/file").status_code == 422


def test_models_by_the_labels(manager: TestClient, labelled: Campaign) -> None:
    text = manager.get(f"/c/{labelled.id}/models").text
    assert text.index("secret-model-0") < text.index("secret-model-1")  # two of three always prefer the first


def test_coverage_names_what_is_missing(manager: TestClient, labelled: Campaign) -> None:
    text = manager.get(f"/c/{labelled.id}/coverage?column=language&wanted=12").text
    assert "24 prompts in 3 cells; 1 cells have fewer" in text  # Thai was wanted, and there is none
    assert re.search(r"<td>th</td>.*?flagged\">12<", text, re.DOTALL)
    assert manager.get(f"/c/{labelled.id}/coverage?column=nonsense&wanted=0").status_code == 422
    assert manager.get(f"/c/{labelled.id}/coverage?column=nonsense").status_code == 200


@pytest.fixture
def disputed(store: Store) -> Campaign:
    settings = CampaignSettings(name="disputed", overlap=2, until_agreement=1.0, max_overlap=2)
    campaign = campaigns.create(store, settings, [item(HOSTILE, HOSTILE + " one", "**two**")], HOSTILE)

    def say(name: str, task: Task) -> Answered:
        return Answered([0, 1] if name == "ann" else [1, 0], 3, comment=HOSTILE, flags={"wrong": [0]})

    label_all(store, campaign, ["ann", "<b>bo</b>"], say)
    return campaign


def test_a_dispute_is_decided(visit: Visit, disputed: Campaign, store: Store) -> None:
    ada = visit("ada", "adjudicator", disputed.id)
    listed = ada.get(f"/c/{disputed.id}/disputes").text
    [address] = set(re.findall(rf"/c/{disputed.id}/disputes/\d+", listed))
    number = int(address.rpartition("/")[2])
    shown = ada.get(address).text
    assert "secret-model" not in shown  # blind for adjudicators, too
    assert "<mark>**two**</mark>" in shown  # what differs, and the guidelines, are at hand
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert shown.count("<pre class=") == 2
    for ranks in (["1"], ["1", ""], ["1", "x"], ["0", "1"], ["1", "2", "3"]):
        assert post(ada, address, rank=ranks).status_code == 422, ranks
    [token] = re.findall(r'name="token" value="([^"]+)"', ada.get(address).text)
    for _ in range(2):  # sent twice it is one decision
        assert post(ada, address, rank=["2", "1"], strength="4", comment="why", token=token).status_code == 303
    decisions = [row for row in label_rows.history(store, number) if row.kind == "adjudication"]
    assert [(row.ranks, row.strength, row.comment, row.live) for row in decisions] == [((1, 0), 4, "why", True)]
    assert "Waiting for a decision (0)" in ada.get(f"/c/{disputed.id}/disputes").text
    assert post(ada, f"/c/{disputed.id}/disputes/{number + 1}", rank=["1", "2"]).status_code == 404


def test_an_item_of_another_campaign_or_of_gold_is_not_shown(
    visit: Visit, disputed: Campaign, labelled: Campaign, store: Store
) -> None:
    gold = item("G?", "right", "wrong", gold={"ranks": [0, 1]}, phase="gold")
    added = campaigns.add_items(store, disputed.id, [gold])
    assert added.items == 1
    ada = visit("ada", "adjudicator", disputed.id)
    of_labelled = next(iter(label_rows.live_labels(store, labelled.id))).item
    assert ada.get(f"/c/{disputed.id}/disputes/{of_labelled}").status_code == 404
    assert ada.get(f"/c/{disputed.id}/disputes/{_newest(store)}").status_code == 404


def _newest(store: Store) -> int:
    with store.read() as connection:
        return int(connection.execute(select(func.max(items.c.id))).scalar_one())


def test_hostile_texts_are_shown_harmless(visit: Visit, disputed: Campaign, store: Store) -> None:
    mia = visit("mia", "manager")
    post(mia, f"/c/{disputed.id}/guidelines/edit", text=HOSTILE + " new", note=HOSTILE, after="1")
    [address] = set(re.findall(rf"/c/{disputed.id}/disputes/\d+", mia.get(f"/c/{disputed.id}/disputes").text))
    for page in (*(f"/c/{disputed.id}{each}" for each in PAGES), address):
        text = mia.get(page).text
        assert "<script>alert" not in text, page
        assert "<img" not in text, page
        assert "<b>bo</b>" not in text, page
        assert "\u202e" not in re.sub(r"<textarea.*?</textarea>", "", text, flags=re.DOTALL), page
        assert not re.search(
            r"<script(?! type=\"application/json\"| src=)|\son\w+=|style=", re.sub(r"&lt;.*?&gt;", "", text)
        ), page


def test_guidelines_get_versions(manager: TestClient, labelled: Campaign, store: Store) -> None:
    address = f"/c/{labelled.id}/guidelines/edit"
    preview = post(manager, address, text="# Now **bold**", after="1", act="preview")
    assert "<strong>bold</strong>" in preview.text
    assert len(guidelines.versions(store, labelled.id)) == 1
    assert post(manager, address, text="Be kind.\r\nBe true.", note="shorter", after="1").status_code == 303
    newest = guidelines.current(store, labelled.id)
    assert (newest.version, newest.text, newest.note, newest.by) == (2, "Be kind.\nBe true.", "shorter", "mia")
    text = manager.get(address).text
    assert "<ins>Be kind.</ins>" in text
    assert "<del>Choose the *better* one.</del>" in text
    late = post(manager, address, text="Mine.", after="1")  # somebody else was faster
    assert late.status_code == 409
    assert "Mine." in late.text
    assert post(manager, address, text="Mine.", after="2").status_code == 303
    assert post(manager, address, text="Mine.", after="3").status_code == 303  # nothing new: no version
    assert len(guidelines.versions(store, labelled.id)) == 3


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_is_exported_or_refused_in_words(manager: TestClient, labelled: Campaign, layout: str) -> None:
    found = manager.get(f"/c/{labelled.id}/export/file?layout={layout}")
    assert found.status_code in (200, 422)
    assert (found.status_code == 422) == ("There is nothing to write" in found.text)


def test_each_majority_soft_and_scores(manager: TestClient, labelled: Campaign) -> None:
    def rows(**query: str) -> list[dict[str, Any]]:
        found = manager.get(f"/c/{labelled.id}/export/file", params=query)
        assert found.status_code == 200
        assert "attachment" in found.headers["content-disposition"]
        return [json.loads(line) for line in found.text.splitlines()]

    assert len(rows(layout="trl-preference")) == 72
    assert len(rows(layout="trl-preference", labels="majority")) == 24
    assert {row["ranks"][0] for row in rows(labels="majority")} == {0}
    assert len(rows(layout="ratings", labels="scores")) == 48
    assert len(rows(layout="ranked", labels="soft", trust="true")) == 24
    assert rows(labels="trusted", trust="true") == rows(labels="trusted")
    assert len(rows(labels="trusted")) == 24
    table = manager.get(f"/c/{labelled.id}/export/file?layout=ranked&suffix=.parquet")
    assert parquet.read_table(io.BytesIO(table.content)).num_rows == 72
    for wrong in ({"layout": "x"}, {"labels": "x"}, {"suffix": ".exe"}):
        assert manager.get(f"/c/{labelled.id}/export/file", params=wrong).status_code == 422


def test_what_an_export_leaves_out_and_why(visit: Visit, store: Store) -> None:
    """Worked by hand. Five items, two labels each wanted; ann and bo:

    Q0 both first                2 labels
    Q1 both tied                 2 labels: no pair in them
    Q2 ann first, bo second      decided: one decision, 2 labels overruled
    Q3 ann first                 1 label, wants one more
    Q4 -                         nobody
    K  training                  2 labels
    """
    rows = [item(f"Q{i}?", "yes", "no", priority=5 - i) for i in range(5)]
    rows.append(item("K?", "yes", "no", phase="training", gold={"ranks": [0, 1]}))
    made = campaigns.create(store, CampaignSettings(name="left", overlap=2, until_agreement=1.0, training=1), rows)
    said = {"ann": ([0, 1], [0, 1], [0, 0], [0, 1], [0, 1]), "bo": ([0, 1], [0, 1], [0, 0], [1, 0])}
    for name, ranks in said.items():
        person = people.add_person(store, name)
        membership.join(store, made.id, person.id)
        for each in ranks:
            task = assignment.next_task(store, made.id, person.id)
            assert isinstance(task, Task)
            labels.save(store, task.id, person.id, Answered(each))
    mia = visit("mia", "manager")
    with store.read() as connection:
        third = int(connection.execute(select(items.c.id).order_by(items.c.id).offset(2)).scalars().first() or 0)
    assert post(mia, f"/c/{made.id}/disputes/{third}", rank=["2", "1"]).status_code == 303

    def page(**query: str) -> tuple[str, dict[str, int]]:
        text = mia.get(f"/c/{made.id}/export", params=query).text
        lines = re.findall(r'<td class="number">(\d+)</td><td>(.*?)</td>', text)
        return text, {words.split(":")[0].split(";")[0]: int(number) for number, words in lines}

    always = {
        "labels on known answers (gold, training, qualification)": 2,
        "labels in whose place a decision stands": 2,
        "items that nobody has labelled yet": 1,
        "items that want more labels": 1,
    }
    text, left = page()
    assert "Layout ranked: 6 rows from 6 labels that count." in text  # 2 + 2 + 1 + 1
    assert left == always
    text, left = page(layout="trl-preference")
    assert "4 rows from 6 labels" in text
    assert left == always | {"comparisons in which this layout finds nothing to tell": 2}
    text, left = page(layout="alpaca", labels="majority")
    assert "3 rows from 6 labels" in text
    assert left == always | {"comparisons that this layout cannot hold": 1}
    file = mia.get(f"/c/{made.id}/export/file?layout=trl-preference")
    assert file.headers["goodheart-rows"] == "4" == str(len(file.text.splitlines()))
    assert list(json.loads(file.headers["goodheart-left-out"]).values()) == [2]
    assert mia.get(f"/c/{made.id}/export?layout=nonsense").status_code == 422


def test_a_large_campaign_is_counted_when_asked_for(
    manager: TestClient, labelled: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "_COUNTED_UNASKED", 71)
    assert "72 rows" not in manager.get(f"/c/{labelled.id}/export").text
    assert "72 rows" in manager.get(f"/c/{labelled.id}/export?count=true").text


GOOD = b"".join(
    json.dumps({"prompt": f"P{i}", "completions": ["yes", "no"], "models": ["a", "b"], "language": "en"}).encode()
    + b"\n"
    for i in range(3)
)


def upload(client: TestClient, address: str, file: str, content: bytes, **fields: Any) -> Any:
    given = {"csrf": client.headers["X-CSRF-Token"], **fields}
    return client.post(address, data=given, files={"items": (file, content)})


def test_a_campaign_out_of_a_file(manager: TestClient, store: Store) -> None:
    fields = {"name": "fresh", "overlap": "2", "guideline": "Be kind.\r\n", "slices": "language",
              "flags": "wrong, rude", "rubric": "tone: Is it warm?\nhelp: Does it help?", "blind": "1"}  # fmt: skip
    gold = b'{"prompt": "G", "completions": ["yes", "no"], "gold": [0, 1]}\n'
    given = {"csrf": manager.headers["X-CSRF-Token"], **fields}
    files = {"items": ("rows.jsonl", GOOD), "gold": ("gold.jsonl", gold)}
    made = manager.post("/new", data=given, files=files)
    assert made.status_code == 303
    campaign = campaigns.get(store, "fresh")
    assert made.headers["location"] == f"/c/{campaign.id}"
    settings = campaign.settings
    assert (settings.overlap, settings.flags, settings.strength, settings.blind) == (2, ("wrong", "rude"), False, True)
    assert settings.rubric == {"tone": "Is it warm?", "help": "Does it help?"}
    assert guidelines.current(store, campaign.id).text == "Be kind.\n"
    assert quality.slices(store, campaign.id) == [{"language": "en"}] * 3
    more = GOOD + b'{"prompt": "P9", "completions": ["yes", "no"]}\n'
    assert upload(manager, f"/add/{campaign.id}", "more.jsonl", more, phase="work").status_code == 303
    assert len(quality.slices(store, campaign.id)) == 4  # three were there already
    again = manager.post("/new", data=given, files=files)
    assert again.status_code == 409
    assert "Be kind." in again.text  # what was filled in is still there


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", GOOD + b'{"prompt": "P", "completions": ["one"]}\n', "rows.jsonl:4: "),
        ("rows.jsonl", b"not json\n", "rows.jsonl:1: "),
        ("rows.jsonl", b"", "Choose a file"),
        ("<i>.jsonl", b"\xff\xfe\x00", "&lt;i&gt;.jsonl"),
        ("rows.parquet", b"PAR1 no", "rows.parquet"),
        ("rows.jsonl.gz", b"\x1f\x8b", "unknown kind of file"),
        ("../../x.exe", b"MZ", "unknown kind of file"),
        ("", b"", "Choose a file"),
    ],
)
def test_what_is_wrong_with_an_upload(manager: TestClient, store: Store, name: str, content: bytes, said: str) -> None:
    found = upload(manager, "/new", name, content, name="fresh", overlap="2")
    assert found.status_code == 422
    assert said in found.text
    assert "/tmp" not in found.text
    assert [each.name for each in campaigns.listing(store)] == ["helpful"]


def test_wrong_settings_and_too_much(manager: TestClient, store: Store) -> None:
    found = upload(manager, "/new", "r.jsonl", GOOD, name="", overlap="0", until_agreement="0.9")
    assert found.status_code == 422
    assert beside(found.text) == {"overlap": "must be 1 or more"}
    assert 'name="until_agreement" value="0.9"' in found.text
    big = manager.post("/new", content=b"x", headers={"Content-Length": str(70 << 20)})
    assert big.status_code == 413
    assert [each.name for each in campaigns.listing(store)] == ["helpful"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_overlap": "3"}, {"max_overlap": "says how far asking more people may go"}),
        ({"until_agreement": "0.8", "overlap": "1"}, {"until_agreement": "needs two labels or more"}),
        ({"until_agreement": "0.5"}, {"until_agreement": "must be more than 0.5"}),
        ({"until_agreement": "0.8", "overlap": "4", "max_overlap": "3"}, {"max_overlap": "less than the 4 labels"}),
        ({"quotas": "language: en = 0"}, {"quotas": "1 or more"}),
        ({"quotas": "language: en"}, {"quotas": "must be a whole number"}),
        ({"flags": "wrong, wrong"}, {"flags": "named once"}),
        ({"training": "1", "qualification": "2"}, {"training": "only 0", "qualification": "only 0"}),
        ({"training": "x", "deadline": "soon"}, {"training": "a whole number", "deadline": "a date and a time"}),
        ({"name": "helpful"}, {"name": "there is a campaign named"}),
        ({"lock_minutes": "0", "name": "x"}, {"lock_minutes": "must be more than 0"}),
    ],
)
def test_what_is_wrong_stands_beside_its_field(
    manager: TestClient, store: Store, fields: dict[str, str], said: dict[str, str]
) -> None:
    given = {"name": "fresh", "overlap": "2", "rubric": "tone: Is it warm?", **fields}
    found = upload(manager, "/new", "r.jsonl", GOOD, **given)
    assert found.status_code in (409, 422)
    told = beside(found.text)
    assert told.keys() == said.keys()
    for name, part in said.items():
        assert part in told[name]
    for name, text in given.items():  # what was typed is kept
        assert f'name="{name}" value="{text}"' in found.text or f">\n{text}</textarea>" in found.text, name
    assert [each.name for each in campaigns.listing(store)] == ["helpful"]


def test_all_rules_of_a_campaign_can_be_set(manager: TestClient, store: Store) -> None:
    """Those a form fills in are those the settings have; `seed` alone is not for people."""
    fields = {
        "name": "all", "overlap": "2", "strength": "1", "blind": "", "flags": "rude", "rubric": "tone: Warm?",
        "at_once": "2", "until_agreement": "0.75", "max_overlap": "5", "max_skips": "2", "gold_share": "0.25",
        "gold_pause_below": "0.5", "gold_window": "8", "training": "1", "qualification": "2",
        "qualification_pass": "0.5", "quotas": "language: en = 2, zh = 1\nlength: long = 1", "languages": "en, zh",
        "pay_per_hour": "18.5", "budget": "900", "deadline": "2031-05-06T07:08", "lock_minutes": "7.5",
    }  # fmt: skip
    assert fields.keys() == (CampaignSettings.model_fields.keys() - {"seed"})
    known = b"".join(b'{"prompt": "K%d", "completions": ["yes", "no"], "gold": [0, 1]}\n' % i for i in range(2))
    files = {
        "items": ("r.jsonl", GOOD),
        "training_items": ("t.jsonl", known),
        "qualification_items": ("q.jsonl", known),
    }
    given = {"csrf": manager.headers["X-CSRF-Token"], **fields}
    assert manager.post("/new", data=given, files=files).status_code == 303
    made = campaigns.get(store, "all")
    assert made.settings == CampaignSettings(
        name="all", overlap=2, strength=True, blind=False, flags=("rude",), rubric={"tone": "Warm?"}, at_once=2,
        until_agreement=0.75, max_overlap=5, max_skips=2, gold_share=0.25, gold_pause_below=0.5, gold_window=8,
        training=1, qualification=2, qualification_pass=0.5, languages=("en", "zh"), pay_per_hour=18.5, budget=900,
        quotas={"language": {"en": 2, "zh": 1}, "length": {"long": 1}}, lock_minutes=7.5,
        deadline=datetime(2031, 5, 6, 7, 8, tzinfo=UTC),
    )  # fmt: skip
    assert progress(store, made.id).spare == 1  # of three English items two are wanted: quotas cut by their own columns
    assert typed(made.settings) == Typed(**{k: v for k, v in fields.items() if k != "name"})
    saved = {name: getattr(typed(made.settings), name) for name in fields if name != "name"}
    assert post(manager, f"/c/{made.id}/rules", **saved).status_code == 303  # saved as it stands there, nothing changes
    assert campaigns.get(store, made.id).settings == made.settings


def test_a_rule_that_the_form_cannot_hold_stays_until_it_is_edited(manager: TestClient, store: Store) -> None:
    """Rules of a campaign file may hold what a form writes otherwise: saving another rule leaves them alone."""
    settings = CampaignSettings(
        name="filed", rubric={"tone": "Is it warm?\nAnd: kind?\n", "a: b": "Both?"}, flags=("a, b", "two\nlines"),
        languages=("zh, Hant",), deadline=datetime(2031, 5, 6, 7, 8, 9, 10, tzinfo=UTC), pay_per_hour=1 / 3,
        lock_minutes=0.1 + 0.2,
    )  # fmt: skip
    made = campaigns.create(store, settings, [item("Q?", "a", "b")])

    def as_sent(name: str, text: str) -> str:
        """Browsers send a text area's line ends as CR LF, and take them out of a field of one line."""
        return text.replace("\n", "\r\n" if name in ("rubric", "quotas") else "")

    fields = {name: as_sent(name, getattr(typed(settings), name)) for name in Typed.__dataclass_fields__}
    assert post(manager, f"/c/{made.id}/rules", **fields).status_code == 303
    assert campaigns.get(store, made.id).settings == settings
    assert post(manager, f"/c/{made.id}/rules", **(fields | {"budget": "70", "strength": ""})).status_code == 303
    now = settings.model_copy(update={"budget": 70.0, "strength": False})
    assert campaigns.get(store, made.id).settings == now
    edited = fields | {"budget": "70", "strength": "", "deadline": "2031-05-06T07:09", "flags": "rude", "languages": ""}
    assert post(manager, f"/c/{made.id}/rules", **edited).status_code == 303
    later = {"deadline": datetime(2031, 5, 6, 7, 9, tzinfo=UTC), "flags": ("rude",), "languages": ()}
    assert campaigns.get(store, made.id).settings == now.model_copy(update=later)


def test_what_another_manager_saved_meanwhile_is_not_overwritten(
    visit: Visit, manager: TestClient, labelled: Campaign, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def form() -> dict[str, str]:
        """The fields as a browser sends them back."""
        shown = re.search(r'action="/c/1/rules".*?</form>', manager.get("/c/1").text, re.DOTALL)
        assert shown is not None
        [opened] = re.findall(r'name="opened" value="([^"]*)"', shown[0])
        return asdict(typed(campaigns.get(store, labelled.id).settings)) | {"opened": unescape(opened)}

    first, other = form(), visit("moe", "manager")
    theirs = first | {"budget": "80", "gold_share": "0.25", "strength": "", "rubric": "tone: Warm?\r\nfacts: <b>True?"}
    assert post(other, "/c/1/rules", **theirs).status_code == 303
    told = post(manager, "/c/1/rules", **first | {"budget": "70", "lock_minutes": "9"})
    assert told.status_code == 409
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td></tr>',
                      told.text)  # fmt: skip
    nothing = '<span class="hint">nothing</span>'
    assert rows == [
        ("Ask how much better an answer is", "no", nothing, "yes"),
        ("Scores from 1 to 5, one a line: name: what is rated", "tone: Warm?<br>facts: &lt;b&gt;True?", nothing, "–"),
        ("Share of tasks with a known answer, 0 to 0.5", "0.25", nothing, "0.1"),
        ("Budget, in the same money", "80", "70", "–"),
    ]
    now = campaigns.get(store, labelled.id).settings
    assert (now.budget, now.gold_share, now.strength, now.lock_minutes) == (80, 0.25, False, 20)
    # What was typed is kept, what was left alone shows what holds, and saved again it is what both wanted.
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', told.text))
    assert (fields["budget"], fields["lock_minutes"], fields["gold_share"]) == ("70", "9", "0.25")
    again = form() | {"budget": "70", "lock_minutes": "9"}
    assert unescape(fields["opened"]) == again["opened"]
    assert post(manager, "/c/1/rules", **again).status_code == 303
    now = campaigns.get(store, labelled.id).settings
    assert (now.budget, now.gold_share, now.strength, now.lock_minutes) == (70, 0.25, False, 9)
    assert list(now.rubric) == ["tone", "facts"]
    # A third saves between the comparison and the page: it shows what was compared, in the fields and in `opened`.
    stale, real = form(), overview.kept

    def in_between(*given: Any) -> Any:
        campaigns.change(store, labelled.id, {"budget": 30.0})
        return real(*given)

    campaigns.change(store, labelled.id, {"budget": 20.0})
    monkeypatch.setattr(overview, "kept", in_between)
    told = post(manager, "/c/1/rules", **stale | {"lock_minutes": "8"})
    monkeypatch.setattr(overview, "kept", real)
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', told.text))
    assert (fields["budget"], json.loads(unescape(fields["opened"]))["budget"]) == ("20", "20")
    assert campaigns.get(store, labelled.id).settings.budget == 30
    # Who saves what the other saved too has nothing to be told.
    alike = form() | {"budget": "60"}
    for client in (other, manager):
        assert post(client, "/c/1/rules", **alike).status_code == 303
    for broken in ("{", "[1]", "[" * 200_000, '{"budget": 5}'):
        assert post(manager, "/c/1/rules", **alike | {"opened": broken}).status_code == 303


def test_rules_are_changed_after_those_that_were_edited(labelled: Campaign, store: Store) -> None:
    edited = labelled.settings
    campaigns.change(store, labelled.id, {"budget": 80}, after=edited)
    with pytest.raises(ConflictError, match="changed while they were edited"):
        campaigns.change(store, labelled.id, {"pay_per_hour": 20}, after=edited)
    assert campaigns.change(store, labelled.id, {"pay_per_hour": 20}).settings.budget == 80


def test_quotas_are_kept_whatever_slices_are_named(manager: TestClient, store: Store) -> None:
    rows = [{"prompt": f"P{i}", "completions": ["yes", "no"], "language": "en", "kind": "x"} for i in range(5)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    fields = {"overlap": "2", "quotas": "language: en = 2"}
    for name, slices in (("bare", ""), ("named", "kind"), ("both", "language, kind")):
        made = upload(manager, "/new", "r.jsonl", b"".join(lines[:3]), name=name, slices=slices, **fields)
        assert made.status_code == 303
        campaign = campaigns.get(store, name)
        assert progress(store, campaign.id).spare == 1  # three of which two are wanted
        # Once more into the same campaign: its quotas are full, so both go into the reserve.
        more = upload(manager, f"/add/{campaign.id}", "m.jsonl", b"".join(lines[3:]), slices=slices, phase="work")
        assert more.status_code == 303
        assert progress(store, campaign.id).spare == 3
    assert quality.slices(store, campaigns.get(store, "named").id) == [{"kind": "x", "language": "en"}] * 5


def test_the_log(manager: TestClient, labelled: Campaign, store: Store) -> None:
    other = campaigns.create(store, CampaignSettings(name="other"), [item("Q?", "a", "b")])
    post(manager, f"/c/{labelled.id}/state", state="paused")
    post(manager, f"/c/{other.id}/state", state="closed")
    text = manager.get(f"/c/{labelled.id}/audit").text
    assert "changed the state" in text
    assert re.search(r">from</span> <bdi>open</bdi>.*>to</span> <bdi>paused</bdi>", text)
    assert re.search(
        r"joined</td><td class=\"what\"><span class=\"pair\"><span class=\"hint\">person</span> <bdi>zed<", text
    )
    assert "closed" not in text  # what was done in the other campaign
    assert "made an account" not in text
    every = manager.get(f"/c/{labelled.id}/audit?show=all").text
    assert "closed" in every
    assert "made an account" in every
    newest = audit.entries(store, limit=1, campaign=labelled.id)[0]
    assert newest.person == "mia"
    assert "changed the state" not in manager.get(f"/c/{labelled.id}/audit?before={newest.id}").text


def test_every_action_and_what_is_told_of_it_has_words(store: Store) -> None:
    """What the store notes is found in its source: an action without words would be shown in English everywhere."""
    source = "".join(path.read_text() for path in Path(campaigns.__file__).parent.glob("*.py"))
    actions = set(re.findall(r'note\(\s*connection,\s*[\w.]+,\s*"([a-z ]+)"', source))
    assert {"invite", "gold pause", "create campaign", "adjudicate"} <= actions
    chinese = Words.of("zh-Hant").table
    assert [action for action in actions if f"done.{action.replace(' ', '_')}" not in chinese] == []


def test_a_change_of_rules_notes_what_changed_alone(labelled: Campaign, store: Store) -> None:
    campaigns.change(store, labelled.id, {"budget": 5.0, "gold_share": labelled.settings.gold_share})
    assert audit.entries(store, limit=1)[0].what == {"campaign": labelled.id, "budget": 5.0}
    count = len(audit.entries(store))
    campaigns.change(store, labelled.id, {"budget": 5.0})
    assert len(audit.entries(store)) == count


def test_in_chinese(visit: Visit, labelled: Campaign, store: Store) -> None:
    mei = visit("mei", "manager")
    mei.headers["Accept-Language"] = "zh-TW"
    assert "一致程度" in mei.get(f"/c/{labelled.id}/agreement").text
    assert logins.open_invites(store) == []


def test_what_two_ask_for_at_once_is_computed_once(
    labelled: Campaign, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def slow(*given: Any) -> str:
        made.append(1)
        time.sleep(0.3)
        return "found"

    monkeypatch.setattr(quality, "_agreement", slow)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: quality.agreement_of(store, labelled.id), range(3)))
    assert found == ["found"] * 3
    assert len(made) == 1


def test_a_column_of_free_text_is_cut_to_its_largest_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_MOST_VALUES", 2)
    assert quality._largest(["a", "b", "b", None, "c", "c"]) == [None, "b", "b", None, "c", "c"]


def test_an_open_invitation_can_be_revoked(manager: TestClient, labelled: Campaign, store: Store, visit: Visit) -> None:
    token = logins.invite(store, campaign=labelled.id, name="zoe")
    other = logins.invite(store, campaign=labelled.id)
    page = manager.get(f"/c/{labelled.id}/people").text
    assert token not in page
    address = re.findall(r'action="(/c/1/invites/\w+/revoke)"', page)[-1]  # the oldest comes last
    assert post(manager, address).status_code == 303
    assert visit().get(f"/invite/{token}").status_code == 404
    assert visit().get(f"/invite/{other}").status_code == 200
    assert post(manager, address).status_code == 404
    assert [each.name for each in logins.open_invites(store)] == [None]
    assert audit.entries(store, limit=1)[0].action == "revoke invite"


@pytest.mark.parametrize("ends", [people.disable, lambda store, lea: people.change_role(store, lea, "adjudicator")])
def test_links_of_who_is_no_manager_any_more_work_no_more(
    labelled: Campaign, store: Store, visit: Visit, ends: Callable[[Store, int], None]
) -> None:
    visit("mia", "manager")
    lea = people.add_person(store, "lea", "manager")
    token = logins.invite(store, "manager", campaign=labelled.id, by=lea.id)
    assert visit().get(f"/invite/{token}").status_code == 200
    assert len(logins.open_invites(store)) == 1
    ends(store, lea.id)
    assert visit().get(f"/invite/{token}").status_code == 404
    assert logins.open_invites(store) == []
    with pytest.raises(MissingError):
        logins.accept(store, token, "eve", "a long enough one")
