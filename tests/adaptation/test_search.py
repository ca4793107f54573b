"""Choosing a learning rate: on examples that the candidates were not trained on, and never on the test examples."""

from functools import partial

import adapting
import numpy as np
import pytest
import torch

from layerprobe.adaptation import HeldOut, _fit, _head, reference
from layerprobe.adaptation._validation import validation_folds, validation_part

pytestmark = pytest.mark.numerical

adapted = partial(adapting.adapted, n=40, search=True)


def test_the_validation_part_is_stratified_and_differs_by_seed():
    labels = np.array([0] * 100 + [1] * 20 + [2])
    part = validation_part(labels, 0)
    assert [int(part[labels == label].sum()) for label in range(3)] == [15, 3, 0]
    assert np.array_equal(part, validation_part(labels, 0))
    assert not np.array_equal(part, validation_part(labels, 1))
    assert not validation_part(np.arange(5), 0).any()


def test_folds_are_stratified_disjoint_and_no_more_than_needed():
    labels = np.array([0] * 100 + [1] * 20 + [2])
    folds = validation_folds(labels, 0)
    assert [[int(fold[labels == label].sum()) for label in range(3)] for fold in folds] == [[20, 4, 0]] * 5
    assert (sum(fold.astype(int) for fold in folds) == (labels < 2)).all()
    assert all(np.array_equal(one, other) for one, other in zip(folds, validation_folds(labels, 0), strict=True))
    assert not np.array_equal(folds[0], validation_folds(labels, 1)[0])
    assert [len(validation_folds(np.arange(n) % 2, 0)) for n in (1000, 2000, 2500, 9000)] == [3, 2, 1, 1]
    assert validation_folds(np.arange(5), 0) == []


def test_the_rate_with_the_least_validation_loss_is_taken(tiny_encoder, tiny_corpus, tmp_path):
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "top:1", learning_rate=1e-4)
    tried = result.log[result.log.split == "validation"]
    assert list(tried.learning_rate) == pytest.approx([1e-4 / 3, 1e-4, 3e-4])
    assert result.settings["learning_rate"] == tried.learning_rate[tried.loss.idxmin()]
    assert result.settings["learning_rate"] == pytest.approx(3e-4)  # one epoch of a new head: the more the better
    again = adapted(tiny_encoder, tiny_corpus, tmp_path / "again", "top:1", learning_rate=1e-4)
    assert again.log.equals(result.log) and np.array_equal(again.predictions, result.predictions)
    plain = adapted(tiny_encoder, tiny_corpus, tmp_path / "plain", "top:1", learning_rate=3e-4, search=False)
    assert np.array_equal(plain.predictions, result.predictions)  # the search leaves no trace in what it chose


