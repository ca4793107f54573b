"""Reads of the tables of a few-shot study: inner depths in order, bodies, and paired gains over the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layerprobe.onsets import extreme
from layerprobe.record import RunRecord
from layerprobe.report.queries import having
from layerprobe.report.section import Tables
from layerprobe.stats import group_error, mean_interval

TRAINED = "meta-trained"
BODIES = (TRAINED, "pretrained", "multiclass", "multitask", "random")
"""Values of the column `method`, in the order of the page."""


def depths(tables: Tables, record: RunRecord) -> list[str]:
    """Inner depths, the shallowest first."""
    table = having(tables, "few_shot_differences")
    if table is not None:
        return [*table.sort_values("order", ascending=False).inner, str(table.reference.iloc[0])]
    listed = [str(depth) for depth in (record.study.resolved.get("few_shot") or {}).get("inner", ())]
    for name in ("few_shot_accuracy", "few_shot_layers", "few_shot_counts"):
        other = having(tables, name, "inner")
        listed += [] if other is None else [depth for depth in dict.fromkeys(other.inner) if depth not in ("", *listed)]
    return listed


def test_labels(record: RunRecord) -> str:
    """What the classes of meta-test episodes are drawn from, for statements about what intervals cover."""
    return "groups" if (record.study.resolved.get("data") or {}).get("group") else "classes"


@dataclass(frozen=True)
class Gain:
    """Accuracy of one body minus that of another, both read by the same inner loop on the same episodes."""

    inner: str
    accuracy: float
    other: float
    value: float
    low: float
    high: float
    n: int
    seeds: int
    groups: int | None
    """Number of groups that the interval is over; None for episodes of the same classes."""

    @property
    def decided(self) -> bool:
        return self.low > 0 or self.high < 0


def gains(tables: Tables, inner: Sequence[str], other: str = "pretrained") -> list[Gain]:
    """For each inner depth, what meta-training gained over another body with the same inner loop."""
    from scipy import stats

    table, accuracy = having(tables, "few_shot"), having(tables, "few_shot_accuracy", "groups")
    if table is None:
        return []
    by_group = accuracy is not None and bool(accuracy.groups.notna().any())
    read, found = table[table.reader == "inner"], []
    for depth in inner:
        rows = read[read.inner == depth]
        one, two = (rows[rows.method == name].groupby("episode").accuracy.mean() for name in (TRAINED, other))
        both = pd.concat([one, two], axis=1, join="inner", keys=("one", "two"))
        if both.empty:
            continue
        difference = (both.one - both.two).to_numpy()
        value, low, high = mean_interval(difference)
        groups = None
        if by_group:
            of_episode = rows.groupby("episode").group.first()[both.index].to_numpy()
            error, groups = group_error(difference, of_episode)
            half = stats.t.ppf(0.975, groups - 1) * error if groups > 1 else np.nan
            low, high = value - half, value + half
        seeds = rows[rows.method == TRAINED].seed.nunique()
        found.append(Gain(depth, both.one.mean(), both.two.mean(), value, low, high, len(both), seeds, groups))
    return found


def layers_of(tables: Tables, comparison: str, measure: str) -> pd.DataFrame | None:
    """Rows of one comparison and measure, averaged over seeds: inner, other, part, layer, value, ci_low, ci_high, note.

    With several seeds the ends are the lowest and highest of all seeds' intervals.
    """
    table = having(tables, "few_shot_layers")
    if table is None:
        return None
    rows = table[(table.comparison == comparison) & (table.measure == measure)]
    if rows.empty:
        return None
    keys = ["inner", "other", "part", "layer"]
    summary = {"value": ("value", "mean"), "ci_low": ("ci_low", "min"), "ci_high": ("ci_high", "max")}
    summary |= {
        "note": ("note", "first"),
        "seeds": ("seed", "nunique"),
        "n": ("n", "max"),
        "episodes": ("episodes", "max"),
    }
    return rows.groupby(keys, sort=False, dropna=False).agg(**summary).reset_index()


def most_changed(body: pd.DataFrame) -> int | None:
    """The layer whose interval lies below those of all other layers; None if there is no such layer.

    Args:
        body: rows of the layers of one inner loop; those that are identical by construction have a similarity of exactly 1.
    """
    same = body.note.str.contains("identical")
    low, high = (body[end].where(~same, 1.0).to_numpy(dtype=np.float64) for end in ("ci_low", "ci_high"))
    return extreme(body.layer.to_list(), low, high)
