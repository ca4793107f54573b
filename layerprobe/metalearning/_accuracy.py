"""Accuracy over episodes: intervals, and inner depths compared on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from layerprobe.stats import group_error, mean_interval

if TYPE_CHECKING:
    import pandas as pd


def summarise_accuracy(table: pd.DataFrame, *, by_group: bool) -> pd.DataFrame:
    """Mean accuracy of each body and reader with its intervals.

    Args:
        table: columns method, seed, inner, reader, episode, group, accuracy.
        by_group: whether every episode has one group, so that intervals can cover other groups.

    Returns:
        One row per method, inner and reader: n, seeds, accuracy, ci_low, ci_high, group_low, group_high, groups.
    """
    import pandas as pd
    from scipy import stats

    rows = []
    for (method, inner, reader), part in table.groupby(["method", "inner", "reader"], sort=False):
        per_episode = part.groupby("episode").agg(accuracy=("accuracy", "mean"), group=("group", "first"))
        mean, low, high = mean_interval(per_episode["accuracy"].to_numpy())
        row = {
            "method": method,
            "inner": inner,
            "reader": reader,
            "n": len(per_episode),
            "seeds": part["seed"].nunique(),
        }
        row |= {
            "accuracy": mean,
            "ci_low": low,
            "ci_high": high,
            "group_low": np.nan,
            "group_high": np.nan,
            "groups": None,
        }
        if by_group:
            error, groups = group_error(per_episode["accuracy"].to_numpy(), per_episode["group"].to_numpy())
            half = stats.t.ppf(0.975, groups - 1) * error if groups > 1 else np.nan
            row |= {"group_low": mean - half, "group_high": mean + half, "groups": groups}
        rows.append(row)
    return pd.DataFrame(rows).astype({"groups": "Int64"})


def compare_depths(
    table: pd.DataFrame, deepest_first: Sequence[str], *, margin: float, by_group: bool, alpha: float = 0.05
) -> pd.DataFrame:
    """Each inner depth against the deepest on the same episodes: paired differences and tests for non-inferiority.

    Depths are tested from the deepest to the shallowest, each at level `alpha`, until one is not shown to be sufficient; this
    keeps the probability of any false "sufficient" at `alpha`. With `by_group`, errors are over groups.

    Args:
        table: columns seed, inner, episode, group, accuracy of meta-trained bodies read by their own inner loop.
        deepest_first: the depths; the first is the reference.
        margin: loss of accuracy that counts as none.
        by_group: whether intervals cover other groups.
        alpha: level of the tests.

    Returns:
        One row per depth but the reference: inner, reference, n, seeds, difference, ci_low, ci_high, margin, p, order,
        outcome, covers.
    """
    import pandas as pd
    from scipy import stats

    columns = [
        "inner",
        "reference",
        "n",
        "seeds",
        "difference",
        "ci_low",
        "ci_high",
        "margin",
        "p",
        "order",
        "outcome",
        "covers",
    ]
    reference, testing, rows = deepest_first[0], True, []
    wide = table.pivot_table(index="episode", columns="inner", values="accuracy", aggfunc="mean")
    groups = table.groupby("episode")["group"].first().to_numpy()
    for order, depth in enumerate(deepest_first[1:], 1):
        difference = (wide[depth] - wide[reference]).to_numpy()
        mean, error, n = (
            float(difference.mean()),
            float(difference.std(ddof=1)) / len(difference) ** 0.5,
            len(difference),
        )
        if by_group:
            error, n = group_error(difference, groups)
        if n > 1:
            # Where all differences are equal, there is no error over episodes.
            half = stats.t.ppf(1 - alpha / 2, n - 1) * error
            p = float(stats.t.sf((mean + margin) / error, n - 1)) if error > 0 else float(mean <= -margin)
        else:
            half = p = np.nan
        if not testing:
            outcome = "not tested"
        elif p <= alpha:
            outcome = "sufficient"
        else:
            outcome, testing = ("inferior" if mean + half < -margin else "undecided"), False
        values = (
            depth,
            reference,
            n,
            table["seed"].nunique(),
            mean,
            mean - half,
            mean + half,
            margin,
            p,
            order,
            outcome,
        )
        rows.append((*values, "groups" if by_group else "episodes"))
    return pd.DataFrame(rows, columns=columns)