@pytest.mark.parametrize("method", ["full", "lp-ft", "shuffled-labels"])
def test_candidates_are_not_trained_on_the_validation_part(method, tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    seen, held, labels, heads = [], [], [], []
    train, found, head = _fit.train_blocks, _fit._held_out, _fit.train_head

    def blocks(training, model, examples, *rest):
        seen.append(set(examples.tolist()))
        labels.append(training.labels)
        return train(training, model, examples, *rest)

    monkeypatch.setattr(_fit, "train_blocks", blocks)
    monkeypatch.setattr(_fit, "train_head", lambda *a, **k: (heads.append(len(a[2])), head(*a, **k))[1])
    monkeypatch.setattr(_fit, "_held_out", lambda t, m, part: (held.append(set(part.tolist())), found(t, m, part))[1])
    adapted(tiny_encoder, tiny_corpus, tmp_path / "out", method)
    assert len(seen) == 4 and len(held) == 3
    for examples, part in zip(seen[:3], held, strict=True):
        assert not examples & part and examples | part == set(range(40)) and len(part) == 6
    assert seen[3] == set(range(40))
    assert heads == ([34, 34, 34, 40] if method == "lp-ft" else [])
    true = tiny_corpus.train.labels[:40]
    assert all(np.array_equal(used, true) for used in labels[:3])
    assert np.array_equal(labels[3], true) == (method != "shuffled-labels")


def test_a_candidate_that_diverges_is_not_chosen(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    losses = iter([float("nan"), 0.7, float("inf")])
    monkeypatch.setattr(_fit, "_held_out", lambda *args: HeldOut(0.5, next(losses), 6))
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "full")
    assert result.settings["learning_rate"] == 1e-3
    assert result.held_out == HeldOut(0.5, 0.7, 6, candidates=3)


EQUAL = ["head", "head:mean", "top:1", "lp-ft"]


@pytest.mark.parametrize("method", EQUAL)
def test_equal_tuning_compares_three_settings_on_the_same_part(
    method, tiny_encoder, tiny_corpus, tmp_path, monkeypatch
):
    """Whatever the method: a third of the default, itself and three times it, and the least cross-entropy is taken."""
    parts = []
    for module in (_fit, _head):
        part = module.validation_part
        monkeypatch.setattr(module, "validation_part", lambda *a, part=part: (parts.append(part(*a)), parts[-1])[1])
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", method, search=False, tuning="equal")
    tried = result.log[result.log.split == "validation"]
    assert all(np.array_equal(part, parts[0]) for part in parts if len(part) == 40) and parts[0].sum() == 6
    assert len(tried) == 3 and result.held_out.candidates == 3 and result.held_out.n == 6
    assert result.held_out.loss == pytest.approx(tried.loss.min()) and 0 <= result.held_out.accuracy <= 1
    setting, default = ("learning_rate", 1e-3) if method in ("top:1", "lp-ft") else ("penalty", _head.UNVALIDATED)
    values = [default / 3, default, default * 3]
    assert result.settings[setting] == pytest.approx(values[int(tried.loss.to_numpy().argmin())])
    if method == "lp-ft":
        assert result.settings["head_penalty"] == _head.UNVALIDATED


@pytest.mark.parametrize("tuning", ["default", "equal"])
def test_logistic_regression_is_tuned_on_the_held_out_examples_of_a_head(tuning):
    """A slow twin with scikit-learn's own grid search over the same folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    x, x_test = (rng.standard_normal((120, 6)) + 0.4 * labels[:, None] for _ in range(2))
    found = reference(x, labels, x_test, labels, seed=1, tuning=tuning)
    folds = validation_folds(labels, 1) if tuning == "default" else [validation_part(labels, 1)]
    strengths = [1e-3, 1e-2, 1e-1] if tuning == "default" else [1e-2 / 3, 1e-2, 3e-2]
    twin = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, tol=1e-3)),
        {"logisticregression__C": strengths},
        scoring={"loss": "neg_log_loss", "accuracy": "accuracy"},
        refit="loss",
        cv=[(np.flatnonzero(~held), np.flatnonzero(held)) for held in folds],
    ).fit(x, labels)
    np.testing.assert_allclose(found.probabilities, twin.predict_proba(x_test), atol=1e-6)
    at, results = twin.best_index_, twin.cv_results_
    assert found.held_out.candidates == 3 and found.held_out.n == sum(held.sum() for held in folds)
    assert found.held_out.loss == pytest.approx(-results["mean_test_loss"][at], abs=1e-6)
    assert found.held_out.accuracy == pytest.approx(results["mean_test_accuracy"][at])
    assert reference(x[:2], np.arange(2), x_test, labels, seed=0).held_out is None  # no example to spare


def test_validation_loss_is_that_of_the_float32_model(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    """After training in bf16 too, whose autocast would otherwise stay on the model."""
    pairs = []
    real = _fit._held_out

    def checked(training, model, examples):
        value = real(training, model, examples)
        model.save_pretrained(tmp_path / "saved")
        from layerprobe.adaptation import probabilities
        from layerprobe.encoder import load_classifier

        fresh = load_classifier(tmp_path / "saved", training.encoder)
        p = probabilities(fresh, training.encoder, tiny_corpus.train.take(examples), training.config)
        pairs.append((value.loss, -np.log(p[np.arange(len(examples)), training.labels[examples]]).mean()))
        return value

    monkeypatch.setattr(_fit, "_held_out", checked)
    adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "full", precision="bf16")
    assert len(pairs) == 3
    assert torch.allclose(*torch.tensor(pairs).T, atol=1e-6)
