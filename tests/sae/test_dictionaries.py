"""Dictionaries: saved in sae-lens' format, planted features found, controls near nothing, damage named."""

import json
import shutil

import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from sparse_rows import planted

from layerprobe import sae
from layerprobe.errors import StorageError

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def rows():
    return planted()[0]


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae") / "dictionary"
    return sae.train(rows[:5000], folder, k=3, expansion=3, samples=60_000, batch_size=256, progress=False), folder


def test_saved_dictionaries_are_sae_lens_own(trained, rows):
    dictionary, folder = trained
    theirs = SAE.load_from_disk(folder)
    with torch.no_grad():
        codes = theirs.encode(torch.from_numpy(rows[:50]))
        rebuilt = theirs.decode(codes)
    np.testing.assert_array_equal(dictionary.encode(rows[:50]), codes.numpy())
    np.testing.assert_allclose(dictionary.decode(codes.numpy()), rebuilt.numpy(), atol=1e-6)
    assert (dictionary.d_in, dictionary.d_sae) == (24, 72)
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.bin"))


def test_planted_features_are_found_and_held_out_rows_explained(trained, rows):
    dictionary, _ = trained
    quality = sae.evaluate(dictionary, rows[5000:], np.arange(1000), progress=False)
    control = sae.evaluate(
        sae.untrained(dictionary, rows[:5000], architecture="topk", k=3, seed=0),
        rows[5000:],
        np.arange(1000),
        progress=False,
    )
    assert quality.explained_variance > 0.7 > 0.4 > control.explained_variance
    assert quality.ev_low < quality.explained_variance < quality.ev_high
    assert quality.l0 == pytest.approx(3, abs=0.2)
    decoder = dictionary.sae.W_dec.detach().numpy()
    decoder = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    best = (planted()[1] @ decoder.T).max(1)
    assert np.mean(best > 0.9) > 0.7


def test_equal_seeds_give_equal_weights(rows, tmp_path):
    options = {"k": 3, "expansion": 1, "samples": 4000, "batch_size": 256, "progress": False}
    one, same, other = (
        sae.train(rows[:2000], tmp_path / str(i), seed=seed, **options).sae.W_dec for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_one_threshold_keeps_k_latents_active_after_reloading(architecture, rows, tmp_path):
    made = sae.train(
        rows[:3000],
        tmp_path / "d",
        architecture=architecture,
        k=3,
        expansion=2,
        samples=12_000,
        batch_size=256,
        progress=False,
    )
    again = sae.load(tmp_path / "d")
    assert (again.encode(rows[3000:]) > 0).sum(1).mean() == pytest.approx(3, rel=0.15)
    assert np.array_equal(made.encode(rows[:9]), again.encode(rows[:9]))


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_other_architectures_train_and_reload(architecture, rows, tmp_path):
    options = {"expansion": 2, "samples": 6000, "batch_size": 256, "progress": False}
    sae.train(rows[:3000], tmp_path / "d", architecture=architecture, **options)
    quality = sae.evaluate(sae.load(tmp_path / "d"), rows[3000:], np.arange(3000), progress=False)
    assert np.isfinite(quality.explained_variance)


def test_training_is_logged(trained):
    import pandas as pd

    history = pd.read_parquet(trained[1] / "history.parquet")
    assert list(history.columns) == ["step", "loss", "explained_variance", "l0", "dead_share"]
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    assert history.step.is_monotonic_increasing


@pytest.mark.parametrize("damage", ["no settings", "cut weights", "other width", "no number", "no json"])
def test_damaged_folders_are_named_in_one_sentence(damage, trained, tmp_path):
    folder = shutil.copytree(trained[1], tmp_path / "copy")
    settings, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    if damage == "no settings":
        settings.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "other width":
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"d_in": 30}))
    elif damage == "no number":
        tensors = load_file(weights)
        save_file(tensors | {"b_dec": tensors["b_dec"] * torch.nan}, weights)
    else:
        settings.write_text("{")
    with pytest.raises(StorageError, match="train it again") as caught:
        sae.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_on_a_rotated_space_what_a_dictionary_explains_collapses(trained, rows):
    """The same geometry, turned: a measure that ignores turns sees no change, and the features are of no use."""
    dictionary, _ = trained
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))
    held, groups = rows[5000:], np.arange(1000)
    centre = held.mean(0)
    turned = ((held - centre) @ turn + centre).astype(np.float32)
    own, other = (sae.evaluate(dictionary, z, groups, progress=False).explained_variance for z in (held, turned))
    assert own > 0.7 and other < own - 0.3
