"""Activations: real tokens only, pooled correctly, independent of the batches; paired by id or refused."""

import numpy as np
import pytest
import torch

from layerprobe.activations import (
    ActivationStore,
    CaptureConfig,
    _capture,
    _store,
    capture,
    check_paired,
    content_digests,
    estimate_bytes,
)
from layerprobe.data import Examples
from layerprobe.encoder import collate, tokenize
from layerprobe.errors import ArgumentError, EncoderError, StorageError
from layerprobe.layers import forward

pytestmark = pytest.mark.numerical

BY_FOUR = CaptureConfig(max_length=32, batch_size=4)


@pytest.fixture(scope="module")
def model(tiny_encoder):
    return tiny_encoder.classifier(["a", "b"], seed=0)


@pytest.fixture(scope="module")
def texts():
    words = ["w1 w2 good", "", "w3 " * 300, "🎉 <b>w4</b>", "w5 w6 w7 w8 bad", "w9"]
    ids = tuple(f"id{i}" for i in range(len(words)))
    return Examples(ids, tuple(words), None, np.array([0, 1, 0, 1, 0, 1]))


@pytest.fixture(scope="module")
def store(model, tiny_encoder, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "rows"
    return capture(model, tiny_encoder, texts, folder, BY_FOUR)


def test_rows_are_every_real_token_and_no_padding(store, tiny_encoder, texts):
    encodings = tokenize(tiny_encoder, texts, 32)
    rows = store.rows
    assert store.n_rows == sum(len(e["input_ids"]) for e in encodings) == len(rows)
    assert "[PAD]" not in set(rows.token)
    for i, encoding in enumerate(encodings):
        mine = rows[rows.example == i]
        assert mine.token_index.tolist() == list(range(len(encoding["input_ids"])))
        assert mine.token.tolist() == tiny_encoder.tokenizer.convert_ids_to_tokens(encoding["input_ids"])
        assert mine.special.tolist() == [bool(flag) for flag in encoding["special_tokens_mask"]]
    assert store.example_ids.tolist() == list(texts.ids)


def test_rows_equal_those_of_each_example_alone(store, model, tiny_encoder, texts):
    """Padding changes nothing: each example captured alone gives the same rows and means."""
    encodings = tokenize(tiny_encoder, texts, 32)
    for i in range(len(texts)):
        with torch.no_grad():
            layers, _ = forward(model, collate(tiny_encoder, encodings, [i]))
        mine = np.flatnonzero(store.rows.example == i)
        for layer in store.layers:
            alone = layers[layer][0].numpy()
            np.testing.assert_allclose(store.tokens(layer)[mine], alone, atol=2e-5)
            np.testing.assert_allclose(store.mean(layer)[i], alone.mean(0), atol=2e-5)
            np.testing.assert_allclose(store.cls(layer)[i], alone[0], atol=2e-5)


def test_pooled_views_are_those_of_the_stored_tokens(store):
    groups = store.groups("token")
    for layer in store.layers:
        means = np.stack([store.tokens(layer)[groups == i].mean(0) for i in range(len(store.example_ids))])
        np.testing.assert_allclose(store.mean(layer), means, atol=1e-5)
        first = store.rows.query("token_index == 0").sort_values("example").index
        np.testing.assert_array_equal(store.cls(layer), store.tokens(layer)[first])


def test_capturing_again_gives_identical_bytes_and_shares_them(store, model, tiny_encoder, texts, tmp_path):
    again = capture(model, tiny_encoder, texts, tmp_path / "rows", BY_FOUR)
    assert not again.shares(store, 0)
    for _ in range(2):  # the second call changes nothing
        again.share_files(store)
    check_paired(store, ActivationStore.open(again.folder))
    assert sorted(path.name for path in again.folder.iterdir()) == sorted(path.name for path in store.folder.iterdir())
    for layer in store.layers:
        assert np.array_equal(store.tokens(layer), again.tokens(layer))
        assert again.shares(store, layer)
        assert again.content(layer) == store.content(layer)


def test_limits_keep_complete_examples_and_all_pooled_vectors(model, tiny_encoder, texts, tmp_path):
    config = CaptureConfig(max_length=32, token_examples=2, layers=[2])
    few = capture(model, tiny_encoder, texts, tmp_path / "few", config)
    assert set(few.rows.example) == {0, 1} and few.layers == (2,)
    assert len(few.mean(2)) == len(texts)
    config = CaptureConfig(max_length=32, token_rows=10, pooled=False)
    rows = capture(model, tiny_encoder, texts, tmp_path / "r", config)
    assert rows.n_rows <= 10 and set(rows.rows.example) == {0, 1}
    with pytest.raises(ArgumentError, match="no mean rows"):
        rows.mean(2)
    with pytest.raises(ArgumentError, match=r"no token rows of layer 9; its layers are 0, 1, 2"):
        rows.tokens(9)


def test_float16_is_close_and_refused_on_overflow(store, model, tiny_encoder, texts, tmp_path):
    config = CaptureConfig(max_length=32, batch_size=4, dtype="float16")
    half = capture(model, tiny_encoder, texts, tmp_path / "half", config)
    assert half.tokens(1).dtype == np.float16
    np.testing.assert_allclose(half.tokens(1), store.tokens(1), rtol=2e-3, atol=1e-3)
    handle = model.base_model.encoder.layer[0].register_forward_hook(
        lambda m, a, out: (out[0] * 1e6, *out[1:]) if isinstance(out, tuple) else out * 1e6
    )
    try:
        with pytest.raises(ArgumentError, match=r"layer 1 .* overflows float16"):
            capture(model, tiny_encoder, texts, tmp_path / "over", config)
    finally:
        handle.remove()
    assert not (tmp_path / "over").exists()


def test_a_model_left_in_mixed_precision_is_refused(tiny_encoder, texts, tmp_path):
    wrapped = tiny_encoder.classifier(["a", "b"], seed=0)
    wrapped.forward = torch.autocast("cpu", dtype=torch.bfloat16)(wrapped.forward)
    with pytest.raises(EncoderError, match=r"mixed precision, not float32"):
        capture(wrapped, tiny_encoder, texts, tmp_path / "rows", BY_FOUR)
    with pytest.raises(EncoderError, match="training mode"):
        capture(wrapped.train(), tiny_encoder, texts, tmp_path / "rows", BY_FOUR)


def test_different_rows_are_refused_not_zipped(store, model, tiny_encoder, texts, tmp_path):
    moved = texts.take([1, 0, 2, 3, 4, 5])
    other = capture(model, tiny_encoder, moved, tmp_path / "a", BY_FOUR)
    with pytest.raises(StorageError, match="different examples"):
        check_paired(store, other)
    config = CaptureConfig(max_length=16, batch_size=4)
    shorter = capture(model, tiny_encoder, texts, tmp_path / "b", config)
    with pytest.raises(StorageError, match="differ in"):
        check_paired(store, shorter)


def test_incomplete_stores_are_refused(store, model, tiny_encoder, texts, tmp_path):
    with pytest.raises(StorageError, match="has no complete activations"):
        ActivationStore.open(tmp_path)
    store = capture(model, tiny_encoder, texts, tmp_path / "rows", BY_FOUR)
    path = store.folder / "mean-layer-01.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StorageError, match="truncated"):
        ActivationStore.open(store.folder)


def test_each_byte_is_hashed_once_and_digests_are_read_from_the_record_alone(
    store, model, tiny_encoder, texts, tmp_path, monkeypatch
):
    hashed = []
    real = _store.checksum
    monkeypatch.setattr(_store, "checksum", lambda path: (hashed.append(path.name), real(path))[1])
    store = capture(model, tiny_encoder, texts, tmp_path / "rows", BY_FOUR)
    # Token rows are hashed while they are written.
    assert sorted(hashed) == sorted(name for name in store.checksums if not name.startswith("token"))
    assert store.checksums == {name: real(store.folder / name) for name in store.checksums}
    for path in store.folder.glob("*.npy"):
        path.unlink()
    for unit in ("token", "mean", "cls"):
        expected = {layer: store.content(layer, unit) for layer in store.layers}
        assert content_digests(store.folder, unit) == expected
    with pytest.raises(StorageError, match="missing or truncated"):
        ActivationStore.open(store.folder)


def test_a_copy_shares_its_files(store, tmp_path):
    copy = store.copy_to(tmp_path / "copy")
    assert all(copy.shares(store, layer) for layer in store.layers)
    assert content_digests(copy.folder) == content_digests(store.folder)


def test_what_cannot_be_captured_is_named(model, tiny_encoder, texts, tmp_path):
    folder = tmp_path / "rows"
    for examples, config, words in [
        (texts, CaptureConfig(layers=[3]), r"layers is \[3\], but the layers of .* are 0 \(embeddings\) to 2"),
        (texts.take([]), None, "examples is empty"),
        (texts, CaptureConfig(token_rows=1, pooled=False), "token_rows is 1, less than the tokens of the first"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            capture(model, tiny_encoder, examples, folder, config)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is not empty"):
        capture(model, tiny_encoder, texts, tmp_path)


def test_estimated_bytes_are_an_upper_bound_near_the_truth(model, tiny_encoder, tiny_corpus, tmp_path):
    store = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "rows", CaptureConfig(max_length=64))
    real = sum(path.stat().st_size for path in store.folder.glob("*.npy"))
    estimate = estimate_bytes(store.n_rows, len(tiny_corpus.test), 3, 32)
    assert real <= estimate <= 1.5 * real


def test_passes_run_on_the_device(tiny_encoder, texts, tmp_path, monkeypatch):
    """`meta` stands in for an accelerator: the model and its inputs are there, and reading values fails."""
    seen = []

    def passed(model, inputs):
        seen.extend(value.device.type for value in (*model.parameters(), *inputs.values()))
        shape = *inputs["input_ids"].shape, tiny_encoder.width
        return tuple(torch.zeros(shape, device=inputs["input_ids"].device) for _ in range(3)), None

    monkeypatch.setattr(_capture, "forward", passed)
    model = tiny_encoder.classifier(["a", "b"], seed=0)
    with pytest.raises(NotImplementedError, match="meta"):
        capture(model, tiny_encoder, texts, tmp_path / "rows", BY_FOUR, device="meta")
    assert set(seen) == {"meta"}
