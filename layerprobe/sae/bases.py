"""Bases that stand in for a dictionary: directions read as latents, as often active as the dictionary's latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Num

from layerprobe.errors import ArgumentError
from layerprobe.sae._selection import kth_largest_of_columns

if TYPE_CHECKING:
    from scipy.sparse import csc_array

    from layerprobe.sae._dictionary import Dictionary

MATCHING_ROWS = 4096
"""Rows on which activations are counted and thresholds are set."""


@dataclass(frozen=True)
class Basis:
    """Directions read as latents: the score of a latent on a row is an inner product, and it is active above a threshold.

    A latent takes one of the directions, with a sign. Where there are fewer directions than latents, several latents
    have the same direction and different thresholds.
    """

    directions: Float[np.ndarray, "directions d"]
    direction: Int[np.ndarray, " latents"]
    """Direction of each latent."""
    sign: Float[np.ndarray, " latents"]
    """1 or -1."""
    bias: Float[np.ndarray, " directions"]
    k: int | None = None
    """Latents that a TopK dictionary activates per row; scores are then relative to the row's k-th largest one."""

    @property
    def latents(self) -> int:
        """Number of latents."""
        return len(self.direction)

    @property
    def is_plain(self) -> bool:
        """Whether latent i takes direction i as it is."""
        return np.array_equal(self.direction, np.arange(len(self.directions))) and bool((self.sign == 1).all())


