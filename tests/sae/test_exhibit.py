"""What is shown of latents: histograms, means by class and examples, against slow twins and planted activations."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.sparse import csc_array

from layerprobe.errors import MeasureError
from layerprobe.sae import exhibit, top_latents
from layerprobe.stages.exhibit import _partners

LENGTHS = (3, 5, 60, 4, 7, 2, 6, 8, 5, 9, 3, 4)
LABELS = np.array([0, 1] * 6)


def tokens():
    example = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    index = np.concatenate([np.arange(n) for n in LENGTHS])
    words = [f"w{e}-{i}" for e, i in zip(example, index, strict=True)]
    return pd.DataFrame({"example": example, "token_index": index, "token": words, "special": index == 0})


def codes(seed=0, latents=3, density=0.3):
    rng = np.random.default_rng(seed)
    n = sum(LENGTHS)
    return np.where(rng.random((n, latents)) < density, rng.exponential(size=(n, latents)), 0).astype(np.float32)


def shown(first, other=None):
    readings = {"base": csc_array(first), "adapted": csc_array(first if other is None else other)}
    return exhibit(readings, range(first.shape[1]), tokens(), LABELS, ["no", "yes"])


def test_histograms_share_their_bins_and_count_every_token():
    first, other = codes(0), 2 * codes(1)
    table = shown(first, other).histograms
    for latent in range(3):
        largest = max(first[:, latent].max(), other[:, latent].max())
        for name, values in (("base", first[:, latent]), ("adapted", other[:, latent])):
            rows = table[(table.latent == latent) & (table.on == name)]
            assert rows.tokens.sum() == len(first) and rows.tokens.iloc[0] == (values == 0).sum()
            # numpy's bins are closed below, so it counts the mirrored values.
            twin, edges = np.histogram(-values[values > 0].astype(float), 20, range=(-float(largest), 0))
            assert rows.tokens.iloc[1:].tolist() == twin[::-1].tolist()
            assert np.allclose(rows.high.iloc[1:], -edges[::-1][1:])


def test_means_by_class_and_their_intervals_are_scipys():
    first = codes()
    table = shown(first).classes.set_index(["latent", "on", "label"])
    frame = tokens().assign(value=first[:, 1].astype(float))
    texts = frame.groupby("example").value.agg(["mean", "max"])
    for number, label in enumerate(["no", "yes"]):
        part = texts[number == LABELS]
        row = table.loc[(1, "base", label)]
        low, high = stats.t.interval(0.95, len(part) - 1, part["mean"].mean(), stats.sem(part["mean"]))
        assert row[["mean", "low", "high"]].tolist() == pytest.approx([part["mean"].mean(), low, high])
        assert row.active == (part["max"] > 0).mean() and row.n == 6


def test_one_example_of_a_class_has_no_interval():
    table = tokens()
    labels = np.array([1, *[0] * 11])
    row = exhibit({"base": csc_array(codes())}, range(3), table, labels, ["a", "b"]).classes
    assert row[row.label == "b"][["low", "high"]].isna().all(axis=None) and (row[row.label == "b"].n == 1).all()


def test_top_examples_and_even_ranks_are_those_of_a_plain_sort():
    first = codes(density=0.6)
    table = shown(first).examples
    peaks = tokens().assign(value=first[:, 0]).groupby("example").value.max()
    ranked = peaks[peaks > 0].sort_values(ascending=False)
    result = table[table.latent == 0].drop_duplicates("rank")
    n = len(ranked)
    ranks = [0, 1, 2, 3, 4, *sorted({round((n - 1) * step / 5) for step in (1, 2, 3, 4)} - {0, 1, 2, 3, 4})]
    assert n > 8
    assert result["rank"].tolist() == ranks
    assert result.example.tolist() == ranked.index[ranks].tolist()
    assert result.choice.tolist() == ["top"] * 5 + ["quantile"] * (len(ranks) - 5)
    assert result.level.tolist() == pytest.approx([(ranked < value).mean() for value in ranked.iloc[ranks]])


def test_long_examples_are_cut_around_their_peak_and_short_ones_are_whole():
    for peak, low in ((0, 0), (30, 10), (59, 20)):
        first = np.zeros((sum(LENGTHS), 1), dtype=np.float32)
        start = sum(LENGTHS[:2])
        first[start + peak] = 2
        first[0] = 1
        table = shown(first).examples
        long = table[table.example == 2]
        assert long.token_index.tolist() == list(range(low, low + 40))
        assert long[long.base > 0].token.tolist() == [f"w2-{peak}"]
        assert table[table.example == 0].token.tolist() == ["w0-0", "w0-1", "w0-2"]


def test_each_reading_is_shown_on_the_same_tokens():
    first, other = codes(2), codes(3)
    table = shown(first, other).examples
    where = {(e, i): n for n, (e, i) in enumerate(zip(tokens().example, tokens().token_index, strict=True))}
    rows = [where[key] for key in zip(table.example, table.token_index, strict=True)]
    assert np.array_equal(table.base, first[rows, table.latent])
    assert np.array_equal(table.adapted, other[rows, table.latent])
    assert table.special.tolist() == (table.token_index == 0).tolist()


def test_an_inactive_latent_has_tables_and_no_examples():
    first = np.zeros((sum(LENGTHS), 1), dtype=np.float32)
    result = shown(first)
    assert result.examples.empty and {"latent", "base", "adapted", "token"} <= set(result.examples.columns)
    assert result.histograms.tokens.tolist() == [len(first)] * 2 and (result.classes["mean"] == 0).all()
    # Shown because of the other side: activations there set the bins.
    assert shown(first, first + 1).histograms.query("on == 'adapted'").tokens.iloc[-1] == len(first)


def test_what_does_not_fit_is_refused():
    first = csc_array(codes())
    with pytest.raises(MeasureError, match=r"'base' has shape \(116, 3\)"):
        exhibit({"base": first}, [1, 2], tokens(), LABELS, ["a", "b"])
    with pytest.raises(MeasureError, match="up to 11 and 4 labels"):
        exhibit({"base": first}, [1, 2, 3], tokens(), LABELS[:4], ["a", "b"])
    with pytest.raises(MeasureError, match="sort the rows by example"):
        exhibit({"base": first}, [1, 2, 3], tokens().sample(frac=1, random_state=0), LABELS, ["a", "b"])
    with pytest.raises(MeasureError, match="no activations"):
        exhibit({}, [], tokens(), LABELS, ["a", "b"])


def test_top_latents_are_taken_from_task_effect_loss_and_activity():
    table = pd.DataFrame(
        {
            "latent": range(10),
            "task": [False] * 5 + [True] * 5,
            "effect": [0.9, np.nan, 0.1, 0.1, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7],
            "active_examples": [50, 0, 40, 30, 20, 10, 10, 10, 10, 10],
            "unmatched": [False, True, False, False, True, True, False, False, False, False],
        }
    )
    assert top_latents(table, 8) == [9, 8, 7, 6, 4, 5, 0, 2]
    assert top_latents(table, 100) == [9, 8, 7, 6, 5, 4, 0, 2, 3]  # the dead one is never shown
    with pytest.raises(MeasureError, match="without `effect`"):
        top_latents(table.drop(columns="effect"), 3)


def test_matches_are_read_in_the_places_of_their_latents_and_zero_where_there_is_none():
    first = codes(latents=5)
    partners = pd.Series(pd.array([4, None, 0, 4], dtype="Int64"))
    result = _partners(csc_array(first), partners)
    assert result.format == "csc"
    assert np.array_equal(result.toarray(), np.stack([first[:, 4], 0 * first[:, 0], first[:, 0], first[:, 4]], axis=1))
