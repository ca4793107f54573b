"""Shares of latents by kind: counts, and mass with its interval."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array
from scipy.stats import t

from layerprobe import sae
from layerprobe.errors import MeasureError


def latents(kinds, rare=0):
    """A table of associations: its last latents are rare."""
    judged = [kind != "dead" for kind in kinds[: len(kinds) - rare]] + [False] * rare
    return pd.DataFrame({"latent": range(len(kinds)), "kind": kinds, "judged": judged})


KINDS = ["task"] * 3 + ["general"] * 4 + ["both"] * 2 + ["unexplained"] * 3 + ["dead"] + ["unexplained"] * 2


@pytest.fixture
def dictionary():
    rng = np.random.default_rng(0)
    rows = rng.exponential(size=(400, 15)) * (rng.random((400, 15)) < 0.2)
    rows[:, 12] = 0
    return latents(KINDS, rare=2), csc_array(rows.astype(np.float32)), np.sort(rng.integers(40, size=400))


def test_counts_and_shares(dictionary):
    row = sae.latent_shares(*dictionary).iloc[0]
    names = ["latents", "task", "general", "both", "unexplained", "rare", "dead", "live"]
    assert row[names].astype(int).tolist() == [15, 3, 4, 2, 3, 2, 1, 12]
    assert row[["share_task", "share_general", "share_both", "share_unexplained"]].tolist() == [
        5 / 12,
        6 / 12,
        2 / 12,
        3 / 12,
    ]
    p, z, n = 5 / 12, 1.959963984540054, 12
    middle, reach = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert row.share_low == pytest.approx((middle - reach) / (1 + z**2 / n))
    assert row.share_high == pytest.approx((middle + reach) / (1 + z**2 / n))
    assert np.isnan(row.share_permuted) and row.n == 40
    null = sae.LabelNull(0.01, 0.02, 0.03, np.zeros(1))
    assert sae.latent_shares(*dictionary, null).iloc[0][["share_permuted", "share_permuted_high"]].tolist() == [
        0.01,
        0.02,
    ]


def test_mass_is_of_task_latents_with_an_interval_over_groups_of_examples(dictionary):
    table, codes, example = dictionary
    row = sae.latent_shares(table, codes, example).iloc[0]
    rows, task = codes.toarray().astype(float), table.kind.isin(["task", "both"]).to_numpy()
    assert row.mass_task == pytest.approx(rows[:, task].sum() / rows.sum())
    fold = np.random.default_rng(0).permutation(np.arange(40) % 20)[example]
    left = [rows[fold != f][:, task].sum() / rows[fold != f].sum() for f in range(20)]
    reach = t.ppf(0.975, 19) * np.sqrt(19 / 20 * ((left - np.mean(left)) ** 2).sum())
    assert (row.mass_low, row.mass_high) == pytest.approx((row.mass_task - reach, row.mass_task + reach))


def test_the_interval_of_mass_covers_what_it_should():
    rng = np.random.default_rng(0)
    example, covered = np.repeat(np.arange(120), 6), 0
    for _ in range(200):
        level = rng.exponential(size=(120, 2))[example]
        codes = csc_array((level * rng.exponential(size=(720, 2))).astype(np.float32))
        row = sae.latent_shares(latents(["task", "general"]), codes, example).iloc[0]
        covered += row.mass_low <= 0.5 <= row.mass_high
    assert 0.9 <= covered / 200 <= 0.985


def test_without_activations_shares_are_undefined():
    row = sae.latent_shares(latents(["dead"] * 3), csc_array((6, 3), dtype=np.float32), np.repeat([0, 1], 3)).iloc[0]
    assert row.dead == 3 and np.isnan(row[["share_task", "share_high", "mass_task", "mass_low"]].astype(float)).all()
    one = sae.latent_shares(
        latents(["task"]), csc_array(np.ones((6, 1), dtype=np.float32)), np.repeat([0, 1], [5, 1])
    ).iloc[0]
    assert one.mass_task == 1 == one.mass_low == one.mass_high


def test_mistakes_are_named(dictionary):
    table, codes, example = dictionary
    with pytest.raises(MeasureError, match="14 latents and 400 tokens, and codes of shape"):
        sae.latent_shares(table[:14], codes, example)
