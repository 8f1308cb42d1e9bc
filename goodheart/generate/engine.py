"""Continuous batching: many prompts in, their continuations with log-probabilities out.

    waiting prompts --prefill--> running rows --one token per step--> finished
                                      ^                                   |
                                      +----------- freed slots -----------+

The engine holds no weights: it runs the trainer's own module, so what was just trained is what is sampled. Memory is
slots x longest sequence of keys and values, however many prompts there are.

Shapes: N running rows, P rows just started, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor

from goodheart.errors import ConfigError, HealthError
from goodheart.generate.cache import KVCache
from goodheart.generate.compiled import CompiledRunner, CompiledSampler
from goodheart.generate.graphs import room
from goodheart.generate.runners import HFRunner, NativeRunner, RecomputingRunner, Runner, hf_runner, way
from goodheart.generate.sampling import Sampler, SamplingParams, UniformRows
from goodheart.generate.scheduler import Row, Scheduler, compact, requests
from goodheart.generate.structures import CompiledCache
from goodheart.models.causal import CausalLM
from goodheart.models.transformer import Transformer

Finish = Literal["eos", "stop", "length"]
Stop = Callable[[list[int]], bool]


@dataclass(frozen=True, slots=True)
class Generation:
    """One continuation. ids: new tokens, the EOS token included where there is one. logps: of each, in nats (see
    `SamplingParams`). finish: an EOS id came, `stop` said so, or the limit was reached."""

    prompt_ids: list[int]
    ids: list[int]
    logps: list[float]
    finish: Finish


class Engine:
    """Generates with a model whose weights it shares.

    slots: sequences that run side by side. max_length: most tokens of a sequence, prompt included, if less than the
    model allows. Keys and values, and steps recorded over them, are kept between calls for the next one; `release`
    frees them.
    """

    def __init__(self, model: CausalLM, *, slots: int = 64, max_length: int | None = None) -> None:
        if slots < 1 or (max_length is not None and max_length < 2):
            raise ConfigError(f"engine: slots {slots} must be at least 1, and max_length {max_length} at least 2")
        self.model, self.slots = model, slots
        limits = [n for n in (max_length, model.max_length) if n is not None]
        self.max_length = min(limits) if limits else None
        self._cache: KVCache | CompiledCache | None = None
        self._hf_runner: type[HFRunner] | type[RecomputingRunner] | None = None  # unknown until first used

    @property
    def way(self) -> str:
        """What computes: results of different ones differ by rounding."""
        return CompiledRunner.way(self.model) or way(self.model)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        stop: Stop | None = None,
        on_token: Callable[[int, int], None] | None = None,
        on_finish: Callable[[int, Generation], None] | None = None,
        sequence_ids: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Continue every prompt.

        prompts: token ids, of any lengths. stop: called with the new ids of a row after each token that is not an
        EOS; True ends the row. on_token: called with the prompt's index and each token as it comes. on_finish: called
        with the index and the result when a row ends, in the order they end. sequence_ids: which stream of random
        numbers each row draws from (default 0, 1, 2 ...), so that a job cut in pieces draws the same.
        -> in the order of the prompts.
        Raises ModelError for a prompt that is empty, too long or holds an unknown id; ConfigError for lists of the
        wrong length; HealthError when the model gives not-a-number.
        """
        results: list[Generation | None] = [None] * len(prompts)
        call = _Call(self, prompts, params, stop, sequence_ids, one_by_one=on_token is not None)
        while call.unfinished:
            rows, ended = call.advance()
            if on_token is not None:
                for row in rows:
                    on_token(row.index, row.ids[-1])
            for row, finish in ended:
                made = Generation(row.prompt, row.ids, row.logps, finish)
                results[row.index] = made
                if on_finish is not None:
                    on_finish(row.index, made)
        return [r for r in results if r is not None]

    def stream(self, prompt: Sequence[int], params: SamplingParams, stop: Stop | None = None) -> Iterator[int]:
        """The tokens of one continuation as they come. Raises as `generate`, at once."""
        return self._tokens(_Call(self, [prompt], params, stop, None, one_by_one=True))

    def release(self) -> None:
        """Free the memory of keys and values until the next call."""
        self._cache = None

    def _tokens(self, call: _Call) -> Iterator[int]:
        while call.unfinished:
            yield from [row.ids[-1] for row in call.advance()[0]]

    def _runner(self, slots: int, length: int) -> Runner:
        model = self.model
        first = next(model.parameters())
        device = first.device
        if not isinstance(model, Transformer):
            if self._hf_runner is None:
                self._hf_runner = hf_runner(model, device)
            return self._hf_runner(model, device)
        kept, self._cache = self._cache, None  # a call owns its cache: another may start before it ends
        c = model.config
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else first.dtype
        # What does not fit is freed here, before its successor is made: nobody else may hold it.
        if isinstance(kept, CompiledCache) and not kept.fits(c, first.dtype, slots, length):
            kept = None
        if isinstance(kept, KVCache) and (not kept.fits(slots, length, dtype, device) or CompiledRunner.serves(model)):
            kept = None
        compiled = CompiledRunner.of(model, slots, length, kept if isinstance(kept, CompiledCache) else None)
        if compiled is not None:
            return compiled
        if not isinstance(kept, KVCache):
            kept = None
            with torch.inference_mode(False):
                kept = KVCache(c.layers, slots, room(length, device), c.kv_heads, c.head_dim, dtype, device)
        return NativeRunner(model, kept)

    def _sampler(self, params: SamplingParams) -> Callable[[Tensor, Tensor | None], Tensor]:
        head = self.model.unembed()
        return CompiledSampler.of(head, params) or Sampler(head, params)

    def _done(self, runner: Runner) -> None:
        if isinstance(runner, NativeRunner | CompiledRunner):
            self._cache = runner.cache


