"""Sufficient statistics of two representations, kept apart by fold so that a fold can be taken away again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import finite

CHUNK = 16_384
"""Rows held in float64 at a time."""


@dataclass(frozen=True)
class Sizes:
    """Row counts of the examples of each fold: sums of their powers 1 to 4, `(folds, 4)`."""

    powers: Float[np.ndarray, "folds 4"]

    def without(self, fold: int | None) -> Float[np.ndarray, " 4"]:
        total = self.powers.sum(0)
        return total if fold is None else total - self.powers[fold]


@dataclass(frozen=True)
class Pair:
    """Sums over rows and examples of a pair (x, y), about the means of the whole sample, one entry a fold.

    For an example e with rows x_i, y_i: c_e = sum x_i y_i', s_e = sum x_i, t_e = sum y_i.
    """

    cross: Float[np.ndarray, "folds d_x d_y"]
    """sum of c_e."""
    between: Float[np.ndarray, "folds d_x d_y"]
    """sum of s_e t_e' (the same as `cross` where every example is one row)."""
    scalars: Float[np.ndarray, "folds 3"]
    """sums of |c_e|^2, s_e' c_e t_e and |s_e|^2 |t_e|^2."""
    sum_x: Float[np.ndarray, "folds d_x"]
    sum_y: Float[np.ndarray, "folds d_y"]
    squares_x: Float[np.ndarray, " folds"]
    """sum of |s_e|^2."""
    squares_y: Float[np.ndarray, " folds"]
    rows_x: Float[np.ndarray, "folds d_x"]
    """sum of c_e t_e."""
    rows_y: Float[np.ndarray, "folds d_y"]
    """sum of c_e' s_e."""
    sums_x: Float[np.ndarray, "folds d_x"]
    """sum of s_e |t_e|^2."""
    sums_y: Float[np.ndarray, "folds d_y"]

    def centred_cross(self, sizes: Sizes, fold: int | None = None) -> Float[np.ndarray, "d_x d_y"]:
        """Cross product of the centred rows, of the whole sample or without one fold."""
        cross, x, y = _less(self.cross, fold), _less(self.sum_x, fold), _less(self.sum_y, fold)
        return cross - np.outer(x, y) / sizes.without(fold)[0]

    def hsic(self, sizes: Sizes, fold: int | None = None) -> float:
        """Hilbert-Schmidt independence criterion over pairs of rows from different examples, free of bias.

        With examples drawn independently it is E[K L] + E[K] E[L] - 2 E[K_12 L_13], each expectation over rows of
        distinct examples and estimated by its own mean; for one row an example this is the U-statistic of Song et al.
        (2012), "Feature Selection via Dependence Maximization". In features all sums are closed forms, by inclusion and
        exclusion of equal examples. Rows are taken about the mean of the whole sample, also where a fold is left out.
        """
        n, p2, p3, p4 = sizes.without(fold)
        own, bridge, quartic = _less(self.scalars, fold)
        cross, between = _less(self.cross, fold), _less(self.between, fold)
        x, y = _less(self.sum_x, fold), _less(self.sum_y, fold)
        squares_x, squares_y = _less(self.squares_x, fold), _less(self.squares_y, fold)
        both = (cross * cross).sum() - own
        chain = x @ cross @ y - x @ _less(self.rows_x, fold) - y @ _less(self.rows_y, fold)
        chain += 2 * bridge - (between * cross).sum()
        overlap = x @ between @ y - x @ _less(self.sums_x, fold) - y @ _less(self.sums_y, fold)
        square = (between * between).sum()
        overlap += 2 * quartic - square
        apart = (x @ x - squares_x) * (y @ y - squares_y) - 4 * overlap - 2 * (square - quartic)
        two = n * n - p2
        three = n**3 - 3 * n * p2 + 2 * p3
        four = n**4 - 6 * n * n * p2 + 8 * n * p3 + 3 * p2 * p2 - 6 * p4
        return float(both / two + apart / four - 2 * chain / three)


