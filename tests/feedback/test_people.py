"""People, roles, ways in, what is logged and what is forgotten."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from goodheart.data.records import Answer, Judgement, Prompt
from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import audit, guidelines, logins, membership, passwords, people, personal_data
from goodheart.feedback.answered import Answered
from goodheart.feedback.campaigns import CampaignSettings, create
from goodheart.feedback.exporting import judgements
from goodheart.feedback.importing import import_judgements
from goodheart.feedback.label_rows import history
from goodheart.feedback.labels import save
from goodheart.feedback.store import Store, utcnow
from goodheart.feedback.tables import people as people_table
from goodheart.feedback.tasks import save_draft, skip
from tests.feedback.making import campaign, pairs, task

PASSWORD = "correct horse battery"


def test_passwords_are_hashed_with_salt() -> None:
    first, second = passwords.hash_password(PASSWORD), passwords.hash_password(PASSWORD)
    assert first != second
    assert PASSWORD not in first
    assert passwords.is_password(PASSWORD, first)
    assert not passwords.is_password(PASSWORD + "x", first)
    assert not passwords.is_password(PASSWORD, None)


def test_the_hash_is_scrypt() -> None:
    # RFC 7914, section 12, second vector: scrypt("password", "NaCl", N=1024, r=8, p=16), first bytes fdbabe1c9d34...
    assert passwords._scrypt("password", b"NaCl", 1024, 8, 16).hex().startswith("fdbabe1c9d347200")


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb", "a\u202eb", "a\0b", "a\ud800"])
def test_names_that_do_not_show_are_refused(store: Store, name: str) -> None:
    with pytest.raises(FeedbackError, match="a name has"):
        people.add_person(store, name)
    assert people.find_person(store, name) is None


def test_names_are_unique_in_normal_form(store: Store) -> None:
    people.add_person(store, "Zoe\u0301 ")  # e and a combining accent
    with pytest.raises(ConflictError, match="named 'Zoé' already"):
        people.add_person(store, "Zoé")
    found = people.find_person(store, "Zoe\u0301")
    assert found is not None
    assert found.name == "Zoé"


def test_roles_contain_each_other(store: Store) -> None:
    boss = people.add_person(store, "boss", "manager")
    labeller = people.add_person(store, "labeller")
    assert boss.may("labeller")
    assert boss.may("manager")
    assert not labeller.may("adjudicator")
    people.change_role(store, labeller.id, "adjudicator", by=boss.id)
    assert people.get_person(store, labeller.id).may("adjudicator")
    with pytest.raises(FeedbackError, match="no role"):
        people.change_role(store, labeller.id, "king", by=boss.id)
    with pytest.raises(FeedbackError, match="only manager"):
        people.change_role(store, boss.id, "labeller", by=boss.id)
    with pytest.raises(FeedbackError, match="only manager"):
        people.disable(store, boss.id)


def test_an_invitation_works_once(store: Store) -> None:
    made, _ = campaign(store)
    boss = people.add_person(store, "boss", "manager")
    token = logins.invite(store, campaign=made.id, by=boss.id)
    assert logins.look_up(store, token).role == "labeller"
    with pytest.raises(FeedbackError, match="at least 10"):
        logins.accept(store, token, "Ann", "short")
    ann = logins.accept(store, token, "Ann", PASSWORD, language="zh-Hant")
    assert membership.member(store, made.id, ann.id) is not None
    assert membership.campaigns_of(store, ann.id) == [made.id]
    for use in (lambda: logins.look_up(store, token), lambda: logins.accept(store, token, "Bob", PASSWORD)):
        with pytest.raises(MissingError, match="does not work"):
            use()
    assert people.find_person(store, "Bob") is None


def test_an_invitation_gets_old_and_can_fix_the_name(store: Store) -> None:
    now = utcnow()
    token = logins.invite(store, "adjudicator", name="Eve", days=2, now=now)
    with pytest.raises(MissingError):
        logins.accept(store, token, "Eve", PASSWORD, now=now + timedelta(days=2))
    assert len(logins.open_invites(store, now=now)) == 1
    eve = logins.accept(store, token, "Mallory", PASSWORD, now=now + timedelta(days=1))
    assert (eve.name, eve.role) == ("Eve", "adjudicator")


def test_a_taken_name_leaves_the_invitation_open(store: Store) -> None:
    people.add_person(store, "Ann")
    token = logins.invite(store)
    with pytest.raises(ConflictError):
        logins.accept(store, token, "Ann", PASSWORD)
    assert logins.accept(store, token, "Ann 2", PASSWORD).name == "Ann 2"


def test_sessions_open_and_end(store: Store) -> None:
    ann = people.add_person(store, "Ann", password=PASSWORD)
    now = utcnow()
    opened = logins.log_in(store, " Ann ", PASSWORD, now=now)
    found = logins.session(store, opened.token, now=now)
    assert found is not None
    assert found.person.id == ann.id
    assert found.csrf == opened.csrf
    assert found.token == ""
    assert logins.session(store, opened.token, now=now + timedelta(days=logins.SESSION_DAYS)) is None
    assert logins.session(store, "guess\ud800") is None
    logins.log_out(store, opened.token)
    assert logins.session(store, opened.token) is None
    for end in (lambda: people.set_password(store, ann.id, PASSWORD), lambda: people.disable(store, ann.id)):
        opened = logins.log_in(store, "Ann", PASSWORD)
        end()
        assert logins.session(store, opened.token) is None
    with pytest.raises(FeedbackError, match="wrong"):
        logins.log_in(store, "Ann", PASSWORD)
    people.enable(store, ann.id)
    logins.log_in(store, "Ann", PASSWORD)


def test_tokens_and_passwords_are_not_in_the_database(store: Store) -> None:
    people.add_person(store, "Ann", password=PASSWORD)
    opened, token = logins.log_in(store, "Ann", PASSWORD), logins.invite(store)
    with store.read() as connection:
        for table in ("people", "sessions", "invites", "audit"):
            rows = str(connection.exec_driver_sql(f"SELECT * FROM {table}").all())
            assert PASSWORD not in rows
            assert opened.token not in rows
            assert token not in rows


def test_guessing_is_slowed_down(store: Store) -> None:
    people.add_person(store, "Ann", password=PASSWORD)
    people.add_person(store, "Bob", password=PASSWORD)
    now = utcnow()
    for _ in range(logins.MOST_BY_NAME):
        with pytest.raises(FeedbackError, match="wrong"):
            logins.log_in(store, "ann" if _ % 2 else "Ann", "wrong", address="a", now=now)
    with pytest.raises(logins.TooMany):
        logins.log_in(store, "Ann", PASSWORD, address="b", now=now)
    logins.log_in(store, "Bob", PASSWORD, address="a", now=now)
    logins.log_in(store, "Ann", PASSWORD, address="b", now=now + logins.WINDOW + timedelta(seconds=1))


def test_guessing_from_one_address_is_slowed_down(store: Store) -> None:
    people.add_person(store, "Bob", password=PASSWORD)
    now = utcnow()
    for i in range(logins.MOST_BY_ADDRESS):
        with pytest.raises(FeedbackError, match="wrong"):
            logins.log_in(store, f"guess \0 {i}", "wrong", address="a", now=now)
    with pytest.raises(logins.TooMany):
        logins.log_in(store, "Bob", PASSWORD, address="a", now=now)


def test_managers_are_logged(store: Store) -> None:
    made, (person,) = campaign(store)
    boss = people.add_person(store, "boss", "manager")
    membership.set_member(store, made.id, person, "paused", "too fast", by=boss.id)
    guidelines.add_version(store, made.id, "new text", by=boss.id)
    found = audit.entries(store, person=boss.id)
    assert [entry.action for entry in found] == ["edit guidelines", "set member"]
    assert found[1].what["reason"] == "too fast"
    assert found[1].person == "boss"
    assert audit.entries(store, before=found[1].id, person=boss.id) == []


def test_an_erased_person_leaves_labels_without_a_name(store: Store) -> None:
    made, _ = campaign(store)
    ann = people.add_person(store, "Ann Example", password=PASSWORD, attributes={"culture": "x"})
    membership.join(store, made.id, ann.id, by=ann.id)
    found = task(store, made.id, ann.id)
    save(store, found.id, ann.id, Answered([0, 1], comment="I, Ann Example, say so"))
    skip(store, task(store, made.id, ann.id).id, ann.id, "Ann Example is tired")
    save_draft(store, task(store, made.id, ann.id).id, ann.id, {"comment": "Ann Example"})
    logins.log_in(store, "Ann Example", PASSWORD)
    told = personal_data.export_person(store, ann.id)
    assert json.loads(json.dumps(told))["labels"][0]["comment"] == "I, Ann Example, say so"
    assert "scrypt" not in json.dumps(told)
    personal_data.erase(store, ann.id)
    with store.read() as connection:
        for table in ("people", "sessions", "invites", "audit", "labels", "assignments", "members", "campaigns"):
            assert "Ann Example" not in str(connection.exec_driver_sql(f"SELECT * FROM {table}").all()), table
    (label,) = history(store, found.item)
    assert label.ranks == (0, 1)
    assert label.name == f"erased-{ann.id}"


def test_of_imported_labels_only_the_person_is_erased(store: Store) -> None:
    made, _ = campaign(store)
    given = Judgement(
        Prompt(text="q"), (Answer("x"), Answer("y")), (0, 1), rater="Ann", weight=0.5, margin=2.0, probability=0.75,
        item_id="i7", rater_attributes={"culture": "x"},
    )  # fmt: skip
    later = replace(given, prompt=Prompt(text="r"), rater_attributes={"culture": "secret"})
    import_judgements(store, made.id, [given, later])
    ann = people.find_person(store, "Ann")
    assert ann is not None
    personal_data.erase(store, ann.id)
    for found in judgements(store, made.id):
        assert (found.weight, found.margin, found.probability, found.item_id) == (0.5, 2.0, 0.75, "i7")
        assert found.rater_attributes == {}
    with store.read() as connection:
        assert "secret" not in str(connection.exec_driver_sql("SELECT * FROM labels").all())


def test_the_log_forgets_words_about_an_erased_person_and_nothing_else(store: Store) -> None:
    boss = people.add_person(store, "boss", "manager")
    ann = people.add_person(store, "labeller", by=boss.id)  # named like a role
    other = people.add_person(store, "Bo", by=boss.id)
    made, _ = campaign(store)
    for person in (ann, other):
        membership.join(store, made.id, person.id)
        membership.set_member(store, made.id, person.id, "paused", f"{person.name} is tired", by=boss.id)
    logins.invite(store, name="labeller", by=boss.id)
    personal_data.erase(store, ann.id, by=boss.id)
    by_action: dict[str, list[dict[str, Any]]] = {}
    for entry in reversed(audit.entries(store, person=boss.id)):
        by_action.setdefault(entry.action, []).append(dict(entry.what))
    assert [(what["name"], what["role"]) for what in by_action["add person"]] == [
        (f"erased-{ann.id}", "labeller"), ("Bo", "labeller"),
    ]  # fmt: skip
    assert [what.get("reason") for what in by_action["set member"]] == [None, "Bo is tired"]
    assert [what["name"] for what in by_action["invite"]] == [f"erased-{ann.id}"]


def test_what_somebody_reads_of_themselves_tells_no_gold_and_no_models(store: Store) -> None:
    made, (person,) = campaign(store, 6, gold=6, gold_share=0.5, seed=1)
    for _ in range(6):
        save(store, task(store, made.id, person).id, person, Answered([0, 1]))
    told = personal_data.export_person(store, person)
    assert len(told["labels"]) == len(told["items"]) == 6
    assert told["items"][0]["answers"][0]["text"].startswith("answer 0 of")
    words = json.dumps(told)
    for hidden in ("gold", "m0", "turns", "cursor"):
        assert f'"{hidden}' not in words
    seen, _ = campaign_with_models(store)
    assert '"m0"' in json.dumps(personal_data.export_person(store, seen))


def campaign_with_models(store: Store) -> tuple[int, int]:
    """A person who labelled in a campaign that is not blind."""
    made = create(store, CampaignSettings(name="seen", blind=False), pairs(1), "?")
    person = people.add_person(store, "sees models").id
    membership.join(store, made.id, person)
    save(store, task(store, made.id, person).id, person, Answered([0, 1]))
    return person, made.id


def at_once(*calls: Callable[[], object]) -> list[Exception]:
    """Runs the calls at the same moment; returns what they raised."""
    start, raised = threading.Barrier(len(calls)), []

    def run(call: Callable[[], object]) -> None:
        start.wait()
        try:
            call()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_two_managers_who_demote_each_other_leave_one(store: Store) -> None:
    for turn in range(5):
        one, two = (people.add_person(store, f"boss {turn} {k}", "manager").id for k in range(2))
        raised = at_once(lambda: people.change_role(store, one, "labeller"), lambda: people.disable(store, two))  # noqa: B023
        assert [type(error) for error in raised] == [FeedbackError]
        (left,) = (each for each in people.listing(store) if each.may("manager"))
        with store.begin() as connection:  # nobody is manager when the next turn begins
            connection.execute(update(people_table).where(people_table.c.id == left.id).values(role="labeller"))


def test_joining_and_editing_at_once_is_no_error(store: Store) -> None:
    made, _ = campaign(store)
    for turn in range(5):
        person = people.add_person(store, f"late {turn}").id
        assert not at_once(*[lambda: membership.join(store, made.id, person)] * 4)  # noqa: B023
    assert not at_once(*[lambda: guidelines.add_version(store, made.id, "x")] * 4)
    assert [each.version for each in guidelines.versions(store, made.id)] == [1, 2, 3, 4, 5]
    assert [entry.action for entry in audit.entries(store)].count("join") == 1 + 5


def test_failures_are_counted_for_every_way_to_write_a_name(store: Store) -> None:
    people.add_person(store, "Zo\u00eb", password=PASSWORD)
    now = utcnow()
    ways = ("Zo\u00eb", "Zoe\u0308", " zoe\u0308")
    for turn in range(logins.MOST_BY_NAME):
        with pytest.raises(FeedbackError, match="wrong"):
            logins.log_in(store, ways[turn % 3], "wrong", address=f"{turn}", now=now)
    for name in ways[:2]:
        with pytest.raises(logins.TooMany):
            logins.log_in(store, name, PASSWORD, address="b", now=now)


def test_ids_that_cannot_be_are_missing(store: Store) -> None:
    for number in (0, -1, 2**31, 10**30):
        with pytest.raises(MissingError):
            people.get_person(store, number)


def test_guidelines_are_only_added_to(store: Store) -> None:
    made, (person,) = campaign(store)
    assert guidelines.current(store, made.id).text == "Which helps more?"
    assert guidelines.add_version(store, made.id, "Which helps more?\nBe kind.", note="kindness", after=1) == 2
    with pytest.raises(ConflictError, match="version 2 was added while version 1"):
        guidelines.add_version(store, made.id, "mine", after=1)
    assert [(v.version, v.name, v.note) for v in guidelines.versions(store, made.id)] == [
        (1, "1", None),
        (2, "2", "kindness"),
    ]
    first, second = guidelines.versions(store, made.id)
    assert guidelines.diff(first.text, second.text) == [("same", "Which helps more?"), ("new", "Be kind.")]
    found = task(store, made.id, person)
    save(store, found.id, person, Answered([0, 1]))
    guidelines.add_version(store, made.id, "third")
    save(store, found.id, person, Answered([1, 0]))
    versions = [v.id for v in guidelines.versions(store, made.id)]
    assert [row.guideline for row in history(store, found.item)] == [versions[1], versions[2]]
    with pytest.raises(MissingError):
        guidelines.current(store, made.id + 1)
