"""What only a machine with an accelerator can show. Skipped without one; `layerprobe doctor` lists these tests."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from running import run_study, write_study
from sparse_rows import planted

from layerprobe import sae, similarity
from layerprobe.activations import CaptureConfig, _capture, capture
from layerprobe.activations._streaming import HostCopies
from layerprobe.adaptation import AdaptConfig, adapt, parse_method
from layerprobe.device import batch_size, for_device, free_bytes, has_bf16, has_tf32
from layerprobe.internals import label_variance
from layerprobe.sae import SaeConfig, _staging

FOUND = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
DEVICE = next((name for name, there in FOUND.items() if there), None)
pytestmark = [pytest.mark.accelerator, pytest.mark.skipif(DEVICE is None, reason="there is no accelerator")]
ROOT = Path(__file__).parent.parent


def trained(encoder, corpus, folder, device, **config):
    config = AdaptConfig(**{"epochs": 2, "learning_rate": 1e-3, "device": device, "precision": "fp32", **config})
    return adapt(encoder, corpus, folder, method=parse_method("top:1"), seed=0, config=config)


def test_free_memory_is_reported_and_batches_grow_with_it():
    free = free_bytes(DEVICE)
    assert free > 0
    assert batch_size(DEVICE, 1, usual=32, most=1024) == 1024
    assert batch_size(DEVICE, free, usual=32, most=1024) == 1
    block = torch.zeros(2**26, device=DEVICE)
    assert free - free_bytes(DEVICE) >= block.nbytes // 2


def test_activations_equal_those_of_the_cpu(tiny_encoder, tiny_corpus, tmp_path):
    model = tiny_encoder.classifier(tiny_corpus.label_names, seed=0)
    here = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "here")
    there = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "there", device=DEVICE)
    assert there.batch_size > here.batch_size and there.rows.equals(here.rows)
    for layer in here.layers:
        for unit in ("token", "mean", "cls"):
            np.testing.assert_allclose(there.unit(unit, layer), here.unit(unit, layer), atol=1e-4)


def test_streamed_activations_equal_copied_ones_bit_by_bit(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    class AtOnce(HostCopies):
        def __init__(self, device):
            super().__init__("cpu")

    model, config = tiny_encoder.classifier(tiny_corpus.label_names, seed=0), CaptureConfig(batch_size=4)
    streamed = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "streamed", config, device=DEVICE)
    monkeypatch.setattr(_capture, "HostCopies", AtOnce)
    at_once = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "at_once", config, device=DEVICE)
    assert streamed.checksums == at_once.checksums


def test_training_in_float32_follows_that_of_the_cpu(tiny_encoder, tiny_corpus, tmp_path):
    here = trained(tiny_encoder, tiny_corpus, tmp_path / "here", "cpu")
    there = trained(tiny_encoder, tiny_corpus, tmp_path / "there", DEVICE)
    # Dropout draws other masks on another device; the data, their order and the course of the loss are the same.
    assert there.log.step.equals(here.log.step) and there.log.learning_rate.equals(here.log.learning_rate)
    assert abs(there.log.loss - here.log.loss).max() < 0.2
    assert there.before.loss == pytest.approx(here.before.loss, abs=1e-4)


def test_reduced_precision_is_used_in_training_alone(tiny_encoder, tiny_corpus, tmp_path):
    choices = [name for name, there in (("bf16", has_bf16(DEVICE)), ("tf32", has_tf32(DEVICE))) if there]
    if not choices:
        pytest.skip(f"{DEVICE} trains in float32 alone")
    plain = trained(tiny_encoder, tiny_corpus, tmp_path / "fp32", DEVICE)
    for choice in choices:
        result = trained(tiny_encoder, tiny_corpus, tmp_path / choice, DEVICE, precision=choice)
        assert result.settings["precision"] == choice and result.before == plain.before
        assert abs(result.log.loss - plain.log.loss).max() < 0.1


def test_dictionaries_on_staged_and_on_copied_rows_are_equal(tmp_path, monkeypatch):
    rows = planted(2000)[0]
    config = SaeConfig(k=3, expansion=2, samples=30 * 250, batch_size=250)
    staged = sae.train(rows, tmp_path / "staged", config, device=DEVICE)
    monkeypatch.setattr(_staging, "free_bytes", lambda device: 0)
    copied = sae.train(rows, tmp_path / "copied", config, device=DEVICE)
    here = sae.train(rows, tmp_path / "here", config)
    torch.testing.assert_close(staged.decoder, copied.decoder, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(staged.decoder.cpu(), here.decoder, rtol=1e-3, atol=1e-3)
    codes, others = sae.encode(staged, rows), sae.encode(copied, rows)
    np.testing.assert_allclose(codes.toarray(), others.toarray(), atol=1e-3)


def test_measures_geometry_and_label_variance_equal_those_of_the_cpu():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), np.tile([2, 3, 5], 20))
    base = {layer: (rng.standard_normal((len(groups), 24)) + layer).astype(np.float32) for layer in (0, 1)}
    adapted = {layer: (rows + rng.standard_normal(rows.shape)).astype(np.float32) for layer, rows in base.items()}
    labels, lengths = np.arange(60) % 3, np.bincount(groups)
    names = [measure.name for measure in similarity.MEASURES]
    linear = [measure.name for measure in similarity.MEASURES if measure.linear]

    def tables(device):
        sides = [{layer: for_device(rows, device) for layer, rows in side.items()} for side in (base, adapted)]
        yield similarity.compare(*sides, groups, measures=names, leave_out_undefined=True)
        yield similarity.shuffled(*sides, groups, measures=names, draws=3)
        yield similarity.grid(dict(zip(("base", "adapted"), sides, strict=True)), groups, measures=linear)
        yield similarity.grid(dict(zip(("base", "adapted"), sides, strict=True)), measures=["cka"])
        yield similarity.geometry.describe(sides[0][1], groups)
        yield label_variance(base, groups, labels, lengths, permutations=50, device=device).table()

    for here, there in zip(tables("cpu"), tables(DEVICE), strict=True):
        # Shuffles are multiplied in float32 on the CPU.
        pd.testing.assert_frame_equal(there, here, rtol=1e-4 if "draws" in here else 1e-8, atol=1e-6)


def test_a_whole_study_runs_on_it(tmp_path, tiny_bert, tiny_csv):
    study = write_study(tmp_path, tiny_bert, tiny_csv)
    here = run_study(study, tmp_path / "here", tmp_path / "home", device="cpu", precision="fp32")
    there = run_study(study, tmp_path / "there", tmp_path / "other", device=DEVICE, precision="fp32")
    assert there.record.status == "complete" and there.record.provenance.device == DEVICE
    assert set(there.tables) == set(here.tables)
    one, other = (
        run.table("similarity").query("method == 'head'").set_index(["layer", "unit", "measure"]).value
        for run in (here, there)
    )
    assert (one - other).abs().max() < 1e-6


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_two_gpus_train_one_model(tiny_bert, tiny_csv, tmp_path):
    script = ROOT / "docs" / "examples" / "train_on_several.py"
    words = ["--model", tiny_bert, "--data", tiny_csv, "--train", 41, "--test", 30, "--out", tmp_path / "two"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, script, *words]
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / "model.safetensors").is_file()
