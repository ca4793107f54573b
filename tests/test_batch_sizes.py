"""Batch sizes follow the free memory of an accelerator, and nothing on the CPU."""

from types import SimpleNamespace

import pytest
import torch
from running import LIGHT, run_study, write_study

from layerprobe import device
from layerprobe.activations import CaptureConfig, _capture, capture
from layerprobe.device import batch_size, forward_bytes, free_bytes

GIB = 2**30


def test_the_cpu_has_one_batch_size(monkeypatch):
    assert free_bytes("cpu") is None
    assert [batch_size("cpu", each, usual=32, most=1024) for each in (1, GIB)] == [32, 32]


@pytest.mark.parametrize(
    ("free", "expected"), [(64 * GIB, 1024), (4 * GIB, 1024), (GIB, 256), (100 * 2**20, 16), (0, 1)]
)
def test_an_accelerator_holds_four_batches_in_its_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(device, "free_bytes", lambda where: free)
    size = batch_size("cuda", 2**20, usual=32, most=1024)
    assert size == expected and (size == 1 or 4 * size * 2**20 <= free)


def test_free_memory_counts_what_the_allocator_keeps_for_reuse(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda where: 6 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda where: 2 * GIB)
    assert free_bytes("cuda:1") == free_bytes(torch.device("cuda", 1)) == 14 * GIB
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 3 * GIB)
    assert free_bytes("mps") == 5 * GIB


def test_the_estimate_of_a_forward_pass_is_above_what_is_allocated(tiny_encoder, tiny_corpus):
    """The second opinion counts every tensor that any operation of the pass makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from layerprobe.encoder import collate, tokenize
    from layerprobe.layers import forward

    class Counted(TorchDispatchMode):
        kept, largest = 0, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, (tuple, list)) else [result]:
                if torch.is_tensor(one) and one._base is None:
                    self.largest = max(self.largest, one.numel() * one.element_size())
            return result

    model = tiny_encoder.classifier(tiny_corpus.label_names, seed=0).eval()
    inputs = collate(tiny_encoder, tokenize(tiny_encoder, tiny_corpus.test, 32), range(8))
    tokens = inputs["input_ids"].shape[1]
    with torch.inference_mode(), Counted() as counted:
        layers, _ = forward(model, inputs)
    kept = sum(layer.numel() * layer.element_size() for layer in layers)
    estimate = 8 * forward_bytes(model.config, tokens, kept=len(layers))
    assert kept + counted.largest < estimate < 20 * (kept + counted.largest)
    # Twice the tokens need twice the memory or more, four times at most.
    assert 2 <= forward_bytes(model.config, 2 * tokens) / forward_bytes(model.config, tokens) <= 4
    assert forward_bytes(SimpleNamespace(hidden_size=8, num_attention_heads=1), 1) == 4 * (8 + 64 + 96 + 2)


def test_a_store_records_its_batch_size_and_others_follow_it(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    model = tiny_encoder.classifier(tiny_corpus.label_names, seed=0)
    assert capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "cpu").batch_size == 32
    monkeypatch.setattr(_capture, "batch_size", lambda *args, **kwargs: 7)
    assert capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "sized").batch_size == 7
    config = CaptureConfig(batch_size=5)
    assert capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "given", config).batch_size == 5


def test_adapted_models_are_captured_in_the_batches_of_base(tmp_path, tiny_bert, tiny_csv, monkeypatch):
    """However much memory is free at the time; so that equal weights give equal bits."""
    study, sizes, seen = write_study(tmp_path, tiny_bert, tiny_csv), iter([8, 64, 1, 3, 9, 2, 5, 6]), []
    original = _capture.length_sorted_batches

    def watched(lengths, size):
        seen.append((len(lengths), size))
        return original(lengths, size)

    monkeypatch.setattr(_capture, "batch_size", lambda *args, **kwargs: next(sizes))
    monkeypatch.setattr(_capture, "length_sorted_batches", watched)
    result = run_study(study, tmp_path / "out", tmp_path / "home", *LIGHT)
    of_test = {size for n, size in seen if n == 40}
    assert len(of_test) == 1 and len(seen) >= 3
    monkeypatch.undo()
    usual = run_study(study, tmp_path / "usual", tmp_path / "other", *LIGHT)
    # Batches change float32 activations by rounding alone. Where norms are nearly tied, that decides which row is an outlier:
    # one row of several hundred may be another one.
    keys = ["method", "layer", "measure", "rows", "unit"]
    one, two = (run.table("similarity").set_index(keys) for run in (result, usual))
    assert (one.n_rows == two.n_rows).all()
    differences = (one.value - two.value).abs().groupby(level="rows").max()
    assert differences.drop("no-outliers").max() < 1e-6, differences
    assert differences["no-outliers"] < 1 / one.n_rows.min(), differences
