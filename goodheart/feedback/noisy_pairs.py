"""Scores of answers from comparisons by people of whom some do not look.

    P(k says y of a and b) = r_k D(y | s_a - s_b) + (1 - r_k) g_k(y)

Labeller k looks with probability r_k and then follows Davidson's model D: first, tie, second in proportion to
exp(d / 2), nu, exp(-d / 2), where d is the difference of the scores. Otherwise k guesses, in a way g_k of their own
(always the one shown first, say). Every label is judged by what the other labels say of its two answers: judged by
scores that it helped to make, a guess looks better than it is, and with three labels per pair by much.

Scores have a normal prior, so that disconnected and one-sided data do no harm. They climb by steps that cannot
overshoot (a graph's Laplacian is at most twice its diagonal); labellers are then fitted to the predictions made without
each label (a Gaussian posterior with the label taken out, as in expectation propagation).

Sources: Chen et al., WSDM 2013 (Crowd-BT; its eta is (1 + r) / 2 where guesses are fair); Davidson, JASA 65 (1970);
guesses as in Hovy et al., NAACL 2013 (MACE); Minka, UAI 2001 (taking out one term).

Letters: N comparisons, L labellers, P pairs, E answers (or models: what is compared), C components of K answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit

from goodheart.feedback.aggregation import PairLabels, Reliability
from goodheart.feedback.intervals import Z
from goodheart.feedback.votes import FIRST, SECOND, Array, Codes, Comparisons

# What is believed of a labeller before any label, in labels: half a one made with a look, half a one without; guesses
# go either way. Stronger priors hide careless people who gave few labels.
_LOOKED, _GUESSED, _EITHER_WAY = 0.5, 0.5, 1.0
_START = 0.8  # where the climb begins: most look, so that the scores follow the majority first
_ROUNDS, _STEPS, _TURNS = 40, 4, 5  # rounds at most; in each, steps of the scores and turns of the labellers
_SETTLED = 2e-3  # largest change of a labeller's reliability in a round that ends them
_SMALL = 12  # answers that hang together: up to here their covariance is exact
# Gauss-Hermite points of the standard normal distribution: exact for polynomials up to degree 5.
_NODES, _NODE_WEIGHTS = (-(3**0.5), 0.0, 3**0.5), (1 / 6, 2 / 3, 1 / 6)


@dataclass(frozen=True, eq=False)
class Aggregated:
    """Labels of pairs, and what was found about who made them and what was compared."""

    pairs: PairLabels
    reliability: Reliability  # share of judgements made with a look; with few labels per pair too low for all alike
    scores_E: Array  # of the answers, in log odds; 0 is their mean
    guesses_L3: Array  # what a labeller says without a look: first shown, tie, second shown


def noisy_bradley_terry(comparisons: Comparisons, *, trust_N: Array | None = None, spread: float = 3.0) -> Aggregated:
    """Scores of answers and reliability of labellers.

    trust_N: what is known beforehand of each comparison, 0 to 1: P(looked) is r_k times this. 0 for those that were
        made faster than anybody reads (`effects.too_fast`); None = 1 for all.

    spread: standard deviation of the scores' prior, in log odds; 3 takes two answers to differ by 4.2 typically, that
        is, the better one to win 65 of 66. Smaller where people find most pairs hard.
    """
    fit = _Fit(comparisons, spread, np.ones(len(comparisons.item_N)) if trust_N is None else trust_N)
    looked_N = fit.climb()
    keys_P, pair_N = comparisons.pairs()
    p_P3 = fit.probabilities(fit.scores_E[keys_P[:, 1]] - fit.scores_E[keys_P[:, 2]])
    trust_P = np.bincount(pair_N, fit.look_L[comparisons.labeller_N] * fit.trust_N)
    pairs = PairLabels(keys_P, p_P3[:, 0] + p_P3[:, 1] / 2, p_P3[:, 1], trust_P / max(float(trust_P.mean()), 1e-12))
    scores_E = fit.scores_E - fit.scores_E.mean()
    return Aggregated(pairs, fit.reliability(looked_N), scores_E, fit.guess_L3)


class _Fit:
    """What is believed, and how it is made better."""

    def __init__(self, comparisons: Comparisons, spread: float, trust_N: Array) -> None:
        c = self.data = comparisons
        self.trust_N = trust_N
        self.trusted_L = np.bincount(c.labeller_N, trust_N, len(c.labellers))  # labels that tell of r_k
        self.precision = 1 / spread**2  # of a score, before any label
        self.said_N = np.select([c.outcome_N == FIRST, c.outcome_N == SECOND], [0, 2], 1)
        self.side_N = np.array([0.5, 0.0, -0.5])[self.said_N]
        self.tied_N = self.said_N == 1
        # where nobody ever ties, a tie is no possible answer
        self.possible_3 = np.array([1.0, float(self.tied_N.any()), 1.0])
        self.nu = float(self.tied_N.any())
        self.cell_N = c.labeller_N * 3 + self.said_N
        self.scores_E = np.zeros(len(c.names))
        self.look_L = np.full(len(c.labellers), _START)
        self.guess_L3 = np.tile(self.possible_3 / self.possible_3.sum(), (len(c.labellers), 1))
        self.covariance = _Covariance(comparisons, self.precision)

    def climb(self) -> Array:
        """Fits all; returns (N,) P(looked), each judged by the other labels."""
        for _ in range(_ROUNDS):
            for _ in range(_STEPS):
                pull_N, bend_N = self._step()
            predicted_N, before = self._predicted(pull_N, bend_N), self.look_L
            for _ in range(_TURNS):
                looked_N = self._looked_at(predicted_N)
                self._labellers(looked_N)
            if np.abs(self.look_L - before).max() < _SETTLED:
                break
        return looked_N

    def probabilities(self, apart_X: Array) -> Array:
        """(X, 3) P(first better, tie, second better) where scores differ by `apart_X`. Source: Davidson 1970."""
        ahead_X = np.exp(np.clip(apart_X / 2, -300, 300))
        odds_X3 = np.stack([ahead_X, np.full(len(ahead_X), self.nu), 1 / ahead_X], axis=1)
        return np.asarray(odds_X3 / odds_X3.sum(1, keepdims=True))

    def _step(self) -> tuple[Array, Array]:
        """One step of the scores; (N,) each label's pull on its difference of scores, and how fast that slackens."""
        c = self.data
        p_N3 = self.probabilities(self.scores_E[c.first_N] - self.scores_E[c.second_N])
        looked_N = self._looked_at(p_N3[np.arange(len(p_N3)), self.said_N])
        lean_N = (p_N3[:, 0] - p_N3[:, 2]) / 2
        pull_N = looked_N * (self.side_N - lean_N)
        bend_N = looked_N * ((p_N3[:, 0] + p_N3[:, 2]) / 4 - lean_N**2)
        E = len(self.scores_E)
        slope_E = np.bincount(c.first_N, pull_N, E) - np.bincount(c.second_N, pull_N, E)
        curve_E = np.bincount(c.first_N, bend_N, E) + np.bincount(c.second_N, bend_N, E)
        step_E = (slope_E - self.precision * self.scores_E) / (2 * curve_E + self.precision)
        self.scores_E = self.scores_E + step_E
        if self.nu:  # so that as many ties are expected of those who look as they give
            self.nu *= float((looked_N[self.tied_N].sum() + 1) / (looked_N @ p_N3[:, 1] + 1))
        return pull_N, bend_N

    def _looked_at(self, p_N: Array) -> Array:
        """(N,) P(looked | what was said), where `p_N` is the probability that who looks says so."""
        look_N = self.look_L[self.data.labeller_N] * self.trust_N
        by_looking_N = look_N * p_N
        return by_looking_N / (by_looking_N + (1 - look_N) * self.guess_L3.reshape(-1)[self.cell_N])

    def _predicted(self, pull_N: Array, bend_N: Array) -> Array:
        """(N,) probability that who looks says what was said, by all other labels."""
        c = self.data
        with_N = self.covariance.of_differences(bend_N)
        without_N = 1 / np.maximum(1 / with_N - bend_N, self.precision / 2)
        middle_N = self.scores_E[c.first_N] - self.scores_E[c.second_N] - without_N * pull_N
        rows, deviation_N = np.arange(len(middle_N)), np.sqrt(without_N)
        return np.sum(
            [
                weight * self.probabilities(middle_N + node * deviation_N)[rows, self.said_N]
                for node, weight in zip(_NODES, _NODE_WEIGHTS, strict=True)
            ],
            axis=0,
        )

    def _labellers(self, looked_N: Array) -> None:
        c, L = self.data, len(self.look_L)
        looks_L = np.bincount(c.labeller_N, looked_N, L) + _LOOKED
        self.look_L = looks_L / (self.trusted_L + _LOOKED + _GUESSED)
        guessed_L3 = np.bincount(self.cell_N, 1 - looked_N, 3 * L).reshape(L, 3) + _EITHER_WAY * self.possible_3
        self.guess_L3 = guessed_L3 / guessed_L3.sum(1, keepdims=True)

    def reliability(self, looked_N: Array) -> Reliability:
        """Intervals from the curvature of the likelihood, in logits, with how they guess unknown as well."""
        c, L = self.data, len(self.look_L)
        labels_L = np.bincount(c.labeller_N, minlength=L)
        unsure_N = looked_N * (1 - looked_N)
        unsure_L3 = np.bincount(self.cell_N, unsure_N, 3 * L).reshape(L, 3)
        guesses_L = np.bincount(c.labeller_N, 1 - looked_N, L) + _EITHER_WAY * self.possible_3.sum()
        g_L3 = self.guess_L3
        eye_3 = np.eye(3)
        # 1[said = c] - g_c, for each that may be said
        said_33L = eye_3[:, :, None] - g_L3.T[None]
        by_both_L3 = np.einsum("ly,ycl->lc", unsure_L3, said_33L)
        by_guess_L33 = guesses_L[:, None, None] * (g_L3[:, :, None] * eye_3 - g_L3[:, :, None] * g_L3[:, None])
        by_guess_L33 -= np.einsum("ly,ycl,yel->lce", unsure_L3, said_33L, said_33L)
        curve_L = self.look_L * (1 - self.look_L) * (self.trusted_L + _LOOKED + _GUESSED) - unsure_L3.sum(1)
        curve_L -= np.einsum("lc,lce,le->l", by_both_L3, np.linalg.pinv(by_guess_L33, hermitian=True), by_both_L3)
        # at the least, what is believed before any label
        half_L = Z / np.sqrt(np.maximum(curve_L, _LOOKED * _GUESSED / (_LOOKED + _GUESSED)))
        middle_L = logit(self.look_L)
        return Reliability(c.labellers, self.look_L, expit(middle_L - half_L), expit(middle_L + half_L), labels_L)


