"""Frozen blocks computed once: the same values, the same training, found again, never half-written."""

import errno
import os

import numpy as np
import pytest
import torch
from tiny import louder, make_encoder

from layerprobe.adaptation import _frozen, adapt, cache_bytes, expand_methods, parse_method
from layerprobe.adaptation._fit import Recipe, begin
from layerprobe.adaptation._frozen import frozen_values
from layerprobe.adaptation._training import train_blocks
from layerprobe.encoder import collate, load_encoder, tokenize
from layerprobe.errors import StorageError
from layerprobe.layers import forward

pytestmark = pytest.mark.numerical

KEPT = {"max_length": 32, "device": "cpu", "progress": False}


def values(encoder, examples, layers, folder, **changes):
    options = {**KEPT, **changes}
    encodings = tokenize(encoder, examples, options["max_length"])
    model = encoder.classifier(["a", "b"], seed=0)
    return frozen_values(model, encoder, examples, encodings, layers, folder, **options)


def adapted(encoder, corpus, folder, method, **options):
    return adapt(
        encoder, corpus.train.take(range(40)), corpus.test, corpus.label_names, folder,
        method=parse_method(method), seed=0, progress=False, **{"epochs": 1, "learning_rate": 1e-3, **options},
    )  # fmt: skip


@torch.no_grad()
def test_kept_values_are_those_of_each_text_alone(tiny_encoder, tiny_corpus, tmp_path):
    kept = values(tiny_encoder, tiny_corpus.train, [1, 2], tmp_path)
    model = tiny_encoder.classifier(["a", "b"], seed=0)
    encodings = tokenize(tiny_encoder, tiny_corpus.train, 32)
    for text in (0, 3, 79):
        inputs = collate(tiny_encoder, encodings, [text])
        alone = forward(model, inputs)[0][1][0].numpy()
        assert np.allclose(kept[1].batch([text])[0].numpy(), alone, atol=1e-5)
        assert np.allclose(kept[2].rows[text], model.bert(**inputs).pooler_output[0].numpy(), atol=1e-5)
    batch = kept[1].batch([3, 0])
    assert batch.shape == (2, max(len(encodings[i]["input_ids"]) for i in (0, 3)), 32)
    short = min((0, 3), key=lambda i: len(encodings[i]["input_ids"]))
    assert not batch[[3, 0].index(short), len(encodings[short]["input_ids"]) :].any()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_training_on_kept_values_equals_training_that_computes_all(family, tiny_corpus, tmp_path):
    """The twin is the plain Trainer on the whole model, dropout on in the trained block and off below it."""
    encoder = load_encoder(str(make_encoder(tmp_path / family, family)))
    examples = tiny_corpus.train.take(range(40))
    encodings = tokenize(encoder, examples, 32)
    kept = values(encoder, examples, [1], tmp_path / "kept")[1]
    recipe = Recipe(
        encoder, tiny_corpus.label_names, parse_method("top:1"), "model", encodings, examples.labels, {1: kept},
        0, 2, 8, None, "cpu", False,
    )  # fmt: skip
    inputs = collate(encoder, tokenize(encoder, tiny_corpus.test, 32), range(20))
    logits, losses = [], []
    for frozen in (None, kept, kept):
        model = louder(begin(recipe), encoder)
        with torch.no_grad():
            before = model.eval()(**inputs).logits
        log = train_blocks(
            model, encoder, encodings, examples.labels, np.arange(40), method=recipe.method, frozen=frozen, seed=0,
            epochs=2, batch_size=8, learning_rate=1e-3, precision="fp32", device="cpu", progress=False,
        )  # fmt: skip
        losses.append([entry["loss"] for entry in log])
        with torch.no_grad():
            logits.append(model.eval()(**inputs).logits)
    assert (logits[0] - before).abs().max() > 0.05
    assert torch.allclose(logits[1], logits[0], atol=2e-4)
    assert np.allclose(losses[1], losses[0], atol=1e-4)
    assert torch.equal(logits[2], logits[1]) and losses[2] == losses[1]


