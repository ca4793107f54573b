"""Dictionaries: saved in sae-lens' format, planted features found, activations encoded and stored, damage named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from sparse_rows import encoded, planted, quality

from layerprobe import sae
from layerprobe.errors import MeasureError, StorageError
from layerprobe.sae import SaeConfig, _dictionary, architectures
from layerprobe.sae.architectures import ARCHITECTURES, Architecture

CONFIG = SaeConfig(k=3, expansion=3, samples=60_000, batch_size=256)
SHORT = SaeConfig(expansion=2, samples=6000, batch_size=256)

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def rows():
    return planted()[0]


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae") / "dictionary"
    return sae.train(rows[:5000], folder, CONFIG), folder


def test_saved_dictionaries_are_sae_lens_own(trained, rows):
    dictionary, folder = trained
    theirs = SAE.load_from_disk(folder)
    with torch.no_grad():
        codes = theirs.encode(torch.from_numpy(rows[:50]))
        rebuilt = theirs.decode(codes)
    np.testing.assert_array_equal(encoded(dictionary, rows[:50]).toarray(), codes.numpy())
    np.testing.assert_allclose(dictionary.decode(codes, torch.from_numpy(rows[:50])), rebuilt, atol=1e-6)
    assert (dictionary.d_in, dictionary.d_sae) == (24, 72)
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.bin"))


def test_planted_features_are_found_and_held_out_rows_explained(trained, rows):
    dictionary, _ = trained
    result = quality(dictionary, rows[5000:])
    control = quality(sae.untrained(dictionary, rows[:5000], CONFIG), rows[5000:])
    assert result.explained_variance > 0.7 > 0.4 > control.explained_variance
    assert result.ev_low < result.explained_variance < result.ev_high
    assert result.l0 == pytest.approx(3, abs=0.2)
    decoder = dictionary.sae.W_dec.detach().numpy()
    decoder = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    best = (planted()[1] @ decoder.T).max(1)
    assert np.mean(best > 0.9) > 0.7


def test_equal_seeds_give_equal_weights(rows, tmp_path):
    config = SaeConfig(k=3, expansion=1, samples=4000, batch_size=256)
    one, same, other = (
        sae.train(rows[:2000], tmp_path / str(i), replace(config, seed=seed)).decoder
        for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("architecture", [row.name for row in ARCHITECTURES.values() if row.recalibrated])
def test_one_threshold_keeps_k_latents_active_after_reloading(architecture, rows, tmp_path):
    config = replace(SHORT, architecture=architecture, k=3, samples=12_000)
    dictionary = sae.train(rows[:3000], tmp_path / "d", config)
    again = sae.load(tmp_path / "d")
    assert encoded(again, rows[3000:]).nnz / 3000 == pytest.approx(3, rel=0.15)
    assert np.array_equal(encoded(dictionary, rows[:9]).toarray(), encoded(again, rows[:9]).toarray())


@pytest.mark.parametrize("architecture", [row.name for row in ARCHITECTURES.values() if not row.uses_k])
def test_other_architectures_train_and_reload(architecture, rows, tmp_path):
    sae.train(rows[:3000], tmp_path / "d", replace(SHORT, architecture=architecture))
    assert np.isfinite(quality(sae.load(tmp_path / "d"), rows[3000:]).explained_variance)


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_a_row_agrees_with_sae_lens(row):
    """Its configuration is the registered one, k and the saved architecture are as sae-lens has them."""
    from sae_lens.registry import get_sae_training_class

    built = row.build(d_in=8, d_sae=24, k=2, steps=40)
    training_class, config_class = get_sae_training_class(row.name)
    assert type(built.cfg) is config_class and isinstance(built, training_class)
    assert hasattr(built.cfg, "k") == row.uses_k and (not row.uses_k or built.cfg.k == 2)
    assert built.cfg.get_inference_config_class().architecture() == (row.saved_as or row.name)
    coefficients = {name: tuple(value) for name, value in built.get_coefficients().items()}
    assert coefficients == ({row.penalty[0]: (row.penalty[1], 10)} if row.penalty else {})


def test_a_new_architecture_is_one_row(rows, tmp_path, monkeypatch):
    row = Architecture("abstopk", "AbsTopKTrainingSAEConfig", uses_k=True)
    monkeypatch.setattr(architectures, "ARCHITECTURES", {**ARCHITECTURES, "abstopk": row})
    dictionary = sae.train(rows[:3000], tmp_path / "d", replace(SHORT, architecture="abstopk", k=3))
    assert dictionary.architecture == "abstopk"
    with pytest.raises(MeasureError, match="negative activations"):
        encoded(dictionary, rows[3000:])


def test_rows_are_encoded_batch_by_batch_into_a_sparse_matrix(trained, rows, monkeypatch):
    dictionary, _ = trained
    with torch.no_grad():
        expected = dictionary.sae.encode(torch.from_numpy(rows[:1000])).numpy()
    for batch_size in (37, 5000):
        monkeypatch.setattr(_dictionary, "BATCH_ROWS", batch_size)
        codes = encoded(dictionary, rows[:1000])
        np.testing.assert_allclose(codes.toarray(), expected, atol=1e-6)
        assert codes.format == "csc" and codes.dtype == np.float32 and codes.nnz == (expected > 0).sum()
    assert encoded(dictionary, rows[:0]).shape == (0, 72)


def test_saved_activations_are_read_memory_mapped(trained, rows, tmp_path):
    codes = encoded(trained[0], rows[:500])
    sae.save_codes(codes, tmp_path / "a" / "codes")
    again = sae.load_codes(tmp_path / "a" / "codes")
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(again, name), getattr(codes, name))
        assert getattr(again, name).dtype == getattr(codes, name).dtype
        assert not getattr(again, name).flags.writeable and not getattr(again, name).flags.owndata
    assert again.shape == codes.shape
    assert quality(trained[0], rows[:500], codes=again) == quality(trained[0], rows[:500], codes=codes)
    sae.save_codes(codes[:0], tmp_path / "empty")
    assert sae.load_codes(tmp_path / "empty").shape == (0, 72)


@pytest.mark.parametrize("damage", ["missing", "cut", "other file", "pickled"])
def test_damaged_activations_are_named(damage, trained, rows, tmp_path):
    sae.save_codes(encoded(trained[0], rows[:500]), tmp_path)
    path = tmp_path / "indices.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "other file":
        np.save(path, np.arange(3, dtype=np.int32))
    else:
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StorageError, match="encode the rows again"):
        sae.load_codes(tmp_path)


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
    held = rows[5000:]
    centre = held.mean(0)
    turned = ((held - centre) @ turn + centre).astype(np.float32)
    straight, rotated = (quality(dictionary, z).explained_variance for z in (held, turned))
    assert straight > 0.7 and rotated < straight - 0.3
