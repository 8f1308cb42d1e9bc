"""Talk to a model in the terminal; answers stream as they are drawn."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from goodheart.data.records import Message, Prompt
from goodheart.data.template import Template
from goodheart.errors import ConfigError, TemplateError
from goodheart.judges.load import Judge, load_judge
from goodheart.judges.settings import is_reward_file, moves_with_training, read_reward
from goodheart.models.load import load_causal, resolve
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.stages.writer import Writer
from goodheart.train.optimizer import resolve_dtype
from goodheart.train.parallel import World

_MOST_SLOTS = 64  # answers drawn side by side


@dataclass(frozen=True)
class BestOf:
    """Answers are the best of n by a judge."""

    n: int
    judge: Judge


def chat(
    model: str,
    sampling: SamplingSettings,
    *,
    seed: int = 0,
    raw: bool = False,
    best_of: int = 1,
    reward: str | None = None,
) -> None:
    """Reads lines from standard input and answers each; an empty line starts anew, end of input leaves.

    Args:
        model: run folder, Hugging Face folder or Hub id.
        sampling: how answers are drawn.
        seed: of the first answer; later ones count up.
        raw: continue each line as plain text, without chat template and memory.
        best_of: n answers are drawn and the one that `reward` scores highest is shown; 1 = off.
        reward: run folder, Hugging Face folder, package.module:function, or YAML file of several.

    Raises:
        ConfigError: best_of without reward, or the other way round; a reward that only training can use; no room for
            an answer.
    """
    if (best_of > 1) != (reward is not None):
        raise ConfigError("--best-of over 1 and --reward go together: the reward chooses the best")
    if best_of > 1 and sampling.temperature == 0:
        raise ConfigError("--best-of with temperature 0: all the answers would be the same")
    several = read_reward(reward) if reward is not None and is_reward_file(reward) else None
    if moves_with_training(several):
        raise ConfigError("combine: constrained moves with training steps, which there are none of here; use a gate")
    device = World.start().device
    folder = resolve(model)
    template = Template.load(folder)
    dtype = resolve_dtype("auto", device)
    causal = load_causal(folder, dtype=dtype, device=device)
    writer = Writer(causal, template, slots=min(best_of, _MOST_SLOTS))
    choice = None if reward is None else BestOf(best_of, load_judge(several or reward, dtype=dtype, device=device))
    context = causal.max_length or 2**31
    if "max_new_tokens" not in sampling.model_fields_set:  # half a small model's context is for what is asked
        sampling = sampling.model_copy(update={"max_new_tokens": min(sampling.max_new_tokens, context // 2)})
    room = context - sampling.max_new_tokens
    if room < 1:
        raise ConfigError(f"max_new_tokens {sampling.max_new_tokens} fills the context of {context}: set it lower")
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
        if choice is None:
            said = _say(writer, prompt, sampling, seed)
        else:
            said = _say_best(writer, prompt, sampling, seed, choice)
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


def _say_best(writer: Writer, prompt: Prompt, sampling: SamplingSettings, seed: int, choice: BestOf) -> str:
    """Draws n answers, prints the best, and below it its score, n, and how far from the model that choice may lead."""
    try:
        made = writer.generate([writer.template.prompt_ids(prompt)] * choice.n, sampling, seed=seed)
        answers = [writer.answer(prompt, each, sampling.stop) for each in made]
        scores = choice.judge.score([prompt] * choice.n, answers)
    except KeyboardInterrupt:
        print()
        return ""
    known = [(score, answer) for score, answer in zip(scores, answers, strict=True) if score is not None]
    if not known:
        print(_visible(answers[0].text))
        _dim(f"(first of {choice.n}: the reward has no opinion on any)")
        return answers[0].text
    score, best = max(known, key=lambda pair: pair[0])  # the first of equals
    print(_visible(best.text))
    from goodheart.judges.best_of_n import best_of_n_kl  # half a second, which other talks need not spend

    mean = sum(each for each, _ in known) / len(known)
    _dim(f"(score {score:.4g}, mean {mean:.4g}, best of {choice.n}: KL at most {best_of_n_kl(choice.n):.3f} nats)")
    return best.text


def _dim(text: str) -> None:
    """A line beside the talk; where output is no terminal it goes to standard error, so that answers stay alone."""
    if sys.stdout.isatty():
        print(f"\x1b[2m{text}\x1b[0m")
    else:
        print(text, file=sys.stderr)


def _visible(text: str) -> str:
    """Without control characters: what a model says must not drive the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
