"""The cards of a comparison: which run is more accurate, which changed more, and in which less training was enough."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from layerprobe.record import Finding
from layerprobe.report import decisions, queries
from layerprobe.report.comparison.tables import Comparison, main_match, matches, shared_measure
from layerprobe.report.decisions import badge
from layerprobe.report.labels import label_warning
from layerprobe.report.queries import Drift
from layerprobe.report.section import Tables
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.answer.needed import words
from layerprobe.report.sections.answer.where import in_words, where

ACCURATE, WHERE, ENOUGH = "Which is more accurate?", "Where do they differ?", "Was less training enough?"
SHORT = 28
"""Letters of a label that are shown next to a number at most."""
NAMED = 4
"""Number of runs, or of sets of test examples, that a sentence names at most."""


def cards(tables: Tables, comparison: Comparison) -> list[Card]:
    """Accuracy on the same test examples, change by layer, and the conclusions about depth: only what intervals allow."""
    return [accurate(tables, comparison), differ(comparison), enough(comparison)]


def accurate(tables: Tables, comparison: Comparison) -> Card:
    """Each run against the first one with the same test examples, by bands that hold for all of them at once."""
    paired, claims = queries.having(tables, "paired"), []
    rows: list[list[dict[str, Any]]] = []
    for group in comparison.groups:
        if paired is None:
            break
        runs = [run for run in comparison.runs if run.label in group]
        # Runs with the same examples may have a match that others lack.
        roles = (comparison.main.name, main_match(matches(runs), runs[0].record).name)
        of_group = paired[paired.reference == group[0]]
        found = next((of_group[of_group.role == role] for role in roles if role in set(of_group.role)), None)
        if found is not None:
            rows.append(queries.records_of(found))
            claims.append(_accuracy_claim(rows[-1], comparison))
    if not rows:
        claim = "Not compared: no two runs have predictions of the same seed on the same test examples"
        return Card(ACCURATE, claim, "–", "undecided", "quality")
    margin = _margin(comparison)
    every = [row for group in rows for row in group]
    decided = [_outcome(row, margin) != "undecided" for row in every]
    largest = max(zip(every, decided, strict=True), key=lambda pair: (pair[1], abs(pair[0]["difference"])))[0]
    supported = badge(any(decided), min(int(row["trainings"]) for row in every))
    claim = "; ".join(claims[:NAMED])
    if len(claims) > NAMED:
        claim += f"; {len(claims) - NAMED} more sets of test examples are compared below"
    doubtful = [run.label for run in comparison.runs if label_warning(run.tables, run.record) is not None]
    if doubtful:
        claim = f"Undecided, since the labels of {_names(doubtful)} may be in another order: {claim}"
        supported = "undecided"
    one, other = (textwrap.shorten(str(largest[key]), SHORT, placeholder=" …") for key in ("run", "reference"))
    number = f"{_points(largest['difference'])} ({one} minus {other})"
    details = tuple(Finding(text=_accuracy_sentence(row), figure="quality") for row in every)
    return Card(ACCURATE, claim, number, supported, "quality", details)


def _outcome(row: Mapping[str, Any], margin: float) -> str:
    """What a band shows about a run compared with the first one of its group."""
    low, high = row["band_low"], row["band_high"]
    if row["identical"]:
        return "right and wrong on the same examples as"
    if low > 0 or high < 0:
        return "more accurate than" if low > 0 else "less accurate than"
    if -margin < low and high < margin:
        return f"within {100 * margin:.3g} point{'s' * (margin != 0.01)} of"
    return "undecided"


def _accuracy_claim(rows: Sequence[Mapping[str, Any]], comparison: Comparison) -> str:
    """What the bands show about the runs of one group compared with its first run."""
    outcomes: dict[str, list[str]] = {}
    for row in rows:
        named = f"{row['run']} ({row['accuracy']:.1%})"
        outcomes.setdefault(_outcome(row, _margin(comparison)), []).append(named)
    reference = f"{rows[0]['reference']} ({rows[0]['reference_accuracy']:.1%})"
    parts = []
    for outcome, names in outcomes.items():
        verb = "were" if len(names) > 1 else "was"
        about = f"{_names(names)} compared with" if outcome == "undecided" else f"{_names(names)} {verb} {outcome}"
        parts.append(f"{'undecided: ' * (outcome == 'undecided')}{about} {reference}")
    return f"{_under(str(rows[0]['role']), comparison)}{'; '.join(parts)}"


def _accuracy_sentence(row: Mapping[str, Any]) -> str:
    methods = (
        row["method"] if row["method"] == row["reference_method"] else f"{row['method']}, {row['reference_method']}"
    )
    seeds = f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"
    covers = "these trainings only" if row["conditional_on_seeds"] else "other seeds, too"
    return (
        f"{row['run']} minus {row['reference']} ({methods}): {_points(row['difference'])} (95% band "
        f"{100 * row['band_low']:+.1f} to {100 * row['band_high']:+.1f}) on {row['n']:,} test examples with {seeds}; the "
        f"band holds for all runs with these examples at once and covers {covers}."
    )


def differ(comparison: Comparison) -> Card:
    """Layers at which the bands of runs are apart; without a base and test examples in common, what each run shows.

    Bands hold for all layers of a run at once. Two bands that do not overlap are a stricter criterion than an interval of
    the difference, which leaves room for several pairs of runs.
    """
    own = [
        where(run.tables, run.record, method)
        for run, method in zip(comparison.runs, comparison.main.methods, strict=True)
    ]
    details = tuple(
        Finding(text=f"{run.label}: {card.claim}.", figure="drift")
        for run, card in zip(comparison.runs, own, strict=True)
    )
    drifts = _drifts(comparison)
    if drifts is None:
        listed = [f"{run.label} ({card.number})" for run, card in zip(comparison.runs, own, strict=True)]
        claim = f"Not compared layer by layer: {_why_not(comparison)}; layers that changed: {_names(listed)}"
        return Card(WHERE, claim, "–", "undecided", "drift", details)
    layers = drifts[0].layers
    apart = _apart(drifts)
    number = f"{len(set().union(*apart.values()))} of {len(layers)} layers"
    start = _under(comparison.main.name, comparison)
    if not any(apart.values()):
        claim = f"{start}undecided: no difference is shown at any layer"
        return Card(WHERE, f"{claim[0].upper()}{claim[1:]}", number, "undecided", "drift", details)
    labels, parts = comparison.labels, []
    if len(labels) == 2:
        for (one, other), found in apart.items():
            if found:
                parts.append(f"{in_words(found)} changed more in {labels[one]} than in {labels[other]}")
    else:
        parts.append(f"some of the runs differ at {in_words(set().union(*apart.values()))}")
    rest = set(layers) - set().union(*apart.values())
    parts += [f"no difference is shown at {in_words(rest)}"] if rest else []
    seeds = min(len(drift.seeds) for drift in drifts)
    claim = f"{start}{'; '.join(parts)}"
    return Card(WHERE, f"{claim[0].upper()}{claim[1:]}", number, badge(True, seeds), "drift", details)


def _apart(drifts: Sequence[Drift]) -> dict[tuple[int, int], list[int]]:
    """Layers at which the first run of a pair changed more than the second: its band lies below the other's."""
    found = {}
    for one, first in enumerate(drifts):
        for other, second in enumerate(drifts):
            if one != other:
                below = np.asarray(first.band_high) < np.asarray(second.band_low)
                found[one, other] = [layer for layer, apart in zip(first.layers, below, strict=True) if apart]
    return found


