"""Who may do what: log-in, roles, CSRF, other hosts and origins, guessed ids, headers."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.routing import Mount

from goodheart.data.records import Answer, Message, Prompt
from goodheart.errors import ConfigError
from goodheart.feedback import campaigns, label_rows, logins, passwords, people
from goodheart.feedback.campaigns import Campaign, CampaignSettings
from goodheart.feedback.items import NewItem
from goodheart.feedback.store import Store, utcnow
from goodheart.studio.app import create_app, serve
from goodheart.studio.security import Limit
from tests.studio.conftest import PASSWORD, item, pairs

Visit = Callable[..., TestClient]
ANSWER: dict[str, Any] = {"request": "request-1", "ranks": [0, 1], "seconds": 3.5}


def token_of(html: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', html)
    assert found
    return found[1]


def log_in(client: TestClient, name: str, password: str, **more: str) -> Any:
    csrf = token_of(client.get("/login").text)
    return client.post("/login", data={"name": name, "password": password, "csrf": csrf, **more})


def routes(store: Store) -> list[tuple[str, str]]:
    """Every method and address of the application, with 1 for its numbers."""
    schema = create_app(store, single_user=False).openapi()
    found = []
    for path, methods in schema["paths"].items():
        found += [(method.upper(), re.sub(r"\{\w+\}", "1", path)) for method in methods]
    return found


OPEN = {"/login", "/logout", "/language", "/invite/1"}  # what somebody who is not logged in may ask for


def test_strangers_get_nothing(store: Store, campaign: Campaign, visit: Visit) -> None:
    client = visit()
    asked = [(method, path) for method, path in routes(store) if path not in OPEN]
    assert len(asked) > 10
    for method, path in asked:
        response = client.request(method, path)
        if path.startswith("/api/"):
            assert response.status_code in (401, 403), (method, path)
            assert response.json()["error"]["code"]
        elif method == "GET":
            assert (response.status_code, response.headers["location"][:6]) == (303, "/login"), path
        else:
            assert response.status_code in (303, 403), path


def test_every_write_needs_the_token_of_the_session(store: Store, campaign: Campaign, visit: Visit) -> None:
    anna, ben = visit("anna", "manager", campaign.id), visit("ben", campaign=campaign.id)
    writes = [(method, path) for method, path in routes(store) if method != "GET"]
    assert len(writes) > 5
    task = anna.get(f"/api/c/{campaign.id}/task").json()["task"]["id"]
    for token in (None, "wrong", ben.headers["X-CSRF-Token"], "Ω" * 9):
        anna.headers.pop("X-CSRF-Token", None)
        headers = {} if token is None else {"X-CSRF-Token": token.encode()}
        for method, path in writes:
            body = {"data": {"csrf": token}} if not path.startswith("/api/") else {"json": ANSWER}
            response = anna.request(method, path.replace("tasks/1", f"tasks/{task}"), headers=headers, **body)
            assert response.status_code == 403, (method, path, token)
    assert list(label_rows.live_labels(store, campaign.id)) == []


def test_log_in_and_out(store: Store, visit: Visit) -> None:
    people.add_person(store, "anna", password=PASSWORD)
    client = visit()
    assert log_in(client, "anna", "wrong password").status_code == 422
    assert log_in(client, "nobody", PASSWORD).status_code == 422
    response = log_in(client, "anna", PASSWORD, next="/settings")
    assert (response.status_code, response.headers["location"]) == (303, "/settings")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    kept = client.cookies["goodheart_session"]
    page = client.get("/")
    assert page.status_code == 200
    assert client.post("/logout", data={"csrf": token_of(page.text)}).status_code == 303
    client.cookies.set("goodheart_session", kept)  # the session is over on the server, too
    assert client.get("/").status_code == 303


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", "\n//x"]
)
def test_log_in_leads_nowhere_else(store: Store, visit: Visit, elsewhere: str) -> None:
    people.add_person(store, "anna", password=PASSWORD)
    assert log_in(visit(), "anna", PASSWORD, next=elsewhere).headers["location"] == "/"


def test_cookies_are_secure_over_https(store: Store) -> None:
    with TestClient(create_app(store, single_user=False), base_url="https://studio.test") as client:
        response = client.get("/login")
    assert "Secure" in response.headers["set-cookie"]
    assert "max-age" in response.headers["strict-transport-security"]


def test_guessing_passwords_is_slowed_down(store: Store, visit: Visit) -> None:
    people.add_person(store, "anna", password=PASSWORD)
    client = visit()
    statuses = [log_in(client, "anna", f"guess number {i}").status_code for i in range(logins.MOST_BY_NAME + 1)]
    assert statuses == [422] * logins.MOST_BY_NAME + [429]
    assert log_in(client, "anna", PASSWORD).status_code == 429  # the right one, too: else the limit would tell


def test_guessing_invitations_is_slowed_down(visit: Visit) -> None:
    client = visit()
    statuses = [client.get(f"/invite/{i}").status_code for i in range(40)]
    assert statuses[:30] == [404] * 30
    assert statuses[-1] == 429


def test_dead_invitations_cost_no_hash_and_are_limited(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(logins, "hash_password", hashed.append)
    client = visit()
    form = {"csrf": token_of(client.get("/login").text), "name": "x", "password": PASSWORD}
    statuses = [client.post("/invite/nothing", data=form).status_code for _ in range(31)]
    assert statuses == [404] * 30 + [429]
    assert hashed == []


def test_few_wait_for_a_hash_and_the_others_come_again(
    store: Store, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.add_person(store, "anna", password=PASSWORD)
    monkeypatch.setattr(passwords, "_PATIENCE", 60.0)
    go_on = threading.Event()
    monkeypatch.setattr(logins, "is_password", lambda *_: go_on.wait(30))
    clients = [visit() for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(log_in, client, "anna", PASSWORD) for client in clients]
        refused = [each.result() for each in list(islice(as_completed(waiting, timeout=30), 8))]
        assert visit().get("/login").status_code == 200
        go_on.set()
    assert {(each.status_code, each.headers["retry-after"]) for each in refused} == {(429, "3")}
    assert sorted(each.result().status_code for each in waiting) == [303] * 4 + [429] * 8  # 4 have a place


def test_an_invitation_works_once(store: Store, campaign: Campaign, visit: Visit) -> None:
    link = f"/invite/{logins.invite(store, campaign=campaign.id)}"
    client = visit()
    form = {"csrf": token_of(client.get(link).text), "name": "cleo", "password": PASSWORD, "language": "zh-Hant"}
    assert client.post(link, data={**form, "password": "short"}).status_code == 422
    assert client.post(link, data={**form, "name": "\u202e"}).status_code == 422
    people.add_person(store, "dora")
    assert client.post(link, data={**form, "name": "dora"}).status_code == 409
    assert client.post(link, data={**form, "culture": "Taiwan", "age_group": " "}).status_code == 303
    home = client.get("/")
    assert 'lang="zh-Hant"' in home.text
    assert campaign.name in home.text
    cleo = people.find_person(store, "cleo")
    assert cleo is not None
    assert (cleo.role, dict(cleo.attributes)) == ("labeller", {"culture": "Taiwan"})
    assert visit().get(link).status_code == 404
    late = logins.invite(store, now=utcnow() - timedelta(days=15))
    assert visit().get(f"/invite/{late}").status_code == 404


def test_what_is_not_theirs_does_not_exist(store: Store, campaign: Campaign, visit: Visit) -> None:
    other = campaigns.create(store, CampaignSettings(name="secret"), pairs(2), "Hidden.")
    anna, ben = visit("anna", campaign=campaign.id), visit("ben", campaign=other.id)
    task = ben.get(f"/api/c/{other.id}/task").json()["task"]["id"]
    for path in (f"/c/{other.id}/label", f"/c/{other.id}/guidelines", f"/c/{other.id}/me", f"/api/c/{other.id}/task"):
        there, nowhere = anna.get(path), anna.get(path.replace(str(other.id), "999"))
        assert (there.status_code, nowhere.status_code) == (404, 404)
        assert there.text.replace(path, "") == nowhere.text.replace(path.replace(str(other.id), "999"), "")
    draft = {"answer": {}, "seconds": 1}
    assert anna.put(f"/api/tasks/{task}/draft", json=draft).status_code == 404
    assert anna.post(f"/api/tasks/{task}/label", json=ANSWER).status_code == 404
    assert anna.post(f"/api/tasks/{task}/skip", json={"request": "request-2", "reason": "other"}).status_code == 404
    assert anna.get(f"/api/tasks/{task}/difference?a=0&b=1").status_code == 404
    assert ben.post(f"/api/tasks/{task}/label", json=ANSWER).status_code == 200
    for path in ("/c/0/label", "/c/-1/label", "/c/99999999999999999999/label", "/c/1e3/label", "/c/../label"):
        assert anna.get(path).status_code == 404, path
    assert anna.post(f"/c/{other.id}/join", data={"csrf": anna.headers["X-CSRF-Token"]}).status_code == 404


def test_a_blind_task_tells_neither_model_nor_gold(store: Store, visit: Visit) -> None:
    gold = item("Capital?", "Paris", "Rome", gold={"ranks": [0, 1], "why": "a secret reason"}, phase="gold")
    made = campaigns.create(store, CampaignSettings(name="g", gold_share=0.5, seed=3), [*pairs(4), gold], "")
    anna = visit("anna", campaign=made.id)
    seen = []
    for i in range(5):
        task = anna.get(f"/api/c/{made.id}/task")
        assert not re.search("secret|gold|rank", task.text)
        seen.append(task.json()["task"]["phase"])
        answer = anna.post(f"/api/tasks/{task.json()['task']['id']}/label", json={**ANSWER, "request": f"request-{i}"})
        assert answer.json()["feedback"] is None
    assert set(seen) == {"work"}
    assert len(list(label_rows.live_labels(store, made.id, phases=("gold",)))) == 1


def test_calls_of_tools_are_shown(store: Store, visit: Visit) -> None:
    call = {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "台北"}}}]}
    asked = Prompt(messages=(Message("user", "Weather?"), Message("assistant", "", call), Message("tool", "22 °C")))
    answers = (Answer("22 °C."), Answer(messages=(Message("assistant", "Once more.", call),)))
    made = campaigns.create(store, CampaignSettings(name="tools"), [NewItem(asked, answers)], "")
    task = visit("anna", campaign=made.id).get(f"/api/c/{made.id}/task").json()["task"]
    assert [turn["role"] for turn in task["prompt"]] == ["user", "assistant", "tool"]
    shown = [task["prompt"][1]["html"], *(each["html"] for each in task["answers"])]
    assert sum("weather" in html and "台北" in html for html in shown) == 2


def test_ranks_are_kept_by_answer_and_not_by_place(store: Store, campaign: Campaign, visit: Visit) -> None:
    anna = visit("anna", campaign=campaign.id)
    shown_first = set()
    for i in range(6):
        task = anna.get(f"/api/c/{campaign.id}/task").json()["task"]
        places = ["First" in answer["html"] for answer in task["answers"]]
        shown_first.add(places[0])
        ranks = [0 if is_first else 1 for is_first in places]  # the first answer of the item is always the better
        flags = {"wrong": [places.index(False)]}
        body = {**ANSWER, "request": f"request-{i}", "ranks": ranks, "flags": flags}
        assert anna.post(f"/api/tasks/{task['id']}/label", json=body).status_code == 200
    assert shown_first == {True, False}  # both orders came, or this test would show nothing
    rows = list(label_rows.live_labels(store, campaign.id))
    assert [(row.ranks, row.flags) for row in rows] == [((0, 1), {"wrong": [1]})] * 6


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": [0]},
        {"ranks": [0, 1, 2]},
        {"ranks": [0, -1]},
        {"ranks": [0, 1.5]},
        {"ranks": ["0", "1"]},
        {"strength": 5},
        {"flags": {"wrong": [2]}},
        {"flags": {"unknown": [0]}},
        {"ratings": {"unknown": [1, 2]}},
        {"comment": "x" * 100_000},
        {"seconds": -1},
        {"seconds": None},
        {"request": "short"},
        {"request": "with spaces in it"},
        {"person": 7},
    ],
)
def test_labels_that_do_not_fit_are_refused(store: Store, campaign: Campaign, visit: Visit, change: Any) -> None:
    anna = visit("anna", campaign=campaign.id)
    task = anna.get(f"/api/c/{campaign.id}/task").json()["task"]["id"]
    response = anna.post(f"/api/tasks/{task}/label", json={**ANSWER, **change})
    assert response.status_code == 422
    assert response.json()["error"]["message"]
    assert list(label_rows.live_labels(store, campaign.id)) == []


def test_the_same_request_is_the_same_label(store: Store, campaign: Campaign, visit: Visit) -> None:
    anna = visit("anna", campaign=campaign.id)
    task = anna.get(f"/api/c/{campaign.id}/task").json()["task"]["id"]
    sent = [anna.post(f"/api/tasks/{task}/label", json=ANSWER).json()["label"] for _ in range(3)]
    assert len(set(sent)) == 1


def test_fetching_ahead_holds_two_tasks_at_most(store: Store, campaign: Campaign, visit: Visit) -> None:
    anna = visit("anna", campaign=campaign.id)

    def ask(query: str = "") -> int:
        return int(anna.get(f"/api/c/{campaign.id}/task{query}").json()["task"]["id"])

    first = ask()
    second = ask(f"?besides={first}")
    assert second != first
    assert {ask(f"?besides={first}"), ask("?besides=999")} <= {first, second}
    assert ask() == first  # after a refresh they come back to the one at hand
    assert ask(f"?besides={second}") == first


def test_malformed_text_goes_through_the_whole_loop(store: Store, visit: Visit) -> None:
    odd = "half \ud800 pair \x00 \u202e"
    made = campaigns.create(store, CampaignSettings(name="odd"), [item(odd, odd + "1", odd + "2")], odd)
    anna = visit("anna", campaign=made.id)
    task = anna.get(f"/api/c/{made.id}/task").json()["task"]
    body = b'{"answer": {"comment": "\\ud800"}, "seconds": 1}'
    headers = {"Content-Type": "application/json"}
    assert anna.put(f"/api/tasks/{task['id']}/draft", content=body, headers=headers).status_code == 200
    assert anna.get(f"/api/c/{made.id}/task").json()["task"]["draft"]["answer"]["comment"] == "\ud800"
    assert anna.get(f"/api/tasks/{task['id']}/difference?a=0&b=1").status_code == 200
    said = b'{"request": "request-1", "ranks": [0, 1], "seconds": 1, "comment": "\\udfff"}'
    assert anna.post(f"/api/tasks/{task['id']}/label", content=said, headers=headers).status_code == 422
    said = said.replace(b"udfff", b"u0000")
    assert anna.post(f"/api/tasks/{task['id']}/label", content=said, headers=headers).status_code == 200
    for path in (f"/c/{made.id}/guidelines", f"/c/{made.id}/me", f"/c/{made.id}/label", "/settings/data"):
        assert anna.get(path).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "", "localhost.:8000", "[::2]"])
def test_without_accounts_only_local_names_are_answered(alone: TestClient, host: str) -> None:
    assert alone.get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:80", "[::1]:8000", "LOCALHOST"])
def test_local_names(alone: TestClient, host: str) -> None:
    assert alone.get("/", headers={"Host": host}).status_code == 200


def test_other_sites_cannot_write(store: Store, campaign: Campaign, visit: Visit) -> None:
    anna = visit("anna", campaign=campaign.id)
    path = f"/api/c/{campaign.id}/undo"
    assert anna.post(path, headers={"Origin": "https://evil.example"}).json()["error"]["code"] == "origin"
    assert anna.post(path, headers={"Sec-Fetch-Site": "cross-site"}).json()["error"]["code"] == "origin"
    assert anna.post(path, headers={"Origin": "null"}).status_code == 403
    assert anna.post(path, headers={"Origin": "http://studio.test"}).status_code == 422  # nothing to undo


def test_headers_stand_on_every_answer(alone: TestClient, campaign: Campaign) -> None:
    for path in ("/", "/nowhere", f"/c/{campaign.id}/label", "/api/c/77/task", "/login?next=1"):
        headers = alone.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"  # with no-referrer browsers send no origin, which is checked
        assert headers["cache-control"] == "no-store"


def test_pages_hold_no_script_or_style_of_their_own(alone: TestClient, campaign: Campaign) -> None:
    for path in ("/", "/settings", f"/c/{campaign.id}/label", f"/c/{campaign.id}/me", "/nowhere"):
        text = alone.get(path).text
        assert not re.search(r"<script(?![^>]*(?:\bsrc=|application/json))", text), path
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text), path


def test_an_error_of_ours_tells_nothing_and_keeps_the_headers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("secret path /home/anna")

    monkeypatch.setattr(campaigns, "listing", fails)
    with TestClient(create_app(store, single_user=True), base_url="http://127.0.0.1") as client:
        response = client.get("/")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "default-src 'self'" in response.headers["content-security-policy"]


def test_large_bodies_are_refused(visit: Visit) -> None:
    client = visit()
    assert client.post("/login", content=b"x" * (2 << 20)).status_code == 413

    def pieces() -> Any:
        for _ in range(40):
            yield b"x" * (1 << 16)

    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/login", content=pieces(), headers=headers).status_code == 413


def test_static_files_stay_in_their_folder(store: Store, alone: TestClient) -> None:
    app = create_app(store, single_user=True)
    [place] = [route.path for route in app.routes if isinstance(route, Mount)]
    assert "immutable" in alone.get(f"{place}/studio.css").headers["cache-control"]
    for path in (
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        "....//app.py",
        "/etc/passwd",
        "label/../../app.py",
        "\\..\\x",
    ):
        assert alone.get(f"{place}/{path}").status_code == 404, path


def test_people_who_are_disabled_are_out_at_once(store: Store, visit: Visit) -> None:
    anna = visit("anna")
    assert anna.get("/").status_code == 200
    found = people.find_person(store, "anna")
    assert found is not None
    people.disable(store, found.id)
    assert anna.get("/").status_code == 303


def test_another_host_needs_accounts(store: Store) -> None:
    with pytest.raises(ConfigError, match="accounts"):
        serve(store, "0.0.0.0")


def test_a_limit() -> None:
    limit = Limit(2, 10.0)
    assert [limit.take("a", now) for now in (0.0, 1.0)] == [None, None]
    assert limit.take("a", 4.0) == 6.0  # the first of the two is forgotten at 10
    assert limit.take("b", 4.0) is None
    assert limit.take("a", 10.5) is None
