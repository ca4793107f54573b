"""Sufficient statistics of two representations, kept apart by fold so that a fold can be taken away again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.similarity._arrays import host, stays


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

    @cached_property
    def totals(self) -> dict[str, Any]:
        """Sums over all folds, once everything has been added."""
        return {field.name: getattr(self, field.name).sum(0) for field in fields(self)}

    def less(self, name: str, fold: int | None) -> Any:
        """A sum over the whole sample, or without one fold."""
        total = self.totals[name]
        return total if fold is None else total - getattr(self, name)[fold]

    def _inner(self, one: str, other: str, fold: int | None) -> float:
        """Inner product of two sums of matrices, without making the matrices that lack a fold."""
        a, b = self.totals[one], self.totals[other]
        if (one, other) not in self._products:
            self._products[one, other] = float(np.vdot(a, b))
        whole = self._products[one, other]
        if fold is None:
            return whole
        c, d = getattr(self, one)[fold], getattr(self, other)[fold]
        mixed = 2 * np.vdot(a, c) if one == other else np.vdot(a, d) + np.vdot(c, b)
        return float(whole - mixed + np.vdot(c, d))

    def _between(self, name: str, x: np.ndarray, y: np.ndarray, fold: int | None) -> float:
        """x' M y of a sum of matrices."""
        found = x @ self.totals[name] @ y
        return float(found if fold is None else found - x @ getattr(self, name)[fold] @ y)

    @cached_property
    def _products(self) -> dict[tuple[str, str], float]:
        return {}

    def centred_cross(self, sizes: Sizes, fold: int | None = None) -> Float[np.ndarray, "d_x d_y"]:
        """Cross product of the centred rows, of the whole sample or without one fold."""
        x, y = self.less("sum_x", fold), self.less("sum_y", fold)
        return self.less("cross", fold) - np.outer(x, y) / sizes.without(fold)[0]

    def hsic(self, sizes: Sizes, fold: int | None = None) -> float:
        """Hilbert-Schmidt independence criterion over pairs of rows from different examples, free of bias.

        With examples drawn independently it is E[K L] + E[K] E[L] - 2 E[K_12 L_13], each expectation over rows of
        distinct examples and estimated by its own mean; for one row an example this is the U-statistic of Song et al.
        (2012), "Feature Selection via Dependence Maximization". In features all sums are closed forms, by inclusion and
        exclusion of equal examples. Rows are taken about the mean of the whole sample, also where a fold is left out.
        """
        n, p2, p3, p4 = sizes.without(fold)
        own, bridge, quartic = self.less("scalars", fold)
        x, y = self.less("sum_x", fold), self.less("sum_y", fold)
        squares_x, squares_y = self.less("squares_x", fold), self.less("squares_y", fold)
        product = self._inner("cross", "cross", fold)
        if self.between is self.cross:
            chained = square = product
        else:
            chained, square = self._inner("between", "cross", fold), self._inner("between", "between", fold)
        both = product - own
        chain = self._between("cross", x, y, fold) - x @ self.less("rows_x", fold) - y @ self.less("rows_y", fold)
        chain += 2 * bridge - chained
        overlap = self._between("between", x, y, fold) - x @ self.less("sums_x", fold) - y @ self.less("sums_y", fold)
        overlap += 2 * quartic - square
        apart = (x @ x - squares_x) * (y @ y - squares_y) - 4 * overlap - 2 * (square - quartic)
        two = n * n - p2
        three = n**3 - 3 * n * p2 + 2 * p3
        four = n**4 - 6 * n * n * p2 + 8 * n * p3 + 3 * p2 * p2 - 6 * p4
        return float(both / two + apart / four - 2 * chain / three)


@dataclass(frozen=True)
class Side:
    """One representation's rows of some whole examples, with what every pair needs of them."""

    rows: Any
    sums: Any
    """s_e, `(examples, d)`."""
    squares: Any
    """|s_e|^2."""
    along: Any | None
    """x_i' s_e of each row; None where each example is one row."""
    grams: Any | None
    """x_i' x_j within each example, all in one."""


def side(rows: Any, sizes: np.ndarray, one_row_each: bool) -> Side:
    if stays(rows):
        return _side_on_device(rows, sizes, one_row_each)
    if one_row_each:
        return Side(rows, rows, np.einsum("nd,nd->n", rows, rows), None, None)
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    sums = np.stack([part.sum(0) for part in parts])
    along = np.concatenate([part @ total for part, total in zip(parts, sums, strict=True)])
    grams = np.concatenate([(part @ part.T).ravel() for part in parts])
    return Side(rows, sums, np.einsum("nd,nd->n", sums, sums), along, grams)


def _side_on_device(rows: Any, sizes: np.ndarray, one_row_each: bool) -> Side:
    import torch

    if one_row_each:
        return Side(rows, rows, (rows * rows).sum(1), None, None)
    parts = rows.split(sizes.tolist())
    sums = torch.stack([part.sum(0) for part in parts])
    along = torch.cat([part @ total for part, total in zip(parts, sums, strict=True)])
    grams = torch.cat([(part @ part.T).ravel() for part in parts])
    return Side(rows, sums, (sums * sums).sum(1), along, grams)


class Sums:
    """Statistics of several pairs at once, added to in batches of whole examples."""

    def __init__(
        self, widths: Mapping[Any, int], pairs: Sequence[tuple[Any, Any]], n_folds: int, one_row_each: bool
    ) -> None:
        self.one_row_each = one_row_each
        self.pairs = {(a, b): _empty(widths[a], widths[b], n_folds, one_row_each) for a, b in pairs}
        self.powers = np.zeros((n_folds, 4))

    def add(self, rows: Mapping[Any, Float[Any, "n _"]], counts: Int[np.ndarray, " examples"], fold: int) -> None:
        """Add rows of whole examples, those of one example together.

        Args:
            rows: name -> rows about a mean that is the same in all batches.
            counts: rows of each example.
            fold: where they belong.
        """
        self.add_sides({name: side(value, counts, self.one_row_each) for name, value in rows.items()}, counts, fold)

    def add_sides(self, sides: Mapping[Any, Side], counts: Int[np.ndarray, " examples"], fold: int) -> None:
        """Add rows whose own sums are known already."""
        self.powers[fold] += [(counts.astype(np.float64) ** power).sum() for power in (1, 2, 3, 4)]
        for (a, b), pair in self.pairs.items():
            for stale in ("totals", "_products"):
                pair.__dict__.pop(stale, None)
            _add(pair, fold, sides[a], sides[b])

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.powers)


def _add(pair: Pair, fold: int, x: Side, y: Side) -> None:
    pair.cross[fold] += host(x.rows.T @ y.rows)
    pair.sum_x[fold] += host(x.sums.sum(0))
    pair.sum_y[fold] += host(y.sums.sum(0))
    pair.squares_x[fold] += host(x.squares.sum())
    pair.squares_y[fold] += host(y.squares.sum())
    pair.sums_x[fold] += host(y.squares @ x.sums)
    pair.sums_y[fold] += host(x.squares @ y.sums)
    quartic = float(x.squares @ y.squares)
    if x.grams is None or y.grams is None or x.along is None or y.along is None:
        pair.scalars[fold] += quartic
        return
    pair.between[fold] += host(x.sums.T @ y.sums)
    pair.rows_x[fold] += host(y.along @ x.rows)
    pair.rows_y[fold] += host(x.along @ y.rows)
    pair.scalars[fold] += [float(x.grams @ y.grams), float(x.along @ y.along), quartic]


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
