"""Outer gradient descent on one-dimensional tasks with strongly convex or nonconvex inner losses.

Three quantities by number of inner steps, which need not agree: the mean squared meta-gradient norm, about which the theory
of Ji, Lee, Liang and Poor (2020, arXiv 2006.09486) is; the excess query loss; and the distance to the meta-optimum. A small
meta-gradient is partly vanishing sensitivity: more inner steps flatten a strongly convex task's query loss in w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from layerprobe.errors import ArgumentError
from layerprobe.metalearning.quadratic import check_above_0, check_steps, meta_optimum

Geometry = Literal["strongly convex", "nonconvex"]


@dataclass(frozen=True)
class Problem:
    """Tasks in one dimension; the query loss of each is 1/2 (w_N - target)^2, their meta-loss its sum.

    Attributes:
        geometry: the support loss; "strongly convex": curvature/2 (w - target)^2; "nonconvex": curvature
            (1 - cos(w - target)), whose second derivative lies between -curvature and curvature.
        targets: the point that each task's support loss is least at.
        curvatures: second derivative of each task's support loss at its target, above 0.
        alpha: inner rate, above 0 and at most 1 / the largest curvature, as the theory has it.

    Raises:
        ArgumentError: naming the argument that is out of range.
    """

    geometry: Geometry
    targets: tuple[float, ...]
    curvatures: tuple[float, ...]
    alpha: float

    def __post_init__(self) -> None:
        if self.geometry not in get_args(Geometry):
            raise ArgumentError(
                f"{{geometry}} is {self.geometry!r}; it is one of {', '.join(get_args(Geometry))}.", "geometry"
            )
        if not self.targets or len(self.targets) != len(self.curvatures):
            raise ArgumentError(
                f"{{targets}} has {len(self.targets)} values, {{curvatures}} has {len(self.curvatures)}; both take one per "
                "task.",
                *("targets", "curvatures"),
            )
        check_above_0("curvatures", self.curvatures)
        check_above_0("alpha", self.alpha)
        if self.alpha * max(self.curvatures) > 1:
            raise ArgumentError(
                f"{{alpha}} is {self.alpha:g}; it may be at most 1 / the largest of {{curvatures}}, "
                f"{1 / max(self.curvatures):.4g}.",
                *("alpha", "curvatures"),
            )


STRONGLY_CONVEX = Problem("strongly convex", (1.0, -2.0), (1.0, 0.25), 0.5)
NONCONVEX = Problem("nonconvex", (1.0, -2.0), (1.0, 0.25), 0.5)


@dataclass(frozen=True)
class MetaLoss:
    """Meta-loss and meta-gradients at several initial values, summed over tasks.

    Attributes:
        loss: sum over tasks of the query loss after the inner loop.
        gradient_w: derivative by w, through the inner loop.
        gradient_phi: derivative by phi at phi = 1, where phi scales the targets of both losses.
        bound: bound of |gradient_w|: M (1 - alpha mu)^N if strongly convex, M (1 + alpha L)^N if not, where mu and L are the
            least and largest curvature and M is the sum over tasks of the slope of the query loss at w_N.
    """

    loss: Float[np.ndarray, " values"]
    gradient_w: Float[np.ndarray, " values"]
    gradient_phi: Float[np.ndarray, " values"]
    bound: Float[np.ndarray, " values"]


@dataclass(frozen=True)
class Convergence:
    """Outer gradient descent in w, from its initial value (first) to its last.

    Attributes:
        problem: the tasks.
        steps: number of inner steps, N.
        w: the initial value and that after each outer step.
        at: meta-loss and meta-gradients at each of them.
        optimum: w of least meta-loss, the nearest to the last w if there are several.
        optimal_loss: its meta-loss.
    """

    problem: Problem
    steps: int
    w: Float[np.ndarray, " values"]
    at: MetaLoss
    optimum: float
    optimal_loss: float

    @property
    def mean_squared_gradient(self) -> float:
        """Mean over outer steps of the squared meta-gradient by w: the quantity that the theory bounds."""
        return float((self.at.gradient_w[:-1] ** 2).mean())

    @property
    def excess_loss(self) -> Float[np.ndarray, " values"]:
        """Meta-loss minus that of the meta-optimum."""
        return self.at.loss - self.optimal_loss

    @property
    def distance(self) -> Float[np.ndarray, " values"]:
        """Distance of w to the meta-optimum."""
        return np.abs(self.w - self.optimum)


def meta_loss(problem: Problem, w: Float[np.ndarray, " values"], *, steps: int) -> MetaLoss:
    """Meta-loss, meta-gradients and bound at every value of w, after `steps` inner steps.

    Raises:
        ArgumentError: if there is no inner step.
    """
    check_steps("steps", steps)
    targets, curvatures = np.array(problem.targets), np.array(problem.curvatures)
    adapted = np.repeat(np.asarray(w, float)[:, None], len(targets), axis=1)
    by_w, by_phi = np.ones_like(adapted), np.zeros_like(adapted)
    for _ in range(steps):
        away = adapted - targets
        convex = problem.geometry == "strongly convex"
        slope, hessian = (away, np.ones_like(away)) if convex else (np.sin(away), np.cos(away))
        kept = 1 - problem.alpha * curvatures * hessian
        by_w, by_phi = by_w * kept, by_phi * kept + (1 - kept) * targets
        adapted = adapted - problem.alpha * curvatures * slope
    error = adapted - targets
    return MetaLoss(
        loss=(error**2).sum(axis=1) / 2,
        gradient_w=(by_w * error).sum(axis=1),
        gradient_phi=((by_phi - targets) * error).sum(axis=1),
        bound=np.abs(error).sum(axis=1) * _growth(problem) ** steps,
    )


def descend(problem: Problem, *, steps: int, w: float, outer_rate: float, outer_steps: int) -> Convergence:
    """Outer gradient descent in w on the meta-loss.

    Args:
        problem: the tasks.
        steps: number of inner steps, at least 1.
        w: initial value.
        outer_rate: outer rate, above 0.
        outer_steps: number of outer steps, at least 1.

    Raises:
        ArgumentError: naming the argument that is out of range; also if outer steps diverge.
    """
    check_steps("outer_steps", outer_steps)
    check_above_0("outer_rate", outer_rate)
    values = [float(w)]
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, outer_steps + 1):
            gradient = meta_loss(problem, np.array(values[-1:]), steps=steps).gradient_w[0]
            values.append(float(values[-1] - outer_rate * gradient))
            if not abs(values[-1]) < 1e100:
                raise ArgumentError(
                    f"{{outer_rate}} is {outer_rate:g}, which diverges (at outer step {step}); lower it.", "outer_rate"
                )
    at = meta_loss(problem, np.array(values), steps=steps)
    optimum, least = _optimum(problem, steps, near=values[-1])
    return Convergence(problem, steps, np.array(values), at, optimum, least)


def _growth(problem: Problem) -> float:
    if problem.geometry == "strongly convex":
        return 1 - problem.alpha * min(problem.curvatures)
    return 1 + problem.alpha * max(problem.curvatures)


def _optimum(problem: Problem, steps: int, near: float) -> tuple[float, float]:
    """A w of least meta-loss, and that loss."""

    def loss(values: np.ndarray) -> np.ndarray:
        return meta_loss(problem, np.atleast_1d(values), steps=steps).loss

    if problem.geometry == "strongly convex":
        best = near
        if problem.alpha * min(problem.curvatures) < 1:
            best = meta_optimum(a=problem.targets, mu=problem.curvatures, alpha=problem.alpha, steps=steps).w
        return best, float(loss(np.array(best))[0])
    from scipy.optimize import minimize_scalar

    # At most half a period beyond the outer targets: w_N is nondecreasing in w for alpha <= 1 / L and fixed at half a
    # period from a target, so that beyond it every task's query loss rises.
    grid = np.linspace(min(problem.targets) - np.pi, max(problem.targets) + np.pi, 4001)
    on_grid = loss(grid)
    inner = np.flatnonzero((on_grid[1:-1] <= on_grid[:-2]) & (on_grid[1:-1] <= on_grid[2:])) + 1
    found = [
        minimize_scalar(
            lambda w: float(loss(np.array(w))[0]),
            bounds=(grid[i - 1], grid[i + 1]),
            method="bounded",
            options={"xatol": 1e-10},
        )
        for i in inner
    ]
    least = min(result.fun for result in found)
    best = min((float(result.x) for result in found if result.fun <= least + 1e-12), key=lambda w: abs(w - near))
    return best, float(least)
