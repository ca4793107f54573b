"""Consensus averaging: weights, means, mesh and server, convergence by the spectrum, and disagreement."""

import numpy as np
import pytest
from plants import example

from layerprobe.energy import averaging, server_bit_per_joule, topology
from layerprobe.errors import ArgumentError

NAMES = ("ring", "mesh", "server")


@pytest.fixture
def models():
    return np.random.default_rng(0).normal(3, 1, (7, 20))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 7])
def test_weights_are_doubly_stochastic_and_follow_the_links(name, devices):
    found = topology(name, devices)
    np.testing.assert_allclose(found.weights.sum(axis=0), 1, rtol=1e-15)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-15)
    assert (found.weights >= 0).all() and (found.weights == found.weights.T).all()
    heard = (found.weights > 0).sum(axis=1) - 1
    if name == "server":
        assert (found.neighbours, found.server_uplinks, found.server_downlinks) == (0, devices, devices)
    else:
        assert (heard == found.neighbours).all()
        assert found.neighbours == min(devices - 1, 2 if name == "ring" else devices)
        assert (found.server_uplinks, found.server_downlinks) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_averaging_preserves_the_mean(name, models):
    after = averaging(models, topology(name, 7).weights)
    np.testing.assert_allclose(after.models.mean(axis=0), models.mean(axis=0), rtol=0, atol=1e-12)


def test_mesh_and_server_give_every_device_the_mean(models):
    mesh, server = (averaging(models, topology(name, 7).weights) for name in ("mesh", "server"))
    np.testing.assert_array_equal(mesh.models, server.models)
    np.testing.assert_allclose(mesh.models, np.tile(models.mean(axis=0), (7, 1)), rtol=0, atol=1e-12)
    assert mesh.disagreement < 1e-12


def test_a_ring_takes_a_third_of_itself_and_of_each_neighbour(models):
    after = averaging(models, topology("ring", 7).weights).models
    for k in range(7):
        np.testing.assert_allclose(after[k], (models[k - 1] + models[k] + models[(k + 1) % 7]) / 3, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_identical_models_stay_as_they_are(name, models):
    same = np.tile(models[0], (7, 1))
    after = averaging(same, topology(name, 7).weights)
    np.testing.assert_array_equal(after.models, same)
    assert after.disagreement_before == after.disagreement == 0


def test_disagreement_is_the_root_mean_square_distance_to_the_mean(models):
    after = averaging(models, topology("ring", 7).weights)
    for found, rows in ((after.disagreement_before, models), (after.disagreement, after.models)):
        assert found == pytest.approx(np.sqrt(rows.var(axis=0).sum()), rel=1e-12)


def test_without_local_steps_ring_and_mesh_converge_to_one_model_at_the_rate_of_the_spectrum(models):
    ring = topology("ring", 7)
    assert ring.contraction == pytest.approx((1 + 2 * np.cos(2 * np.pi / 7)) / 3, rel=1e-12)
    rows, disagreement = models, []
    for _ in range(120):
        after = averaging(rows, ring.weights)
        rows, disagreement = after.models, [*disagreement, after.disagreement]
        assert after.disagreement <= ring.contraction * after.disagreement_before + 1e-12
    assert disagreement[40] / disagreement[39] == pytest.approx(ring.contraction, rel=1e-3)
    np.testing.assert_allclose(rows, averaging(models, topology("mesh", 7).weights).models, atol=1e-9)


def test_consensus_on_identical_data_equals_one_device():
    """Gradient steps on one least-squares problem, averaged after each, against one device alone."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=30)

    def step(w):
        return w - 0.01 * x.T @ (x @ w - y)

    for name in NAMES:
        alone, cluster = np.zeros(5), np.zeros((4, 5))
        for _ in range(50):
            alone = step(alone)
            cluster = averaging(np.stack([step(w) for w in cluster]), topology(name, 4).weights).models
        np.testing.assert_allclose(cluster, np.tile(alone, (4, 1)), rtol=0, atol=1e-12)


def test_the_type_of_the_models_is_kept(models):
    after = averaging(models.astype(np.float32), topology("ring", 7).weights)
    assert after.models.dtype == np.float32
    np.testing.assert_allclose(after.models, averaging(models, topology("ring", 7).weights).models, rtol=1e-5)


def test_a_server_costs_as_many_uplinks_and_downlinks_as_devices():
    efficiency = server_bit_per_joule(100.0, 50.0)
    model = example(neighbours=1, sidelink_bit_per_joule=efficiency)
    bits = 10 * 32
    assert model.energy(0, [6, 0]).sidelink == pytest.approx(6 * (4 * bits / 100 + 4 * bits / 50), rel=1e-12)
    assert server_bit_per_joule(np.inf, 50.0) == 50 and server_bit_per_joule(np.inf, np.inf) == np.inf
    with pytest.raises(ArgumentError, match="uplink_bit_per_joule is 0"):
        server_bit_per_joule(0.0, 1.0)


def test_what_cannot_be_averaged_is_refused(models):
    with pytest.raises(ArgumentError, match="name is 'star'; it is one of ring, mesh, server"):
        topology("star", 3)
    with pytest.raises(ArgumentError, match="devices is 0"):
        topology("ring", 0)
    with pytest.raises(ArgumentError, match=r"weights has shape \(3, 3\), but models has 7 rows"):
        averaging(models, topology("ring", 3).weights)
    with pytest.raises(ArgumentError, match="not doubly stochastic"):
        averaging(models, np.eye(7)[[0, 0, 1, 2, 3, 4, 5]])
    models[2, 3] = np.nan
    with pytest.raises(ArgumentError, match="diverged"):
        averaging(models, topology("ring", 7).weights)
