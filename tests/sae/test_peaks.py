"""What each latent is active on, against plain sorts of dense activations."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array

from layerprobe.errors import MeasureError
from layerprobe.sae import top_peaks, top_tokens

LENGTHS = (3, 5, 60, 4, 7, 2, 6)
EXAMPLE = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
INDEX = np.concatenate([np.arange(n) for n in LENGTHS])


@pytest.fixture(scope="module")
def dense():
    rng = np.random.default_rng(0)
    values = np.where(rng.random((sum(LENGTHS), 6)) < 0.2, rng.exponential(size=(sum(LENGTHS), 6)), 0)
    values[:, 3] = 0  # dead
    values[:, 4] = (values[:, 4] > 0) * 0.5  # ties
    return values.astype(np.float32)


def test_top_tokens_are_those_of_a_plain_sum(dense):
    words = [f"w{i}" for i in np.random.default_rng(1).integers(0, 12, len(dense))]
    table = top_tokens(csc_array(dense), words)
    assert set(table.latent) == {0, 1, 2, 4, 5}
    first = {word: words.index(word) for word in words}
    for latent, rows in table.groupby("latent"):
        frame = pd.DataFrame({"word": words, "value": dense[:, latent].astype(float)})
        sums = frame.groupby("word").value.sum()
        expected = sorted(sums[sums > 0].index, key=lambda word: (-round(sums[word], 9), first[word]))[:5]
        assert rows.token.tolist() == expected and rows["rank"].tolist() == list(range(len(expected)))
        assert rows.share.to_numpy() == pytest.approx((sums / sums.sum())[expected].to_numpy())
        active = frame[frame.value > 0].word.value_counts()
        assert rows.active.tolist() == active[expected].tolist()
        assert rows.occurrences.tolist() == frame.word.value_counts()[expected].tolist()


def test_top_peaks_are_those_of_a_plain_sort(dense):
    table = top_peaks(csc_array(dense), EXAMPLE, INDEX)
    assert set(table.latent) == {0, 1, 2, 4, 5}
    for latent, rows in table.groupby("latent"):
        values = pd.Series(dense[:, latent])
        peaks = values.groupby(EXAMPLE).max()
        expected = peaks[peaks > 0].sort_values(ascending=False, kind="stable").index[:3].tolist()
        assert rows.drop_duplicates("rank").example.tolist() == expected
        for (rank, example), part in rows.groupby(["rank", "example"]):
            assert example == expected[rank]
            inside = values[example == EXAMPLE].to_numpy()
            low = 0 if len(inside) <= 40 else min(max(0, int(inside.argmax()) - 20), len(inside) - 40)
            window = np.flatnonzero(inside[low : low + 40]) + low
            assert part.token_index.tolist() == window.tolist()
            assert part.activation.to_numpy() == pytest.approx(inside[window])


def test_dictionaries_without_activity_have_empty_tables():
    nothing = csc_array((len(EXAMPLE), 3), dtype=np.float32)
    tokens, peaks = top_tokens(nothing, ["w"] * len(EXAMPLE)), top_peaks(nothing, EXAMPLE, INDEX)
    assert tokens.empty and "share" in tokens and peaks.empty and "activation" in peaks


def test_rows_without_a_word_or_an_example_are_refused(dense):
    codes = csc_array(dense)
    with pytest.raises(MeasureError, match="87 rows, but 2 words were given"):
        top_tokens(codes, ["a", "b"])
    with pytest.raises(MeasureError, match="but 3 positions"):
        top_peaks(codes, EXAMPLE, INDEX[:3])
