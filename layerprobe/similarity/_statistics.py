"""Sufficient statistics of two representations, kept by fold so that any fold can be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.similarity._arrays import array, library, stays


@dataclass(frozen=True, eq=False)
class Side:
    """One representation's rows of some whole examples, with the sums that every pair needs."""

    rows: Any
    sums: Any
    """s_e, `(examples, d)`."""
    squares: Any
    """|s_e|^2, `(examples,)`."""
    along: Any | None
    """x_i' s_e of each row; None where each example is one row."""
    grams: Any | None
    """x_i' x_j within each example, flattened and concatenated; None where each example is one row."""

    @classmethod
    def of(cls, rows: Any, counts: Int[np.ndarray, " examples"], one_row_each: bool) -> Side:
        """Sums of rows that are in the order of their examples."""
        xp = library(rows)
        if one_row_each:
            return cls(rows, rows, xp.einsum("nd,nd->n", rows, rows), None, None)
        ends = np.cumsum(counts).tolist()
        parts = [rows[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]
        sums = xp.stack([part.sum(0) for part in parts])
        along = xp.concatenate([part @ total for part, total in zip(parts, sums, strict=True)])
        grams = xp.concatenate([(part @ part.T).ravel() for part in parts])
        return cls(rows, sums, xp.einsum("nd,nd->n", sums, sums), along, grams)


ALIASES = {"between": "cross", "rows_x": "sums_x", "rows_y": "sums_y", "within": "quartic", "bridge": "quartic"}
"""Sums that equal another one where every example is one row."""


class Pair:
    """Sums over rows and examples of a pair (x, y), about the means of the whole sample, one entry per fold.

    For an example e with rows x_i, y_i: c_e = sum x_i y_i', s_e = sum x_i, t_e = sum y_i. The sums over examples are

        cross c_e   between s_e t_e'   sum_x s_e   sum_y t_e   squares_x |s_e|^2   squares_y |t_e|^2
        rows_x c_e t_e   rows_y c_e' s_e   sums_x s_e |t_e|^2   sums_y t_e |s_e|^2
        within |c_e|^2   bridge s_e' c_e t_e   quartic |s_e|^2 |t_e|^2

    `powers` holds sums of the examples' row counts to the powers 1 to 4; all pairs of the same rows share it. `device` is
    the one that the rows are multiplied on, None for the CPU; the sums are on the CPU.
    """

    def __init__(self, d_x: int, d_y: int, powers: Float[np.ndarray, "folds 4"], one_row_each: bool) -> None:
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("cross", "between"), (d_x, d_y))
        shapes |= dict.fromkeys(("sum_x", "rows_x", "sums_x"), (d_x,)) | dict.fromkeys(
            ("sum_y", "rows_y", "sums_y"), (d_y,)
        )
        shapes |= dict.fromkeys(("squares_x", "squares_y", "within", "bridge", "quartic"), ())
        self.width_x, self.width_y, self.powers, self.one_row_each = d_x, d_y, powers, one_row_each
        self.device: Any = None
        self.sums = {name: np.zeros((len(powers), *shape)) for name, shape in shapes.items()}
        if one_row_each:
            self.sums |= {alias: self.sums[name] for alias, name in ALIASES.items()}

    def add(self, fold: int, x: Side, y: Side) -> None:
        """Add whole examples to a fold."""
        for stale in ("totals", "_products"):
            self.__dict__.pop(stale, None)
        self.device = x.rows.device if stays(x.rows) else None
        terms = {
            "cross": x.rows.T @ y.rows,
            "sum_x": x.sums.sum(0),
            "sum_y": y.sums.sum(0),
            "squares_x": x.squares.sum(),
            "squares_y": y.squares.sum(),
            "sums_x": y.squares @ x.sums,
            "sums_y": x.squares @ y.sums,
            "quartic": x.squares @ y.squares,
        }
        if x.grams is not None and x.along is not None:
            terms |= {"between": x.sums.T @ y.sums, "rows_x": y.along @ x.rows, "rows_y": x.along @ y.rows}
            terms |= {"within": x.grams @ y.grams, "bridge": x.along @ y.along}
        for name, term in terms.items():
            self.sums[name][fold] += array(term)

    @cached_property
    def totals(self) -> dict[str, Any]:
        """Sums over all folds."""
        totals = {
            name: of_folds[0] if len(of_folds) == 1 else of_folds.sum(0)
            for name, of_folds in self.sums.items()
            if not (self.one_row_each and name in ALIASES)
        }
        return totals | ({alias: totals[name] for alias, name in ALIASES.items()} if self.one_row_each else {})

    def without(self, name: str, fold: int | None) -> Any:
        """A sum over the whole sample, or without one fold."""
        total = self.totals[name]
        return total if fold is None else total - self.sums[name][fold]

    @cached_property
    def _products(self) -> dict[tuple[str, str], float]:
        return {}

    def _inner(self, one: str, other: str, fold: int | None) -> float:
        """Inner product of two sums of matrices, without forming the matrices that lack a fold."""
        a, b = self.totals[one], self.totals[other]
        if (one, other) not in self._products:
            self._products[one, other] = float(np.vdot(a, b))
        whole = self._products[one, other]
        if fold is None:
            return whole
        c, d = self.sums[one][fold], self.sums[other][fold]
        mixed = 2 * np.vdot(a, c) if one == other else np.vdot(a, d) + np.vdot(c, b)
        return float(whole - mixed + np.vdot(c, d))

    def _bilinear(self, x: np.ndarray, name: str, y: np.ndarray, fold: int | None) -> float:
        """x' M y for a sum of matrices M."""
        whole = x @ self.totals[name] @ y
        return float(whole if fold is None else whole - x @ self.sums[name][fold] @ y)

    def counts(self, fold: int | None) -> Float[np.ndarray, " 4"]:
        """Sums of the examples' row counts to the powers 1 to 4; the first is the number of rows."""
        total = self.powers.sum(0)
        return total if fold is None else total - self.powers[fold]

    def centred_cross(self, fold: int | None) -> Float[np.ndarray, "d_x d_y"]:
        """Cross product of the centred rows, of the whole sample or without one fold."""
        x, y = self.without("sum_x", fold), self.without("sum_y", fold)
        return self.without("cross", fold) - np.outer(x, y) / self.counts(fold)[0]

    def hsic(self, fold: int | None = None) -> float:
        """Unbiased Hilbert-Schmidt independence criterion over pairs of rows from different examples.

        With examples drawn independently it is E[K L] + E[K] E[L] - 2 E[K_12 L_13], each expectation over rows of
        distinct examples and estimated by its mean; for one row per example this is the U-statistic of Song et al.
        (2012), "Feature Selection via Dependence Maximization". In features all sums have closed forms, by inclusion and
        exclusion of equal examples. Rows are taken about the mean of the whole sample, also where a fold is left out.
        """
        part = {name: self.without(name, fold) for name in self.sums if name not in ("cross", "between")}
        x, y, quartic = part["sum_x"], part["sum_y"], part["quartic"]
        product = self._inner("cross", "cross", fold)
        if self.one_row_each:
            chained = square = product
        else:
            chained, square = self._inner("between", "cross", fold), self._inner("between", "between", fold)
        chain = self._bilinear(x, "cross", y, fold) - x @ part["rows_x"] - y @ part["rows_y"]
        chain += 2 * part["bridge"] - chained
        overlap = self._bilinear(x, "between", y, fold) - x @ part["sums_x"] - y @ part["sums_y"]
        overlap += 2 * quartic - square
        apart = (x @ x - part["squares_x"]) * (y @ y - part["squares_y"]) - 4 * overlap - 2 * (square - quartic)
        return hsic_of_sums(self.counts(fold), product - part["within"], chain, apart)


