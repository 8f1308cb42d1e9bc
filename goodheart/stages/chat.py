"""Talk to a model in the terminal; answers stream as they are drawn."""

from __future__ import annotations

import sys

from goodheart.data.records import Message, Prompt
from goodheart.data.template import Template
from goodheart.errors import ConfigError, TemplateError
from goodheart.models.load import load_causal, resolve
from goodheart.stages.writer import SamplingSettings, Writer
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World


def chat(model: str, sampling: SamplingSettings, *, seed: int = 0, raw: bool = False) -> None:
    """Reads lines from standard input and answers each; an empty line starts anew, end of input leaves.

    Args:
        model: run folder, Hugging Face folder or Hub id.
        sampling: how answers are drawn.
        seed: of the first answer; later ones count up.
        raw: continue each line as plain text, without chat template and memory.
    """
    device = World.start().device
    folder = resolve(model)
    template = Template.load(folder)
    causal = load_causal(folder, dtype=resolve_dtype("auto", device), device=device)
    writer = Writer(causal, template, slots=1)
    room = (causal.max_length or 2**31) - sampling.max_new_tokens
    if room < 1:
        raise ConfigError(f"max_new_tokens {sampling.max_new_tokens} fills the context of {causal.max_length}")
    sampling = sampling.model_copy(update={"stop": [*sampling.stop, *([] if raw else template.stop_strings)]})
    if sys.stdin.isatty():
        print("Empty line: start anew. Ctrl-C: stop an answer. Ctrl-D: leave.")
    turns: tuple[Message, ...] = ()
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            turns = ()
            continue
        try:
            prompt = _fitting(line, turns, template, room, raw=raw)
        except TemplateError as error:
            print(f"({error}; starting anew)", file=sys.stderr)
            turns = ()
            continue
        said = _say(writer, prompt, sampling, seed)
        turns = () if raw else (*prompt.messages, Message("assistant", said))
        seed += 1


def _fitting(line: str, turns: tuple[Message, ...], template: Template, room: int, *, raw: bool) -> Prompt:
    """What is asked, without the oldest turns where the whole conversation does not fit the model.

    Raises:
        TemplateError: the line alone does not fit, or an earlier answer would open another turn.
    """
    while True:
        prompt = Prompt(text=line) if raw else Prompt(messages=(*turns, Message("user", line)))
        size = len(template.prompt_ids(prompt))
        if size <= room:
            return prompt
        if not turns:
            raise TemplateError(f"that is {size} tokens; the model takes {room} beside max_new_tokens")
        turns = turns[2:]


def _say(writer: Writer, prompt: Prompt, sampling: SamplingSettings, seed: int) -> str:
    """Prints an answer as it is drawn; returns it. Ctrl-C ends it early."""
    said = ""
    try:
        for piece in writer.stream(prompt, sampling, seed=seed):
            new = piece.lstrip() if prompt.is_chat and not said else piece
            print(_visible(new), end="", flush=True)
            said += new
    except KeyboardInterrupt:
        pass
    print()
    return said.strip()


def _visible(text: str) -> str:
    """Without control characters: what a model says must not drive the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