class _Covariance:
    """How unsure the difference of two scores is: exact among few answers that hang together, else answer by answer."""

    def __init__(self, comparisons: Comparisons, precision: float) -> None:
        c, E = comparisons, len(comparisons.names)
        self.data, self.precision = comparisons, precision
        graph = sparse.coo_array((np.ones(len(c.first_N)), (c.first_N, c.second_N)), shape=(E, E))
        _, component_E = connected_components(graph, directed=False)
        size_E = np.bincount(component_E)[component_E]
        self.blocks: list[tuple[Codes, Codes, Codes, Codes, int, int]] = []
        for K in np.unique(size_E[size_E <= _SMALL]):
            answers = np.flatnonzero(size_E == K)
            answers = answers[np.argsort(component_E[answers], kind="stable")]
            place_E = np.zeros(E, dtype=np.int64)
            place_E[answers] = np.arange(len(answers))
            rows = np.flatnonzero(size_E[c.first_N] == K)
            a, b = place_E[c.first_N[rows]], place_E[c.second_N[rows]]
            self.blocks.append((rows.astype(np.int64), a // K, a % K, b % K, len(answers) // K, int(K)))

    def of_differences(self, bend_N: Array) -> Array:
        """(N,) variance of the difference of each comparison's scores.

        bend_N: what each comparison adds to the precision of its difference.
        """
        c, E = self.data, len(self.data.names)
        curve_E = np.bincount(c.first_N, bend_N, E) + np.bincount(c.second_N, bend_N, E) + self.precision
        variance_N = 1 / curve_E[c.first_N] + 1 / curve_E[c.second_N]
        for rows, component, a, b, C, K in self.blocks:
            flat = component * K * K
            cells = np.concatenate([flat + a * K + a, flat + b * K + b, flat + a * K + b, flat + b * K + a])
            bend = bend_N[rows]
            curve_CKK = np.bincount(cells, np.concatenate([bend, bend, -bend, -bend]), C * K * K).reshape(C, K, K)
            inverse = np.linalg.inv(curve_CKK + self.precision * np.eye(K))
            variance_N[rows] = inverse[component, a, a] + inverse[component, b, b] - 2 * inverse[component, a, b]
        return variance_N