def _drifts(comparison: Comparison) -> list[Drift] | None:
    """The shared similarity of each run; None if its values cannot be compared between the runs."""
    runs, measure = comparison.runs, shared_measure(comparison.runs)
    if measure is None or _why_not(comparison):
        return None
    drifts = []
    for run, method in zip(runs, comparison.main.methods, strict=True):
        table = run.tables["similarity"]
        drifts.append(queries.drift_over_seeds(table, method, measure, queries.unit_of(table)))
    found = [drift for drift in drifts if drift is not None]
    return found if len(found) == len(runs) and len({drift.layers for drift in found}) == 1 else None


def _why_not(comparison: Comparison) -> str:
    """Why similarities of base and adapted are not compared between the runs; empty if they are."""
    runs = comparison.runs
    measure = shared_measure(runs)
    if measure is None or queries.measure(measure, runs[0].record).kind != "similarity":
        return "the runs share no similarity"
    if len({run.record.encoder.fingerprint for run in runs if run.record.encoder}) > 1:
        return "the runs have different pretrained models"
    if not any(len(group) == len(runs) for group in comparison.groups):
        return "the runs have different test examples"
    units = {queries.unit_of(run.tables["similarity"]) for run in runs}
    return "the runs compared different units" if len(units) > 1 else ""


