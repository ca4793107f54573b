"""Activations: real tokens only, pooled as recomputed, whatever the batches; joined by id or refused."""

import numpy as np
import pytest
import torch

from layerprobe.activations import ActivationStore, capture, estimate_bytes, paired
from layerprobe.data import Examples
from layerprobe.encoder import collate, tokenize
from layerprobe.errors import EncoderError, StorageError, StudyError
from layerprobe.layers import forward

pytestmark = pytest.mark.numerical


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
    return capture(model, tiny_encoder, texts, folder, max_length=32, batch_size=4, progress=False)


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


def test_rows_equal_those_of_each_text_alone(store, model, tiny_encoder, texts):
    """Padding changes nothing: each text captured by itself, in a slow second way, gives the same rows and means."""
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
    again = capture(
        model, tiny_encoder, texts, tmp_path / "rows", max_length=32, batch_size=4, reference=store, progress=False
    )
    paired(store, again)
    for layer in store.layers:
        assert np.array_equal(store.tokens(layer), again.tokens(layer))
        assert again.shares(store, layer)
        assert again.content(layer) == store.content(layer)


def test_limits_keep_whole_texts_and_all_pooled_vectors(model, tiny_encoder, texts, tmp_path):
    few = capture(
        model, tiny_encoder, texts, tmp_path / "few", max_length=32, token_examples=2, layers=[2], progress=False
    )
    assert set(few.rows.example) == {0, 1} and few.layers == (2,)
    assert len(few.mean(2)) == len(texts)
    rows = capture(
        model, tiny_encoder, texts, tmp_path / "r", max_length=32, token_rows=10, pooled=False, progress=False
    )
    assert rows.n_rows <= 10 and set(rows.rows.example) == {0, 1}
    with pytest.raises(StudyError, match="no mean rows"):
        rows.mean(2)
    with pytest.raises(StudyError, match=r"layer 9; it holds layers 0, 1, 2|no token rows of layer 9"):
        rows.tokens(9)


def test_float16_is_close_and_refused_on_overflow(store, model, tiny_encoder, texts, tmp_path):
    options = {"max_length": 32, "batch_size": 4, "dtype": "float16", "progress": False}
    half = capture(model, tiny_encoder, texts, tmp_path / "half", **options)
    assert half.tokens(1).dtype == np.float16
    np.testing.assert_allclose(half.tokens(1), store.tokens(1), rtol=2e-3, atol=1e-3)
    handle = model.base_model.encoder.layer[0].register_forward_hook(
        lambda m, a, out: (out[0] * 1e6, *out[1:]) if isinstance(out, tuple) else out * 1e6
    )
    try:
        with pytest.raises(StudyError, match=r"layer 1 .* overflows float16"):
            capture(model, tiny_encoder, texts, tmp_path / "over", **options)
    finally:
        handle.remove()
    assert not (tmp_path / "over").exists()


def test_a_model_left_in_mixed_precision_is_refused(tiny_encoder, texts, tmp_path):
    wrapped = tiny_encoder.classifier(["a", "b"], seed=0)
    wrapped.forward = torch.autocast("cpu", dtype=torch.bfloat16)(wrapped.forward)
    with pytest.raises(EncoderError, match=r"mixed precision, not float32"):
        capture(wrapped, tiny_encoder, texts, tmp_path / "rows", max_length=32, progress=False)
    with pytest.raises(EncoderError, match="training mode"):
        capture(wrapped.train(), tiny_encoder, texts, tmp_path / "rows", max_length=32, progress=False)


def test_different_rows_are_refused_not_zipped(store, model, tiny_encoder, texts, tmp_path):
    other = capture(
        model, tiny_encoder, texts.take([1, 0, 2, 3, 4, 5]), tmp_path / "a", max_length=32, batch_size=4, progress=False
    )
    with pytest.raises(StorageError, match="different examples"):
        paired(store, other)
    shorter = capture(model, tiny_encoder, texts, tmp_path / "b", max_length=16, batch_size=4, progress=False)
    with pytest.raises(StorageError, match="differ in"):
        paired(store, shorter)


def test_half_written_and_altered_stores_are_refused(store, model, tiny_encoder, texts, tmp_path):
    with pytest.raises(StorageError, match="holds no finished activations"):
        ActivationStore.open(tmp_path)
    made = capture(model, tiny_encoder, texts, tmp_path / "rows", max_length=32, progress=False)
    path = made.folder / "mean-layer-01.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    ActivationStore.open(made.folder)  # the size is right
    with pytest.raises(StorageError, match="altered"):
        ActivationStore.open(made.folder, verify=True)
    path.write_bytes(bytes(content[:-8]))
    with pytest.raises(StorageError, match="cut short"):
        ActivationStore.open(made.folder)


def test_estimated_bytes_are_an_upper_bound_near_the_truth(model, tiny_encoder, tiny_corpus, tmp_path):
    made = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "rows", max_length=64, progress=False)
    real = sum(path.stat().st_size for path in made.folder.glob("*.npy"))
    estimate = estimate_bytes(made.n_rows, len(tiny_corpus.test), 3, 32)
    assert real <= estimate <= 1.5 * real
