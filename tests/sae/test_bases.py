"""The label effect of bases at matched density, and its excess over controls, on rows with planted features."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.sparse import csc_array
from scipy.stats import rankdata
from scipy.stats import t as student

from layerprobe import sae
from layerprobe.errors import ArgumentError, MeasureError
from layerprobe.sae import bases
from layerprobe.sae._label_effect import jackknife_error, squared_label_effects
from layerprobe.stats import assign_folds

WIDTH, FEATURES, ACTIVE, LABELS, TOKENS = 40, 80, 3, 3, 6


# Label effect --------------------------------------------------------------------------------------------------------------


def slow_effect(scores, labels, strata, expected=True):
    """Between-label share of the variance of one column within strata, less its mean over all permutations."""
    y = scores - np.array([scores[strata == s].mean() for s in strata])

    def between(labels):
        return sum((labels == c).sum() * y[labels == c].mean() ** 2 for c in np.unique(labels))

    value = between(labels) / (y**2).sum()
    if not expected:
        return value
    orders = [list(itertools.permutations(np.flatnonzero(strata == s))) for s in np.unique(strata)]
    draws = []
    for parts in itertools.product(*orders):
        drawn = labels.copy()
        for s, part in zip(np.unique(strata), parts, strict=True):
            drawn[strata == s] = labels[list(part)]
        draws.append(between(drawn) / (y**2).sum())
    return value - np.mean(draws)


def test_the_expectation_under_permuted_labels_is_that_of_all_permutations():
    rng = np.random.default_rng(0)
    strata = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    labels = np.array([0, 1, 1, 2, 0, 0, 1, 2, 2])
    scores = rng.integers(0, 4, (9, 5)).astype(float)  # with ties
    fast = squared_label_effects(scores, labels, strata, np.arange(9) % 3)[0]
    assert fast == pytest.approx([slow_effect(column, labels, strata) for column in scores.T], abs=1e-12)


def test_replicates_are_the_effects_without_each_fold():
    rng = np.random.default_rng(1)
    strata, labels, folds = rng.integers(0, 4, 80), rng.integers(0, 3, 80), rng.integers(0, 5, 80)
    scores = rng.standard_normal((80, 3)) + labels[:, None] * [0, 0.5, 2]
    whole = squared_label_effects(scores, labels, strata, folds)
    assert whole.shape == (6, 3) and whole[0, 0] < 0.02 < whole[0, 1] < whole[0, 2] < 1
    for fold in range(5):
        kept = folds != fold
        again = squared_label_effects(scores[kept], labels[kept], strata[kept], np.zeros(kept.sum(), int))
        assert whole[1 + fold] == pytest.approx(again[0])
    assert jackknife_error(whole[1:, 1]) == pytest.approx(
        np.sqrt(4 / 5 * ((whole[1:, 1] - whole[1:, 1].mean()) ** 2).sum())
    )


def test_a_constant_column_has_no_effect_and_one_that_is_the_label_an_effect_near_one():
    labels = np.arange(300) % 2
    scores = np.stack([np.full(300, 0.1), labels.astype(float)], axis=1)
    effects = squared_label_effects(scores, labels, np.zeros(300, int), np.arange(300) % 20)
    assert (effects[:, 0] == 0).all() and effects[:, 1] == pytest.approx(1, abs=0.005)


def codes_of(activations):
    return csc_array(activations.astype(np.float32))


def test_latents_are_judged_on_the_ranks_of_their_largest_activation():
    rng = np.random.default_rng(2)
    example = np.repeat(np.arange(60), 3)
    labels = np.arange(60) % 2
    values = np.where(rng.random((180, 4)) < 0.4, rng.exponential(size=(180, 4)), 0)
    values[:, 0] += 2 * labels[example] * (values[:, 0] > 0)
    values[3 * 8 :, 3] = 0  # active in at most 8 examples
    found = sae.label_effect(codes_of(values), example, labels)
    pooled = values.reshape(60, 3, 4).max(1)
    expected = [
        squared_label_effects(rankdata(column)[:, None], labels, np.zeros(60, int), np.zeros(60, int))[0, 0]
        for column in pooled.T[:3]
    ]
    assert found.by_latent[:3] == pytest.approx(expected) and np.isnan(found.by_latent[3])
    assert (found.judged, found.latents, found.n) == (3, 4, 60)
    assert found.value == pytest.approx(np.mean(expected))
    reach = student.ppf(0.975, 19) * jackknife_error(found.replicates)
    assert found.interval == pytest.approx((found.value - reach, found.value + reach))
    with pytest.raises(MeasureError, match="one label per"):
        sae.label_effect(codes_of(values), example, labels[:-1])


def test_an_effect_of_length_alone_is_none():
    rng = np.random.default_rng(3)
    lengths = rng.permutation(np.repeat([2, 9], 100))
    labels = (rng.random(200) < np.where(lengths == 2, 0.1, 0.9)).astype(int)
    example = np.repeat(np.arange(200), lengths)
    # Active on a third of the tokens: examples with more tokens have larger maxima.
    values = np.where(rng.random((len(example), 40)) < 0.3, rng.exponential(size=(len(example), 40)), 0)
    found = sae.label_effect(codes_of(values), example, labels)
    ignoring = squared_label_effects(
        np.stack([rankdata([values[example == e, j].max() for e in range(200)]) for j in range(5)], axis=1),
        *(labels, np.zeros(200, int), assign_folds(200, 20, 0)),
    )
    assert abs(found.value) < 0.003 < 0.05 < ignoring[0].mean()


# Bases ---------------------------------------------------------------------------------------------------------------------


ROWS = np.random.default_rng(4).standard_normal((500, 12)).astype(np.float32) * np.linspace(
    0.5, 3, 12, dtype=np.float32
)
BASES = {
    "random directions": bases.random_directions(12, 30, 0),
    "fewer latents than directions": bases.neurons(12, 15, 0),
    "neurons, repeated": bases.neurons(12, 60, 0),
    "principal components": bases.principal_directions(ROWS, 30, 0),
    "untrained": bases.random_topk(12, 30, 4, ROWS.mean(0), 0),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("projected", [False, True])
def test_densities_equal_those_that_they_are_matched_to(name, projected):
    basis = BASES[name]
    counts = np.random.default_rng(5).integers(0, 501, basis.latents)
    counts[:2] = 0, 500
    projection = bases.Projection(ROWS.mean(0), np.eye(12, dtype=np.float32)[:2])
    scored = bases.scores(basis, ROWS, projection)
    scored = scored.projected() if projected else scored
    active = np.diff(bases.activations(scored, bases.thresholds(scored, counts)).indptr)
    # Neurons that are removed are constant: their rows cannot be told apart.
    tied = np.ptp(scored.raised(), axis=1)[basis.direction] < 1e-4
    matched = np.sort(active[~tied])
    assert len(matched) > 0.6 * basis.latents
    if not tied.any():
        assert np.abs(np.sort(active) - np.sort(counts)).max() <= 1


def test_both_signs_of_each_direction_are_read():
    codes = bases.activations(scored := bases.scores(BASES["neurons, repeated"], ROWS), np.zeros(60, np.float32))
    basis, dense = scored.basis, codes.toarray()
    for latent in range(60):
        signed = basis.sign[latent] * ROWS[:, basis.direction[latent]]
        assert dense[:, latent] == pytest.approx(np.maximum(signed, 0))
    pairs, counts = np.unique(np.stack([basis.direction, basis.sign]), axis=1, return_counts=True)
    assert pairs.shape == (2, 24) and counts.min() == 2


def test_projected_scores_are_those_of_projected_rows():
    directions = np.linalg.qr(np.random.default_rng(6).standard_normal((12, 3)))[0].T.astype(np.float32)
    projection = bases.Projection(ROWS.mean(0), directions)
    for basis in BASES.values():
        once = bases.scores(basis, ROWS, projection).projected()
        assert once.products == pytest.approx(bases.scores(basis, projection(ROWS)).products, abs=1e-4)
    assert projection(ROWS).mean(0) == pytest.approx(ROWS.mean(0), abs=1e-5)
    assert np.abs((projection(ROWS) - ROWS.mean(0)) @ directions.T).max() < 1e-5


def test_an_untrained_dictionary_activates_the_k_largest_products_of_each_row():
    scored = bases.scores(BASES["untrained"], ROWS)
    own = bases.own_activations(scored)
    assert (np.diff(own.tocsr().indptr) == 4).all()
    counts = np.diff(own.indptr)
    same = bases.activations(scored, bases.thresholds(scored, counts))
    assert np.abs(np.diff(same.indptr) - counts).max() <= 1  # each latent keeps its number


def test_a_dictionary_is_read_as_it_encodes(tmp_path):
    rows = np.random.default_rng(7).standard_normal((400, 12)).astype(np.float32) + 2
    for name in ("topk", "jumprelu"):
        config = sae.SaeConfig(name, expansion=2, k=3, samples=4000, batch_size=100)
        dictionary = sae.train(rows, tmp_path / name, config)
        basis, codes = bases.dictionary_basis(dictionary), sae.encode(dictionary, rows)
        if name == "topk":
            assert abs(bases.own_activations(bases.scores(basis, rows)) - codes).max() < 1e-5
        else:
            active = codes.toarray() > 0
            products = bases.scores(basis, rows).products.T
            assert products[active] == pytest.approx(codes.toarray()[active], abs=1e-5)


def test_directions_between_labels_span_a_planted_shift():
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 3, 4000)
    shift = rng.standard_normal((3, 12))
    rows = rng.standard_normal((4000, 12)) * 0.1 + shift[labels] + 50
    same = np.ones((4000, 12), np.float32)  # as the first token of the embeddings
    found = bases.between_label_directions((rows, labels), (same, labels), (rows, labels))
    assert found.shape == (2, 12) and found @ found.T == pytest.approx(np.eye(2), abs=1e-5)
    planted = shift - shift.mean(0)
    assert np.abs(planted - planted @ found.T @ found).max() < 0.03
    with pytest.raises(ArgumentError, match="one label per row"):
        bases.between_label_directions((rows, labels[:-1]))


# The excess over controls --------------------------------------------------------------------------------------------------


def directions_of(rng, count):
    rows = rng.standard_normal((count, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def sparse_rows(rng, labels, features, tied):
    """Tokens of examples with these labels; features with a label (not -1) are ten times as frequent in its examples."""
    of_token = np.repeat(labels, TOKENS)
    rate = np.full((LABELS, FEATURES), ACTIVE / FEATURES)
    for feature in np.flatnonzero(tied >= 0):
        rate[:, feature] *= 0.25
        rate[tied[feature], feature] *= 10
    active = rng.random((len(of_token), FEATURES)) < rate[of_token]
    codes = np.where(active, rng.uniform(1, 2, active.shape), 0)
    return codes @ features + rng.standard_normal((len(of_token), WIDTH)) * 0.05


def layer_readings(seed, shift, replaced):
    """Label effects with their replicates, by basis and projected: (seeds, sides, 1 + folds) of one planted layer."""
    rng = np.random.default_rng(seed)
    before = directions_of(rng, FEATURES)
    after, tied = before.copy(), np.full(FEATURES, -1)
    count = int(replaced * FEATURES)
    after[:count], tied[:count] = directions_of(rng, count), np.arange(count) % LABELS
    away = shift * directions_of(rng, LABELS)
    labels = {"training": rng.integers(0, LABELS, 400), "test": rng.integers(0, LABELS, 250)}
    rows = {}
    for part, of_example in labels.items():
        base = sparse_rows(rng, of_example, before, np.full(FEATURES, -1))
        adapted = sparse_rows(rng, of_example, after, tied) + np.repeat(away[of_example], TOKENS, axis=0)
        rows["base", part], rows["adapted", part] = base, adapted
    of_training = np.repeat(labels["training"], TOKENS)
    removed = bases.between_label_directions(*((rows[side, "training"], of_training) for side in ("base", "adapted")))
    example, found = np.repeat(np.arange(250), TOKENS), {}
    for side, features in (("base", before), ("adapted", after)):
        mean = rows[side, "training"].mean(0)
        # Dictionaries of two seeds: the planted features, not quite recovered.
        noisy = [features + 0.05 * np.random.default_rng(s).standard_normal(features.shape) for s in range(2)]
        tried = {("trained", s): bases.competing(f.astype("f4"), -(f @ mean), ACTIVE) for s, f in enumerate(noisy)}
        for s in range(3):
            tried["untrained", s] = bases.random_topk(WIDTH, FEATURES, ACTIVE, mean, s)
            tried["random directions", s] = bases.random_directions(WIDTH, FEATURES, s)
        tried["neurons", 0] = bases.neurons(WIDTH, FEATURES, 0)
        tried["principal components", 0] = bases.principal_directions(rows[side, "training"], FEATURES, 0)
        projection = bases.Projection(mean, removed)
        counts = {}
        for (name, _), basis in tried.items():
            training, test = (bases.scores(basis, rows[side, part], projection) for part in ("training", "test"))
            for projected in (False, True):
                if projected:
                    training, test = training.projected(), test.projected()
                if name == "trained":
                    codes = bases.own_activations(test)
                    counts.setdefault(projected, np.diff(bases.own_activations(training).indptr))
                else:
                    codes = bases.activations(test, bases.thresholds(training, counts[projected]))
                effect = sae.label_effect(codes, example, labels["test"])
                found.setdefault((name, projected), {}).setdefault(side, []).append([effect.value, *effect.replicates])
    return {key: np.stack([sides["base"], sides["adapted"]], axis=1) for key, sides in found.items()}


def planted_study(shift, replaced, layers=2):
    """The excess over each untrained control in two planted layers, by projected."""
    readings = [layer_readings(10 + layer, shift, replaced) for layer in range(layers)]
    stacked = {key: np.stack([layer[key] for layer in readings], axis=1)[None] for key in readings[0]}
    return {
        projected: {
            name: sae.excess(stacked["trained", projected], stacked[name, projected]) for name in sae.UNTRAINED_BASES
        }
        for projected in (False, True)
    }, stacked


def claimed(excesses):
    return sae.task_specific(excesses, sae.UNTRAINED_BASES).layers


def test_a_label_shift_of_all_rows_is_not_taken_for_task_specific_features():
    study, stacked = planted_study(shift=1.0, replaced=0)
    # Without controls, the dictionary's label effect rises for certain.
    rise = stacked["trained", False][0, :, :, 1, 0] - stacked["trained", False][0, :, :, 0, 0]
    assert rise.min() > 0.01
    assert claimed(study[False]) == claimed(study[True]) == ()
    assert sae.task_specific(study[True], sae.UNTRAINED_BASES).verdict == "not distinguishable"
    removed = stacked["random directions", True][0, ..., 1, 0]
    assert np.abs(removed).max() < 0.01 < 0.03 < stacked["random directions", False][0, ..., 1, 0].min()


def test_features_of_one_label_in_the_place_of_general_ones_are_found():
    study, _ = planted_study(shift=0, replaced=0.31)
    assert claimed(study[False]) == claimed(study[True]) == (0, 1)
    assert sae.task_specific(study[True]).verdict == "beyond untrained bases"
    assert sae.task_specific(study[True]).missing == sae.TRAINED_BASES


def test_features_of_one_label_are_found_under_a_label_shift_of_all_rows():
    study, _ = planted_study(shift=1.0, replaced=0.31)
    assert claimed(study[True]) == (0, 1)
    assert claimed(study[False]) == ()  # masked


def readings(rng, changes, seeds, layers, examples, between, shared=None):
    """Made-up readings: changes of each layer, with errors of examples (jackknife replicates) and between seeds."""
    folds = 20
    values = np.zeros((1, seeds, layers, 2, 1 + folds))
    # Fold means whose jackknife error is `examples` on average.
    parts = rng.standard_normal((layers, folds)) * examples * np.sqrt(folds)
    of_seed = rng.standard_normal((seeds, layers)) * between
    whole = np.concatenate([parts.mean(1, keepdims=True), (parts.sum(1, keepdims=True) - parts) / (folds - 1)], axis=1)
    values[0, :, :, 1] = changes + of_seed[..., None] + whole
    return values


@pytest.mark.parametrize("between", [0, 0.01, 0.03])
def test_intervals_hold_for_all_layers_at_their_level_and_no_excess_is_seldom_claimed(between):
    rng, studies, layers = np.random.default_rng(9), 800, 4
    missed = claims = 0
    for _ in range(studies):
        dictionary = readings(rng, 0.1, 2, layers, 0.01, between)
        control = readings(rng, 0.1, 5, layers, 0.002, 0.002)
        found = sae.excess(dictionary, control)
        missed += not ((found.low <= 0) & (found.high >= 0)).all()
        claims += bool(claimed(dict.fromkeys(sae.UNTRAINED_BASES, found)))
    room = 2 * np.sqrt(0.05 * 0.95 / studies)
    assert missed / studies <= 0.05 + room and claims / studies <= 0.025 + room


def test_an_excess_is_found_where_it_is():
    rng = np.random.default_rng(10)
    change = np.array([0, 0.2, 0])[:, None]
    dictionary, control = readings(rng, change, 3, 3, 0.01, 0.01), readings(rng, 0, 5, 3, 0.01, 0.01)
    found = sae.excess(dictionary, control)
    assert found.value == pytest.approx(change[:, 0], abs=0.05)
    every = dict.fromkeys(sae.CONTROLS, found)
    decided = sae.task_specific(every)
    assert (decided.verdict, decided.layers, decided.missing, decided.conditional) == ("task-specific", (1,), (), False)
    # One control that rises as much is enough against it.
    none = sae.excess(dictionary, dictionary.mean(1, keepdims=True))
    assert sae.task_specific(every | {"neurons": none}).verdict == "not distinguishable"


def test_one_dictionary_seed_gives_a_conditional_statement_and_equal_sides_none():
    rng = np.random.default_rng(11)
    one = readings(rng, 0.2, 1, 2, 0.01, 0)
    found = sae.excess(one, readings(rng, 0, 1, 2, 0.01, 0))
    assert found.conditional and np.isnan(found.error_dictionaries) and found.error_bases == 0
    assert sae.task_specific(dict.fromkeys(sae.CONTROLS, found)).conditional
    unchanged = np.repeat(one[..., :1, :], 2, axis=-2)
    equal = sae.excess(unchanged, unchanged)
    assert (equal.value == 0).all() and (equal.low == 0).all() and not equal.changed.any()
    assert sae.task_specific(dict.fromkeys(sae.CONTROLS, equal)).verdict == "unchanged"
    nothing = sae.excess(one * np.nan, one)
    assert sae.task_specific(dict.fromkeys(sae.CONTROLS, nothing)).verdict == "undefined"
    assert sae.task_specific({}).verdict == "undefined"
    with pytest.raises(ArgumentError, match="number of layers"):
        sae.excess(one, one[:, :, :1])


def test_an_unchanged_layer_neither_lends_nor_borrows_variance():
    rng = np.random.default_rng(12)
    changed, other = readings(rng, 0.1, 2, 1, 0.01, 0.05), readings(rng, 0, 1, 1, 0.01, 0)
    zero = np.zeros_like(changed)
    alone = sae.excess(changed, other)
    both = sae.excess(np.concatenate([zero, changed], axis=2), np.concatenate([zero[:, :1], other], axis=2))
    assert both.low[1] == pytest.approx(alone.low[0]) and both.low[0] == both.high[0] == 0


def test_a_trained_control_with_one_seed_is_taken_to_vary_as_dictionaries_do():
    rng = np.random.default_rng(13)
    dictionary, control = readings(rng, 0.1, 2, 3, 0.01, 0.05), readings(rng, 0, 1, 3, 0.01, 0)
    fixed, varying = (sae.excess(dictionary, control, trained=trained) for trained in (False, True))
    assert fixed.error_bases == 0 and varying.error_bases == pytest.approx(varying.error_dictionaries * np.sqrt(2))
    assert (varying.low < fixed.low).all()


def test_plain_latents_are_read_as_any_others_are():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 6)).astype(np.float32)
    plain = bases.competing(rng.standard_normal((8, 6)).astype(np.float32), np.zeros(8, dtype=np.float32))
    order = rng.permutation(8)
    shuffled = dataclasses.replace(plain, direction=order)
    assert plain.is_plain and not shuffled.is_plain
    assert not dataclasses.replace(plain, sign=-plain.sign).is_plain
    above = rng.standard_normal(8).astype(np.float32)
    read = bases.activations(bases.scores(plain, rows), above).toarray()
    other = bases.activations(bases.scores(shuffled, rows), above[order]).toarray()
    assert np.array_equal(read[:, order], other) and (read > 0).any()
