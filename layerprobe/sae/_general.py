"""Which latents are associated with general properties of tokens, where tokens of one example are dependent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.sae._properties import Properties
from layerprobe.sae._ranks import sparse_ranks, two_sided_p

if TYPE_CHECKING:
    from scipy.sparse import csc_array


@dataclass(frozen=True)
class GeneralTests:
    """Associations of properties (rows) with latents (columns)."""

    names: tuple[tuple[str, str, str], ...]
    """Property, and its value where the association is positive and where it is negative."""
    effect: Float[np.ndarray, "tests latents"]
    """Spearman's correlation over tokens."""
    auroc: Float[np.ndarray, "tests latents"]
    """Of the activation, between tokens with and without the property; NaN for numeric properties."""
    p: Float[np.ndarray, "tests latents"]


@dataclass(frozen=True)
class _Columns:
    """Centred scores of the latents on all tokens: zero-activation score `zero`, plus `lift` where active."""

    lift: csc_array
    zero: np.ndarray
    squares: np.ndarray
    cubes: np.ndarray
    example: np.ndarray

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.bincount(self.example).astype(np.float64)

    @cached_property
    def _pairs(self) -> tuple[np.ndarray | None, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Order of the entries by latent and example (None: as stored), first entry of each pair, its latent and example,
        and first pair of each latent; every latent has some."""
        n_examples = len(self.lengths)
        key = np.repeat(np.arange(self.lift.shape[1]) * n_examples, np.diff(self.lift.indptr))
        key += self.example[self.lift.indices]
        order = None
        if (key[1:] < key[:-1]).any():
            order = np.argsort(key, kind="stable")
            key = key[order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        latent, example = np.divmod(key[first], n_examples)
        return order, first, latent, example, np.searchsorted(latent, np.arange(self.lift.shape[1]))

    @cached_property
    def squared_lift(self) -> csc_array:
        """The contribution of each active token to the sum of squared scores."""
        zero = np.repeat(self.zero, np.diff(self.lift.indptr))
        return _like(self.lift, self.lift.data * (self.lift.data + 2 * zero))

    @cached_property
    def doubled_zero(self) -> np.ndarray:
        """Twice the zero-activation score, for each pair."""
        return 2 * self.zero[self._pairs[2]]

    def of_pairs(self, of_example: np.ndarray) -> np.ndarray:
        """A value per example, for each pair."""
        return of_example[self._pairs[3]]

    def by_latent(self, of_pair: np.ndarray) -> np.ndarray:
        """Sums over each latent's pairs."""
        return np.add.reduceat(of_pair, self._pairs[4])

    def pair_sums(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Sums of weighted lifts over each pair of a latent and an example that it is active in."""
        order, first = self._pairs[:2]
        values = self.lift.data if weights is None else self.lift.data * weights[self.lift.indices]
        return np.add.reduceat(values if order is None else values[order], first)

    @cached_property
    def correlation(self) -> np.ndarray:
        """Correlation of a latent's scores between two tokens of one example, at least 0."""
        sums, lengths = self.pair_sums(), self.lengths
        between = self.by_latent(sums * (sums + self.doubled_zero * self.of_pairs(lengths)))
        between += self.zero**2 * (lengths**2).sum() - self.squares
        pairs = (lengths * (lengths - 1)).sum()
        return np.clip(between / (self.squares * max(pairs, 1) / lengths.sum()), 0, 1)


def general_tests(
    codes: csc_array, example: Int[np.ndarray, " n"], properties: Properties, judged: Int[np.ndarray, " judged"]
) -> GeneralTests:
    """Test each judged latent against each property.

    A statistic is a sum over tokens of the latent's centred rank (ties averaged) times the centred property: the rank
    sum of a binary property's tokens, or of a numeric property's ranks. Since a sparse latent can follow a numeric
    property at one end only, membership of its lowest and highest tenth is tested too. The effect is Spearman's
    correlation for all of them. For a binary property it is small where the latent is inactive on most tokens that have
    the property *or* active on many that do not; AUROC depends on the first alone, and with a threshold on AUROC 99% of
    the latents of a real dictionary were associated with some token.

    The variance under independence is that of a permutation of tokens, times a design effect for the dependence of
    tokens within an example: the largest of 1; of (1 - r) + r sum_e (sum_i b_ei)^2 / sum b^2, with r the correlation of
    the latent's ranks within examples, as if whole examples were permuted (Kish 1965); and of the cluster-robust
    variance of the slope of ranks on the property (Liang and Zeger 1986) over the robust one for independent tokens
    (White 1980). The last also accounts for neighbours that resemble each other more than distant tokens do, but is
    too small with few examples; as a ratio, it is not affected by a property's tokens varying more where the latent
    follows it. The skewness is that of a permutation of tokens, times the root of the design effect, as for whole
    examples that are permuted as one token each.
    """
    from scipy.stats import rankdata

    if not len(judged):
        return GeneralTests((), *[np.zeros((0, 0))] * 3)
    scores = _ranked(codes if len(judged) == codes.shape[1] else codes[:, judged], example)
    names, tests = [], []

    def add(name: str, where: str, elsewhere: str, property_: np.ndarray) -> None:
        names.append((name, where, elsewhere))
        tests.append(_tested(scores, property_))

    for name, member in properties.binary.items():
        add(name, "yes", "no", member)
    for name, value in properties.numeric.items():
        add(name, "high", "low", rankdata(value) - (len(value) + 1) / 2)
        low, high = np.quantile(value, [0.1, 0.9])
        for tenth, member in (("lowest tenth", value <= low), ("highest tenth", value >= high)):
            # With ties a tenth may hold far more.
            if member.mean() < 0.5:
                add(name, tenth, f"not {tenth}", member)
    if properties.common:
        names += [("token", token, f"not {token}") for token in properties.common]
        tests.append(_identity(scores, properties))
    empty = np.zeros((0, len(judged)))
    return GeneralTests(tuple(names), *[np.concatenate([empty, *parts]) for parts in zip(*tests, strict=True)])


_Tested = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Effect, AUROC and p: tests x latents."""


def _ranked(columns: Any, example: np.ndarray) -> _Columns:
    latent = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
    ranks = sparse_ranks(columns.data, latent, np.full(columns.shape[1], columns.shape[0]))
    # Undefined for a latent that is equally active on all tokens.
    squares = np.where(ranks.squares > 0, ranks.squares, np.nan)
    return _Columns(_like(columns, ranks.values - ranks.zero[latent]), ranks.zero, squares, ranks.cubes, example)


def _like(columns: Any, data: np.ndarray) -> csc_array:
    from scipy.sparse import csc_array

    return csc_array((data, columns.indices, columns.indptr), shape=columns.shape)


def _tested(scores: _Columns, property_: np.ndarray) -> _Tested:
    """Tests of one binary property, or of a numeric one that is centred."""
    member = property_ if property_.dtype == bool else None
    b = property_ if member is None else member - member.mean()
    n_examples = len(scores.lengths)
    of_example = np.bincount(scores.example, b, minlength=n_examples)
    squares = np.bincount(scores.example, b**2, minlength=n_examples)
    power = squares.sum()
    zero, sums = scores.zero, scores.pair_sums(b)
    total = scores.by_latent(sums)
    s2 = scores.by_latent(sums * (sums + scores.doubled_zero * scores.of_pairs(of_example)))
    s2 += zero**2 * (of_example**2).sum()
    sw = scores.by_latent(sums * scores.of_pairs(squares)) + zero * (of_example * squares).sum()
    slope = total / power
    together = s2 - 2 * slope * sw + slope**2 * (squares**2).sum()
    apart = scores.squared_lift.T @ b**2 + zero**2 * power
    apart += slope**2 * (b**4).sum() - 2 * slope * (scores.lift.T @ b**3 + zero * (b**3).sum())
    p = _p(scores, total, power, (b**3).sum(), together, apart, (of_example**2).sum() / power)
    auroc = np.full(len(total), np.nan) if member is None else 0.5 + total / (member.sum() * (~member).sum())
    return (total / np.sqrt(scores.squares * power))[None], auroc[None], p[None]


def _identity(scores: _Columns, properties: Properties) -> _Tested:
    """Tests of all common tokens at once: the sums of `_tested`, over the few examples of each token."""
    n, n_examples, n_tokens = len(scores.example), len(scores.lengths), len(properties.common)
    common = np.flatnonzero(properties.identity >= 0)
    pairs, pair = np.unique(
        properties.identity[common] * n_examples + scores.example[common], return_inverse=True
    )  # of a token and an example
    token, example = np.divmod(pairs, n_examples)
    times = np.bincount(pair).astype(np.float64)
    pair_of = np.full(n, -1)
    pair_of[common] = pair
    sums = _merged(scores.lift, pair_of, len(pairs))
    latent = np.repeat(np.arange(sums.shape[1]), np.diff(sums.indptr))
    cell = token[sums.indices] * sums.shape[1] + latent
    here = times[sums.indices]

    def over_tokens(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, values, minlength=n_tokens * sums.shape[1]).reshape(n_tokens, sums.shape[1])

    counts = np.bincount(token, times)
    square_counts = np.bincount(token, times**2)[:, None]
    zero = scores.zero
    total = over_tokens(sums.data) + counts[:, None] * zero
    s2 = over_tokens(sums.data * (sums.data + 2 * zero[latent] * here)) + square_counts * zero**2
    sw = over_tokens(sums.data * here) + square_counts * zero
    slope = total / counts[:, None]
    together = s2 - 2 * slope * sw + slope**2 * square_counts
    apart = _by_token(scores, properties.identity, n_tokens) + counts[:, None] * (zero**2 - slope**2)
    share = counts / n
    power = n * share * (1 - share)
    crossed = np.bincount(token, times * scores.lengths[example])
    permuted = (square_counts[:, 0] - 2 * share * crossed + share**2 * (scores.lengths**2).sum()) / power
    p = _p(scores, total, power[:, None], (power * (1 - 2 * share))[:, None], together, apart, permuted[:, None])
    auroc = 0.5 + total / (counts * (n - counts))[:, None]
    return total / np.sqrt(scores.squares * power[:, None]), auroc, p


def _merged(matrix: csc_array, group: np.ndarray, n_groups: int) -> csc_array:
    """Sums of a matrix's rows by group; rows of group -1 are dropped."""
    from scipy.sparse import csc_array

    rows = group[matrix.indices]
    kept = rows >= 0
    pointers = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    merged = csc_array((matrix.data[kept], rows[kept], pointers), shape=(n_groups, matrix.shape[1]))
    merged.sum_duplicates()
    return merged


def _by_token(scores: _Columns, identity: np.ndarray, n_tokens: int) -> np.ndarray:
    """Sums of squared lifts over the occurrences of each common token."""
    squared = scores.squared_lift
    token = identity[squared.indices]
    kept = token >= 0
    latent = np.repeat(np.arange(squared.shape[1]), np.diff(squared.indptr))
    cell = token[kept] * squared.shape[1] + latent[kept]
    sums = np.bincount(cell, squared.data[kept], minlength=n_tokens * squared.shape[1])
    return sums.reshape(n_tokens, squared.shape[1])


def _p(scores: _Columns, total: Any, power: Any, cubes: Any, together: Any, apart: Any, permuted: Any) -> np.ndarray:
    n = len(scores.example)
    alone = scores.squares * power / (n - 1)
    # For a latent that follows a property exactly, both robust variances are rounding errors.
    least = 1e-9 * alone
    ratio = (np.maximum(together, 0) + least) / (np.maximum(apart, 0) + least)
    r = scores.correlation
    design = np.maximum(np.maximum(1, (1 - r) + r * permuted), ratio)
    skew = n * scores.cubes * cubes / ((n - 1) * (n - 2)) / alone**1.5 * np.sqrt(design)
    return two_sided_p(total / np.sqrt(alone * design), np.broadcast_to(skew, np.shape(total)))
