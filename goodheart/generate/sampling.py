"""From logits to tokens: temperature, top-k, top-p, min-p, greedy; and the log-probability of what was drawn.

A token is drawn by inverting the cumulative distribution at a uniform number u[sequence, step] that is fixed by the
seed before anything runs. So a sequence does not depend on how many others ran beside it, in which slot, or when.

Shapes: N sequences (rows), V vocabulary, K most probable tokens, S steps, B tokens in a block of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goodheart.errors import ConfigError
from goodheart.generate.scheduler import moves
from goodheart.losses.logprobs import head_logits
from goodheart.models.causal import Unembedding

# Tokens that top-p looks at before it sorts the whole vocabulary: most nuclei are smaller than this.
_NUCLEUS_GUESS = 256
# Below it logits divided by the temperature leave the range of float32.
_COLDEST = 1e-6


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to continue prompts.

    max_new_tokens: per prompt, or one number for all. temperature: divides the logits; 0 = greedy. top_k: 0 = off.
    top_p, min_p: 1.0 and 0.0 = off. Truncation is applied in the order top-k, top-p, min-p, as in transformers.
    seed: of the uniforms; same seed, same draws. eos_ids: every one of them ends a sequence (and is part of it).
    greedy: the most probable token; its log-probability is that of the distribution at temperature 1, since a certain
    token has none worth knowing. Otherwise log-probabilities are those of the distribution drawn from, after
    temperature and truncation; a trainer that does not truncate must sample with all three off (`truncates`).
    """

    max_new_tokens: int | Sequence[int]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    greedy: bool = False

    def __post_init__(self) -> None:
        limits = [self.max_new_tokens] if isinstance(self.max_new_tokens, int) else self.max_new_tokens
        for ok, name, rule in (
            (all(n >= 1 for n in limits), "max_new_tokens", "at least 1"),
            (
                self.temperature == 0.0 or _COLDEST <= self.temperature < float("inf"),
                "temperature",
                f"0 (greedy) or a number from {_COLDEST:g} on",
            ),
            (self.top_k >= 0, "top_k", "0 (off) or a positive number"),
            (0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1 (off)"),
            (0.0 <= self.min_p <= 1.0, "min_p", "from 0 (off) to 1"),
        ):
            if not ok:
                raise ConfigError(f"sampling: {name} is {getattr(self, name)}; it must be {rule}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken instead of drawing."""
        return self.greedy or self.temperature == 0.0

    @property
    def divisor(self) -> float:
        """What the logits are divided by: the temperature, or 1.0 when greedy."""
        return 1.0 if self.is_greedy else self.temperature

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn, so that log-probabilities differ from the trainer's."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)

    def limit(self, index: int) -> int:
        """Most new tokens for prompt `index`."""
        return self.max_new_tokens if isinstance(self.max_new_tokens, int) else self.max_new_tokens[index]


def uniforms(seed: int, sequence: int, steps: int) -> np.ndarray:
    """u[sequence, 0 .. steps-1] in [0, 1), float64.

    Counter-based (Philox, Salmon et al. 2011): sequences have streams of their own that never overlap, each can be
    made alone, and a longer one begins with the shorter one. Raises nothing; any int is a seed.
    """
    key = np.array([seed & (2**64 - 1), 0], dtype=np.uint64)
    counter = np.array([0, 0, sequence, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(steps)


class UniformRows:
    """The uniforms of the running rows, one row each, and where each row stands in its own."""

    def __init__(self, rows: int, steps: int, seed: int, device: torch.device) -> None:
        self.seed = seed
        self._u_NS = torch.zeros(rows, steps, dtype=torch.float64, device=device)
        self._at_N = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def ahead(self) -> tuple[Tensor, Tensor]:
        """All numbers, flat, and where in them those begin that each row takes next."""
        return self._u_NS.view(-1), self._at_N

    def skip(self, steps: int) -> None:
        """All rows have taken so many."""
        self._at_N += steps

    def admit(self, sequences: Sequence[int]) -> None:
        """Append rows for these sequences, at their first step."""
        steps = self._u_NS.shape[1]
        first = len(self._at_N)
        drawn = np.stack([uniforms(self.seed, s, steps) for s in sequences])
        self._u_NS[first : first + len(sequences)] = torch.from_numpy(drawn).to(self._u_NS.device)
        starts = torch.arange(first, first + len(sequences), device=self._at_N.device) * steps
        self._at_N = torch.cat((self._at_N, starts))

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; the others are gone."""
        steps, device = self._u_NS.shape[1], self._at_N.device
        new, old = moves(order)
        order_N, places_N = torch.tensor(order, dtype=torch.long), torch.arange(len(order))
        self._at_N = self._at_N[order_N.to(device)] + ((places_N - order_N) * steps).to(device)
        if new:
            self._u_NS[new] = self._u_NS[old]

    def take(self, first: int = 0) -> Tensor:
        """The next uniform of the rows from `first` on, which move one step. -> (N, 1) float64."""
        at_N = self._at_N[first:]
        u_N = self._u_NS.view(-1).index_select(0, at_N)
        at_N += 1
        return u_N.unsqueeze(1)


class Sampler:
    """Hidden states to tokens, in PyTorch, for any device and dtype."""

    def __init__(self, head: Unembedding, params: SamplingParams) -> None:
        self.head, self.params = head, params

    @torch.inference_mode()
    def __call__(self, hidden_ND: Tensor, u_N1: Tensor | None) -> Tensor:
        """hidden_ND: after the final norm. u_N1: see `draw`. -> (2, N): tokens, and their log-probabilities; both as
        floats, so that one transfer fetches both. float32 is exact for ids below 2^24."""
        weight_VD, bias_V, scale, softcap = self.head
        logits_NV = head_logits(
            hidden_ND, weight_VD, bias_V=bias_V, scale=scale, softcap=softcap, temperature=self.params.divisor
        )
        return torch.stack(draw(logits_NV, u_N1, self.params))


def draw(logits_NV: Tensor, u_N1: Tensor | None, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row.

    logits_NV: float32, already divided by the temperature. u_N1: uniforms in [0, 1), float64; None when greedy.
    -> tokens_N, logps_N (float32, of the distribution drawn from; see `SamplingParams`).
    """
    if params.is_greedy or u_N1 is None:
        tokens_N = _argmax(logits_NV)
        chosen_N = logits_NV.gather(1, tokens_N.unsqueeze(1)).squeeze(1)
        return tokens_N, chosen_N - logits_NV.logsumexp(1)
    p_NV = logits_NV.softmax(1)
    if params.truncates:
        p_NV = truncate(p_NV, params)
    return invert(p_NV, u_N1)


def truncate(p_NV: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities with those that must not be drawn set to 0; not rescaled.

    top-k keeps the k most probable. top-p (nucleus, Holtzman et al. 2020, arXiv:1904.09751) keeps the most probable
    tokens until their share of what top-k left reaches p, at least one. min-p (Nguyen et al. 2024, arXiv:2407.01082)
    drops what is under min_p times the most probable.
    """
    vocabulary = p_NV.shape[1]
    if params.top_k or params.top_p < 1.0:
        top_k = min(params.top_k or vocabulary, vocabulary)
        sorted_NK, ids_NK = p_NV.topk(min(top_k, vocabulary if params.top_k else _NUCLEUS_GUESS))
        if params.top_p < 1.0:
            mass_N1 = sorted_NK.sum(1, keepdim=True) if params.top_k else 1.0
            if not params.top_k and bool((sorted_NK.sum(1) < params.top_p).any()):
                sorted_NK, ids_NK = p_NV.sort(dim=1, descending=True, stable=True)
            before_NK = sorted_NK.cumsum(1, dtype=torch.float64) - sorted_NK
            dropped_NK = before_NK >= params.top_p * mass_N1
            dropped_NK[:, 0] = False
            sorted_NK = sorted_NK.masked_fill(dropped_NK, 0.0)
        p_NV = torch.zeros_like(p_NV).scatter_(1, ids_NK, sorted_NK)
    if params.min_p > 0.0:
        p_NV = p_NV.masked_fill(p_NV < params.min_p * p_NV.amax(1, keepdim=True), 0.0)
    return p_NV


def invert(p_NV: Tensor, u_N1: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative distribution first exceeds u, in vocabulary order.

    In two levels, since a running sum over a whole vocabulary is slow: first the block of tokens, then the token in
    it. Running sums are float64, so that rare tokens late in the vocabulary keep their chance.
    p_NV: non-negative, need not sum to 1. -> tokens_N, logps_N = log(p / sum p), float32. Tokens with p = 0 are never
    drawn.
    """
    N, V = p_NV.shape
    block = _block_size(V)
    if V % block:
        p_NV = F.pad(p_NV, (0, block - V % block))
    p_XB = p_NV.view(-1, block)
    mass_NK = p_XB.sum(1).view(N, -1)
    cdf_NK = mass_NK.cumsum(1, dtype=torch.float64)
    total_N1 = cdf_NK[:, -1:]
    target_N1 = u_N1 * total_N1
    block_N1 = torch.searchsorted(cdf_NK, target_N1, right=True)
    block_N1.clamp_(max=cdf_NK.shape[1] - 1)  # only not-a-number gets that far
    inside_NB = p_XB.index_select(0, (block_N1 + _row_starts(N, cdf_NK.shape[1], p_NV.device)).view(-1))
    cdf_NB = inside_NB.cumsum(1, dtype=torch.float64)
    # The block's mass was summed in float32 and another order: what is left of u must stay below its running sum.
    rest_N1 = torch.minimum(target_N1 - (cdf_NK - mass_NK).gather(1, block_N1), cdf_NB[:, -1:] * (1.0 - 2.0**-40))
    at_N1 = torch.searchsorted(cdf_NB, rest_N1, right=True)
    at_N1.clamp_(max=block - 1)
    logps_N1 = (inside_NB.gather(1, at_N1) / total_N1).log_()
    return at_N1.add_(block_N1, alpha=block).squeeze(1), logps_N1.squeeze(1).float()


def _argmax(logits_NV: Tensor) -> Tensor:
    """As torch.argmax (the first of equals), ten times faster on CPU: vectorised maxima of blocks come first."""
    N, V = logits_NV.shape
    block = _block_size(V)
    if V % block:
        return logits_NV.argmax(1)
    x_XB = logits_NV.view(-1, block)
    block_N = x_XB.amax(1).view(N, -1).argmax(1)
    inside_NB = x_XB.index_select(0, block_N + _row_starts(N, V // block, logits_NV.device).view(-1))
    return inside_NB.argmax(1).add_(block_N, alpha=block)


@lru_cache(maxsize=256)
def _block_size(vocabulary: int) -> int:
    """A divisor of the vocabulary near its square root, so that no padding is needed; 128 when there is none."""
    root = vocabulary**0.5
    divisors = [b for b in range(8, 1025) if vocabulary % b == 0]
    best = min(divisors, key=lambda b: b + vocabulary / b, default=128)
    return best if best + vocabulary / best < 8 * root else 128


@lru_cache(maxsize=256)
def _row_starts(rows: int, blocks: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return (torch.arange(rows, device=device) * blocks).unsqueeze(1)
