"""Answers of models for a campaign: from a real server with all its moods, and from a model that is sampled here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from sqlalchemy import select

from goodheart.errors import ConfigError, EndpointError, Interrupted
from goodheart.feedback.items import unpack_answer
from goodheart.feedback.store import open_store
from goodheart.feedback.tables import items
from goodheart.loop import endpoint, kept_answers
from goodheart.loop.endpoint import Endpoint, NoAnswer
from goodheart.loop.label import _answered, open_campaign, read_campaign
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.train.files import sha256_of_folder

Mood = Callable[[dict[str, Any], int], Response | None]  # of a request and how often it came; None: a plain answer


class Served:
    """A small server of chat completions, in a thread; `mood` says how it answers."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.mood: Mood = lambda body, times: None
        app = FastAPI()
        app.post("/v1/chat/completions")(self._chat)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/v1"

    def _chat(self, body: dict[str, Any], request: Request) -> Response:
        said = body["messages"][-1]["content"]
        name = f"{body['model']} {said} {body['seed']}"
        self.asked[name] += 1
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization"))
        moody = self.mood(body, self.asked[name])
        return JSONResponse(completion(f"{body['model']} on {said}, {body['seed']}")) if moody is None else moody

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


def completion(text: str | None) -> dict[str, Any]:
    logprobs = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": logprobs}
    return {"choices": [choice], "usage": {"completion_tokens": 2}}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(endpoint, "_PAUSE_S", 0.001)
    server = Served()
    yield server
    server.stop()


def campaign(folder: Path, models: list[Any], prompts: int = 5, **more: Any) -> Path:
    rows = [{"prompt": f"Q{i}", "language": "en"} for i in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "c.yaml"
    file.write_text(json.dumps({"name": "c", "prompts": "prompts.jsonl", "models": models, **more}))  # YAML holds JSON
    return file


def run(file: Path) -> tuple[list[Any], list[str]]:
    """Items of the campaign, and what was said."""
    told: list[str] = []
    read = _answered(read_campaign(file), file, told.append)
    store = open_store(file.parent / "labels.db")
    try:
        made = open_campaign(store, read, file)
        with store.read() as connection:
            found = connection.execute(select(items).where(items.c.campaign_id == made.id).order_by(items.c.id)).all()
        return list(found), told
    finally:
        store.close()


def test_two_models_of_a_server_answer_and_nothing_is_asked_twice(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    about = {"url": served.url, "key_env": "SOME_KEY"}
    models = [{"model": "a", **about, "samples": 2}, {"model": "b", **about, "sampling": {"temperature": 0}}]
    file = campaign(tmp_path, models, slices=["language"], seed=7)
    found, told = run(file)
    assert told == []
    assert len(found) == 5
    answers = [unpack_answer(each) for each in found[0].answers]
    assert [each.text for each in answers] == ["a on Q0, 7", "a on Q0, 8", "b on Q0, 7"]
    assert [each.model for each in answers] == ["a", "a", "b"]
    # -0.5 - 1.0 nats, of the server's two tokens
    assert [each.meta["logprob"] for each in answers] == [-1.5] * 3
    assert answers[2].meta["sampling"]["temperature"] == 0
    assert answers[0].meta["sampling"]["temperature"] == 1
    assert (answers[0].meta["finish"], answers[0].meta["tokens"]) == ("stop", 2)
    assert found[0].slice == {"language": "en"}
    assert served.keys == {"Bearer secret"}
    assert {body["max_tokens"] for body in served.bodies} == {512}  # also of the model with settings of its own
    assert "top_p" not in served.bodies[0]
    assert set(served.asked.values()) == {1}
    campaign(tmp_path, models, prompts=6, slices=["language"], seed=7)
    found, _ = run(file)
    assert len(found) == 6
    assert sum(served.asked.values()) == 18  # three more, of the new prompt
    assert "secret" not in "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))


def test_what_passes_is_tried_again(served: Served, tmp_path: Path) -> None:
    moods: dict[str, Callable[[], Response]] = {
        "Q0": lambda: JSONResponse({"error": {"message": "busy"}}, 429, {"Retry-After": "0"}),
        "Q1": lambda: JSONResponse({"error": "broken"}, 500),
        "Q2": lambda: PlainTextResponse('{"choices": [{"mess'),
        "Q3": lambda: JSONResponse(completion("")),
        "Q4": lambda: JSONResponse([1]),
    }
    served.mood = lambda body, times: moods[body["messages"][-1]["content"]]() if times < 3 else None
    found, told = run(campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2}]))
    assert len(found) == 5
    assert told == []
    assert set(served.asked.values()) == {3}


