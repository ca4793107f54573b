"""A simulated cluster: equal data is one device, topologies agree on the mean, and the target is reached or censored."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerprobe.energy import adapt_cluster, averaging, held_accuracy, mean_rounds, topology
from layerprobe.errors import ArgumentError


def least_squares(devices, same=False, seed=0):
    """Gradient steps on a problem of each device, and the accuracy 1 / (1 + distance to the solution of all data)."""
    rng = np.random.default_rng(seed)
    solution = rng.normal(size=5)
    x = [rng.normal(size=(20, 5)) for _ in range(devices)]
    y = [one @ solution + rng.normal(0, 0.1, 20) for one in x]
    x, y = ([one[0]] * devices if same else one for one in (x, y))

    def local_steps(device, w):
        for _ in range(3):
            w = w - 0.01 * x[device].T @ (x[device] @ w - y[device])
        return w

    return local_steps, lambda w: 1 / (1 + float(np.linalg.norm(w - solution)))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["ring", "mesh"]), st.integers(1, 6), st.integers(0, 1000))
def test_devices_with_identical_data_are_one_device(name, devices, seed):
    local_steps, accuracy = least_squares(devices, same=True, seed=seed)
    found = adapt_cluster(np.zeros(5), topology(name, devices), local_steps, accuracy, target=None, max_rounds=20)
    alone, accuracies = np.zeros(5), []
    for _ in range(20):
        alone = local_steps(0, alone)
        accuracies.append(accuracy(alone))
    np.testing.assert_allclose(found.models, np.tile(alone, (devices, 1)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.accuracy, accuracies, rtol=0, atol=1e-12)
    assert max(found.disagreement) < 1e-12


@pytest.mark.parametrize("name", ["ring", "mesh", "server"])
def test_without_local_steps_nothing_moves_and_from_other_models_all_become_the_mean(name):
    cluster, models = topology(name, 6), np.random.default_rng(0).normal(size=(6, 4))
    still = adapt_cluster(models[0], cluster, lambda k, w: w, lambda w: 0.0, target=None, max_rounds=3)
    np.testing.assert_array_equal(still.models, np.tile(models[0], (6, 1)))
    assert still.disagreement == (0, 0, 0)
    # A first round that gives each device another model, then none.
    given = iter(models)
    moved = adapt_cluster(models[0], cluster, lambda k, w: next(given, w), lambda w: 0.0, target=None, max_rounds=80)
    np.testing.assert_allclose(moved.models, np.tile(models.mean(axis=0), (6, 1)), rtol=0, atol=1e-9)
    assert moved.disagreement[-1] < 1e-9
    assert all(b <= a * cluster.contraction + 1e-12 for a, b in pairwise(moved.disagreement))


def test_a_ring_disagrees_more_than_a_mesh_and_both_come_near_the_solution():
    local_steps, accuracy = least_squares(6)
    ring, mesh = (
        adapt_cluster(np.zeros(5), topology(name, 6), local_steps, accuracy, target=None, max_rounds=40)
        for name in ("ring", "mesh")
    )
    assert ring.disagreement[-1] > 100 * max(mesh.disagreement[-1], 1e-16)
    assert min(ring.accuracy[-1], mesh.accuracy[-1]) > 0.9


def scripted(accuracies):
    """A cluster whose accuracy in each round is given."""
    values = iter(accuracies)
    return lambda **options: adapt_cluster(
        np.zeros(2), topology("mesh", 3), lambda k, w: w, lambda w: next(values), **options
    )


def test_the_target_is_reached_by_two_consecutive_passes():
    found = scripted([0.2, 0.8, 0.5, 0.8, 0.7, 0.9])(target=0.7, max_rounds=6)
    assert (found.rounds, found.censored) == (5, False) and found.accuracy == (0.2, 0.8, 0.5, 0.8, 0.7)
    late = scripted([0.2, 0.8, 0.5, 0.8])(target=0.7, max_rounds=4)
    assert (late.rounds, late.censored) == (4, True)
    last = scripted([0.2, 0.8, 0.8])(target=0.8, max_rounds=3)
    assert (last.rounds, last.censored) == (3, False)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=12), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_a_target_is_reached_exactly_up_to_the_accuracy_that_was_held(values, target):
    accuracies = [value / 20 for value in values]
    found = scripted(accuracies)(target=target / 20, max_rounds=len(values))
    assert found.censored == (held_accuracy(accuracies) < target / 20)


def test_every_device_of_a_ring_is_scored():
    seen = []

    def score(w):
        seen.append(w.copy())
        return float(w[0])

    start, cluster = np.zeros(1), topology("ring", 5)
    found = adapt_cluster(start, cluster, lambda k, w: w + k, score, target=None, max_rounds=2)
    assert len(seen) == 10 and found.accuracy == (pytest.approx(2), pytest.approx(4))


def test_another_function_may_average():
    calls = []

    def first(models, weights):
        calls.append(weights.shape)
        return averaging(models[[0] * len(models)], weights)

    found = adapt_cluster(
        np.zeros(1),
        topology("mesh", 3),
        lambda k, w: w + k + 1,
        lambda w: 0.0,
        target=None,
        max_rounds=2,
        average=first,
    )
    assert calls == [(3, 3)] * 2 and (found.models == 2).all()


def test_a_cap_below_the_passes_is_refused():
    with pytest.raises(ArgumentError, match="max_rounds is 1 and passes is 2"):
        scripted([0.1])(target=0.5, max_rounds=1)


def test_mean_rounds_of_one_seed_have_students_interval_over_tasks():
    from layerprobe.stats import mean_interval

    rounds = np.random.default_rng(0).normal(20, 3, 9)
    found = mean_rounds(rounds[None])
    assert (found.value, found.low, found.high) == pytest.approx(mean_interval(rounds))
    assert np.isnan(mean_rounds(np.array([[3.0]])).low)
    constant = mean_rounds(np.full((2, 3), 4.0))
    assert (constant.value, constant.low, constant.high) == (4, 4, 4)


def test_mean_rounds_cover_further_seeds_and_tasks():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        rounds = 30 + rng.normal(0, 2, (4, 1)) + rng.normal(0, 2, (1, 6)) + rng.normal(0, 1, (4, 6))
        found = mean_rounds(rounds)
        covered += found.low <= 30 <= found.high
    assert covered >= 370
