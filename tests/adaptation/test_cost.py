"""Cost: operations against closed forms and a whole batch counted outright; seconds, memory and energy of known work."""

import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_encoder

import layerprobe
from layerprobe.adaptation import Meter, TrainingFlops, parse_method, training_flops
from layerprobe.adaptation import _cost as cost
from layerprobe.encoder import load_encoder
from layerprobe.errors import MeasureError

WIDTH, INNER, CLASSES, LAYERS = 32, 64, 3, 2
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def bert(tiny_encoder):
    return tiny_encoder, tiny_encoder.classifier(NAMES, seed=0)


def train(model, wanted):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
    return model


def by(method, encoder, model):
    names = parse_method(method).trainable(model, encoder)
    return train(model, names.__contains__)


def block(tokens):
    """Operations of one block, forward: query, key, value, output; two of the feed-forward net; scores and mixing."""
    linear = 4 * WIDTH * WIDTH + 2 * WIDTH * INNER
    return 2 * tokens * linear + 2 * 2 * tokens * tokens * WIDTH


def head():
    """Pooler and classifier, forward."""
    return 2 * WIDTH * WIDTH, 2 * WIDTH * CLASSES


def test_full_and_top_are_what_two_operations_a_product_give(bert):
    lengths, epochs = [5, 9, 30], 4
    pooler, classifier = head()
    forward = sum(LAYERS * block(t) + pooler + classifier for t in lengths)
    full = training_flops(by("full", *bert), lengths, batch_size=1, epochs=epochs)
    # Each product has two gradients, and all are needed: the embeddings below the first block are trained.
    assert full == TrainingFlops(0, epochs * forward, 2 * epochs * forward)

    below = sum(block(t) for t in lengths)
    top = training_flops(by("top:1", *bert), lengths, batch_size=1, epochs=epochs)
    # Of the lowest trained block, query, key and value need no gradient of what goes into them.
    spared = sum(3 * 2 * t * WIDTH * WIDTH for t in lengths)
    assert top == TrainingFlops(below, epochs * (forward - below), epochs * (2 * (forward - below) - spared))


@pytest.mark.parametrize("pooler", ["pretrained", "new"])
def test_head_counts_a_pretrained_pooler_as_frozen_and_a_new_one_as_trained(tmp_path, pooler):
    folder = make_encoder(tmp_path / "m")
    if pooler == "new":
        weights = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder(str(folder))
    assert encoder.pooler == pooler
    model = by("head", encoder, encoder.classifier(NAMES, seed=0))
    lengths = [4, 20]
    flops = training_flops(model, lengths, batch_size=1, epochs=7)
    blocks, (pooled, classified) = sum(LAYERS * block(t) for t in lengths), head()
    if pooler == "pretrained":
        assert flops == TrainingFlops(blocks + 2 * pooled, 7 * 2 * classified, 7 * 2 * classified)
    else:
        # The classifier's gradients are two products, the pooler's one: nothing is trained below it.
        assert flops == TrainingFlops(blocks, 7 * 2 * (pooled + classified), 7 * 2 * (2 * classified + pooled))


def test_biases_alone_need_no_gradients_of_weights(bert):
    _, model = bert
    lengths = [6, 11]
    forward = sum(LAYERS * block(t) for t in lengths) + len(lengths) * sum(head())
    flops = training_flops(
        train(model, lambda name: name.endswith("bias") or name.startswith("classifier")),
        lengths,
        batch_size=1,
        epochs=1,
    )
    # One gradient for each weight matrix but the classifier's two; both for the products of attention.
    attention = sum(LAYERS * 4 * t * t * WIDTH for t in lengths)
    assert flops == TrainingFlops(0, forward, forward + attention + len(lengths) * head()[1])