def test_what_fails_is_counted_set_aside_and_asked_again(served: Served, tmp_path: Path) -> None:
    def mood(body: dict[str, Any], times: int) -> Response | None:
        hurt = body["messages"][-1]["content"] == "Q2"
        return JSONResponse({"error": {"message": "prompt too long"}}, 400) if hurt else None

    served.mood = mood
    file = campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2}])
    found, told = run(file)
    assert len(found) == 4
    assert told[0] == "set aside 1 of 5 prompts without all answers (2 x a: 400 prompt too long)"
    assert served.asked["a Q2 0"] == 1  # such an error does not pass
    served.mood = lambda body, times: None
    found, told = run(file)
    assert len(found) == 5
    assert told == []
    assert served.asked["a Q2 0"] == 2
    assert served.asked["a Q1 0"] == 1


def test_equal_answers_are_set_aside(served: Served, tmp_path: Path) -> None:
    served.mood = lambda body, times: JSONResponse(completion("yes")) if "Q1" in str(body["messages"]) else None
    found, told = run(campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2}]))
    assert len(found) == 4
    assert told == ["set aside 1 prompts whose answers are all the same"]


def test_a_server_without_logprobs(served: Served, tmp_path: Path) -> None:
    def mood(body: dict[str, Any], times: int) -> Response | None:
        if "logprobs" in body:
            return JSONResponse({"error": {"message": "logprobs are not supported"}}, 400)
        reply = completion(f"{body['messages']} {body['seed']}")
        del reply["choices"][0]["logprobs"]
        return JSONResponse(reply)

    served.mood = mood
    found, _ = run(campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2, "at_once": 1}]))
    assert len(found) == 5
    assert "logprob" not in unpack_answer(found[0].answers[0]).meta
    assert sum("logprobs" in body for body in served.bodies) == 1  # once is enough to know


def test_ctrl_c_keeps_what_is_paid_for(served: Served, tmp_path: Path) -> None:
    def mood(body: dict[str, Any], times: int) -> Response | None:
        if sum(served.asked.values()) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return None

    served.mood = mood
    file = campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2, "at_once": 2}], prompts=20)
    with pytest.raises(Interrupted, match="a has answered is kept"):
        run(file)
    (kept,) = (tmp_path / "c.answers").iterdir()
    first = sum(served.asked.values())
    assert 4 <= first < 20
    assert len(kept.read_text().splitlines()) == 1 + first  # those under way, too
    served.mood = lambda body, times: None
    found, _ = run(file)
    assert len(found) == 20
    assert set(served.asked.values()) == {1}


def test_errors_name_the_server_and_what_to_do(served: Served, tmp_path: Path) -> None:
    file = campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2}])
    for status, said in ((401, "401 no; .* by `key_env`"), (404, "404 no; is 'a' a model of this server")):
        served.mood = lambda body, times, status=status: JSONResponse({"error": {"message": "no"}}, status)
        with pytest.raises(EndpointError, match=rf"{served.url}: {said}"):
            run(file)
    served.mood = lambda body, times: PlainTextResponse("<html>")
    with pytest.raises(EndpointError, match=rf"{served.url}: not one answer; .*no chat completion: '<html>'"):
        run(file)
    away = campaign(tmp_path, [{"model": "a", "url": "http://127.0.0.1:9/v1", "samples": 2}])
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1: cannot be reached .* is the server running"):
        run(away)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY that holds the key is not set"):
        run(campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2, "key_env": "NO_SUCH_KEY"}]))


def refusing(*prompts: str, status: int = 400, message: str = "no") -> Mood:
    def mood(body: dict[str, Any], times: int) -> Response | None:
        hurt = body["messages"][-1]["content"] in prompts
        return JSONResponse({"error": {"message": message}}, status) if hurt else None

    return mood


def test_many_prompts_that_always_fail_do_not_close_the_studio(served: Served, tmp_path: Path) -> None:
    served.mood = refusing(*(f"Q{i}" for i in range(4)))
    file = campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2}], prompts=6)
    first = run(file)
    assert (len(first[0]), first[1][0]) == (2, "set aside 4 of 6 prompts without all answers (8 x a: 400 no)")
    assert run(file) == first  # 8 requests, all refused: but it has answered before
    assert (served.asked["a Q0 0"], served.asked["a Q5 0"]) == (2, 1)


