"""Text in, text out: the engine with a template around it. What `sample`, `ppo` and `chat` generate with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from goodheart.data.records import Answer, Prompt
from goodheart.data.template import Template
from goodheart.errors import ConfigError
from goodheart.generate.engine import Engine, Generation
from goodheart.generate.sampling import SamplingParams
from goodheart.judges.judged import reads_at_most
from goodheart.judges.load import Judge
from goodheart.models.causal import CausalLM
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.train.config import TrainingSettings
from goodheart.train.policy import row_length
from goodheart.train.run import Run


def room_for_prompts(config: TrainingSettings, sampling: SamplingSettings, policy: CausalLM, judge: Judge) -> int:
    """Tokens that a prompt may have, so that a whole answer fits behind it and the judge can read both.

    Raises ConfigError where that is none, or where the judge reads less than prompt and answer may have together.
    """
    room, wanted = row_length(config, policy.max_length), sampling.max_new_tokens
    if room <= wanted:
        raise ConfigError(f"sampling.max_new_tokens {wanted} leaves no room for a prompt in {room} tokens")
    readable = reads_at_most(judge)
    if readable is not None and readable < room:
        raise ConfigError(
            f"prompt and answer may have {room} tokens, but the reward model reads {readable}: "
            f"set max_length to {readable} or less"
        )
    return room - wanted


class Writer:
    """Answers prompts with a model whose weights it shares: train the model and the next answer is the new one's."""

    def __init__(self, model: CausalLM, template: Template, *, slots: int = 64) -> None:
        self.template = template
        self.engine = Engine(model, slots=slots)

    def recorded(self, run: Run) -> Writer:
        """Has the run folder tell what generates. -> itself"""
        run.record("generation", self.engine.way)
        return self

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingSettings,
        *,
        seed: int,
        sequence_ids: Sequence[int] | None = None,
        on_finish: Callable[[int, Generation], None] | None = None,
    ) -> list[Generation]:
        """One answer per prompt, as tokens. `sequence_ids` pick each row's random numbers (default 0, 1, 2 ...)."""
        return self.engine.generate(
            [list(p) for p in prompts],
            self._params(sampling, seed),
            stop=self._stop(sampling.stop),
            sequence_ids=sequence_ids,
            on_finish=on_finish,
        )

    def is_chat(self, prompt: Prompt) -> bool:
        """Whether the prompt becomes a conversation."""
        return prompt.is_chat or self.template.plain_prompts == "user"

    def answer(self, prompt: Prompt, generation: Generation, stop: Sequence[str] = ()) -> Answer:
        """The generated tokens as the text a reader sees: without end token, cut before a stop string."""
        text = self.template.decode(generation.ids)
        for word in stop:
            text = text.partition(word)[0] if word in text else text
        return Answer(text.strip() if self.is_chat(prompt) else text, meta={"finish": generation.finish})

    def stream(self, prompt: Prompt, sampling: SamplingSettings, *, seed: int) -> Iterator[str]:
        """Pieces of text as they come; a character split over several tokens arrives whole, a stop string never."""
        ids: list[int] = []
        shown = 0
        stop = self._stop(sampling.stop)
        for token in self.engine.stream(self.template.prompt_ids(prompt), self._params(sampling, seed), stop):
            ids.append(token)
            text = self.template.decode(ids)
            if text.endswith("\N{REPLACEMENT CHARACTER}"):
                continue  # the bytes of this character are not complete yet
            ready = _end(text, sampling.stop, len(text) - _held(text, sampling.stop))
            if ready > shown:
                yield text[shown:ready]
                shown = ready
        text = self.template.decode(ids)
        rest = text[shown : _end(text, sampling.stop, len(text))]
        if rest:
            yield rest

    def _params(self, sampling: SamplingSettings, seed: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=seed,
            eos_ids=self.template.eos_ids,
        )

    def _stop(self, words: Sequence[str]) -> Callable[[list[int]], bool] | None:
        if not words:
            return None
        longest = max(len(w) for w in words)

        def ended(ids: list[int]) -> bool:
            # every token adds at least one byte, so the last `4 * longest` tokens hold any stop string just completed
            tail = self.template.decode(ids[-4 * longest :])
            return any(word in tail for word in words)

        return ended


def _end(text: str, words: Sequence[str], otherwise: int) -> int:
    """Where the first stop string begins."""
    return min((text.find(word) for word in words if word in text), default=otherwise)


def _held(text: str, words: Sequence[str]) -> int:
    """Characters at the end of `text` that may turn out to begin a stop string."""
    starts = (word[:n] for word in words for n in range(1, len(word)))
    return max((len(start) for start in starts if text.endswith(start)), default=0)
