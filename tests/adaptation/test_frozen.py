"""Frozen blocks computed once: the same values, the same training, and no recomputation."""

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapting import QUIET, adapted
from tiny import louder, make_encoder

from layerprobe.adaptation import (
    _frozen,
    cache_bytes,
    cached_layers,
    compute_frozen,
    expand_methods,
    open_frozen,
    parse_method,
)
from layerprobe.adaptation._fit import Training, new_model
from layerprobe.adaptation._training import train_blocks
from layerprobe.encoder import collate, load_encoder, tokenize
from layerprobe.errors import ArgumentError, StorageError
from layerprobe.layers import forward

pytestmark = pytest.mark.numerical

CONFIG = replace(QUIET, max_length=32)


def values(encoder, examples, layers, folder, config=CONFIG):
    compute_frozen(encoder, examples, layers, folder, config)
    return open_frozen(folder)


@torch.no_grad()
def test_values_are_those_of_each_example_alone(tiny_encoder, tiny_corpus, tmp_path):
    frozen = values(tiny_encoder, tiny_corpus.train, [1, 2], tmp_path)
    assert sorted(frozen) == [1, 2] and all(layer.seconds > 0 for layer in frozen.values())
    model = tiny_encoder.classifier(["a", "b"], seed=0)
    encodings = tokenize(tiny_encoder, tiny_corpus.train, 32)
    for example in (0, 3, 79):
        inputs = collate(tiny_encoder, encodings, [example])
        alone = forward(model, inputs)[0][1][0].numpy()
        assert np.allclose(frozen[1].batch([example])[0].numpy(), alone, atol=1e-5)
        pooled = model.bert(**inputs).pooler_output
        assert np.allclose(frozen[2].batch([example])[0].numpy(), pooled, atol=1e-5)
    batch = frozen[1].batch([3, 0])
    assert batch.shape == (2, max(len(encodings[i]["input_ids"]) for i in (0, 3)), 32)
    short = min((0, 3), key=lambda i: len(encodings[i]["input_ids"]))
    assert not batch[[3, 0].index(short), len(encodings[short]["input_ids"]) :].any()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_training_on_frozen_values_equals_training_that_computes_all(family, tiny_corpus, tmp_path):
    """The twin is the plain Trainer on the whole model, dropout on in the trained block and off below it."""
    encoder = load_encoder(str(make_encoder(tmp_path / family, family)))
    examples = tiny_corpus.train.take(range(40))
    config = replace(CONFIG, epochs=2, batch_size=8, precision="fp32")
    training = Training(
        encoder=encoder,
        corpus=replace(tiny_corpus, train=examples),
        encodings=tokenize(encoder, examples, 32),
        labels=examples.labels,
        method=parse_method("top:1"),
        seed=0,
        config=config,
        frozen=values(encoder, examples, [1], tmp_path / "frozen"),
    )
    inputs = collate(encoder, tokenize(encoder, tiny_corpus.test, 32), range(20))
    logits, losses = [], []
    for variant in (replace(training, frozen={}), training, training):
        model = louder(new_model(variant), encoder)
        with torch.no_grad():
            before = model.eval()(**inputs).logits
        log = train_blocks(variant, model, np.arange(40), 1e-3)
        losses.append([entry["loss"] for entry in log])
        with torch.no_grad():
            logits.append(model.eval()(**inputs).logits)
    assert (logits[0] - before).abs().max() > 0.05
    assert torch.allclose(logits[1], logits[0], atol=2e-4)
    assert np.allclose(losses[1], losses[0], atol=1e-4)
    assert torch.equal(logits[2], logits[1]) and losses[2] == losses[1]


def test_methods_share_one_pass(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    methods, part = expand_methods(["head", "top:1", "full"], 2), tiny_corpus.train.take(range(40))
    shared = values(tiny_encoder, part, cached_layers(methods, 2), tmp_path / "frozen", QUIET)
    alone = adapted(tiny_encoder, tiny_corpus, tmp_path / "alone", "top:1", n=40)
    monkeypatch.delattr("layerprobe.adaptation._adapt.compute_frozen")
    head, top, full = (
        adapted(tiny_encoder, tiny_corpus, tmp_path / m.name, m.name, n=40, frozen=shared) for m in methods
    )
    assert top.settings["frozen_layers"] == [1] and full.settings["frozen_layers"] == []
    assert top.settings["frozen_seconds"] == shared[1].seconds < top.seconds
    assert np.array_equal(alone.predictions, top.predictions) and alone.log.equals(top.log)
    tokens = sum(len(e["input_ids"]) for e in tokenize(tiny_encoder, part, 128))
    stored = head.settings["frozen_bytes"] + top.settings["frozen_bytes"]
    assert cache_bytes(methods, tiny_encoder, tokens=tokens, examples=40) == stored == 4 * 32 * (tokens + 40)
    assert stored < sum(path.stat().st_size for path in (tmp_path / "frozen").iterdir()) < stored + 1000


@pytest.mark.parametrize(
    ("layers", "n", "max_length", "layer"), [([2], 40, 128, 1), ([1], 41, 128, 1), ([1], 40, 8, 1), ([2], 41, 128, 2)]
)
def test_values_of_other_layers_or_examples_are_refused(
    layers, n, max_length, layer, tiny_encoder, tiny_corpus, tmp_path
):
    config = replace(QUIET, max_length=max_length)
    frozen = values(tiny_encoder, tiny_corpus.train.take(range(n)), layers, tmp_path / "frozen", config)
    method = "top:1" if layer == 1 else "head"
    with pytest.raises(ArgumentError, match=f"frozen does not hold the values of layer {layer} over the 40 training"):
        adapted(tiny_encoder, tiny_corpus, tmp_path / "out", method, n=40, frozen=frozen)


def test_blocks_below_are_not_run_again_whatever_the_number_of_epochs(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    from transformers.models.bert.modeling_bert import BertLayer

    from layerprobe.adaptation import TrainingFlops, _fit

    # Counting the operations of a training runs the model, too.
    monkeypatch.setattr(_fit, "training_flops", lambda *args, **kwargs: TrainingFlops(0, 0, 0))
    runs = []
    real = BertLayer.forward
    monkeypatch.setattr(
        BertLayer, "forward", lambda self, *a, **k: (runs.append(self.attention.self.layer_idx), real(self, *a, **k))[1]
    )
    counts = {}
    for method in ("head", "top:1"):
        for epochs in (1, 3):
            runs.clear()
            adapted(tiny_encoder, tiny_corpus, tmp_path / "out", method, n=40, epochs=epochs)
            counts[method, epochs] = (runs.count(0), runs.count(1))
    # Two batches of test examples before and two after, and two of training examples in between.
    assert counts["head", 1] == counts["head", 3] == (6, 6)
    assert counts["top:1", 1][0] == counts["top:1", 3][0] == 6
    assert counts["top:1", 3][1] - counts["top:1", 1][1] == 2 * 3  # two more epochs of three batches


def test_an_interrupted_pass_leaves_nothing_that_opens(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_frozen, "_head_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        values(tiny_encoder, tiny_corpus.train, [1, 2], tmp_path)
    with pytest.raises(FileNotFoundError):
        open_frozen(tmp_path)


def test_a_full_disk_is_reported_before_anything_is_computed(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(1000))
    monkeypatch.delattr(_frozen, "edited")
    with pytest.raises(
        StorageError, match=r"take .* MB, but 0 MB are free in .*; free some space there, or use another"
    ):
        values(tiny_encoder, tiny_corpus.train, [1], tmp_path)
    assert not list(tmp_path.iterdir())