def hsic_of_sums(powers: Float[np.ndarray, " 4"], product: float, chain: float, apart: float) -> float:
    """Unbiased HSIC from sums over rows i, j, p, q of distinct examples.

    Args:
        powers: sums over examples of their row counts to the powers 1 to 4.
        product: sum of K_ij L_ij.
        chain: sum of K_ij L_ip.
        apart: sum of K_ij L_pq.
    """
    n, p2, p3, p4 = powers
    two, three = n * n - p2, n**3 - 3 * n * p2 + 2 * p3
    four = n**4 - 6 * n * n * p2 + 8 * n * p3 + 3 * p2 * p2 - 6 * p4
    return float(product / two + apart / four - 2 * chain / three)


@dataclass(frozen=True, eq=False)
class Products:
    """Statistics of x with y, x with x and y with y, of the whole sample or without one fold: what linear measures take."""

    xy: Pair
    xx: Pair
    yy: Pair
    fold: int | None = None

    def without(self, fold: int | None) -> Products:
        return replace(self, fold=fold)

    @property
    def identical(self) -> bool:
        """Whether x and y are one representation."""
        return self.xy is self.xx

    @property
    def device(self) -> Any:
        """Where to decompose the matrices; None for the CPU."""
        return self.xy.device

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.xy.counts(self.fold)[0])

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of features of x and of y."""
        return self.xx.width_x, self.yy.width_y

    @cached_property
    def cross(self) -> Float[np.ndarray, "d_x d_y"]:
        """X'Y of the centred rows."""
        return self.xy.centred_cross(self.fold)

    @cached_property
    def scatter_x(self) -> Float[np.ndarray, "d_x d_x"]:
        """X'X of the centred rows."""
        return self.xx.centred_cross(self.fold)

    @cached_property
    def scatter_y(self) -> Float[np.ndarray, "d_y d_y"]:
        """Y'Y of the centred rows."""
        return self.yy.centred_cross(self.fold)

    def hsic(self) -> tuple[float, float, float]:
        """Unbiased HSIC of x with y, x with x and y with y."""
        xy, xx, yy = (pair.hsic(self.fold) for pair in (self.xy, self.xx, self.yy))
        return xy, xx, yy


class Sums:
    """Statistics of several pairs of representations, accumulated in batches of whole examples."""

    def __init__(
        self, widths: Mapping[Any, int], pairs: Sequence[tuple[Any, Any]], n_folds: int, one_row_each: bool
    ) -> None:
        self.one_row_each, self.powers = one_row_each, np.zeros((n_folds, 4))
        self.pairs = {(a, b): Pair(widths[a], widths[b], self.powers, one_row_each) for a, b in pairs}

    def add(self, rows: Mapping[Any, Float[Any, "n _"]], counts: Int[np.ndarray, " examples"], fold: int) -> None:
        """Add rows of whole examples.

        Args:
            rows: name -> rows in the order of their examples, about a mean that is the same in all batches.
            counts: number of rows of each example.
            fold: fold of these examples.
        """
        self.add_sides({name: Side.of(x, counts, self.one_row_each) for name, x in rows.items()}, counts, fold)

    def add_sides(self, sides: Mapping[Any, Side], counts: Int[np.ndarray, " examples"], fold: int) -> None:
        """Add rows of whole examples whose sums are known."""
        self.powers[fold] += [(counts.astype(np.float64) ** power).sum() for power in (1, 2, 3, 4)]
        for (a, b), pair in self.pairs.items():
            pair.add(fold, sides[a], sides[b])
