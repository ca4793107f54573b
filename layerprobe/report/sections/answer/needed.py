"""The card "Was it needed?" and the advice, both from one decision."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.decisions import LOGISTIC, Comparison, Decision, compare, decide, decision_badge
from layerprobe.report.labels import label_warning
from layerprobe.report.queries import Tables
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.quality.sentences import MAJORITY, saved_costs

TITLE = "Was it needed?"
DOUBT = "the labels may be in another order"
WORDS = dict.fromkeys(LOGISTIC, "logistic regression on the frozen encoder") | {
    "head:mean": "a linear head on the mean over tokens",
    "head:cls": "a linear head on the first token",
}


def needed(tables: Tables, record: RunRecord) -> Card:
    """Accuracy of the reference and of the alternative that the decision is about."""
    comparison = compare(tables, record)
    if comparison is None:
        return _without_comparison(tables, record)
    decision = decide(comparison)
    claim, supported = claim_of(decision, comparison, record), decision_badge(decision, comparison)
    if label_warning(tables, record) is not None:
        claim, supported = f"Undecided, {DOUBT}: {_pair(decision, comparison, record)}", "undecided"
    accuracies = {decision.about.name: decision.about.accuracy, comparison.reference: comparison.accuracy}
    further = _further(tables, accuracies, record)
    compared = f"{queries.label(decision.about.name, record)} minus {queries.label(comparison.reference, record)}"
    number = f"{_points(decision.about.difference)} ({compared})"
    return Card(TITLE, "".join([claim, *further]), number, supported, "differences")


def claim_of(decision: Decision, comparison: Comparison, record: RunRecord) -> str:
    """The decision with both accuracies."""
    about, reference = decision.about, words(comparison.reference, record)
    pair = _pair(decision, comparison, record)
    if decision.verdict == "undecided":
        return f"Undecided: {pair}"
    if decision.verdict == "needed":
        return f"Yes, {_alternatives(comparison)} lost more than {_margin(comparison)}: {pair}"
    less = "No" if about.depth == 0 else "Not all of it"
    if about.depth == float("inf"):
        less = f"Not {reference}"
    outcome = "was more accurate" if decision.verdict == "ahead" else "is enough"
    return f"{less}, {words(about.name, record)} {outcome}: {pair}"


def _pair(decision: Decision, comparison: Comparison, record: RunRecord) -> str:
    about, reference = decision.about, words(comparison.reference, record)
    return f"{words(about.name, record)} {about.accuracy:.1%}, {reference} {comparison.accuracy:.1%}"


def _alternatives(comparison: Comparison) -> str:
    frozen = all(one.name in LOGISTIC for one in comparison.alternatives)
    return WORDS[LOGISTIC[0]] if frozen else "every alternative"


def advice(tables: Tables, record: RunRecord) -> str | None:
    """What to do, in one line; None if nothing was compared. A doubt about the order of labels comes first."""
    warning = label_warning(tables, record)
    if warning is not None:
        return f"Check the order of the checkpoint's labels before using its accuracy: {DOUBT}."
    comparison = compare(tables, record)
    if comparison is None:
        return None
    return advice_of(decide(comparison), comparison, record, tables)


def advice_of(decision: Decision, comparison: Comparison, record: RunRecord, tables: Tables) -> str:
    """Advice that follows from a decision and never argues against its numbers."""
    about, reference = decision.about, words(comparison.reference, record)
    name = words(about.name, record)
    difference = _points(about.difference)
    if decision.verdict == "ahead":
        return f"Use {name}: it was more accurate than {reference} ({difference})."
    if decision.verdict == "enough":
        saved = saved_costs(tables, record, about.name, comparison.reference)
        return f"Use {name}: it loses less than {_margin(comparison)} of accuracy to {reference} ({difference}){saved}."
    if decision.verdict == "needed":
        best = f"the best {difference}" if len(comparison.alternatives) > 1 else difference
        return f"Keep {reference}: {_alternatives(comparison)} lost more than {_margin(comparison)} ({best})."
    cheaper = f"{name} is cheaper and " if about.cheaper else f"{name} "
    if about.difference > 0:
        text = f"Undecided; {cheaper}was ahead here ({difference})"
    elif about.difference == 0:
        text = f"Undecided; {cheaper}was level here"
    else:
        text = f"Undecided; {reference} was ahead of {name} here ({difference})"
        text += ", which is cheaper" if about.cheaper else ""
    return f"{text}.{_way_out(about, record)}"


def _way_out(about: Any, record: RunRecord) -> str:
    conclusion = record.sufficiency
    if about.outcome == "undecidable":
        return " Only more seeds could decide."
    if conclusion is None or conclusion.undecided != about.name or conclusion.needed is None:
        return ""
    unit = 10 ** max(0, len(str(conclusion.needed)) - 2)
    return f" About {-(-conclusion.needed // unit) * unit:,} test examples could decide."


def _without_comparison(tables: Tables, record: RunRecord) -> Card:
    """Accuracies alone, where nothing was paired."""
    after = queries.accuracy_after(tables)
    if after is None:
        return Card(TITLE, "Not measured: no accuracy was measured", "–", "undecided", "quality")
    means = after.groupby("method", sort=False).accuracy.mean()
    names = [name for name in queries.methods(tables, record) if name in means and name not in queries.controls(record)]
    shown = list(dict.fromkeys([*names[:1], *names[-1:]]))
    if not shown:
        return Card(TITLE, "Not measured: no model was adapted", "–", "undecided", "quality")
    accuracies = {name: float(means[name]) for name in shown}
    listed = ", ".join(f"{words(name, record)} {value:.1%}" for name, value in accuracies.items())
    further = _further(tables, accuracies, record)
    number = f"{accuracies[shown[-1]]:.1%} ({words(shown[-1], record)})"
    return Card(TITLE, "".join([f"Undecided: {listed}", *further]), number, "undecided", "quality")


def _further(tables: Tables, shown: dict[str, float], record: RunRecord) -> list[str]:
    """Accuracies that are named besides: of logistic regression where it is within the interval of the best classifier,
    and of the majority class where the run has a single method.
    """
    after = queries.accuracy_after(tables)
    if after is None:
        return []
    parts = []
    scores = after[~after.method.isin(queries.controls(record))]
    by_method = scores.groupby("method")[["accuracy", "accuracy_low"]].agg({"accuracy": "mean", "accuracy_low": "min"})
    means = by_method.accuracy
    logistic = max((name for name in LOGISTIC if name in means), key=lambda name: means[name], default=None)
    if logistic is not None and not shown.keys() & set(LOGISTIC):
        best: Any = means.idxmax()
        if means[logistic] >= by_method.accuracy_low[best]:
            parts.append(f", {WORDS[logistic]} {means[logistic]:.1%}")
    if MAJORITY in means and len(queries.methods(tables, record)) == 1:
        parts.append(f", majority baseline {means[MAJORITY]:.1%}")
    return parts


def words(name: str, record: RunRecord) -> str:
    """A classifier in words; a checkpoint is the only one with a path."""
    return WORDS.get(name) or queries.label(name, record)


def _points(difference: float) -> str:
    return f"{100 * difference + 0.0:+.1f} points"


def _margin(comparison: Comparison) -> str:
    margin = 100 * comparison.margin
    return f"{margin:.3g} point{'' if margin == 1 else 's'}"
