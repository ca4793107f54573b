"""Three quantities by number of inner steps on one-dimensional tasks, against closed forms.

Their values are asserted for each number of steps. A trend over steps is asserted for none of excess loss and distance: more
steps flatten the meta-loss, and both depend on the optimum, which moves.
"""

import numpy as np
import pytest

from layerprobe.errors import ArgumentError
from layerprobe.metalearning import quadratic
from layerprobe.metalearning.synthetic import NONCONVEX, STRONGLY_CONVEX, Problem, descend, meta_loss

STEPS = (1, 3, 5, 10)
VALUES = np.linspace(-4, 4, 41)
PROBLEMS = pytest.mark.parametrize("problem", [STRONGLY_CONVEX, NONCONVEX], ids=lambda problem: problem.geometry)
by_steps = pytest.mark.parametrize("steps", STEPS)


def query_loss(problem, w, phi, steps):
    """One task after the other, one gradient step after the other."""
    total = 0.0
    for target, curvature in zip(problem.targets, problem.curvatures, strict=True):
        adapted = w
        for _ in range(steps):
            away = adapted - phi * target
            adapted = adapted - problem.alpha * curvature * (
                away if problem.geometry == "strongly convex" else np.sin(away)
            )
        total = total + (adapted - phi * target) ** 2 / 2
    return total


@PROBLEMS
@by_steps
def test_gradients_equal_finite_differences(problem, steps):
    found, step = meta_loss(problem, VALUES, steps=steps), 1e-5
    np.testing.assert_allclose(found.loss, query_loss(problem, VALUES, 1, steps), atol=1e-12)
    by_w = query_loss(problem, VALUES + step, 1, steps) - query_loss(problem, VALUES - step, 1, steps)
    by_phi = query_loss(problem, VALUES, 1 + step, steps) - query_loss(problem, VALUES, 1 - step, steps)
    np.testing.assert_allclose(found.gradient_w, by_w / (2 * step), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.gradient_phi, by_phi / (2 * step), rtol=1e-5, atol=1e-6)


@by_steps
def test_strongly_convex_losses_and_gradients_are_those_of_the_quadratic(steps):
    found = meta_loss(STRONGLY_CONVEX, VALUES, steps=steps)
    for i, w in enumerate(VALUES):
        tasks = quadratic.solve(
            mu=STRONGLY_CONVEX.curvatures,
            alpha=STRONGLY_CONVEX.alpha,
            a=STRONGLY_CONVEX.targets,
            b=STRONGLY_CONVEX.targets,
            w=w,
            phi=1,
            steps=steps,
        )
        assert found.gradient_w[i] == pytest.approx(tasks.grad_w.sum(), abs=1e-12)
        assert found.gradient_phi[i] == pytest.approx(tasks.grad_phi.sum(), abs=1e-12)


@PROBLEMS
@by_steps
def test_the_gradient_is_within_its_bound(problem, steps):
    found = meta_loss(problem, VALUES, steps=steps)
    assert (np.abs(found.gradient_w) <= found.bound + 1e-12).all()


@by_steps
def test_the_strongly_convex_bound_is_attained_by_one_task(steps):
    one = meta_loss(Problem("strongly convex", (-2.0,), (0.25,), 0.5), VALUES, steps=steps)
    np.testing.assert_allclose(np.abs(one.gradient_w), one.bound, rtol=1e-12)