def test_low_rank_adapters_are_counted_with_their_own_products(bert):
    encoder, _ = bert
    rank, length = 2, 10
    model, method = encoder.classifier(NAMES, seed=0), parse_method(f"lora:{rank}@2")
    method.prepare(model, encoder, seed=0)
    train(model, lambda name: ".lora_" in name or name.startswith("classifier"))
    flops = training_flops(model, [length], batch_size=1, epochs=1)
    adapters = 2 * (2 * 2 * length * WIDTH * rank)
    pooler, classifier = head()
    assert flops.frozen == block(length)
    assert flops.forward == block(length) + adapters + pooler + classifier
    # Gradients: of A's weights and B's both, classifier both, pooler's and attention's inputs, feed-forward's and output's.
    inner = 2 * length * (WIDTH * WIDTH + 2 * WIDTH * INNER)
    attention = 2 * length * length * WIDTH
    # No gradient reaches the keys: with adapters on query and value alone, the scores' product has one.
    assert flops.backward == adapters * 3 // 2 + 2 * classifier + pooler + inner + 3 * attention


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "albert", "modernbert"])
def test_three_lengths_give_what_a_whole_batch_counts(tmp_path, family):
    from torch.utils.flop_counter import FlopCounterMode

    encoder = load_encoder(str(make_encoder(tmp_path / family, family=family)))
    model = encoder.classifier(NAMES, seed=0)
    model.train()
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    ids = torch.randint(5, 50, (3, 57))
    lengths = [57, 40, 13]
    mask = (torch.arange(57)[None] < torch.tensor(lengths)[:, None]).long()
    totals = {}
    for method in ("head", "top:1", "full"):
        by(method, encoder, model)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, attention_mask=mask).logits.sum().backward()
        model.zero_grad()
        totals[method] = training_flops(model, lengths, batch_size=3, epochs=1)
        assert totals[method].total == counter.get_total_flops()
        assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training and model.config._attn_implementation == "eager"
    model.set_attn_implementation(before)
    once = training_flops(by("top:1", encoder, model), lengths, batch_size=3, epochs=5)
    assert model.config._attn_implementation == before
    assert totals["head"].total < totals["top:1"].total < totals["full"].total
    assert once == TrainingFlops(totals["top:1"].frozen, 5 * totals["top:1"].forward, 5 * totals["top:1"].backward)
    # ALBERT's blocks share their weights: who trains the top one trains all, and only the embeddings' projection is left.
    shared = 3 * 57 * 2 * (WIDTH // 2) * WIDTH
    assert once.frozen == shared if family == "albert" else once.frozen > shared


def test_batches_pad_to_their_longest_and_parts_of_an_epoch_count(bert):
    model = by("full", *bert)
    padded = training_flops(model, [4, 10, 6, 10], batch_size=2, epochs=1)
    assert padded == training_flops(model, [10, 10, 6, 6], batch_size=1, epochs=1)
    half = training_flops(model, [4, 10, 6, 10], batch_size=2, epochs=0.5)
    assert half.forward * 2 == padded.forward
    assert (half + padded).total == half.total + padded.total
    with pytest.raises(MeasureError, match=r"lengths is empty"):
        training_flops(model, [], batch_size=2, epochs=1)
    with pytest.raises(MeasureError, match=r"requires gradients; set `requires_grad`"):
        training_flops(train(model, lambda name: False), [4], batch_size=2, epochs=1)


def test_a_meter_sees_seconds_and_the_peak_of_memory_although_it_is_given_back():
    mebibyte = 2**20
    with Meter(energy=False) as meter:
        with pytest.raises(MeasureError, match="before its context ended"):
            _ = meter.cost
        held = np.ones(100 * mebibyte // 8)
        time.sleep(0.1)
        del held
    assert meter.cost.memory_kind == "sampled" or sys.platform == "darwin"
    if sys.platform != "darwin":
        assert 90 * mebibyte < meter.cost.peak_bytes < 200 * mebibyte
    assert meter.cost.seconds >= 0.1
    assert (meter.cost.energy_wh, meter.cost.energy_kind) == (None, None)
    with Meter(energy=False) as idle:
        time.sleep(0.02)
    assert idle.cost.peak_bytes < 20 * mebibyte


def test_where_memory_now_cannot_be_read_the_high_water_mark_is_told(monkeypatch):
    marks = iter([1000, 5000, 5000, 5000])
    monkeypatch.setattr(cost, "_resident", lambda: None)
    monkeypatch.setattr(cost, "_high_water", lambda: next(marks))
    with Meter(energy=False) as first:
        pass
    with Meter(energy=False) as second:
        pass
    assert (first.cost.peak_bytes, first.cost.memory_kind) == (4000, "high-water")
    assert second.cost.peak_bytes == 0


def test_the_high_water_mark_is_in_bytes_and_above_what_is_held():
    resident = cost._resident()
    if resident is None:
        pytest.skip("this system does not tell what is held now")
    assert resident / 1.1 < cost._high_water() < 100 * resident


class Tracker:
    """Answers as codecarbon's does."""

    made: ClassVar[dict] = {}
    mode: ClassVar[str] = ""

    def __init__(self, **options):
        Tracker.made = options
        self._hardware = [types.SimpleNamespace(), types.SimpleNamespace(_mode=Tracker.mode)]

    def start(self):
        if Tracker.mode == "broken":
            raise OSError("no such\ncounter")

    def stop(self):
        self.final_emissions_data = types.SimpleNamespace(
            cpu_energy=0.002, gpu_energy=0.001, ram_energy=9.0, cpu_model="A CPU"
        )


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("intel_rapl", "measured", "RAPL, which counts everything that ran"),
        ("cpu_load", "estimated", r"nominal power \(A CPU\)"),
        ("broken", None, "OSError: no such counter"),
    ],
)
def test_energy_is_the_processors_alone_and_says_how_it_was_obtained(monkeypatch, mode, kind, words):
    module = types.ModuleType("codecarbon")
    module.OfflineEmissionsTracker = Tracker
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.setattr(Tracker, "mode", mode)
    with Meter() as meter:
        pass
    assert meter.cost.energy_kind == kind
    assert meter.cost.energy_wh == (pytest.approx(3.0) if kind else None)
    assert re.search(words, meter.cost.energy_note), meter.cost.energy_note
    assert Tracker.made["save_to_file"] is False and Tracker.made["save_to_api"] is False


def test_without_codecarbon_there_is_no_energy_and_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(cost.importlib.util, "find_spec", lambda name: None)
    with Meter() as meter:
        pass
    assert meter.cost.energy_wh is None and "codecarbon is not installed" in meter.cost.energy_note


def test_real_codecarbon_looks_up_no_host_and_writes_nothing(tmp_path):
    pytest.importorskip("codecarbon")
    script = (
        "import socket, time\n"
        "def refuse(*args, **kwargs): raise SystemExit('a host was looked up')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from layerprobe.adaptation import Meter\n"
        "with Meter() as meter:\n"
        "    end = time.process_time() + 2\n"
        "    while time.process_time() < end: pass\n"
        "print(meter.cost)\n"
        "assert meter.cost.energy_wh > 0 and meter.cost.energy_kind\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(layerprobe.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr and not list(tmp_path.iterdir())