def test_a_server_that_is_off_does_not_close_the_studio(served: Served, tmp_path: Path) -> None:
    served.mood = refusing("Q1")
    models = [{"model": "a", "url": served.url, "samples": 2}]
    file = campaign(tmp_path, models)
    run(file)
    served.stop()
    found, told = run(file)
    assert len(found) == 4
    assert told[0].startswith(f"a gives no more answers ({served.url}: cannot be reached")
    assert told[1] == "set aside 1 of 5 prompts without all answers (2 x a: no answer)"


def test_the_key_is_asked_for_only_where_a_server_is(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    file = campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2, "key_env": "SOME_KEY"}])
    first, told = run(file)
    monkeypatch.delenv("SOME_KEY")
    assert run(file) == (first, told) == (first, [])  # nothing is left to ask
    campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2, "key_env": "SOME_KEY"}], prompts=6)
    found, told = run(file)
    assert len(found) == 5
    assert told[0].startswith(f"a gives no more answers ({served.url}: the environment variable SOME_KEY that holds")
    assert told[1] == "set aside 1 of 6 prompts without all answers (2 x a: no answer)"
    monkeypatch.setenv("SOME_KEY", "secret")
    found, told = run(file)
    assert (len(found), told, sum(served.asked.values())) == (6, [], 12)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_one_refusal_in_the_middle_loses_no_answer(served: Served, tmp_path: Path, status: int) -> None:
    refuse = refusing("Q1", status=status, message="flagged")

    def mood(body: dict[str, Any], times: int) -> Response | None:
        moody = refuse(body, times)
        if moody is None:
            time.sleep(0.1)  # the refusal comes before all answers
        return moody

    served.mood = mood
    file = campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2}], prompts=9)
    for _ in range(2):
        found, told = run(file)
        assert len(found) == 8
        assert told[0].startswith("set aside 1 of 9 prompts without all answers")
        assert f"{status} flagged" in told[0]
    assert served.asked["a Q1 0"] == 2
    assert {count for name, count in served.asked.items() if " Q1 " not in name} == {1}


def test_answers_under_way_are_kept_before_it_is_given_up(served: Served, tmp_path: Path) -> None:
    """Eight requests fail before the two slow ones are answered, which shows that the server is of use."""

    def mood(body: dict[str, Any], times: int) -> Response | None:
        if body["messages"][-1]["content"] == "Q4":
            time.sleep(0.3)
            return None
        return JSONResponse({"error": {"message": "no"}}, 400)

    served.mood = mood
    file = campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2, "at_once": 10}])
    found, told = run(file)
    assert len(found) == 1
    assert told[0] == "set aside 4 of 5 prompts without all answers (8 x a: 400 no)"


def test_names_and_slashes_ask_nothing_again(served: Served, tmp_path: Path) -> None:
    about = {"model": "a", "samples": 2}
    first, _ = run(campaign(tmp_path, [{**about, "url": served.url}]))
    for changed in ({"url": served.url, "name": "The best"}, {"url": served.url + "/"}):
        found, told = run(campaign(tmp_path, [{**about, **changed}]))
        assert ([each.answers for each in found], told) == ([each.answers for each in first], [])
    assert set(served.asked.values()) == {1}


@pytest.mark.parametrize(
    ("finish", "said"),
    [
        ("length", r"an empty answer \(finish_reason 'length'\); .*raise max_new_tokens"),
        ("content_filter", r"an empty answer \(finish_reason 'content_filter'\)$"),
    ],
)
def test_an_answer_that_stays_empty_is_bought_once(served: Served, finish: str, said: str) -> None:
    reply = completion("")
    reply["choices"][0]["finish_reason"] = finish
    served.mood = lambda body, times: JSONResponse(reply)
    with Endpoint(served.url, "a", SamplingSettings()) as asked, pytest.raises(NoAnswer, match=said):
        asked.ask([{"role": "user", "content": "Q"}], 0)
    assert served.asked["a Q 0"] == 1


def test_half_an_emoji_in_an_answer(served: Served, tmp_path: Path) -> None:
    def mood(body: dict[str, Any], times: int) -> Response | None:
        text = json.dumps(completion(f"half \ud83d, {body['seed']}"))  # as an escape
        return Response(text, media_type="application/json") if "Q1" in str(body["messages"]) else None

    served.mood = mood
    file = campaign(tmp_path, [{"model": "a", "url": served.url, "samples": 2}])
    for _ in range(2):
        found, told = run(file)
        assert (len(found), told) == (5, [])
    assert set(served.asked.values()) == {1}


def test_a_slow_answer_is_given_up(served: Served) -> None:
    def slow(body: dict[str, Any], times: int) -> None:
        time.sleep(0.5)

    served.mood = slow
    chat = [{"role": "user", "content": "Q"}]
    with Endpoint(served.url, "a", SamplingSettings(), timeout=0.1, tries=2) as asked:
        asked._reached = True  # it has answered before
        with pytest.raises(NoAnswer, match="no answer in time"):
            asked.ask(chat, 0)
    assert served.asked["a Q 0"] == 2


