"""Capture in pieces: the same index as in one piece, and memory that does not grow with the tokens."""

import tracemalloc

import numpy as np
import pandas as pd

from layerprobe.activations import CaptureConfig, _row_index, capture
from layerprobe.data import Examples
from layerprobe.encoder import token_counts, tokenize


def some_texts(n):
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(f"w{i}" for i in rng.integers(0, 60, rng.integers(3, 25))) for _ in range(n))
    return Examples(tuple(map(str, range(n))), texts, None, np.zeros(n, dtype=np.int64))


def test_pieces_make_one_index(tiny_encoder, tmp_path, monkeypatch):
    texts, model = some_texts(30), tiny_encoder.classifier(["a", "b"], seed=0)
    whole = capture(model, tiny_encoder, texts, tmp_path / "whole", CaptureConfig(batch_size=4))
    monkeypatch.setattr(_row_index, "ROWS_PER_GROUP", 50)
    pieces = capture(model, tiny_encoder, texts, tmp_path / "pieces", CaptureConfig(batch_size=4))
    pd.testing.assert_frame_equal(whole.rows, pieces.rows)
    np.testing.assert_array_equal(pieces.groups("token"), whole.rows["example"])
    # A second opinion on every column, from all tokens at once.
    encodings = tokenize(tiny_encoder, texts, 128)
    order = np.argsort([-len(e["input_ids"]) for e in encodings], kind="stable")
    ids = [i for e in order for i in encodings[e]["input_ids"]]
    assert pieces.rows.token.tolist() == tiny_encoder.tokenizer.convert_ids_to_tokens(ids)
    assert pieces.rows.example.tolist() == [e for e in order for _ in encodings[e]["input_ids"]]
    assert pieces.rows.special.tolist() == [bool(s) for e in order for s in encodings[e]["special_tokens_mask"]]
    assert pieces.rows.dtypes.astype(str).tolist() == ["int32", "int32", "str", "bool"]


def test_counts_are_those_of_the_tokens(tiny_encoder, monkeypatch):
    monkeypatch.setattr("layerprobe.encoder.COUNTED_AT_A_TIME", 7)
    texts = some_texts(30)
    expected = [len(e["input_ids"]) for e in tokenize(tiny_encoder, texts, 12)]
    assert token_counts(tiny_encoder, texts, 12).tolist() == expected and max(expected) == 12


def test_memory_does_not_grow_with_the_tokens(tiny_encoder, tmp_path, monkeypatch):
    """Of Python and numpy, per further token row: it was 290 bytes when all tokens were held."""
    monkeypatch.setattr(_row_index, "ROWS_PER_GROUP", 500)
    monkeypatch.setattr("layerprobe.encoder.COUNTED_AT_A_TIME", 50)
    model, peaks, rows = tiny_encoder.classifier(["a", "b"], seed=0), [], []
    for n in (100, 200, 1000):  # the first one imports
        texts = some_texts(n)
        tracemalloc.start()
        store = capture(model, tiny_encoder, texts, tmp_path / str(n), CaptureConfig(layers=[2]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        rows.append(store.n_rows)
    # What grows is per text: its length, its place in the order, and its id in the record.
    assert (peaks[2] - peaks[1]) / (rows[2] - rows[1]) < 30