@by_steps
def test_the_nonconvex_bound_is_attained_at_the_maximum_of_the_inner_loss(steps):
    """There, half a period from the target, inner steps do not move w, and each multiplies its sensitivity by 1 + alpha L."""
    one = Problem("nonconvex", (0.3,), (0.8,), 0.5)
    found = meta_loss(one, np.array([0.3 + np.pi, 0.3]), steps=steps)
    np.testing.assert_allclose(found.gradient_w, [(1 + 0.4) ** steps * np.pi, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.gradient_w[0], found.bound[0], rtol=1e-9)
    near = meta_loss(one, np.array([0.3 + 1e-6]), steps=steps)  # near the target it is strongly convex
    np.testing.assert_allclose(near.gradient_w, (1 - 0.4) ** (2 * steps) * 1e-6, rtol=1e-6)


@by_steps
def test_the_three_quantities_of_the_quadratic_have_closed_forms(steps):
    rate, start, outer = 0.5, 3.0, 40
    found = descend(STRONGLY_CONVEX, steps=steps, w=start, outer_rate=rate, outer_steps=outer)
    q2 = (1 - 0.5 * np.array([1, 0.25])) ** (2 * steps)
    curvature, optimum = q2.sum(), q2 @ [1, -2] / q2.sum()
    assert found.optimum == pytest.approx(optimum, abs=1e-10)
    away = (start - optimum) * (1 - rate * curvature) ** np.arange(outer + 1)
    np.testing.assert_allclose(found.distance, np.abs(away), atol=1e-12)
    np.testing.assert_allclose(found.excess_loss, curvature * away**2 / 2, atol=1e-12)
    np.testing.assert_allclose(found.at.gradient_w, curvature * away, atol=1e-12)
    mean = curvature**2 * (away[:-1] ** 2).mean()
    shrinks = (1 - rate * curvature) ** 2
    geometric = (curvature * away[0]) ** 2 * (1 - shrinks**outer) / (1 - shrinks) / outer
    assert found.mean_squared_gradient == pytest.approx(mean, rel=1e-9) == pytest.approx(geometric, rel=1e-9)


@by_steps
def test_the_nonconvex_optimum_is_the_least_of_a_fine_grid(steps):
    found = descend(NONCONVEX, steps=steps, w=3.0, outer_rate=0.01, outer_steps=50)
    grid = np.linspace(-8, 8, 40_001)
    least = meta_loss(NONCONVEX, grid, steps=steps).loss.min()
    assert found.optimal_loss <= least + 1e-12
    assert found.optimal_loss == pytest.approx(least, abs=1e-6)
    assert (found.excess_loss >= -1e-12).all()
    at = meta_loss(NONCONVEX, np.array([found.optimum]), steps=steps)
    assert at.loss[0] == pytest.approx(found.optimal_loss, abs=1e-12)
    assert abs(at.gradient_w[0]) < 1e-4
    # The path is gradient descent: each step is the outer rate times the gradient.
    np.testing.assert_allclose(np.diff(found.w), -0.01 * found.at.gradient_w[:-1], atol=1e-12)


def test_one_outer_step_of_the_inverse_curvature_reaches_the_optimum():
    curvature = quadratic.meta_optimum(a=(1, -2), mu=(1, 0.25), alpha=0.5, steps=3).curvature
    found = descend(STRONGLY_CONVEX, steps=3, w=3.0, outer_rate=1 / curvature, outer_steps=1)
    assert found.distance[-1] == pytest.approx(0, abs=1e-12)
    assert found.excess_loss[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Problem("nonconvex", (1.0,), (2.0,), 0.6), "alpha is 0.6; it may be at most .* 0.5"),
        (lambda: Problem("nonconvex", (1.0, 2.0), (2.0,), 0.1), "targets has 2 values, curvatures has 1"),
        (lambda: Problem("nonconvex", (1.0,), (0.0,), 0.1), "curvatures is 0"),
        (lambda: descend(NONCONVEX, steps=0, w=0.0, outer_rate=1.0, outer_steps=1), "steps is 0"),
        (lambda: descend(NONCONVEX, steps=1, w=0.0, outer_rate=1.0, outer_steps=0), "outer_steps is 0"),
        (
            lambda: descend(STRONGLY_CONVEX, steps=1, w=3.0, outer_rate=100.0, outer_steps=100),
            "outer_rate is 100, which diverges .at outer step",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
