"""What the best of n samples is worth, without drawing n samples again and again.

With N >= n samples per prompt, the mean over all subsets of n is known exactly from the order of the proxy's scores:
the i-th lowest of N (i = 1..N) is the best of a random subset with probability C(i - 1, n - 1) / C(N, n). That is
unbiased, where taking the best of the first n is merely noisier. Source: Nakano et al. arXiv:2112.09332.

Letters: P prompts, N samples of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Mean scores of the best of n by the proxy, over prompts, with standard errors."""

    n: int
    kl: float  # nats, an upper bound
    proxy: float
    proxy_error: float
    truth: float
    truth_error: float


def best_of_n_kl(n: int) -> float:
    """KL of the best of n from one sample, in nats: ln n - (n - 1) / n.

    An upper bound, reached when no two answers tie (Beirami et al. arXiv:2401.01879; the formula is that of Stiennon et
    al. arXiv:2009.01325 appendix G.3). Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n(proxy_PN: ArrayLike, truth_PN: ArrayLike, n: int) -> Array:
    """Expected truth of the answer that the proxy scores highest among n, for each prompt.

    Args:
        proxy_PN: what the best is chosen by; samples with the same score are equally likely to be chosen.
        truth_PN: what is averaged (the proxy again for its own curve).
        n: at most N.

    Returns:
        One value per prompt.

    Raises:
        ValueError: shapes differ, n is not in 1..N, or a score is NaN.
    """
    proxy, truth = np.asarray(proxy_PN, dtype=float), np.asarray(truth_PN, dtype=float)
    if proxy.ndim != 2 or proxy.shape != truth.shape or np.isnan(proxy).any() or np.isnan(truth).any():
        raise ValueError("proxy and truth must be prompts x samples, of one shape, without NaN")
    weights_N = _weights(proxy.shape[1], n)
    return np.array([_expected(p, t, weights_N) for p, t in zip(proxy, truth, strict=True)])


def best_of_n_curve(proxy_PN: ArrayLike, truth_PN: ArrayLike, ns: Sequence[int]) -> list[BestOfN]:
    """Proxy and truth of the best of n for several n; standard errors over prompts (NaN for a single prompt)."""
    rows = []
    for n in ns:
        proxy, truth = best_of_n(proxy_PN, proxy_PN, n), best_of_n(proxy_PN, truth_PN, n)
        rows.append(BestOfN(n, best_of_n_kl(n), float(proxy.mean()), _error(proxy), float(truth.mean()), _error(truth)))
    return rows


def _weights(samples: int, n: int) -> Array:
    """C(i - 1, n - 1) / C(N, n) for i = 1..N, through logarithms because the binomials overflow."""
    if not 1 <= n <= samples:
        raise ValueError(f"n must be between 1 and the {samples} samples of each prompt, got {n}")
    from scipy.special import gammaln  # half a second, which a plan need not spend

    i = np.arange(n, samples + 1)
    logs = gammaln(i) - gammaln(n) - gammaln(i - n + 1)
    logs -= gammaln(samples + 1) - gammaln(n + 1) - gammaln(samples - n + 1)
    return np.concatenate([np.zeros(n - 1), np.exp(logs)])


def _expected(proxy_N: Array, truth_N: Array, weights_N: Array) -> float:
    order = np.argsort(proxy_N, kind="stable")
    _, group = np.unique(proxy_N[order], return_inverse=True)
    means = np.bincount(group, truth_N[order]) / np.bincount(group)  # any order of equals is as likely as another
    return float(weights_N @ means[group])


def _error(values: Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
