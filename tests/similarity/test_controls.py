"""Drift beyond a control, and calibrated similarity: closed forms, the reference package, and error rates."""

import numpy as np
import pytest
from scipy.stats import t

from layerprobe import similarity
from layerprobe.errors import MeasureError
from layerprobe.onsets import first_beyond
from layerprobe.similarity import Replicates, calibrate, control_difference, shuffled


def replicates(truth, models, rng, *, examples, seed_sd, n_folds=20):
    """Similarities that are means over examples: shared noise of the examples, and noise of each model's training."""
    trained = (
        truth + seed_sd * rng.standard_normal((models, 1)) + 0.3 * seed_sd * rng.standard_normal((models, len(truth)))
    )
    rows = trained[:, None] + examples + 0.01 * rng.standard_normal((models, *examples.shape))
    folds = rows.reshape(models, n_folds, -1, len(truth)).sum(2)
    left_out = (rows.sum(1, keepdims=True) - folds) / (rows.shape[1] * (1 - 1 / n_folds))
    return Replicates(rows.mean(1), left_out.transpose(0, 2, 1))


def test_the_difference_of_two_models_is_the_paired_interval():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, 0.1, (40, 1)), rng.normal(0.7, 0.1, (40, 1))
    one, other = (
        Replicates(z.mean(0)[None], np.array([[[np.delete(z[:, 0], i).mean() for i in range(40)]]])) for z in (x, y)
    )
    found = control_difference(one, other)
    gap = (y - x)[:, 0]
    error = gap.std(ddof=1) / np.sqrt(40)
    assert found.value[0] == pytest.approx(gap.mean()) and found.errors[0] == pytest.approx(error)
    assert found.degrees[0] == pytest.approx(39)
    assert found.bands.low[0] == pytest.approx(gap.mean() - t.ppf(0.975, 39) * error)


def test_trainings_enter_the_error_where_there_are_several():
    left_out = np.full((3, 1, 20), 0.5)
    values = np.array([[0.4], [0.5], [0.6]])
    found = control_difference(Replicates(values, left_out), Replicates(values[:1] + 0.2, left_out[:1]))
    assert found.errors[0] == pytest.approx(0.1 / np.sqrt(3)) and found.degrees[0] == pytest.approx(2)
    alone = control_difference(Replicates(values[:1], left_out[:1]), Replicates(values[:1] + 0.2, left_out[:1]))
    assert alone.errors[0] == 0 and alone.bands.low[0] == pytest.approx(0.2)
    with pytest.raises(MeasureError, match=r"have layers x folds \(1, 20\) and \(1, 9\)"):
        control_difference(Replicates(values, left_out), Replicates(values, left_out[..., :9]))


@pytest.mark.parametrize("models", [2, 3, 5])
def test_equal_drift_rarely_exceeds_its_control(models):
    """13 layers, controls and methods trained alike: at most 5% false onsets, with the chance of training included."""
    rng, studies, truth = np.random.default_rng(models), 600, np.linspace(1, 0.4, 13)
    false = ignored = 0
    for _ in range(studies):
        examples = 0.05 * rng.standard_normal((200, 1)) + 0.05 * rng.standard_normal((200, 13))
        method, control = (replicates(truth, models, rng, examples=examples, seed_sd=0.02) for _ in range(2))
        false += first_beyond(range(13), [control_difference(method, control).bands.low]) is not None
        single = control_difference(*(Replicates(x.values[:1], x.left_out[:1]) for x in (method, control)))
        ignored += first_beyond(range(13), [single.bands.low]) is not None
    assert false / studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)
    assert ignored / studies > 0.3  # one training on each side: no onset is named from it


def test_a_planted_excess_is_found():
    rng, found = np.random.default_rng(1), []
    truth = np.array([1, 0.98, 0.9, 0.6, 0.3])
    for _ in range(100):
        examples = 0.05 * rng.standard_normal((200, 5))
        control = replicates(truth, 3, rng, examples=examples, seed_sd=0.02)
        method = replicates(truth - [0, 0, 0, 0.3, 0.3], 3, rng, examples=examples, seed_sd=0.02)
        found.append(first_beyond(range(5), [control_difference(method, control).bands.low]))
    assert np.mean([layer == 3 for layer in found]) > 0.85 and np.mean([layer in (0, 1, 2) for layer in found]) <= 0.05


# Calibration ----------------------------------------------------------------------------------------------------------


def test_calibration_equals_the_published_package():
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("calibrated_similarity")
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((60, 8)) for _ in range(3)]
    y = [x[0] + rng.standard_normal((60, 8)), rng.standard_normal((60, 8)), x[2] @ np.diag([1] * 4 + [0.2] * 4)]
    orders = [rng.permutation(60) for _ in range(19)]
    null = np.array([[similarity.cka(a, b[order]) for a, b in zip(x, y, strict=True)] for order in orders])
    observed = np.array([similarity.cka(a, b) for a, b in zip(x, y, strict=True)])
    found = calibrate(observed, null)

    def cka(a, b):
        return similarity.cka(a.numpy(), b.numpy())

    def in_turn():
        left = iter(orders)
        return lambda n, device: torch.as_tensor(next(left))

    for layer in range(3):
        pair = torch.as_tensor(x[layer]), torch.as_tensor(y[layer])
        score, p, threshold = reference.calibrate(*pair, cka, K=19, perm_fn=in_turn())
        assert found.score[layer] == pytest.approx(float(score), abs=1e-6)
        assert found.p[layer] == pytest.approx(float(p)) and found.threshold[layer] == pytest.approx(float(threshold))
    layers = [[torch.as_tensor(z) for z in side] for side in (x, y)]
    _, p, _ = reference.calibrate_layers(*layers, cka, agg=lambda s: s.diagonal().max(), K=19, perm_fn=in_turn())
    assert found.p_some == pytest.approx(float(p)) == 0.05 and found.p[1] > 0.05 >= found.p[0]


def test_a_distance_is_calibrated_as_its_negative():
    null = np.random.default_rng(0).uniform(0.9, 1.4, (19, 2))
    found = calibrate(np.array([0.3, 1.2]), null, top=0.0, distance=True)
    mirrored = calibrate(-np.array([0.3, 1.2]), -null, top=0.0)
    assert found.score == pytest.approx(mirrored.score) and found.threshold == pytest.approx(-mirrored.threshold)
    assert 0 < found.score[0] < 1 and found.score[1] == 0
    with pytest.raises(MeasureError, match="has 0 draws"):
        calibrate(np.zeros(2), np.zeros((0, 2)))


def test_shuffles_are_shared_by_all_layers_and_keep_examples_whole():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    x = rng.standard_normal((120, 6)) + rng.standard_normal((30, 6))[groups]
    y = x + 0.5 * rng.standard_normal(x.shape)
    table = shuffled({1: x, 2: x}, {1: y, 2: y}, groups, measures=["cka", "cka_angle"], draws=19)
    one, two = (table[table.layer == layer].reset_index(drop=True) for layer in (1, 2))
    assert (one.drop(columns="layer") == two.drop(columns="layer")).all(axis=None)  # equal layers, equal shuffles
    row = one[one.measure == "cka"].iloc[0]
    assert row.observed == pytest.approx(similarity.cka(x, y, groups=groups))
    assert row.calibrated == pytest.approx((row.observed - row.high) / (1 - row.high))  # 19 of 20 is the largest draw
    assert row.p == row.p_some == 1 / 20
    angle = one[one.measure == "cka_angle"].iloc[0]
    assert angle.calibrated == pytest.approx((angle.low - angle.observed) / angle.low)