@dataclass(frozen=True)
class Projection:
    """Removal of some directions about a mean: x less the part of x - mean in their span."""

    mean: Float[np.ndarray, " d"]
    directions: Float[np.ndarray, "removed d"]
    """Orthonormal."""

    def __call__(self, rows: Num[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """The rows without these directions."""
        rows = np.asarray(rows, dtype=np.float32)
        return rows - ((rows - self.mean) @ self.directions.T) @ self.directions


@dataclass(frozen=True)
class Scores:
    """Inner products of rows with the directions of a basis, and with the directions that a projection removes.

    They are computed once; scores with and without the projection differ by a product of small matrices.
    """

    basis: Basis
    products: Float[np.ndarray, "directions n"]
    removed: Float[np.ndarray, "removed n"]
    """Coordinates of the rows in the removed directions."""
    overlap: Float[np.ndarray, "directions removed"]
    """Coordinates of the basis in the removed directions."""

    def projected(self) -> Scores:
        """Scores on the rows without the removed directions."""
        nothing = np.zeros((0, self.products.shape[1]), dtype=np.float32)
        products = self.products - self.overlap @ self.removed
        return replace(self, products=products, removed=nothing, overlap=self.overlap[:, :0])

    def raised(self) -> Float[np.ndarray, "directions n"]:
        """What thresholds are set on: the products, for a TopK dictionary less the row's k-th largest."""
        if self.basis.k is None:
            return self.products
        return self.products - kth_largest_of_columns(self.products, self.basis.k)


def random_directions(d: int, latents: int, seed: int) -> Basis:
    """Directions that are uniformly distributed on the sphere, each with both signs.

    Args:
        d: features of a row.
        latents: number of latents.
        seed: of the directions and of which threshold each gets.
    """
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((-(-latents // 2), d)).astype(np.float32)
    return both_signs(directions / np.linalg.norm(directions, axis=1, keepdims=True), latents, seed)


def neurons(d: int, latents: int, seed: int) -> Basis:
    """The coordinates of the rows, each with both signs.

    Args:
        d: features of a row.
        latents: number of latents.
        seed: of which coordinates are taken if there are more than latents, and of which threshold each gets.
    """
    return both_signs(np.eye(d, dtype=np.float32), latents, seed)


def principal_directions(rows: Num[np.ndarray, "n d"], latents: int, seed: int) -> Basis:
    """The principal components of rows, each with both signs.

    Args:
        rows: training rows of one side, more than features.
        latents: number of latents.
        seed: as for `neurons`.
    """
    centred = np.asarray(rows, dtype=np.float32) - np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)
    return both_signs(np.linalg.eigh(centred.T @ centred)[1].T[::-1].copy(), latents, seed)


def both_signs(directions: Float[np.ndarray, "directions d"], latents: int, seed: int) -> Basis:
    """A basis of given directions: each with both signs, repeated until there are enough latents.

    Latents are in random order, so that thresholds, which are set in the order of the latents, are distributed at random.

    Args:
        directions: in any order.
        latents: number of latents; if there are fewer than twice as many directions, a random part is taken.
        seed: of the order.
    """
    count = len(directions)
    taken = np.arange(latents) % (2 * count)
    if latents < 2 * count:
        taken = np.random.default_rng(seed).permutation(2 * count)[:latents]
    order = np.random.default_rng([seed, latents]).permutation(latents)
    taken = taken[order]
    sign = np.where(taken < count, 1, -1).astype(np.float32)
    return Basis(directions, taken % count, sign, np.zeros(count, dtype=np.float32))


def dictionary_basis(dictionary: Dictionary) -> Basis:
    """The encoder of a dictionary, whose thresholds can then be set anew; one of the TopK kind keeps its competition.

    Args:
        dictionary: of any architecture with one encoder.
    """
    sae = dictionary.sae
    weights = sae.W_enc.detach().cpu().numpy().T.astype(np.float32)
    bias = np.zeros(len(weights), dtype=np.float32)
    if hasattr(sae, "b_enc"):
        bias = sae.b_enc.detach().cpu().numpy().astype(np.float32)
    if sae.cfg.apply_b_dec_to_input:
        bias = bias - weights @ sae.b_dec.detach().cpu().numpy().astype(np.float32)
    k = int(sae.cfg.k) if dictionary.architecture == "topk" else None
    return competing(weights, bias, k)


def competing(
    directions: Float[np.ndarray, "latents d"], bias: Float[np.ndarray, " latents"], k: int | None = None
) -> Basis:
    """A basis of one latent per direction, as the encoder of a dictionary is."""
    count = len(directions)
    return Basis(directions, np.arange(count), np.ones(count, dtype=np.float32), bias, k)


def random_topk(d: int, latents: int, k: int, mean: Float[np.ndarray, " d"], seed: int) -> Basis:
    """An untrained TopK dictionary: random directions about a mean, of which the k largest are active.

    Args:
        d: features of a row.
        latents: number of latents.
        k: active latents per row.
        mean: of the rows.
        seed: of the directions.
    """
    directions = np.random.default_rng([seed, 1]).standard_normal((latents, d)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return competing(directions, -(directions @ mean.astype(np.float32)), min(k, latents))


def scores(basis: Basis, rows: Num[np.ndarray, "n d"], projection: Projection | None = None) -> Scores:
    """Score rows once, for use with and without a projection.

    Raises:
        ArgumentError: if the rows have another width than the basis.
    """
    if rows.ndim != 2 or rows.shape[1] != basis.directions.shape[1]:
        raise ArgumentError(
            f"{{rows}} has shape {rows.shape}, but the basis takes rows of {basis.directions.shape[1]} features; give "
            "rows of the same layer.",
            "rows",
        )
    rows = np.asarray(rows, dtype=np.float32)
    products = basis.directions @ rows.T + basis.bias[:, None]
    removed = np.zeros((0, rows.shape[1]), dtype=np.float32) if projection is None else projection.directions
    centred = rows if projection is None else rows - projection.mean
    return Scores(basis, products, removed @ centred.T, basis.directions @ removed.T)


def thresholds(
    training: Scores, counts: Int[np.ndarray, " latents"], own: Int[np.ndarray, " latents"] | None = None
) -> Float[np.ndarray, " latents"]:
    """Thresholds of the latents above which they are active on as many rows as the latents of a dictionary.

    The sorted numbers of active rows then equal the given ones (up to rows with tied scores). Which latent gets which
    number: those of a TopK dictionary keep their order, from the rarest to the most frequent; others take the sorted
    numbers in the order of the latents, which is random.

    Args:
        training: scores on training rows.
        counts: number of these rows on which each latent of the dictionary is active, in any order.
        own: number of these rows on which each latent of the basis is active by itself, to keep that order.

    Raises:
        ArgumentError: if there is another number of latents, or a number exceeds the rows.
    """
    basis, raised = training.basis, training.raised()
    n = raised.shape[1]
    if len(counts) != basis.latents:
        raise ArgumentError(
            f"{{counts}} has {len(counts)} latents and the basis {basis.latents}; give one number per latent.", "counts"
        )
    if len(counts) and (counts.min() < 0 or counts.max() > n):
        raise ArgumentError(f"{{counts}} goes up to {counts.max()}, but there are {n} rows.", "counts")
    wanted = np.sort(counts)
    if own is None and basis.k is not None:
        own = (raised >= 0).sum(1)
    if own is not None:
        wanted = wanted[np.argsort(np.argsort(own, kind="stable"))]
    ordered = np.sort(raised, axis=1)
    below, above = ordered[:, :1] - 1, ordered[:, -1:]
    # A latent that is active on no training row gets the largest score as its threshold, one active on all less than
    # the smallest.
    padded = np.concatenate([below, ordered, above], axis=1)
    take, flip = basis.direction, basis.sign < 0
    upper = np.where(flip, wanted, n + 1 - wanted)
    lower = np.where(flip, wanted + 1, n - wanted)
    # The middle between the last active row and the first inactive one.
    edge = (padded[take, lower].astype(np.float64) + padded[take, upper]) / 2
    edge = np.where(wanted == 0, np.where(flip, ordered[take, 0], ordered[take, -1]), edge)
    edge = np.where(wanted == n, np.where(flip, ordered[take, -1] + 1, ordered[take, 0] - 1), edge)
    return (edge * basis.sign).astype(np.float32)


def activations(test: Scores, above: Float[np.ndarray, " latents"]) -> csc_array:
    """Activations of the latents on scored rows: by how much the score exceeds the threshold; rows x latents.

    Latents of a TopK dictionary compete for being active, but the size of an activation is that of the latent's own
    product, here plus a constant that makes it positive: analyses of ranks need no more.

    Args:
        test: scores on the rows.
        above: threshold of each latent, by `thresholds`.
    """
    basis, lines = test.basis, test.raised()
    if not basis.is_plain:
        lines = lines[basis.direction] * basis.sign[:, None]
    active = np.flatnonzero(lines > above[:, None])
    if basis.k is None:
        size = lines.reshape(-1)[active] - above[active // lines.shape[1]]
    else:
        own = test.products.reshape(-1)[active]
        size = own - min(own.min(initial=0), 0) + np.abs(own).max(initial=1)
    return _by_latent(active, size, lines.shape)


def own_activations(test: Scores) -> csc_array:
    """Activations of a TopK dictionary by itself: the k largest products of each row, where they are above 0."""
    active = np.flatnonzero((test.raised() >= 0) & (test.products > 0))
    return _by_latent(active, test.products.reshape(-1)[active], test.products.shape)


def _by_latent(
    active: Int[np.ndarray, " active"], size: Float[np.ndarray, " active"], shape: tuple[int, ...]
) -> csc_array:
    """A sparse matrix, rows x latents, of positive values at flat positions among latents x rows."""
    from scipy.sparse import csc_array

    latents, n = shape
    pointers = np.searchsorted(active, np.arange(latents + 1) * n)
    positive = np.maximum(size, np.finfo(np.float32).tiny).astype(np.float32)
    return csc_array((positive, active % n, pointers), shape=(n, latents))


def between_label_directions(
    *groups: tuple[np.ndarray, np.ndarray],
) -> Float[np.ndarray, "removed d"]:
    """Orthonormal directions that span the differences between the labels' mean rows, in each of several sets of rows.

    A shift x + c u[label] of all rows, whatever its size, lies in the directions of its set; features that are active
    for one label only do not, but for their mean over the label's rows. With C labels each set adds up to C - 1
    directions.

    Args:
        groups: rows x features of training examples with the label number of each row, such as the mean and the first
            token of base and adapted.

    Raises:
        ArgumentError: if rows and labels do not fit.
    """
    spans = []
    for rows, labels in groups:
        if len(rows) != len(labels):
            raise ArgumentError(
                f"{{groups}} has {len(rows)} rows with {len(labels)} labels; give one label per row.", "groups"
            )
        rows = np.asarray(rows, dtype=np.float64)
        present, counts = np.unique(labels, return_counts=True)
        means = np.stack([rows[labels == label].mean(0) for label in present])
        # Weighted by the sizes of the classes, and compared with the size of the rows: rounding is not a direction.
        differences = (means - rows.mean(0)) * np.sqrt(counts / len(rows))[:, None]
        spans.append(_span(differences / max(np.sqrt((rows**2).sum(1).mean()), 1e-300)))
    return _span(np.concatenate(spans)).astype(np.float32)


def _span(vectors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "rank d"]:
    """Orthonormal basis of the span of a few vectors, without directions in which all are shorter than 1e-5."""
    _, size, directions = np.linalg.svd(vectors, full_matrices=False)
    return directions[size > 1e-5]


def matching_rows(n: int) -> Int[np.ndarray, " sample"]:
    """Numbers of up to 4,096 rows, evenly spaced among n, on which densities are matched."""
    return np.unique(np.linspace(0, n - 1, min(MATCHING_ROWS, n)).astype(np.int64))
