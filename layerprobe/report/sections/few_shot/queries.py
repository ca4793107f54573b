"""Reads of the tables of a few-shot study: inner depths in order, bodies, and paired gains over the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

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
    data = record.study.resolved.get("data") or {}
    if data.get("source") == "bundled:icd10":
        return "chapters"
    return "groups" if data.get("group") else "classes"


def is_by_group(tables: Tables) -> bool:
    """Whether every episode has one group, so that intervals cover other groups."""
    table = having(tables, "few_shot_accuracy", "groups")
    return table is not None and bool(table.groups.notna().any())


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

    table, by_group = having(tables, "few_shot"), is_by_group(tables)
    if table is None:
        return []
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


@dataclass(frozen=True)
class Change:
    """Similarity before and after the inner loop of one depth; rows have value, ci_low, ci_high, episodes and n."""

    least: Any
    """Row of the least similar layer among those that are not identical by construction; None if all are."""
    others: tuple[int, ...]
    """The other layers that are not identical by construction."""
    ties: tuple[int, ...]
    """Those of them whose interval overlaps that of the least similar layer."""
    head: Any
    """Row of the logits; None if the head was not compared."""
    head_is_least: bool
    """Whether the interval of the logits lies below those of all layers."""
    seeds: int


def change_of(tables: Tables, depth: str, measure: str = "cka") -> Change | None:
    """What the inner loop of one depth changed; None if layers were not compared."""
    rows = layers_of(tables, "inner loop", measure)
    if rows is None:
        return None
    part = rows[(rows.inner == depth) & rows.value.notna()]
    if part.empty:
        return None
    heads, body = part[part.part == "head"], part[part.part == "layer"]
    body = body[~body.note.str.contains("identical")].sort_values("value")
    head: Any = next(heads.itertuples(), None)
    least: Any
    rows_of_layers: list[Any] = list(body.itertuples())
    least, others = rows_of_layers[0] if rows_of_layers else None, rows_of_layers[1:]
    ties = tuple(sorted(int(one.layer) for one in others if not least.ci_high < one.ci_low))
    head_is_least = head is not None and all(head.ci_high < low for low in body.ci_low)
    layers = tuple(sorted(int(one.layer) for one in others))
    return Change(least, layers, ties, head, head_is_least, int(part.seeds.max()))


@dataclass(frozen=True)
class Rates:
    """The inner rate of one body and depth."""

    method: str
    seed: int
    inner: str
    rate: float
    losses: dict[float, float]
    """Loss on the validation episodes by rate that was tried, missing where the inner loop diverged; empty for a rate that
    the study gives."""

    @property
    def at_end(self) -> str:
        """`largest` or `smallest` where the rate is the last of those tried on this side; empty otherwise."""
        tried = sorted(self.losses)
        if len(tried) < 2 or self.rate not in (tried[0], tried[-1]):
            return ""
        return "largest" if self.rate == tried[-1] else "smallest"


def chosen_rates(tables: Tables) -> list[Rates]:
    """Inner rates by body, seed and depth."""
    table = having(tables, "few_shot_rates")
    if table is None:
        return []
    found, keys = [], ["method", "seed", "inner"]
    one: Any
    for one in table[keys].drop_duplicates().itertuples(index=False):
        rows = table[(table[keys] == list(one)).all(axis=1)]
        tried = rows[rows.n > 0]
        losses = dict(zip(tried.rate.astype(float), tried.loss.astype(float), strict=True))
        found.append(Rates(one.method, int(one.seed), one.inner, float(rows.rate[rows.chosen].iloc[0]), losses))
    return found
