"""Choosing a learning rate: on examples that the candidates were not trained on, and never on the test examples."""

from functools import partial

import adapting
import numpy as np
import pytest
import torch

from layerprobe.adaptation import _fit
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
    train, loss, head = _fit.train_blocks, _fit._loss, _fit.train_head

    def blocks(training, model, examples, *rest):
        seen.append(set(examples.tolist()))
        labels.append(training.labels)
        return train(training, model, examples, *rest)

    monkeypatch.setattr(_fit, "train_blocks", blocks)
    monkeypatch.setattr(_fit, "train_head", lambda *a, **k: (heads.append(len(a[2])), head(*a, **k))[1])
    monkeypatch.setattr(_fit, "_loss", lambda t, m, part: (held.append(set(part.tolist())), loss(t, m, part))[1])
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
    monkeypatch.setattr(_fit, "_loss", lambda *args: next(losses))
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "full")
    assert result.settings["learning_rate"] == 1e-3


def test_validation_loss_is_that_of_the_float32_model(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    """After training in bf16 too, whose autocast would otherwise stay on the model."""
    pairs = []
    real = _fit._loss

    def checked(training, model, examples):
        value = real(training, model, examples)
        model.save_pretrained(tmp_path / "saved")
        from layerprobe.adaptation import probabilities
        from layerprobe.encoder import load_classifier

        fresh = load_classifier(tmp_path / "saved", training.encoder)
        p = probabilities(fresh, training.encoder, tiny_corpus.train.take(examples), training.config)
        pairs.append((value, -np.log(p[np.arange(len(examples)), training.labels[examples]]).mean()))
        return value

    monkeypatch.setattr(_fit, "_loss", checked)
    adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "full", precision="bf16")
    assert len(pairs) == 3
    assert torch.allclose(*torch.tensor(pairs).T, atol=1e-6)