def test_a_model_that_is_sampled_here(stories260k: Path, tmp_path: Path) -> None:
    models = [{"model": str(stories260k), "name": "stories", "samples": 2}]
    file = campaign(tmp_path, models, prompts=3, sampling={"max_new_tokens": 8})
    found, told = run(file)
    assert (len(found), told) == (3, [])
    answers = [unpack_answer(each) for each in found[0].answers]
    assert [each.model for each in answers] == ["stories", "stories"]
    assert answers[0].meta["tokens"] == 8
    (kept,) = (tmp_path / "c.answers").iterdir()
    before = kept.read_text()
    campaign(tmp_path, models, prompts=4, sampling={"max_new_tokens": 8})
    found, _ = run(file)
    assert len(found) == 4
    assert kept.read_text().startswith(before)


def test_a_model_that_has_answered_may_go(stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def reading(folder: Path) -> str:
        read.append(folder)
        return sha256_of_folder(folder)

    monkeypatch.setattr(kept_answers, "sha256_of_folder", reading)
    place = tmp_path / "model"
    shutil.copytree(stories260k, place)
    models, how = [{"model": "model", "samples": 2}], {"max_new_tokens": 8}
    file = campaign(tmp_path, models, prompts=3, sampling=how)
    first, _ = run(file)
    assert run(file) == (first, [])
    assert len(read) == 1  # it looks as it did: not read again
    shutil.move(place, tmp_path / "away")
    assert run(file) == (first, [])
    found, told = run(campaign(tmp_path, models, prompts=4, sampling=how))
    assert found == first
    assert told[0].startswith("model gives no more answers (model: no such folder here")
    assert told[1] == "set aside 1 of 4 prompts without all answers (2 x model: no answer)"
    shutil.copytree(stories260k, place)
    assert len(run(file)[0]) == 4
    (kept,) = (tmp_path / "c.answers").iterdir()  # the same weights, though copied anew
    before = kept.read_text()
    written = (place / "config.json").stat()
    text = (place / "config.json").read_text()
    (place / "config.json").write_text(text.rstrip() + " ")  # other bytes, and the time turned back
    os.utime(place / "config.json", ns=(written.st_atime_ns, written.st_mtime_ns))
    run(file)
    assert kept.read_text() == before
    assert len(list((tmp_path / "c.answers").iterdir())) == 2


def test_a_prompt_that_a_model_cannot_take_does_not_close_the_studio(stories260k: Path, tmp_path: Path) -> None:
    file = campaign(tmp_path, [{"model": str(stories260k), "samples": 2}], sampling={"max_new_tokens": 8})
    with (tmp_path / "prompts.jsonl").open("a") as rows:
        rows.write(json.dumps({"prompt": "long " * 600}) + "\n")
    for _ in range(2):
        found, told = run(file)
        assert len(found) == 5
        assert "set aside 1 of 6 prompts without all answers" in "\n".join(told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [a, b]\n", "prompts and models go together"),
        ("prompts: p.jsonl\nmodels: [a]\n", "2 to 50 answers to a prompt"),
        ("prompts: p.jsonl\nmodels: [a, a]\n", "two models are called 'a'"),
        (
            "prompts: p.jsonl\nmodels:\n  - {model: a, samples: 2, sampling: {temperature: 0}}\n",
            "the same answer 2 times",
        ),
        ("prompts: p.jsonl\nmodels:\n  - {model: a, samples: 2, key_env: K}\n", "key_env is for a model behind"),
        ("prompts: p.jsonl\nmodels:\n  - {model: a, samples: 2, url: 'localhost:1'}\n", "expected http"),
        (
            "prompts: p.jsonl\nmodels:\n  - {model: a, samples: 2, url: 'http://me:secret@host/v1'}\n",
            r"c\.yaml:3: `models\.0`: url: a user or password .* by `key_env`$",
        ),
        (
            "prompts: p.jsonl\nmodels:\n  - {model: a, url: 'http://h/v1'}\n  - {model: a, name: b, url: 'http://h/v1/'}\n",
            "a and b are asked alike",
        ),
        ("prompts: p.jsonl\nmodels:\n  - {model: a, sample: 2}\n", r"c\.yaml:3: `models\.0\.sample`"),
    ],
)
def test_what_is_wrong_with_the_models(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Q"}\n')
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_campaign(tmp_path / "c.yaml")
