"""From prompts and models to answers that people compare, for `goodheart label`.

# in a campaign file; paths are relative to it
prompts: prompts.jsonl
models:
  - runs/sft                                    # a run folder, a Hugging Face folder or a Hub id: sampled here
  - {url: "http://127.0.0.1:8001/v1", model: qwen, samples: 2, key_env: OPENAI_API_KEY, sampling: {temperature: 0.7}}
sampling: {max_new_tokens: 256}                 # of all models, where they do not say otherwise

Each answer is written down as it comes, in the folder `NAME.answers` beside the campaign file: the same command goes on
where it was stopped, asks only what is new, and asks again what failed. What was answered under other settings stays.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from goodheart.data.reading import read_records
from goodheart.data.records import Prompt
from goodheart.data.rows import asked
from goodheart.data.writing import write_rows
from goodheart.errors import ConfigError, DataError, EndpointError, Interrupted, ModelError
from goodheart.loop.answering import AnsweringModel, Asking
from goodheart.loop.kept_answers import kept_of_model, kept_of_server
from goodheart.train.interrupt import stop_signal
from goodheart.train.progress import Progress

_HOPELESS = 8  # requests without an answer, and none with one, after which the rest is not tried


def answers(asking: Asking, path: Path, say: Callable[[str], None]) -> Path:
    """Asks what was not answered yet; returns the file with a row for each prompt that has all its answers.

    Args:
        path: the campaign file.
        say: told how many prompts are set aside, and why.

    Raises:
        ConfigError: the variable of a key is not set, and the server has answered nothing.
        DataError: the prompts cannot be read.
        EndpointError: a server that has answered nothing cannot be used.
        ModelError: a model that has answered nothing cannot be read.
        Interrupted: Ctrl-C; what was answered is kept.
    """
    loaded = read_records([str(path.parent / source) for source in asking.prompts], "prompt")
    if loaded.bad:
        say(f"set aside {len(loaded.bad)} rows that are no prompts, such as {loaded.bad[0]}")
    prompts = {_key(each): each for each in loaded.records}
    folder = path.with_name(f"{path.stem}.answers")
    found = [_of_model(asking, model, prompts, folder, path.parent, say) for model in asking.models]
    out = path.with_name(f"{path.stem}.answers.jsonl")
    whole = [key for key in prompts if all(_has(asking.models[i], found[i][0], key) for i in range(len(found)))]
    rows = [_row(asking, prompts[key], key, [said for said, _ in found]) for key in whole]
    differ = [row for row in rows if _differ(row["completions"], asking.at_once)]
    write_rows(out, differ)
    if len(whole) < len(prompts):
        pairs = zip(asking.models, found, strict=True)
        why = Counter(f"{model.title}: {each}" for model, (_, failed) in pairs for each in failed)
        reasons = "; ".join(f"{count} x {each}" for each, count in why.most_common(5))
        say(f"set aside {len(prompts) - len(whole)} of {len(prompts)} prompts without all answers ({reasons})")
        say("  the same command asks for them again")
    if len(differ) < len(rows):
        say(f"set aside {len(rows) - len(differ)} prompts whose answers are all the same")
    return out


def _differ(answers: Sequence[str], at_once: int | None) -> bool:
    """Whether two answers that are shown together differ."""
    size = at_once or len(answers)
    return any(len(set(answers[i : i + size])) > 1 for i in range(0, len(answers), size))


Turn = tuple[str, int]  # key of a prompt, which of a model's answers to it
Said = dict[Turn, dict[str, Any]]  # text, finish, tokens, logprob


def _of_model(
    asking: Asking,
    model: AnsweringModel,
    prompts: Mapping[str, Prompt],
    folder: Path,
    home: Path,
    say: Callable[[str], None],
) -> tuple[Said, list[str]]:
    """All answers of a model to these prompts, and why others are missing."""

    def missing(rows: Sequence[Any]) -> list[Turn]:
        there = {(row["prompt"], row["turn"]) for row in rows if "turn" in row}
        return [(key, turn) for key in prompts for turn in range(model.samples) if (key, turn) not in there]

    what = {"model": model.model, "url": model.url, "sampling": asking.how(model).model_dump(), "seed": asking.seed}
    if model.url is not None:
        kept = kept_of_server(folder, what)
    else:
        kept = kept_of_model(folder, what, _place(model, home), lambda rows: not missing(rows))
    said: Said = {(row["prompt"], row["turn"]): row for row in kept.rows if "turn" in row}
    todo, failed = missing(kept.rows), list[str]()
    if todo:
        if model.url is None:
            rows = _local(asking, model, prompts, todo, failed, _place(model, home), kept.file.with_suffix(""))
        else:
            rows = _remote(asking, model, prompts, todo, failed, bool(said))
        try:
            for turn, row in rows:
                kept.add({"prompt": turn[0], "turn": turn[1], **row})
                said[turn] = row
        except (ConfigError, EndpointError, ModelError, DataError) as error:
            if not said:
                raise
            say(f"{model.title} gives no more answers ({error}); those that it gave are kept")
            failed += ["no answer"] * (sum(turn not in said for turn in todo) - len(failed))
    return said, failed


def _remote(
    asking: Asking,
    model: AnsweringModel,
    prompts: Mapping[str, Prompt],
    missing: Sequence[Turn],
    failed: list[str],
    before: bool,
) -> Iterator[tuple[Turn, dict[str, Any]]]:
    """Answers of a server, in the order in which they come; before: whether it gave some in an earlier run."""
    from goodheart.loop.endpoint import Endpoint, NoAnswer  # httpx takes its time to load

    assert model.url is not None
    todo, under_way, answered = list(reversed(missing)), dict[Future[Any], Turn](), before
    refused: list[EndpointError] = []  # perhaps of all requests: those under way will tell

    def hopeless() -> EndpointError | None:
        if refused:
            return refused[0]
        return None if answered or len(failed) < _HOPELESS else endpoint.hopeless(failed[-1])

    with (
        stop_signal() as stop,
        ThreadPoolExecutor(model.at_once) as threads,  # outside: leaving the endpoint ends what is under way
        Endpoint(
            model.url,
            model.model,
            asking.how(model),
            key_env=model.key_env,
            timeout=model.timeout,
            answered=before,
        ) as endpoint,
        Progress(len(missing), f"asking {model.title}", unit="answers") as progress,
    ):
        while under_way or (todo and not stop.requested and hopeless() is None):
            while todo and not stop.requested and hopeless() is None and len(under_way) < model.at_once:
                key, turn = todo.pop()
                chat = [message.as_dict() for message in asked(prompts[key])]
                under_way[threads.submit(endpoint.ask, chat, asking.seed + turn)] = (key, turn)
            for future in wait(under_way, timeout=0.2, return_when=FIRST_COMPLETED).done:
                place = under_way.pop(future)
                try:
                    said = future.result()
                except NoAnswer as error:
                    failed.append(str(error))
                    continue
                except EndpointError as error:
                    refused.append(error)
                    continue
                answered = True
                failed += map(str, refused)  # they were refused for themselves
                refused.clear()
                progress.advance()
                yield place, {"text": said.text, "finish": said.finish, "tokens": said.tokens, "logprob": said.logprob}
            if stop.requested:
                endpoint.stop()  # those under way are paid for: they are waited for, but sent no more
    if stop.requested:
        raise Interrupted(f"stopped; what {model.title} has answered is kept, and the same command continues")
    if (why := hopeless()) is not None:
        raise why


def _local(
    asking: Asking,
    model: AnsweringModel,
    prompts: Mapping[str, Prompt],
    missing: Sequence[Turn],
    failed: list[str],
    place: str,
    work: Path,
) -> Iterator[tuple[Turn, dict[str, Any]]]:
    """Answers of a model that is sampled here; `sample` keeps them as they come and goes on where it was stopped."""
    from goodheart.data.cells import prompt
    from goodheart.data.files import read_rows
    from goodheart.stages.sample import SampleConfig, sample

    new = list(dict.fromkeys(key for key, _ in missing))
    work.mkdir(exist_ok=True)
    write_rows(work / "prompts.jsonl", ({"prompt": prompts[key].as_column()} for key in new))
    file = sample(
        SampleConfig(
            model=place,
            prompts=str(work / "prompts.jsonl"),
            out=work / "answers.jsonl",
            answers=model.samples,
            sampling=asking.how(model),
            seed=asking.seed,
        )
    )
    left, wanted = set(new), set(missing)
    for row in read_rows(file):
        key = _key(prompt(row.data["prompt"], {}))
        left.discard(key)
        for turn, text in enumerate(row.data["completions"]):
            about = {"finish": row.data["finish"][turn], "tokens": row.data["tokens"][turn], "logprob": None}
            if (key, turn) in wanted:
                yield (key, turn), {"text": text, **about}
    failed += ["the prompt is too long, or fits no template"] * len(left)
    for left_over in work.iterdir():
        left_over.unlink()
    work.rmdir()


def _place(model: AnsweringModel, home: Path) -> str:
    return str(home / model.model) if (home / model.model).exists() else model.model


def _key(prompt: Prompt) -> str:
    """One for each prompt as it is written."""
    return hashlib.sha256(json.dumps(prompt.as_column()).encode()).hexdigest()[:16]


def _has(model: AnsweringModel, said: Said, key: str) -> bool:
    return all((key, turn) in said for turn in range(model.samples))


def _row(asking: Asking, prompt: Prompt, key: str, found: Sequence[Said]) -> dict[str, Any]:
    """In the layout of `goodheart sample`, with the settings of each answer."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("completions", "models", "finish", "tokens", "logprobs", "settings")
    }
    for model, said in zip(asking.models, found, strict=True):
        for turn in range(model.samples):
            row = said[key, turn]
            columns["completions"].append(row["text"])
            columns["models"].append(model.title)
            columns["finish"].append(row["finish"])
            columns["tokens"].append(row["tokens"])
            columns["logprobs"].append(row["logprob"])
            where = {} if model.url is None else {"url": model.url}
            columns["settings"].append({**asking.how(model).model_dump(), "seed": asking.seed, **where})
    return {**prompt.meta, "prompt": prompt.as_column(), **columns}
