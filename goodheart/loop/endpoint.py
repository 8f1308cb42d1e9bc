"""A server that speaks OpenAI's chat completions (ours, vLLM, llama.cpp, Ollama, a company's), asked with patience.

    with Endpoint("http://127.0.0.1:8001/v1", "qwen", SamplingSettings(temperature=0.7)) as endpoint:
        said = endpoint.ask([{"role": "user", "content": "Why is the sky blue?"}], seed=0)

What may pass (too many requests, a server that starts anew, a torn or senseless reply) is tried again, with pauses that
double. What will not pass (a wrong key, an unknown model) ends everything; after the first answer, this request alone.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

from goodheart.errors import ConfigError, EndpointError
from goodheart.stages.settings.sampling import SamplingSettings

TRIES = 6  # of one request; with pauses of 0.5, 1, 2, 4 and 8 seconds between them
_PAUSE_S = 0.5
_PAUSE_MOST_S = 60.0  # however long a server asks for
_CONNECT_S = 10.0
_AT_ONCE = {  # why an answer is empty, where the same request would be empty again
    "length": "; what comes before the answer, such as reasoning, took all tokens: raise max_new_tokens",
    "content_filter": "",
}
_PASSING = frozenset({408, 409, 425, 429})  # and all from 500 on


class NoAnswer(Exception):
    """One request had no usable answer, however often it was sent."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer."""

    text: str
    finish: str | None  # stop, length, ... in the server's words
    tokens: int | None  # of the answer, as the server counts
    logprob: float | None  # of the whole answer, in nats; None where the server does not tell


class _Again(Exception):
    """Something that may pass; `pause` is what the server asks for."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


class Endpoint:
    """A model behind an address. Threads may share it.

    Args:
        url: up to and with `/v1`.
        key_env: environment variable that holds the key; None: none is sent.
        timeout: seconds that one answer may take.
        answered: it has given answers before, say in an earlier run.

    Raises:
        ConfigError: the variable of the key is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        sampling: SamplingSettings,
        *,
        key_env: str | None = None,
        timeout: float = 120.0,
        tries: int = TRIES,
        answered: bool = False,
    ) -> None:
        self.url, self.model, self._tries = url.rstrip("/"), model, tries
        self._body = {"model": model, **_asked_for(sampling)}
        self._logprobs = True  # until the server says that it knows none
        self._reached, self._answered = False, answered
        self._over = threading.Event()
        headers = {} if key_env is None else {"Authorization": f"Bearer {_key(key_env, url)}"}
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_S)),
            limits=httpx.Limits(max_connections=None),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._client.close()

    def hopeless(self, why: str) -> EndpointError:
        """The error for a server that answers nothing; `why` the last request had no answer."""
        return EndpointError(f"{self.url}: not one answer; at last: {why}; try one request by hand, and start again")

    def stop(self) -> None:
        """No request is sent again after this; those under way may still be answered."""
        self._over.set()

    def ask(self, messages: Sequence[Mapping[str, Any]], seed: int | None = None) -> Said:
        """The answer to a chat.

        Raises:
            NoAnswer: none came, or none of use.
            EndpointError: there will be none to any request: not reachable; or no answer yet, and no such model or a
                wrong key.
        """
        why = "stopped"
        for attempt in range(self._tries):
            try:
                return self._once(messages, seed)
            except _Again as error:
                why = str(error)
                pause = max(error.pause, _PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
            if attempt + 1 < self._tries and self._over.wait(min(pause, _PAUSE_MOST_S)):
                break
        if not self._reached and not self._over.is_set():
            raise EndpointError(f"{self.url}: {why}; is the server running, and is that its address (with /v1)?")
        raise NoAnswer(why)

    def _once(self, messages: Sequence[Mapping[str, Any]], seed: int | None) -> Said:
        with_logprobs = self._logprobs
        body = {**self._body, "messages": list(messages)}
        body |= {} if seed is None else {"seed": seed}
        body |= {"logprobs": True} if with_logprobs else {}
        try:
            reply = self._client.post(f"{self.url}/chat/completions", json=body)
        except httpx.TimeoutException as error:
            raise _Again("no answer in time") from error
        except httpx.HTTPError as error:
            raise _Again(f"cannot be reached ({error})") from error
        self._reached = True
        if with_logprobs and reply.status_code in (400, 422) and "logprob" in reply.text:
            self._logprobs = False
            return self._once(messages, seed)
        if reply.status_code >= 400:
            self._refused(reply)
        said = _said(reply)
        self._answered = True
        return said

    def _refused(self, reply: httpx.Response) -> None:
        said = f"{reply.status_code} {_words(reply)}"
        if reply.status_code >= 500 or reply.status_code in _PASSING:
            raise _Again(said, _asked_to_wait(reply))
        if self._answered:
            raise NoAnswer(said)
        if reply.status_code in (401, 403):
            raise EndpointError(f"{self.url}: {said}; name the environment variable with the key by `key_env`")
        if reply.status_code == 404:
            raise EndpointError(f"{self.url}: {said}; is {self.model!r} a model of this server, and its address right?")
        raise NoAnswer(said)  # this request will not do, say for its length; others may


def _key(name: str, url: str) -> str:
    found = os.environ.get(name, "").strip()
    if not found:
        raise ConfigError(f"{url}: the environment variable {name} that holds the key is not set; export {name}=...")
    return found


def _asked_for(sampling: SamplingSettings) -> dict[str, Any]:
    """Settings as the protocol has them; what is off, or not in it, is sent only where it says something."""
    body: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    for name, value in (("top_p", sampling.top_p), ("top_k", sampling.top_k), ("min_p", sampling.min_p)):
        if value != SamplingSettings.model_fields[name].default:
            body[name] = value
    return body | ({"stop": sampling.stop} if sampling.stop else {})


def _asked_to_wait(reply: httpx.Response) -> float:
    try:
        return max(0.0, float(reply.headers.get("retry-after", 0)))
    except ValueError:  # a date
        return 0.0


def _words(reply: httpx.Response) -> str:
    """What the server says of an error, in one line."""
    try:
        found = reply.json()
        said = found.get("error", found.get("detail", found))
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = reply.text
    return " ".join(str(said).split())[:300] or reply.reason_phrase


def _said(reply: httpx.Response) -> Said:
    try:
        found = reply.json()
        choice = found["choices"][0]
        text = choice["message"]["content"]
        tokens = (found.get("usage") or {}).get("completion_tokens")
        logprobs = [each["logprob"] for each in (choice.get("logprobs") or {}).get("content") or ()]
        logprob = sum(float(each) for each in logprobs) if logprobs else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Again(f"the reply is no chat completion: {reply.text[:200]!r}") from error
    finish = choice.get("finish_reason") if isinstance(choice.get("finish_reason"), str) else None
    if not isinstance(text, str) or not text.strip():
        why = f"an empty answer (finish_reason {choice.get('finish_reason')!r})"
        raise NoAnswer(why + _AT_ONCE[finish]) if finish in _AT_ONCE else _Again(why)
    return Said(
        text,
        finish,
        tokens if isinstance(tokens, int) else None,
        logprob,
    )
