"""Talk to a model in the terminal; answers stream as they are drawn."""

from __future__ import annotations

import sys

from goodheart.data.records import Message, Prompt
from goodheart.data.template import Template, load_tokenizer
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
    template = Template(load_tokenizer(folder))
    writer = Writer(load_causal(folder, dtype=resolve_dtype("auto", device), device=device), template, slots=1)
    sampling = sampling.model_copy(update={"stop": [*sampling.stop, *([] if raw else template.stop_strings)]})
    if sys.stdin.isatty():
        print("Empty line: start anew. Ctrl-D: leave.")
    turns: tuple[Message, ...] = ()
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            turns = ()
            continue
        prompt = Prompt(text=line) if raw else Prompt(messages=(*turns, Message("user", line)))
        said = ""
        for piece in writer.stream(prompt, sampling, seed=seed):
            print(_visible(piece), end="", flush=True)
            said += piece
        print()
        turns = () if raw else (*prompt.messages, Message("assistant", said.strip()))
        seed += 1


def _visible(text: str) -> str:
    """Without control characters: what a model says must not drive the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
