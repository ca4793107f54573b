"""The card of a study of energy: which depth takes the least energy, and after how many rounds of meta-training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerprobe.record import RunRecord
from layerprobe.report.decisions import badge
from layerprobe.report.section import Tables
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.energy.queries import (
    curve_of,
    depths,
    first_cluster,
    joules,
    rows_of,
    settings_of,
    totals,
)
from layerprobe.report.sections.energy.sentences import sentences

TITLE = "Which depth takes the least energy?"


@dataclass(frozen=True)
class Least:
    """The least energy of one depth, in joule, and the number of meta-training rounds that it takes."""

    inner: str
    meta_rounds: int
    total: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """Its rounds of meta-training."""
        return f"after {self.meta_rounds} rounds of meta-training" if self.meta_rounds else "without meta-training"


def energy_card(tables: Tables, record: RunRecord) -> Card:
    """The depth of the least energy against the next one, in the cluster that the page shows first."""
    found = sorted(least_of(tables, record), key=lambda least: least.total)
    details = tuple(sentences(tables, record))
    if not found:
        claim = "Not known: no depth reached the target for every task within the largest number of rounds"
        return Card(TITLE, claim, "–", badge(False, 0), "energy", details)
    best, *others = found
    claim, decided = f"`{best.inner}`, {best.words}", False
    if others:
        claim += f"; next `{others[0].inner}`, {others[0].words}, with {joules(others[0].total)}"
        decided = best.high < others[0].low
    if unknown := [inner for inner in depths(tables) if inner not in {one.inner for one in found}]:
        claim += f"; of {', '.join(f'`{inner}`' for inner in unknown)}, only lower bounds are known"
        decided = False
    seeds = int(tables["energy"].seeds.max())
    return Card(TITLE, claim, f"{joules(best.total)} ({best.inner})", badge(decided, seeds), "energy", details)


def least_of(tables: Tables, record: RunRecord) -> list[Least]:
    """The least energy of each depth that reached the target after some number of meta-training rounds."""
    found, settings = [], settings_of(record)
    for inner in depths(tables):
        rows = rows_of(tables, inner, *first_cluster(tables))
        if rows.empty or (curve := curve_of(rows, settings)).censored.all():
            continue
        best, ends = curve.optimum(), totals(rows, settings)
        at = int(np.flatnonzero(curve.meta_rounds == best.meta_rounds)[0])
        total = float(best.energy.total)
        found.append(Least(inner, int(best.meta_rounds), total, float(ends.low[at]), float(ends.high[at])))
    return found