def statistics(
    layers: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    groups: Int[np.ndarray, " n"],
    folds: Int[np.ndarray, " examples"],
    measure: str,
) -> tuple[dict[tuple[str, str], Pair], Sizes]:
    """Statistics of pairs of representations of the same rows.

    Args:
        layers: name -> `(n, d)`; may be memory-mapped, is read twice, in chunks of whole examples.
        pairs: which to cross.
        groups: example of each row, 0 ... E-1.
        folds: fold of each example, 0 ... F-1.
        measure: named in errors.

    Raises:
        MeasureError: if a value is not finite, or a representation is constant.
    """
    n_folds = int(folds.max()) + 1
    counts = np.bincount(groups)
    order = np.argsort(folds[groups] * len(counts) + groups, kind="stable")
    chunks = _chunks(counts, folds)
    ends = np.cumsum([rows for _, rows, _ in chunks])
    means = {}
    for name, x in layers.items():
        total = sum(
            (
                finite(_take(x, order[end - rows : end]), measure).sum(0)
                for (_, rows, _), end in zip(chunks, ends, strict=True)
            ),
            np.zeros(x.shape[1]),
        )
        means[name] = total / len(order)
    one_row_each = bool((counts == 1).all())
    made = {pair: _empty(layers[pair[0]].shape[1], layers[pair[1]].shape[1], n_folds, one_row_each) for pair in pairs}
    powers = np.zeros((n_folds, 4))
    for (fold, rows, sizes), end in zip(chunks, ends, strict=True):
        powers[fold] += [(sizes.astype(np.float64) ** power).sum() for power in (1, 2, 3, 4)]
        here = order[end - rows : end]
        values = {name: _take(x, here) - means[name] for name, x in layers.items()}
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        sums = {name: value if one_row_each else np.add.reduceat(value, starts) for name, value in values.items()}
        for (a, b), pair in made.items():
            _add(pair, fold, values[a], values[b], sums[a], sums[b], starts, sizes)
    for name in layers:
        own = next((pair for pair in made if pair == (name, name)), None)
        if own is not None:
            spread = np.trace(made[own].cross.sum(0)) / len(order)
            if not spread > 1e-24 * (1 + (means[name] ** 2).sum()):
                raise MeasureError(
                    f"{measure} was given a constant representation ({name}, shape {layers[name].shape}): every row is "
                    "the same, so similarity is undefined; leave it out."
                )
    return made, Sizes(powers)


def _add(
    pair: Pair,
    fold: int,
    x: np.ndarray,
    y: np.ndarray,
    s: np.ndarray,
    t: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
) -> None:
    pair.cross[fold] += x.T @ y
    pair.sum_x[fold] += x.sum(0)
    pair.sum_y[fold] += y.sum(0)
    s2, t2 = (s * s).sum(1), (t * t).sum(1)
    pair.squares_x[fold] += s2.sum()
    pair.squares_y[fold] += t2.sum()
    quartic = (s2 * t2).sum()
    pair.sums_x[fold] += t2 @ s
    pair.sums_y[fold] += s2 @ t
    if pair.between is pair.cross:
        pair.scalars[fold] += quartic
        return
    pair.between[fold] += s.T @ t
    own = 0.0
    for start, size in zip(starts, sizes, strict=True):
        a, b = x[start : start + size], y[start : start + size]
        own += float(((a @ a.T) * (b @ b.T)).sum())
    along_x = np.einsum("nd,nd->n", x, np.repeat(s, sizes, axis=0))
    along_y = np.einsum("nd,nd->n", y, np.repeat(t, sizes, axis=0))
    bridge = along_x @ along_y
    pair.rows_x[fold] += along_y @ x
    pair.rows_y[fold] += along_x @ y
    pair.scalars[fold] += [own, bridge, quartic]


def _empty(d_x: int, d_y: int, n_folds: int, one_row_each: bool) -> Pair:
    cross = np.zeros((n_folds, d_x, d_y))
    sums_x, sums_y = np.zeros((n_folds, d_x)), np.zeros((n_folds, d_y))
    return Pair(
        cross=cross,
        between=cross if one_row_each else np.zeros_like(cross),
        scalars=np.zeros((n_folds, 3)),
        sum_x=np.zeros((n_folds, d_x)),
        sum_y=np.zeros((n_folds, d_y)),
        squares_x=np.zeros(n_folds),
        squares_y=np.zeros(n_folds),
        rows_x=sums_x if one_row_each else np.zeros_like(sums_x),
        rows_y=sums_y if one_row_each else np.zeros_like(sums_y),
        sums_x=sums_x,
        sums_y=sums_y,
    )


def _chunks(counts: np.ndarray, folds: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """(fold, rows, rows of each example) of runs of whole examples, none across two folds."""
    chunks: list[tuple[int, int, np.ndarray]] = []
    for fold in range(int(folds.max()) + 1):
        sizes = counts[folds == fold]
        if not len(sizes):
            continue
        part = np.cumsum(sizes) // CHUNK
        chunks += [(fold, int(sizes[part == p].sum()), sizes[part == p]) for p in np.unique(part)]
    return chunks


def _take(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return np.asarray(x[rows[0] : rows[-1] + 1], dtype=np.float64)
    return np.asarray(x[rows], dtype=np.float64)


def _less(values: np.ndarray, fold: int | None) -> Any:
    total = values.sum(0)
    return total if fold is None else total - values[fold]
