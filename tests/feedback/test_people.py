"""People, roles, ways in, what is logged and what is forgotten."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import audit, guidelines, logins, passwords, people
from goodheart.feedback.assignment import save_draft, skip
from goodheart.feedback.labels import Answered, history, save
from goodheart.feedback.store import Store, utcnow
from tests.feedback.making import campaign, task

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
    assert people.member(store, made.id, ann.id) is not None
    assert people.campaigns_of(store, ann.id) == [made.id]
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
    people.set_member(store, made.id, person, "paused", "too fast", by=boss.id)
    guidelines.add_version(store, made.id, "new text", by=boss.id)
    found = audit.entries(store, person=boss.id)
    assert [entry.action for entry in found] == ["edit guidelines", "set member"]
    assert found[1].what["reason"] == "too fast"
    assert found[1].person == "boss"
    assert audit.entries(store, before=found[1].id, person=boss.id) == []


def test_an_erased_person_leaves_labels_without_a_name(store: Store) -> None:
    made, _ = campaign(store)
    ann = people.add_person(store, "Ann Example", password=PASSWORD, attributes={"culture": "x"})
    people.join(store, made.id, ann.id, by=ann.id)
    found = task(store, made.id, ann.id)
    save(store, found.id, ann.id, Answered([0, 1], comment="I, Ann Example, say so"))
    skip(store, task(store, made.id, ann.id).id, ann.id, "Ann Example is tired")
    save_draft(store, task(store, made.id, ann.id).id, ann.id, {"comment": "Ann Example"})
    logins.log_in(store, "Ann Example", PASSWORD)
    told = people.export_person(store, ann.id)
    assert json.loads(json.dumps(told))["labels"][0]["comment"] == "I, Ann Example, say so"
    assert "scrypt" not in json.dumps(told)
    people.erase(store, ann.id)
    with store.read() as connection:
        for table in ("people", "sessions", "invites", "audit", "labels", "assignments", "members", "campaigns"):
            assert "Ann Example" not in str(connection.exec_driver_sql(f"SELECT * FROM {table}").all()), table
    (label,) = history(store, found.item)
    assert label.ranks == (0, 1)
    assert label.name == f"erased-{ann.id}"


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
