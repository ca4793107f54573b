"""What became of matched latents: planted transitions, coverage of the interval, and no excess where nothing changed."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array

from layerprobe import sae
from layerprobe.errors import ArgumentError

KINDS = ("general", "both", "task", "unexplained")


def excess(base, adapted, null, before="general", after="task or both", **options):
    table = sae.transitions(base, adapted, null, **options).set_index(["kind_base", "kind_adapted"])
    return table.loc[(before, after)]


def changed(kinds, rate, rng):
    """Kinds of which a share becomes `task`."""
    return np.where(rng.random(len(kinds)) < rate, "task", kinds).tolist()


def test_rates_are_counted_over_latents_with_a_kind_in_all_three():
    base = ["general"] * 6 + ["task"] * 2 + [None]
    adapted = ["general", "task", "both", "task", None, "task", "task", "unexplained", "task"]
    null = ["general", "general", "general", "task", "task", None, "task", "task", "task"]
    table = sae.transitions(base, adapted, null).set_index(["kind_base", "kind_adapted"])
    row = table.loc[("general", "task or both")]
    assert (row.latents, row["count"], row.null_count) == (4, 3, 1)
    assert (row.rate, row.null_rate, row.excess) == (0.75, 0.25, 0.5)
    assert table.loc[("general", "task"), "excess"] == 0.25 == table.loc[("general", "both"), "excess"]
    assert table.loc[("task", "unexplained"), "rate"] == 0.5 and ("both", "task") not in table.index
    for kind in ("general", "task"):
        assert table.loc[kind].drop("task or both")["count"].sum() == table.loc[kind].latents.iloc[0]
        assert table.loc[kind].drop("task or both").excess.sum() == pytest.approx(0)


def test_equal_sides_have_no_excess_at_all():
    rng = np.random.default_rng(0)
    base, other = (rng.choice(KINDS, 300).tolist() for _ in range(2))
    table = sae.transitions(base, other, other)
    assert (table.excess == 0).all() and (table.low < 0).all() and (table.high > 0).all()


def test_the_interval_covers_the_planted_excess():
    """A tenth of general features is relabelled, on top of what changes by chance."""
    rng = np.random.default_rng(1)
    for n in (40, 300):
        for planted in (0.0, 0.1):
            base, rows = ["general"] * n, []
            for _ in range(200):
                null, adapted = changed(base, 0.06, rng), changed(base, 0.06, rng)
                # Of those that chance has left as they were.
                rows.append(excess(base, changed(adapted, planted / 0.94, rng), null))
            found = pd.DataFrame(rows)
            covered = ((found.low <= planted) & (planted <= found.high)).mean()
            assert covered >= 0.95 - 2.33 * np.sqrt(0.05 * 0.95 / 200), (n, planted)
            assert found.excess.mean() == pytest.approx(planted, abs=0.01)
            if not planted:
                assert (found.low > 0).mean() <= 0.025 + 2.33 * np.sqrt(0.025 * 0.975 / 200)


def test_the_interval_is_that_of_bonett_and_price():
    base = ["general"] * 50
    adapted, null = ["task"] * 12 + ["general"] * 38, ["general"] * 10 + ["task"] * 5 + ["general"] * 35
    row = excess(base, adapted, null)  # 10 gained, 3 lost, 2 in both
    p, q = 11 / 52, 4 / 52
    reach = 1.959963984540054 * np.sqrt((p + q - (p - q) ** 2) / 52)
    assert (row.excess, row.low, row.high) == pytest.approx((7 / 50, p - q - reach, p - q + reach))
    wide = excess(base, adapted, null, layers=3)
    assert wide.all_low < row.low == wide.low and wide.all_high > row.high and row.all_low == row.low


def test_no_layer_has_an_excess_by_chance_in_more_than_one_study_in_twenty():
    """Thirteen layers, and a change by chance as common in adapted as in the null."""
    rng, base = np.random.default_rng(2), ["general"] * 80
    false = 0
    for _ in range(100):
        layers = [excess(base, changed(base, 0.06, rng), changed(base, 0.06, rng), layers=13) for _ in range(13)]
        false += any(row.all_low > 0 for row in layers)
    assert false / 100 <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / 100)


def dictionary(rng, tokens, relabelled, noise=0.15, n=60):
    """Activations of latents that each follow one token, some of them one label instead; with noise of their own."""
    example, token, labels = tokens
    rows = np.zeros((len(token), n), dtype=np.float32)
    for latent in range(n):
        active = labels[example] == 1 if latent in relabelled else token == latent % 12
        active = active & (rng.random(len(token)) < 0.6) | (rng.random(len(token)) < noise * 0.1)
        rows[active, latent] = rng.exponential(size=active.sum()) + 0.1
    return csc_array(rows)


def test_relabelled_features_are_found_through_the_tests_of_associations():
    """Dictionaries with known matches: six of sixty latents that follow a token follow a label in adapted."""
    rng = np.random.default_rng(3)
    example = np.repeat(np.arange(160), 12)
    token, labels = rng.integers(12, size=len(example)), rng.permutation(np.arange(160) % 2)
    frame = pd.DataFrame(
        {
            "example": example,
            "token_index": np.tile(np.arange(12), 160),
            "token": [f"w{number}" for number in token],
            "special": False,
        }
    )
    tables = [
        sae.associations(dictionary(rng, (example, token, labels), chosen), frame, labels, ["a", "b"])
        for chosen in (range(0), range(6), range(0))
    ]
    order = rng.permutation(60)
    base, adapted, null = sae.comparable_kinds(tables)
    partner = pd.array(np.argsort(order), dtype="Int64")
    partner[59] = pd.NA  # without a match
    matched = sae.matched_kinds(partner, [adapted[latent] for latent in order])
    assert matched[:59] == adapted[:59] and matched[59] is None
    row = excess(base, matched, null)
    assert base.count("general") >= 55
    assert row.low < 0.1 < row.high and row.excess == pytest.approx(0.1, abs=0.02) and row.all_low > 0


def test_all_dictionaries_are_judged_by_the_most_lenient_threshold():
    def table(p, task, effect=0.5, judged=True):
        columns = {"p": p, "task": task, "effect": effect, "judged": judged}
        return pd.DataFrame({**columns, "property_p": [0.001] * 3, "property_effect": 0.3, "general": False})

    strict = table([0.001, 0.02, 0.5], [True, False, False])
    lenient = table([0.03, 0.02, 0.5], [True, True, False])
    kinds = sae.comparable_kinds([strict, lenient])
    assert kinds == [["task", "task", "unexplained"]] * 2  # none is general: no dictionary has a discovery
    assert sae.comparable_kinds([strict])[0] == ["task", "unexplained", "unexplained"]
    small = lenient.assign(effect=[0.5, 0.1, 0.5], judged=[False, True, True])
    assert sae.comparable_kinds([strict, small])[1] == [None, "unexplained", "unexplained"]


def test_a_latent_that_is_not_judged_has_no_kind():
    assert sae.matched_kinds([1, 0, None], ["task", None]) == [None, "task", None]


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match="2, 1, 2 kinds"):
        sae.transitions(["task"] * 2, ["task"], ["task"] * 2)
    with pytest.raises(ArgumentError, match="has the kind 'dead'"):
        sae.transitions(["task"], ["dead"], ["task"])
