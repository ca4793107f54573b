"""Closed forms of the quadratic: the stated numbers, finite differences, a loop of gradient steps, and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerprobe.errors import ArgumentError
from layerprobe.metalearning import quadratic

POINT = {"mu": 0.7, "alpha": 0.3, "a": 1.3, "b": 0.4, "w": 0.9, "phi": 1.1, "steps": 5}
TWO_TASKS = {"a": (1, -2), "mu": (1, 0.25), "alpha": 0.5}


def query_loss(*, mu, alpha, a, b, w, phi, steps):
    """By gradient steps, one after the other."""
    for _ in range(steps):
        w = w - alpha * mu * (w - phi * a)
    return (w - phi * b) ** 2 / 2


def test_stated_gradients():
    found = quadratic.solve(**POINT)
    assert found.w_n == pytest.approx(1.266916010853, abs=1e-9)
    assert found.grad_w == pytest.approx(0.2544467203, abs=1e-9)
    assert found.grad_phi == pytest.approx(0.4134436734, abs=1e-9)


@pytest.mark.parametrize(
    ("steps", "w", "curvature"),
    [
        (1, -1.2615384615384615, 1.015625),
        (3, -1.8990677235204731, 0.4644203186035156),
        (10, -1.9999586615397174, 0.06920971244824667),
    ],
)
def test_stated_optima_and_curvatures(steps, w, curvature):
    found = quadratic.meta_optimum(**TWO_TASKS, steps=steps)
    assert found.w == pytest.approx(w, abs=1e-10)
    assert found.curvature == pytest.approx(curvature, abs=1e-10)


numbers = st.floats(-2, 2)


@settings(max_examples=50, deadline=None)
@given(
    mu=st.floats(0.05, 1.5),
    alpha=st.floats(0.05, 1),
    a=numbers,
    b=numbers,
    w=numbers,
    phi=numbers,
    steps=st.integers(1, 10),
)
def test_gradients_equal_central_differences(**point):
    """Exact but for rounding: the query loss is quadratic in w and in phi."""
    found, step = quadratic.solve(**point), 1e-3
    for name, gradient in (("w", found.grad_w), ("phi", found.grad_phi)):
        above, below = (query_loss(**{**point, name: point[name] + sign * step}) for sign in (1, -1))
        assert gradient == pytest.approx((above - below) / (2 * step), abs=1e-9)
    assert (found.w_n - point["phi"] * point["b"]) ** 2 / 2 == pytest.approx(query_loss(**point), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(mu=st.floats(0.1, 1), alpha=st.floats(0.1, 1), w=numbers, phi=numbers, steps=st.integers(1, 10))
def test_the_bound_of_a_strongly_convex_inner_loss_is_attained(mu, alpha, w, phi, steps):
    found = quadratic.solve(mu=mu, alpha=alpha, a=1, b=0.5, w=w, phi=phi, steps=steps)
    assert abs(found.grad_w) == pytest.approx((1 - alpha * mu) ** steps * abs(found.w_n - 0.5 * phi), abs=1e-12)
    assert abs(found.w_n - phi) == pytest.approx((1 - alpha * mu) ** steps * abs(w - phi), abs=1e-12)


def test_several_tasks_equal_one_call_for_each():
    mu, a = np.array([0.2, 0.7, 1.0]), [1, 1.3, -2]
    together = quadratic.solve(**{**POINT, "mu": mu, "a": a})
    for i in range(3):
        alone = quadratic.solve(**{**POINT, "mu": float(mu[i]), "a": a[i]})
        for name in ("w_n", "grad_w", "grad_phi"):
            assert getattr(together, name)[i] == getattr(alone, name)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_optimum_has_no_gradient_and_the_stated_second_derivative(steps):
    found = quadratic.meta_optimum(**TWO_TASKS, steps=steps)

    def gradient(w):
        both = quadratic.solve(**TWO_TASKS, b=TWO_TASKS["a"], w=w, phi=1, steps=steps)
        return both.grad_w.sum()

    assert gradient(found.w) == pytest.approx(0, abs=1e-12)
    assert gradient(found.w + 1) - gradient(found.w) == pytest.approx(found.curvature, rel=1e-9)


def test_many_steps_leave_the_slowest_task():
    found = quadratic.meta_optimum(**TWO_TASKS, steps=100_000)
    assert (found.w, found.curvature) == (-2, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": 0}, "mu is 0; it must be above 0"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"steps": 0}, "steps is 0; it takes a whole number, at least 1"),
        ({"w": np.nan}, "w takes a finite number"),
        ({"mu": [1, 2], "a": [1, 2, 3]}, "mu has 2, a has 3"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(ArgumentError, match=message):
        quadratic.solve(**{**POINT, **changes})


def test_an_undefined_optimum_is_refused():
    with pytest.raises(ArgumentError, match="alpha times mu is 1 for every task"):
        quadratic.meta_optimum(a=(1, 2), mu=2, alpha=0.5, steps=3)
    with pytest.raises(ArgumentError, match="a has 2, mu has 3"):
        quadratic.meta_optimum(a=(1, 2), mu=(1, 1, 1), alpha=0.5, steps=3)
