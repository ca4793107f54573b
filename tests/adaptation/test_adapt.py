"""Adaptation: each depth trains what it says and nothing else, equal seeds agree, checkpoints are matched by label."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from tiny import make_encoder

from layerprobe.adaptation import (
    adapt,
    expand_methods,
    parse_method,
    precision,
    quality,
    reference,
    trained_parameter_names,
)
from layerprobe.data import load_corpus
from layerprobe.encoder import head_parameter_names, load_classifier, load_encoder
from layerprobe.errors import ArgumentError, StudyError

pytestmark = pytest.mark.numerical

ARGUMENTS = {"epochs": 1, "learning_rate": 1e-3, "progress": False}


def adapted(encoder, corpus, folder, method, seed=0, **options):
    return adapt(
        encoder,
        corpus.train,
        corpus.test,
        corpus.label_names,
        folder,
        method=parse_method(method),
        seed=seed,
        **{**ARGUMENTS, **options},
    )


def changed(encoder, corpus, result, seed=0):
    """Names of the parameters whose saved values differ from the pretrained ones under the same fresh head."""
    before = dict(encoder.classifier(corpus.label_names, seed=seed).named_parameters())
    after = dict(load_classifier(result.checkpoint, encoder).named_parameters())
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_head_leaves_the_body_identical_in_every_family(family, tiny_corpus, tmp_path):
    encoder = load_encoder(str(make_encoder(tmp_path / family, family)))
    result = adapted(encoder, tiny_corpus, tmp_path / "out", "head")
    model = encoder.classifier(tiny_corpus.label_names, seed=0)
    head = head_parameter_names(model, encoder)
    assert changed(encoder, tiny_corpus, result) <= head
    assert any("classifier" in name for name in changed(encoder, tiny_corpus, result))
    assert result.trainable_parameters == sum(p.numel() for n, p in model.named_parameters() if n in head)
    assert result.after.loss < result.before.loss
    # DistilBERT's head ends in a ReLU, at whose kinks a minimum has no zero gradient.
    assert result.settings["gradient_norm"] < (0.3 if family == "distilbert" else 0.05)


@pytest.mark.parametrize("k", [1, 2])
def test_top_k_trains_the_top_blocks_and_the_head(k, tiny_encoder, tiny_corpus, tmp_path):
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", f"top:{k}")
    names = changed(tiny_encoder, tiny_corpus, result)
    blocks = {int(name.split("encoder.layer.")[1].split(".")[0]) for name in names if "encoder.layer." in name}
    assert blocks == set(range(2 - k, 2))
    assert not any("embeddings" in name for name in names)
    assert any(name.startswith("classifier") for name in names)


def test_full_trains_everything_and_equal_seeds_agree(tiny_encoder, tiny_corpus, tmp_path):
    one, same = (adapted(tiny_encoder, tiny_corpus, tmp_path / str(i), "full", seed=3) for i in range(2))
    other = adapted(tiny_encoder, tiny_corpus, tmp_path / "other", "full", seed=4)
    assert one.trainable_parameters == one.total_parameters
    assert any("embeddings" in name for name in changed(tiny_encoder, tiny_corpus, one, seed=3))
    assert one.after == same.after and one.log.equals(same.log)
    assert np.array_equal(one.predictions, same.predictions)
    assert not np.array_equal(one.predictions, other.predictions)
    assert list(one.log.columns) == ["step", "epoch", "loss", "learning_rate", "split"]
    assert (one.log.loss > 0).all()


def test_the_control_learns_from_permuted_labels(tiny_encoder, tmp_path, tiny_csv):
    corpus = load_corpus(str(tiny_csv), train=100, test=60)
    options = {"epochs": 8, "learning_rate": 3e-3}
    real = adapted(tiny_encoder, corpus, tmp_path / "real", "full", **options)
    control = adapted(tiny_encoder, corpus, tmp_path / "control", "shuffled-labels", **options)
    assert real.after.accuracy > 0.9
    assert control.after.accuracy < 0.8


def test_head_is_at_least_as_good_as_logistic_regression_on_what_it_reads(tiny_encoder, tiny_csv, tmp_path):
    from layerprobe.adaptation._frozen import frozen_values
    from layerprobe.encoder import tokenize

    corpus = load_corpus(str(tiny_csv), train=100, test=60)
    result = adapted(tiny_encoder, corpus, tmp_path / "head", "head")
    model = tiny_encoder.classifier(corpus.label_names, seed=0)
    options = {"max_length": 128, "device": "cpu", "progress": False}
    read = [
        frozen_values(model, tiny_encoder, part, tokenize(tiny_encoder, part, 128), [2], tmp_path, **options)[2].rows
        for part in (corpus.train, corpus.test)
    ]
    logistic, _ = reference(read[0], corpus.train.labels, read[1], corpus.test.labels, seed=0)
    assert result.after.accuracy >= logistic.accuracy - 0.1
    assert result.after.loss <= logistic.loss + 0.1


def test_checkpoints_are_measured_as_they_are_and_matched_by_label_name(tiny_encoder, tiny_corpus, tmp_path):
    tuned = adapted(tiny_encoder, tiny_corpus, tmp_path / "tuned", "full", epochs=4)
    model = load_classifier(tuned.checkpoint, tiny_encoder)
    with torch.no_grad():  # the same model with its classes in the other order
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    names = list(reversed(tiny_corpus.label_names))
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    model.save_pretrained(tmp_path / "flipped")
    for folder in ("tuned", "flipped"):
        taken = adapted(tiny_encoder, tiny_corpus, tmp_path / "unused", f"checkpoint:{tmp_path / folder}")
        assert taken.after.accuracy == tuned.after.accuracy
        assert taken.after.loss == pytest.approx(tuned.after.loss, abs=1e-6)
        assert (taken.trainable_parameters, taken.seconds) == (0, 0.0)
    assert not (tmp_path / "unused").exists()
    other = make_encoder(tmp_path / "other", labels=["cats", "dogs"])
    with pytest.raises(StudyError, match="cats, dogs but the data has class a, class b"):
        adapted(tiny_encoder, tiny_corpus, tmp_path / "unused", f"checkpoint:{other}")
    three = make_encoder(tmp_path / "three", labels=["x", "y", "z"])
    with pytest.raises(StudyError, match=r"3 labels .* but the data has 2"):
        adapted(tiny_encoder, tiny_corpus, tmp_path / "unused", f"checkpoint:{three}")


def test_divergence_is_told(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    from layerprobe.adaptation import _fit

    def broken(model, *args, **kwargs):
        with torch.no_grad():
            model.classifier.weight.fill_(float("nan"))
        return []

    monkeypatch.setattr(_fit, "train_blocks", broken)
    with pytest.raises(StudyError, match=r"diverged .* lower adaptation.learning_rate"):
        adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "full")
    assert not (tmp_path / "out").exists()


def test_frozen_blocks_stay_in_eval_mode_while_training(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    from transformers import Trainer

    from layerprobe.layers import blocks

    seen = []
    real = Trainer.training_step

    def step(self, model, *args, **kwargs):
        loss = real(self, model, *args, **kwargs)
        seen.append([block.training for block in blocks(self.model)])
        return loss

    monkeypatch.setattr(Trainer, "training_step", step)
    adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "top:1")
    assert seen and all(modes == [False, True] for modes in seen)


def test_methods_are_read_and_refused():
    assert [m.name for m in expand_methods("depths", 3)] == ["head", "top:1", "top:2", "top:3", "full"]
    assert parse_method("top:02").name == "top:2"
    for text in ("top:0", "top:99", "top:x", "top", "topp:2", "head:1", "checkpoint:", ""):
        with pytest.raises(StudyError) as caught:
            parse_method(text, 6)
        assert repr(text) in str(caught.value)
    with pytest.raises(StudyError, match="k is 1 to 6"):
        parse_method("top:99", 6)
    for methods, word in ((["head", "head"], "twice"), ([], "is empty")):
        with pytest.raises(StudyError, match=word):
            expand_methods(methods, 6)


def test_trained_parameters_nest_with_depth(tiny_encoder):
    model = tiny_encoder.classifier(["a", "b"], seed=0)
    sets = [trained_parameter_names(model, tiny_encoder, method) for method in expand_methods("depths", 2)]
    assert all(one < other for one, other in itertools.pairwise(sets))


def test_quality_by_hand_and_its_interval():
    from sklearn.metrics import log_loss

    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    labels = np.array([0, 1, 1, 1])
    found = quality(p, labels)
    assert (found.accuracy, found.n) == (0.75, 4)
    assert found.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)
    assert found.loss == pytest.approx(log_loss(labels, p))
    from layerprobe.stages.adapting import quality_row as _quality

    row = _quality(found)
    interval = binomtest(3, 4).proportion_ci(method="wilson")
    assert (row["accuracy_low"], row["accuracy_high"]) == (interval.low, interval.high)


def test_precision_is_bf16_only_where_the_processor_has_it(monkeypatch):
    for there, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert precision("cpu") == expected
    assert precision("mps") == "fp32"
    assert [precision("cpu", choice) for choice in ("bf16", "fp32")] == ["bf16", "fp32"]
    for device, choice, message in (("cpu", "fp16", "is auto, bf16 or fp32"), ("mps", "bf16", "use fp32")):
        with pytest.raises(ArgumentError, match=message):
            precision(device, choice)


@pytest.mark.parametrize("n", [80, 400])
def test_a_head_is_no_worse_than_uniform_even_without_signal(n, tiny_encoder, tmp_path):
    """A penalty chosen on a dozen examples may give an over-confident head: 1.2 nats where a uniform guess has .69."""
    rng = np.random.default_rng(n)
    words = [f"w{i}" for i in range(60)]
    rows = [(" ".join(rng.choice(words, 6)), f"class {rng.choice(['a', 'b'])}") for _ in range(n + 200)]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "noise.csv", index=False)
    corpus = load_corpus(str(tmp_path / "noise.csv"), train=n, test=200)
    for seed in range(2):
        result = adapted(tiny_encoder, corpus, tmp_path / "out", "head", seed=seed)
        assert result.after.loss < np.log(2) + 0.1
