"""The inner loop on one-dimensional quadratic losses, in closed form.

The support loss of a task is mu/2 (w - phi a)^2, the query loss 1/2 (w_N - phi b)^2: w is adapted by N gradient steps of rate
alpha, phi is not. With q = (1 - alpha mu)^N, w_N = phi a + q (w - phi a). Source: derived; the model of ANIL is that of
Raghu et al. (2020, arXiv 1909.09157) and Ji, Lee, Liang and Poor (2020, arXiv 2006.09486).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerprobe.errors import ArgumentError

Values = float | Sequence[float] | np.ndarray
"""One value, or one per task."""


@dataclass(frozen=True)
class InnerLoop:
    """The adapted parameter and the meta-gradients of the query loss: floats, or one value per task.

    Attributes:
        w_n: the adapted parameter after the inner loop.
        grad_w: derivative of the query loss by the initial w, through the inner loop.
        grad_phi: derivative of the query loss by phi, through the inner loop.
    """

    w_n: float | np.ndarray
    grad_w: float | np.ndarray
    grad_phi: float | np.ndarray


@dataclass(frozen=True)
class MetaOptimum:
    """The initial w of least meta-loss.

    Attributes:
        w: the minimiser, a mean of the targets weighted by q^2: the slowest task weighs most.
        curvature: second derivative of the meta-loss by w, the sum of q^2: it falls with the number of steps.
    """

    w: float
    curvature: float


def solve(*, mu: Values, alpha: float, a: Values, b: Values, w: Values, phi: Values, steps: int) -> InnerLoop:
    """Adapted parameter and meta-gradients of one task, or of several (arguments are broadcast).

    Args:
        mu: curvature of the support loss, above 0.
        alpha: inner rate, above 0.
        a: the support target is phi a.
        b: the query target is phi b.
        w: initial value of the adapted parameter.
        phi: the parameter that the inner loop does not adapt.
        steps: number of inner steps, at least 1.

    Raises:
        ArgumentError: naming the argument that is out of range, or whose length does not fit.
    """
    mu, a, b, w, phi = _broadcast(mu=mu, a=a, b=b, w=w, phi=phi)
    q = contraction(mu, alpha, steps)
    w_n = phi * a + q * (w - phi * a)
    error = w_n - phi * b
    return InnerLoop(_plain(w_n), _plain(q * error), _plain((a * (1 - q) - b) * error))


def meta_optimum(*, a: Values, mu: Values, alpha: float, steps: int) -> MetaOptimum:
    """Minimiser and curvature of the meta-loss 1/2 sum (w_N - a)^2 over tasks, in w, at phi = 1 and b = a.

    Args:
        a: target of each task, `(tasks,)`.
        mu: curvature of the support loss of each task, above 0.
        alpha: inner rate, above 0.
        steps: number of inner steps, at least 1.

    Raises:
        ArgumentError: naming the argument that is out of range, or whose length does not fit; also if every task reaches
            its target whatever w is (alpha mu = 1), so that no w is better than another.
    """
    a, mu = (np.atleast_1d(values) for values in _broadcast(a=a, mu=mu))
    factor = np.abs(contraction(mu, alpha, 1))
    if not factor.any():
        raise ArgumentError(
            "{alpha} times {mu} is 1 for every task: one inner step reaches the target from any w, which leaves the "
            "optimum undefined; lower {alpha}.",
            *("alpha", "mu"),
        )
    # Relative to the largest, so that many steps do not underflow.
    weights = (factor / factor.max()) ** (2 * steps)
    return MetaOptimum(float(weights @ a / weights.sum()), float((contraction(mu, alpha, steps) ** 2).sum()))


def contraction(mu: np.ndarray, alpha: float, steps: int) -> np.ndarray:
    """q = (1 - alpha mu)^steps, the factor by which the inner loop shrinks the distance to the support target.

    Raises:
        ArgumentError: naming the argument that is out of range.
    """
    check_steps("steps", steps)
    check_above_0("alpha", alpha)
    check_above_0("mu", mu)
    return np.asarray((1 - alpha * mu) ** steps)


def check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise ArgumentError(f"{{{name}}} is {steps}; it takes a whole number, at least 1.", name)


def check_above_0(name: str, values: Values) -> None:
    for value in np.ravel(np.asarray(values, float)):
        if not (value > 0 and np.isfinite(value)):
            raise ArgumentError(f"{{{name}}} is {value:g}; it must be above 0 and finite.", name)


def _broadcast(**arguments: Values) -> list[np.ndarray]:
    values = {name: np.asarray(value, float) for name, value in arguments.items()}
    for name, value in values.items():
        if value.ndim > 1 or not value.size or not np.isfinite(value).all():
            raise ArgumentError(f"{{{name}}} takes a finite number, or one per task; it is {value}.", name)
    lengths = {name: value.size for name, value in values.items() if value.ndim}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{{{name}}} has {length}" for name, length in lengths.items())
        raise ArgumentError(f"{listed}; values per task must be equally many.", *lengths)
    return list(np.broadcast_arrays(*values.values()))


def _plain(values: np.ndarray | np.generic) -> Any:
    return values if np.ndim(values) else float(values)