class _Call:
    """The state of one call of the engine: who waits, who runs, and their next tokens."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        stop: Stop | None,
        sequence_ids: Sequence[int] | None,
        *,
        one_by_one: bool,
    ) -> None:
        self.engine, self.params, self.stop, self.one_by_one = engine, params, stop, one_by_one
        self.sampler = engine._sampler(params)
        self.eos_ids = frozenset(params.eos_ids)
        self.sequence_ids = range(len(prompts)) if sequence_ids is None else sequence_ids
        for name, given in (("max_new_tokens", params.max_new_tokens), ("sequence_ids", self.sequence_ids)):
            if not isinstance(given, int) and len(given) != len(prompts):
                raise ConfigError(f"{name} has {len(given)} entries for {len(prompts)} prompts; give one for each")
        limits = [params.limit(i) for i in range(len(prompts))]
        rows = requests(prompts, limits, engine.max_length, engine.model.vocab_size)
        self.scheduler = Scheduler(rows, min(engine.slots, max(1, len(rows))))
        self.running: list[Row] = []
        self.until_limit = 0  # steps until a running row may have reached its limit
        self.device = next(engine.model.parameters()).device
        self.tokens_N = torch.zeros(0, dtype=torch.long, device=self.device)
        if rows:
            self.runner = engine._runner(self.scheduler.slots, max(len(r.prompt) + r.limit - 1 for r in rows))
            self.uniforms = None
            if not params.is_greedy:
                self.uniforms = UniformRows(self.scheduler.slots, max(limits), params.seed, self.device)

    @property
    def unfinished(self) -> bool:
        """Whether rows wait or run."""
        return bool(self.running or len(self.scheduler))

    def advance(self) -> tuple[list[Row], list[tuple[Row, Finish]]]:
        """Start rows if it is time to, otherwise one step of all, or several. -> the rows that got a token, or several;
        those that ended, in that order."""
        started = self.scheduler.next_group(len(self.running))
        if started:
            hidden_PD = self.runner.admit([row.prompt for row in started])
            if self.uniforms is not None:
                self.uniforms.admit([self.sequence_ids[row.index] for row in started])
            tokens_P, drawn = self._draw(hidden_PD, len(self.running))
            self.running += started
            self.tokens_N = torch.cat((self.tokens_N, tokens_P))
            return started, self._record(started, drawn)
        rows, runner, sampler = self.running, self.runner, self.sampler
        if (
            isinstance(runner, CompiledRunner)
            and isinstance(sampler, CompiledSampler)
            and runner.library is sampler.library  # not of two dtypes
        ):
            steps = 1 if self.one_by_one else runner.steps_at_once(sampler, len(self.scheduler) > 0)
            return rows, self._run(runner, sampler, steps)
        self.tokens_N, drawn = self._draw(runner.step(self.tokens_N), 0)
        return rows, self._record(rows, drawn)

    def _run(self, runner: CompiledRunner, sampler: CompiledSampler, steps: int) -> list[tuple[Row, Finish]]:
        """Several steps of all rows in one call. -> the rows that end"""
        limits = [row.limit - len(row.ids) for row in self.running]
        steps = min(steps, max(limits))
        ahead = None if self.uniforms is None else self.uniforms.ahead
        tokens_NS, logps_NS, made = runner.run(self.tokens_N, sampler, ahead, limits, self.params.eos_ids, steps)
        self.tokens_N = tokens_NS[:, -1].contiguous()
        if self.uniforms is not None:
            self.uniforms.skip(steps)
        ended: list[tuple[int, Row, Finish]] = []
        drawn = zip(self.running, tokens_NS.tolist(), logps_NS.tolist(), made, strict=True)
        for row, tokens, logps, count in drawn:
            if math.isnan(sum(logps[:count])):
                row.ids += tokens[: [math.isnan(logp) for logp in logps].index(True)]
                self._refuse_nan(row)
            finish, count = self._take(row, tokens[:count], logps)
            if finish is not None:
                ended.append((count, row, finish))
        ended.sort(key=lambda each: each[0])  # by the step in which they did
        self._drop([row for _, row, _ in ended])
        return [(row, finish) for _, row, finish in ended]

    def _take(self, row: Row, tokens: list[int], logps: list[float]) -> tuple[Finish | None, int]:
        """Add tokens until the row ends. -> how it ends, None if it goes on; how many tokens it took"""
        if self.stop is None:  # what ends a row is then known to have come last
            row.ids += tokens
            row.logps += logps[: len(tokens)]
            return self._finish(row), len(tokens)
        for count, (token, logp) in enumerate(zip(tokens, logps, strict=False), 1):
            row.ids.append(token)
            row.logps.append(logp)
            finish = self._finish(row)
            if finish is not None:
                return finish, count
        return None, len(tokens)

    def _draw(self, hidden_ND: Tensor, first: int) -> tuple[Tensor, list[list[float]]]:
        """Tokens for the rows from `first` on. -> tokens_N on the device; [tokens, log-probabilities] as numbers."""
        u_N1 = None if self.uniforms is None else self.uniforms.take(first)
        drawn_2N = self.sampler(hidden_ND, u_N1)
        return drawn_2N[0].long(), drawn_2N.tolist()

    def _record(self, rows: list[Row], drawn: list[list[float]]) -> list[tuple[Row, Finish]]:
        """Add the tokens to their rows, and drop the rows that end."""
        tokens, logps = [int(token) for token in drawn[0]], drawn[1]
        if math.isnan(sum(logps)):
            self._refuse_nan(rows[[math.isnan(logp) for logp in logps].index(True)])
        for row, token, logp in zip(rows, tokens, logps, strict=True):
            row.ids.append(token)
            row.logps.append(logp)
        self.until_limit -= 1
        if rows is not self.running or self.until_limit == 0 or self.stop or not self.eos_ids.isdisjoint(tokens):
            ended = [(row, finish) for row in rows if (finish := self._finish(row)) is not None]
        else:
            ended = []
        self._drop([row for row, _ in ended])
        if ended or rows is not self.running:
            self.until_limit = min((row.limit - len(row.ids) for row in self.running), default=0)
        return ended

    def _drop(self, ended: list[Row]) -> None:
        """These rows run no longer."""
        if ended:
            gone = {id(row) for row in ended}
            order = compact([id(row) not in gone for row in self.running])
            self.running = [self.running[i] for i in order]
            self.tokens_N = self.tokens_N[order]
            self.runner.keep(order)
            if self.uniforms is not None:
                self.uniforms.keep(order)
        if not self.unfinished:
            self.engine._done(self.runner)

    def _finish(self, row: Row) -> Finish | None:
        if row.ids[-1] in self.eos_ids:
            return "eos"
        if self.stop is not None and self.stop(row.ids):
            return "stop"
        return "length" if len(row.ids) == row.limit else None

    def _refuse_nan(self, row: Row) -> NoReturn:
        raise HealthError(
            f"generation: the model gave not-a-number at new token {len(row.ids)} of prompt {row.index}; its weights "
            "are broken (training diverged?): go back to an earlier checkpoint"
        )
