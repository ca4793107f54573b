"""Choosing a learning rate: on texts that the candidates did not see, and nowhere near the test texts."""

import numpy as np
import pytest
import torch

from layerprobe.adaptation import _fit, adapt, parse_method
from layerprobe.adaptation._validation import validation_folds, validation_part

pytestmark = pytest.mark.numerical


def adapted(encoder, corpus, folder, method, **options):
    return adapt(
        encoder, corpus.train.take(range(40)), corpus.test, corpus.label_names, folder, method=parse_method(method),
        seed=0, progress=False, **{"epochs": 1, "learning_rate": 1e-3, "search": True, **options},
    )  # fmt: skip


def test_the_part_is_stratified_and_its_own_for_each_seed():
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
    assert list(result.settings["searched"].values()) == list(tried.loss)
    again = adapted(tiny_encoder, tiny_corpus, tmp_path / "again", "top:1", learning_rate=1e-4)
    assert again.log.equals(result.log) and np.array_equal(again.predictions, result.predictions)
    plain = adapted(tiny_encoder, tiny_corpus, tmp_path / "plain", "top:1", learning_rate=3e-4, search=False)
    assert np.array_equal(plain.predictions, result.predictions)  # the search leaves no trace in what it chose


@pytest.mark.parametrize("method", ["full", "lp-ft", "shuffled-labels"])
def test_candidates_never_see_what_they_are_judged_on(method, tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    seen, judged, orders = [], [], []
    train, loss = _fit.train_blocks, _fit._loss

    def spy(model, encoder, encodings, labels, texts, **options):
        seen.append(set(texts.tolist()))
        orders.append(labels)
        return train(model, encoder, encodings, labels, texts, **options)

    heads = []
    head = _fit.train_head
    monkeypatch.setattr(_fit, "train_blocks", spy)
    monkeypatch.setattr(_fit, "train_head", lambda *a, **k: (heads.append(len(a[2])), head(*a, **k))[1])
    monkeypatch.setattr(_fit, "_loss", lambda r, m, texts: (judged.append(set(texts.tolist())), loss(r, m, texts))[1])
    adapted(tiny_encoder, tiny_corpus, tmp_path / "out", method)
    assert len(seen) == 4 and len(judged) == 3
    for texts, held in zip(seen[:3], judged, strict=True):
        assert not texts & held and texts | held == set(range(40)) and len(held) == 6
    assert seen[3] == set(range(40))
    assert heads == ([34, 34, 34, 40] if method == "lp-ft" else [])
    own = tiny_corpus.train.labels[:40]
    assert all(np.array_equal(labels, own) for labels in orders[:3])
    assert np.array_equal(orders[3], own) == (method != "shuffled-labels")


def test_a_candidate_that_diverges_is_passed_over(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    losses = iter([float("nan"), 0.7, float("inf")])
    monkeypatch.setattr(_fit, "_loss", lambda *args: next(losses))
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "full")
    assert result.settings["learning_rate"] == 1e-3


def test_validation_loss_is_that_of_the_float32_model(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    """After training in bf16 too, whose autocast would otherwise stay on the model."""
    found = []
    real = _fit._loss

    def checked(recipe, model, texts):
        value = real(recipe, model, texts)
        model.save_pretrained(tmp_path / "saved")
        from layerprobe.adaptation import probabilities
        from layerprobe.encoder import load_classifier

        fresh = load_classifier(tmp_path / "saved", recipe.encoder)
        p = probabilities(fresh, recipe.encoder, tiny_corpus.train.take(texts), max_length=128, progress=False)
        found.append((value, -np.log(p[np.arange(len(texts)), recipe.labels[texts]]).mean()))
        return value

    monkeypatch.setattr(_fit, "_loss", checked)
    adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "full", precision="bf16")
    assert len(found) == 3
    assert torch.allclose(*torch.tensor(found).T, atol=1e-6)
