"""The card of a study of energy: which depth takes the least energy, and after how many rounds of meta-training."""

from __future__ import annotations

from layerprobe.record import RunRecord
from layerprobe.report.decisions import badge
from layerprobe.report.section import Tables
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.energy import queries
from layerprobe.report.sections.energy.queries import Least, joules
from layerprobe.report.sections.energy.sentences import sentences

TITLE = "Which depth takes the least energy?"


def energy_card(tables: Tables, record: RunRecord) -> Card:
    """The depth of the least energy against the next one, in the cluster that the page shows first."""
    settings, cluster = queries.settings_of(record), queries.first_cluster(tables)
    found: list[tuple[str, Least]] = []
    unknown = []
    for inner in queries.depths(tables):
        rows = queries.rows_of(tables, inner, *cluster)
        least = None if rows.empty else queries.least_of(rows, settings)
        if least is None:
            unknown.append(f"`{inner}`")
        else:
            found.append((inner, least))
    details = tuple(sentences(tables, record))
    if not found:
        claim = "Not known: no depth reached the target for every task within the largest number of rounds"
        return Card(TITLE, claim, "–", badge(False, 0), "energy", details)
    (best, least), *others = sorted(found, key=lambda one: joule_of(one[1]))
    claim, decided = f"`{best}`, {words_of(least)}", False
    if others:
        other, more = others[0]
        claim += f"; next `{other}`, {words_of(more)}, with {joules(joule_of(more))}"
        decided = least.high < more.low and not unknown
    if unknown:
        claim += f"; of {', '.join(unknown)}, only lower bounds are known"
    seeds = int(tables["energy"].seeds.max())
    return Card(TITLE, claim, f"{joules(joule_of(least))} ({best})", badge(decided, seeds), "energy", details)


def joule_of(least: Least) -> float:
    return float(least.optimum.energy.total)


def words_of(least: Least) -> str:
    """Its rounds of meta-training."""
    rounds = least.optimum.meta_rounds
    return f"after {rounds} rounds of meta-training" if rounds else "without meta-training"