def test_methods_and_seeds_share_one_pass(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    calls = []
    real = _frozen._compute
    monkeypatch.setattr(_frozen, "_compute", lambda *args: (calls.append(sorted(args[3])), real(*args)))
    study = expand_methods(["head", "top:1", "full"], 2)
    shared = {"cache": tmp_path / "cache", "cache_for": study}
    adapted(tiny_encoder, tiny_corpus, tmp_path / "full", "full", **shared)
    assert calls == [] and not (tmp_path / "cache").exists()
    head = adapted(tiny_encoder, tiny_corpus, tmp_path / "head", "head", **shared)
    top = adapted(tiny_encoder, tiny_corpus, tmp_path / "top", "top:1", **shared)
    assert calls == [[1, 2]]
    assert top.settings["frozen_layers"] == [1] and top.settings["frozen_seconds"] > 0
    assert top.seconds > top.settings["frozen_seconds"]
    own = adapted(tiny_encoder, tiny_corpus, tmp_path / "own", "top:1")
    assert calls == [[1, 2], [1]]
    assert np.array_equal(own.predictions, top.predictions) and own.log.equals(top.log)
    tokens = sum(len(e["input_ids"]) for e in tokenize(tiny_encoder, tiny_corpus.train.take(range(40)), 128))
    stored = head.settings["frozen_bytes"] + top.settings["frozen_bytes"]
    assert cache_bytes(study, tiny_encoder, tokens=tokens, texts=40) == stored == 4 * 32 * (tokens + 40)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


def test_blocks_below_are_not_run_again_whatever_the_number_of_epochs(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    from transformers.models.bert.modeling_bert import BertLayer

    from layerprobe.adaptation import TrainingFlops, _fit

    # Counting a training's operations runs the model, too.
    monkeypatch.setattr(_fit, "fit_flops", lambda *args, **kwargs: TrainingFlops(0, 0, 0))
    runs = []
    real = BertLayer.forward
    monkeypatch.setattr(
        BertLayer, "forward", lambda self, *a, **k: (runs.append(self.attention.self.layer_idx), real(self, *a, **k))[1]
    )
    counts = {}
    for method in ("head", "top:1"):
        for epochs in (1, 3):
            runs.clear()
            adapted(tiny_encoder, tiny_corpus, tmp_path / "out", method, epochs=epochs)
            counts[method, epochs] = (runs.count(0), runs.count(1))
    # Two batches of test texts before and two after, and two of training texts in between.
    assert counts["head", 1] == counts["head", 3] == (6, 6)
    assert counts["top:1", 1][0] == counts["top:1", 3][0] == 6
    assert counts["top:1", 3][1] - counts["top:1", 1][1] == 2 * 3  # two more epochs of three batches


@pytest.mark.parametrize("damage", ["no meta", "cut short", "another shape", "a killed pass"])
def test_what_is_not_whole_is_computed_again(damage, tiny_encoder, tiny_corpus, tmp_path):
    first = np.array(values(tiny_encoder, tiny_corpus.train, [1], tmp_path)[1].rows)
    (entry,) = tmp_path.iterdir()
    rows = entry / "rows.npy"
    if damage == "no meta":
        (entry / "meta.json").unlink()
        rows.write_bytes(b"")
    elif damage == "cut short":
        os.truncate(rows, rows.stat().st_size // 2)
    elif damage == "another shape":
        np.save(rows, np.zeros((3, 32), dtype=np.float32))
    else:
        entry.rename(tmp_path / f".{entry.name}.abc")
    again = values(tiny_encoder, tiny_corpus.train, [1], tmp_path)[1]
    assert np.array_equal(again.rows, first)


def test_an_interrupted_pass_leaves_nothing(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_frozen, "_head_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        values(tiny_encoder, tiny_corpus.train, [1, 2], tmp_path)
    assert not list(tmp_path.iterdir())


def test_entries_are_told_apart_by_all_that_decides_them(tiny_encoder, tiny_corpus, tmp_path):
    part = tiny_corpus.train.take(range(10))
    values(tiny_encoder, part, [1], tmp_path)
    for number, (examples, layers, changes) in enumerate(
        [
            (part, [2], {}),
            (part, [1], {"max_length": 8}),
            (tiny_corpus.train.take(range(11)), [1], {}),
            (tiny_corpus.train.take([*range(9), 0]), [1], {}),
        ],
        2,
    ):
        values(tiny_encoder, examples, layers, tmp_path, **changes)
        assert len(list(tmp_path.iterdir())) == number
    other = load_encoder(str(make_encoder(tmp_path.parent / "other", seed=1)))
    values(other, part, [1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    values(tiny_encoder, part, [1, 2], tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_full_disk_is_told_before_anything_is_computed(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=r"The disk is full: .* MB .* name another folder"):
        values(tiny_encoder, tiny_corpus.train, [1], tmp_path)
    assert not list(tmp_path.iterdir())