def enough(comparison: Comparison) -> Card:
    """What the tests of each run show about training less, each at the run's own margin and on its own examples."""
    outcomes: dict[str, list[str]] = {}
    seeds, decided, details = [], 0, []
    for run in comparison.runs:
        found = decisions.compare(run.tables, run.record)
        if found is None:
            outcomes.setdefault("not compared", []).append(run.label)
            continue
        decision = decisions.decide(found)
        about, reference = (words(name, run.record) for name in (decision.about.name, found.reference))
        outcome = {
            "enough": f"yes, {about} instead of {reference},",
            "ahead": f"yes, {about} was more accurate than {reference},",
            "needed": f"no, every alternative to {reference} lost more than the margin,",
            "undecided": "undecided",
        }[decision.verdict]
        if label_warning(run.tables, run.record) is not None:
            outcome = "undecided, since labels may be in another order,"
        seeds.append(found.seeds)
        decided += not outcome.startswith("undecided")
        outcomes.setdefault(outcome, []).append(run.label)
        if run.record.sufficiency is not None:
            details.append(Finding(text=f"{run.label}: {run.record.sufficiency.sentence}", figure="sufficiency"))
    if not seeds:
        return Card(
            ENOUGH, "Not compared: no run has two methods on the same examples", "–", "undecided", "sufficiency"
        )
    claim = "; ".join(f"{outcome} in {_names(labels)}" for outcome, labels in outcomes.items())
    number = f"decided in {decided} of {len(comparison.runs)} runs"
    supported = badge(decided == len(comparison.runs), min(seeds))
    return Card(ENOUGH, f"{claim[0].upper()}{claim[1:]}", number, supported, "sufficiency", tuple(details))


def warnings(comparison: Comparison) -> list[str]:
    """Doubts about the order of labels, by run."""
    found = [(run.label, label_warning(run.tables, run.record)) for run in comparison.runs]
    return [f"{label}: {warning}" for label, warning in found if warning is not None]


def _under(role: str, comparison: Comparison) -> str:
    """The start of a claim about one match."""
    return f"Under {role}, " if any(match.name == role and match.same_name for match in comparison.matches) else ""


def _margin(comparison: Comparison) -> float:
    """The smallest margin of the runs."""
    margins = [run.record.sufficiency.margin for run in comparison.runs if run.record.sufficiency is not None]
    return min(margins, default=decisions.DEFAULT_MARGIN)


def _names(names: Iterable[str]) -> str:
    """Names in a sentence, cut to `NAMED` of them."""
    found = list(names)
    if len(found) > NAMED + 1:
        return f"{', '.join(found[:NAMED])} and {len(found) - NAMED} more"
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"


def _points(difference: float) -> str:
    return f"{100 * difference + 0.0:+.1f} points"
