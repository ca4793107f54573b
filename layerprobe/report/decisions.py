"""Whether a cheaper classifier would have been enough: one decision, from which claims and advice are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from layerprobe.report import queries
from layerprobe.report.queries import Tables

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.record import RunRecord

Badge = Literal["shown", "one seed only", "undecided"]
"""How far a claim is supported."""
Verdict = Literal["enough", "ahead", "needed", "undecided"]
"""`enough`: an alternative loses less than the margin; `ahead`: an alternative is more accurate; `needed`: every
alternative loses more than the margin."""
DEFAULT_MARGIN = 0.01
LOGISTIC = ("reference:logistic-mean", "reference:logistic-cls")
"""Classifiers of the frozen encoder's vectors, in the column `method`."""


def badge(decided: bool, seeds: int) -> Badge:
    """The badge of a claim.

    Args:
        decided: whether the interval excludes the stated threshold and the value exceeds its null; of an equivalence,
            whether the interval lies within the margin.
        seeds: number of training seeds.
    """
    if not decided:
        return "undecided"
    return "shown" if seeds >= 2 else "one seed only"


@dataclass(frozen=True)
class Alternative:
    """A classifier that is compared with the reference on the same test examples."""

    name: str
    accuracy: float
    difference: float
    """Accuracy minus the reference's."""
    low: float
    """Lower end of the 95% band of the difference that holds for all alternatives at once."""
    high: float
    """Upper end."""
    outcome: str
    """`sufficient`, `inferior`, `undecided`, `undecidable` or `not tested`, as in the table `sufficiency`."""
    depth: float
    """Number of trained blocks; 0 for a classifier of the frozen encoder, infinite for a method without a depth."""
    cheaper: bool
    """Whether it trains fewer blocks than the reference."""


@dataclass(frozen=True)
class Comparison:
    """The reference and its alternatives."""

    reference: str
    accuracy: float
    margin: float
    seeds: int
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class Decision:
    """What the comparison shows, and about which alternative."""

    verdict: Verdict
    about: Alternative
    """Of `needed`, the best alternative; of `undecided`, the one that would be chosen first if it were enough."""


def decide(comparison: Comparison) -> Decision:
    """The conclusion that tests and simultaneous bands allow.

    An alternative with a band above 0 is preferred to a sufficient one that trains more blocks. `needed` takes that every
    alternative is inferior; nothing is concluded from the order of the point estimates.
    """
    found = comparison.alternatives
    better = [one for one in found if one.low > 0]
    enough = [one for one in found if one.outcome == "sufficient"]
    smallest = min(enough, key=_preference, default=None)
    ahead = min(better, key=_preference, default=None)
    if ahead is not None and (smallest is None or ahead.depth <= smallest.depth):
        return Decision("ahead", ahead)
    if smallest is not None:
        return Decision("enough", smallest)
    if all(one.outcome == "inferior" for one in found):
        return Decision("needed", max(found, key=lambda one: one.difference))
    return Decision("undecided", _candidate(found))


def _candidate(found: Sequence[Alternative]) -> Alternative:
    """The best of those that were ahead, else the cheapest that is not inferior."""
    ahead = [one for one in found if one.difference > 0]
    if ahead:
        return max(ahead, key=lambda one: (one.cheaper, one.difference))
    return min((one for one in found if one.outcome != "inferior"), key=_preference)


def _preference(one: Alternative) -> tuple[float, float]:
    return one.depth, -one.difference


def decision_badge(decision: Decision, comparison: Comparison) -> Badge:
    """The badge of a decision."""
    return badge(decision.verdict != "undecided", comparison.seeds)


# From tables ----------------------------------------------------------------------------------------------------------


def compare(tables: Tables, record: RunRecord) -> Comparison | None:
    """The comparison that a run allows: the tests of its depths, else its one method with logistic regression.

    None if nothing was compared on the same examples and seeds.
    """
    differences = queries.having(tables, "differences")
    if differences is None:
        return _with_frozen(tables, record)
    tests = queries.having(tables, "sufficiency", "outcome")
    outcomes = {} if tests is None else dict(zip(tests.method, tests.outcome, strict=True))
    return _comparison(differences, outcomes, record)


def _with_frozen(tables: Tables, record: RunRecord) -> Comparison | None:
    """A method that is compared with no other, such as a checkpoint, against logistic regression on frozen vectors."""
    from layerprobe.sufficiency import correctness, differences

    method = queries.main_method(queries.methods(tables, record), record)
    predictions = queries.having(tables, "predictions", "method", "seed", "example_id", "label", "predicted")
    if method is None or predictions is None or method in queries.controls(record):
        return None
    rows = correctness(predictions)
    seeds = set(rows.seed[rows.method == method])
    names = [name for name in LOGISTIC if name in set(rows.method)]
    for name in names:
        seeds &= set(rows.seed[rows.method == name])
    if not names or not seeds:
        return None
    rows = rows[rows.method.isin([method, *names]) & rows.seed.isin(seeds)]
    return _comparison(differences(rows, reference=method), {}, record)


def _comparison(differences: pd.DataFrame, outcomes: Mapping[str, str], record: RunRecord) -> Comparison:
    reference, margin = str(differences.reference.iloc[0]), _margin(record)
    depth = _depth(reference, record)
    alternatives = []
    for row in differences.itertuples():
        found: Any = row
        trained = _depth(str(found.method), record)
        # A method without a depth, such as a checkpoint, may have trained every block.
        deepest = float("inf") if depth is None else depth
        alternatives.append(
            Alternative(
                name=str(found.method),
                accuracy=float(found.accuracy),
                difference=float(found.difference),
                low=float(found.band_low),
                high=float(found.band_high),
                outcome=outcomes.get(str(found.method)) or _outcome(found.band_low, found.band_high, margin),
                depth=float("inf") if trained is None else trained,
                cheaper=trained is not None and trained < deepest,
            )
        )
    first: Any = differences.iloc[0]
    return Comparison(reference, float(first.reference_accuracy), margin, int(first.seeds), tuple(alternatives))


def _outcome(low: float, high: float, margin: float) -> str:
    """The outcome that a band shows where there was no test."""
    return "sufficient" if low > -margin else "inferior" if high < -margin else "undecided"


def _depth(name: str, record: RunRecord) -> float | None:
    if name in queries.BASELINES:
        return 0
    found = queries.method(name, record)
    return None if found is None or found.depth is None else found.depth + 0.5 * found.trains_embeddings


def _margin(record: RunRecord) -> float:
    if record.sufficiency is not None:
        return record.sufficiency.margin
    return float(record.study.resolved.get("adaptation", {}).get("margin", DEFAULT_MARGIN))
