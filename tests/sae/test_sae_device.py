"""Every step computes on the device that it is given, and gives the results of the CPU.

No test machine has another device, so a stand-in with an accelerator's rules is used (`stand_in_device`): tensors on it
cannot become numpy arrays or meet tensors of the CPU, and what goes to the host is recorded.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sparse_rows import at_median_ratio, encoded, planted
from stand_in_device import DEVICE, stand_in_device
from tiny import make_encoder, write_csv

from layerprobe import sae
from layerprobe.data import load_corpus
from layerprobe.encoder import load_encoder
from layerprobe.sae import CrosscoderConfig, SaeConfig, _dictionary, _staging
from layerprobe.sae.architectures import ARCHITECTURES

pytestmark = pytest.mark.numerical

CONFIG = SaeConfig(k=3, expansion=2, samples=30 * 250, batch_size=250)
COMPUTATION = {"mm", "addmm", "bmm", "_embedding_bag", "topk", "kthvalue", "sort", "relu", "relu_", "sum", "norm"}


def computed_on_host(device):
    """Computations on tensors of the host since the last call; copying and reshaping is none."""
    names = {name.split(".")[1] for name in device.on_host} & COMPUTATION
    device.on_host.clear()
    return names


@pytest.fixture(scope="module")
def rows():
    return planted(2000)[0]


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("device") / "d"
    return sae.train(rows, folder, CONFIG), folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_stays_on_its_device(architecture, rows, tmp_path, monkeypatch):
    config = replace(CONFIG, architecture=architecture, samples=20 * 250, learning_rate=1e-3)
    here = sae.train(rows, tmp_path / "here", config)
    with stand_in_device(monkeypatch) as device:
        there = sae.train(rows, tmp_path / "there", config, device=DEVICE)
        assert there.device.type == DEVICE and not computed_on_host(device)
        # Only weights and counts of latents are copied to the host: no batch.
        assert {size for shape in device.to_host for size in shape} <= {24, 48}
        weights = {name: value.cpu() for name, value in there.sae.state_dict().items()}
    for name, value in here.sae.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))
    assert (tmp_path / "here" / "cfg.json").read_text() == (tmp_path / "there" / "cfg.json").read_text()


def test_encoding_evaluation_matching_and_controls_stay_on_their_device(trained, rows, monkeypatch):
    dictionary, folder = trained
    codes = encoded(dictionary, rows)
    control = sae.untrained(dictionary, rows, CONFIG)
    results = {
        "quality": sae.evaluate(dictionary, rows, codes, np.arange(2000)),
        "matching": sae.match(dictionary, control, codes, encoded(control, rows)).table,
    }
    with stand_in_device(monkeypatch) as device:
        there = sae.load(folder, device=DEVICE)
        device.to_host.clear()
        their_codes = encoded(there, rows)
        assert set(device.to_host) == {(codes.nnz,)}  # what is active, never all activations
        quality = sae.evaluate(there, rows, their_codes, np.arange(2000))
        assert not computed_on_host(device)
        their_control = sae.untrained(there, rows, CONFIG)
        device.to_host.clear()
        matching = sae.match(there, their_control, their_codes, encoded(their_control, rows)).table
        assert not computed_on_host(device) and (2000, 48) not in device.to_host
    np.testing.assert_allclose(their_codes.toarray(), codes.toarray(), atol=1e-5)
    assert quality.explained_variance == pytest.approx(results["quality"].explained_variance, abs=1e-6)
    assert quality.ev_low == pytest.approx(results["quality"].ev_low, abs=1e-6)
    pd.testing.assert_frame_equal(matching, results["matching"], rtol=1e-4)


def test_a_crosscoder_stays_on_its_device(rows, monkeypatch):
    moved = np.roll(rows, 1, axis=1).copy()
    config = CrosscoderConfig(d_sae=48, k=3, steps=40, penalty=0.1)
    here = sae.crosscoder.train(rows, moved, config)
    with stand_in_device(monkeypatch) as device:
        there = sae.crosscoder.train(rows, moved, config, device=DEVICE)
        assert not computed_on_host(device) and {size for shape in device.to_host for size in shape} <= {48}
        codes = there.encode(rows, moved)
        variance = there.explained_variance(rows, moved, codes)
        assert not computed_on_host(device) and (2000, 48) not in device.to_host
        table = sae.census(there, rows, moved, codes)
    np.testing.assert_allclose(there.decoder, here.decoder, atol=1e-4)
    np.testing.assert_allclose(variance, here.explained_variance(rows, moved, here.encode(rows, moved)), atol=1e-4)
    codes = here.encode(rows, moved)
    decided = ~at_median_ratio(here, codes)
    pd.testing.assert_frame_equal(table[decided], sae.census(here, rows, moved, codes)[decided], rtol=1e-2, atol=1e-3)


def test_the_task_loss_stays_on_the_model_s_device(tmp_path, monkeypatch):
    corpus = load_corpus(str(write_csv(tmp_path / "t.csv", n=80)), train=40, test=30)
    encoder = load_encoder(str(make_encoder(tmp_path / "bert")))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1000, 32)).astype(np.float32)
    folder = tmp_path / "d"
    dictionary = sae.train(rows, folder, replace(CONFIG, samples=2500))
    model = encoder.classifier(corpus.label_names, seed=0)
    here = sae.task_loss(model, encoder, corpus.test, 1, {"d": dictionary})
    with stand_in_device(monkeypatch) as device:
        there_dictionary, there_model = sae.load(folder, device=DEVICE), model.to(DEVICE)
        device.to_host.clear()
        device.on_host.clear()
        there = sae.task_loss(there_model, encoder, corpus.test, 1, {"d": there_dictionary})
        assert not computed_on_host(device)
        assert {shape[-1] for shape in device.to_host if shape} <= {2}  # logits alone
    pd.testing.assert_frame_equal(there, here, rtol=1e-4)


def test_rows_that_fit_are_staged_once_and_give_the_same_dictionary(rows, tmp_path, monkeypatch):
    config, staged = replace(CONFIG, samples=20 * 250), []
    here, stage = sae.train(rows, tmp_path / "here", config), _staging.stage
    monkeypatch.setattr(_staging, "STAGED_AT_A_TIME", 700)  # several parts, the last one shorter
    monkeypatch.setattr(_staging, "stage", lambda *args: staged.append(len(args[0])) or stage(*args))
    for free, times in ((2 * rows.nbytes - 1, 0), (2 * rows.nbytes, 1)):
        monkeypatch.setattr(_staging, "free_bytes", lambda device, free=free: free)
        with stand_in_device(monkeypatch) as device:
            there = sae.train(rows, tmp_path / f"staged {times}", config, device=DEVICE)
            assert not computed_on_host(device) and staged == [len(rows)] * times
            weights = {key: value.cpu() for key, value in there.sae.state_dict().items()}
        for key, value in here.sae.state_dict().items():
            torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_staged_batches_are_the_rows_themselves(kind, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((50, 3)).astype(kind)
    rows.setflags(write=False)
    order = [np.array([0, 7, 49]), np.array([3, 4]), np.arange(50)]
    monkeypatch.setattr(_staging, "STAGED_AT_A_TIME", 16)
    for free in (None, 0, 10**9):
        monkeypatch.setattr(_staging, "free_bytes", lambda device, free=free: free)
        found = list(_staging.batches(rows, order, torch.device("cpu")))
        for batch, chosen in zip(found, order, strict=True):
            assert batch.dtype == torch.float32
            np.testing.assert_array_equal(batch.numpy(), rows[chosen].astype(np.float32))


def test_encoding_in_larger_batches_gives_the_same_activations(trained, rows, monkeypatch):
    dictionary, _ = trained
    usual, sizes = encoded(dictionary, rows), []
    monkeypatch.setattr(_dictionary, "batch_size", lambda *args, **options: sizes.append(args) or 300)
    np.testing.assert_allclose(encoded(dictionary, rows).toarray(), usual.toarray(), atol=1e-6)
    assert sizes[0][1] >= 4 * (dictionary.d_in + 2 * dictionary.d_sae)
