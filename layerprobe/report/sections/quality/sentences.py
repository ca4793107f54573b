"""What the best frozen model reaches without training, the smallest sufficient depth, and what to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.costs import COSTS, costs_by_method
from layerprobe.report.decisions import LOGISTIC, compare, decide
from layerprobe.report.section import Tables

MAJORITY = "reference:majority"
FROZEN = {
    "head": "the head alone",
    "head:mean": "a linear head on the mean over tokens",
    "head:cls": "a linear head on the first token",
    "reference:logistic-mean": "logistic regression on the mean over tokens",
    "reference:logistic-cls": "logistic regression on the first token",
}
"""Models without a trained block in words."""
SAVED = ("flops", "seconds", "trainable_parameters")
"""Costs that the recommendation names."""


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """The best frozen model compared with full fine-tuning, and the conclusion about depth with a recommendation."""
    found = {"quality": frozen_sentence(tables, record) or single_sentence(tables, record)}
    if record.sufficiency:
        found["differences"] = f"{record.sufficiency.sentence} {recommendation(tables, record)}"
    return [Finding(text=text, figure=figure) for figure, text in found.items() if text]


def frozen_sentence(tables: Tables, record: RunRecord) -> str:
    """Accuracy of the frozen model that is best on validation data against full fine-tuning; empty without both."""
    after, full = queries.accuracy_after(tables), queries.full(record)
    names = _frozen(record)
    if after is None or full is None or not names or not {names[0], full} <= set(after.method):
        return ""
    best = names[0]
    ordered = record.sufficiency is not None and record.sufficiency.frozen == best
    chosen = ", the best frozen model on held-out training examples," if ordered and len(names) > 1 else ""
    subject = f"Without training any block, {_words(best)}{chosen} reaches accuracy"
    paired = queries.having(tables, "differences")
    paired = None if paired is None else paired[(paired.method == best) & (paired.reference == full)]
    if paired is not None and len(paired):
        row = paired.iloc[0]
        seeds = f", means of {row.seeds} seeds" if row.seeds > 1 else ""
        unlike = "0 is within it" if row.ci_low <= 0 <= row.ci_high else "more than chance explains"
        text = (
            f"{subject} {row.accuracy:.3f}, full fine-tuning {row.reference_accuracy:.3f}, on the same {row.n:,} test "
            f"examples{seeds}: a difference of {100 * row.difference:+.1f} points ({best} - {full}, 95% interval "
            f"{100 * row.ci_low:+.1f} to {100 * row.ci_high:+.1f}, {unlike})"
        )
    else:
        shared = set(after[after.method == best].seed) & set(after[after.method == full].seed)
        if not shared:
            return ""
        first, second = (after[(after.method == name) & (after.seed == min(shared))].iloc[0] for name in (best, full))
        text = (
            f"{subject} {accuracy(first)}, full fine-tuning {accuracy(second)}: a difference of "
            f"{100 * (first.accuracy - second.accuracy):+.1f} points; this run has no paired comparison of the two"
        )
    means = after.groupby("method").accuracy.mean()
    others = [f"{_words(name)} {means[name]:.3f}" for name in names[1:] if name in means]
    if others:
        text += f"; also without training a block: {listed(others)}"
    if MAJORITY in means:
        text += f"; the majority baseline reaches {means[MAJORITY]:.3f}"
    return f"{text}{_unequal(after, best, full)}."


def single_sentence(tables: Tables, record: RunRecord) -> str:
    """Accuracy of the only method, such as a checkpoint, and of frozen models; empty in a study of several."""
    comparison, after, names = compare(tables, record), queries.accuracy_after(tables), queries.methods(tables, record)
    if after is None or len(names) != 1 or names[0] not in set(after.method):
        return ""
    means, rows = after.groupby("method").accuracy.mean(), after[after.method == names[0]]
    if comparison is None:
        others = [f"{_words(name)} {means[name]:.3f}" for name in LOGISTIC if name in means]
    else:
        others = [
            f"{_words(one.name)} {one.accuracy:.3f} (a difference of {100 * one.difference:+.1f} points, 95% band for all "
            f"{100 * one.low:+.1f} to {100 * one.high:+.1f})"
            for one in comparison.alternatives
        ]
    reached = accuracy(rows.iloc[0]) if len(rows) == 1 else f"{means[names[0]]:.3f}, the mean of {len(rows)} seeds"
    text = f"{queries.label(names[0], record)} reaches accuracy {reached} on {int(rows.n.iloc[0]):,} test examples"
    if others:
        text += f"; on the same ones, without training a block: {listed(others)}"
    if MAJORITY in means:
        text += f"; the majority baseline reaches {means[MAJORITY]:.3f}"
    return f"{text}."


def _frozen(record: RunRecord) -> list[str]:
    """Models without a trained block, the best on validation data first, as far as a run says which it is."""
    depths = {**dict.fromkeys(queries.BASELINES, 0), **{one.name: one.depth for one in record.methods}}
    tested = [] if record.sufficiency is None else record.sufficiency.order
    return [name for name in dict.fromkeys([*tested, *(one.name for one in record.methods)]) if depths.get(name) == 0]


def _unequal(after: pd.DataFrame, best: str, full: str) -> str:
    """How many settings each of the two was chosen from, if the numbers differ."""
    if "candidates" not in after:
        return ""
    tried = after.groupby("method").candidates.max().reindex([best, full])
    if tried.isna().any() or tried.nunique() == 1:
        return ""
    return (
        f". Tuning was unequal (adaptation.tuning): on held-out training examples, {_words(best)} was chosen from "
        f"{int(tried[best])} setting{'s' * (int(tried[best]) > 1)}, {full} from {int(tried[full])}"
    )


def _words(name: str) -> str:
    return FROZEN.get(name, name)


def recommendation(tables: Tables, record: RunRecord) -> str:
    """What to train according to the tests and the simultaneous bands, what it saves and how certain that is.

    It advises the reference only where the evidence does: nothing is shown to be better or sufficient, and what was tested
    is shown to be less accurate. Empty without a conclusion.
    """
    conclusion = record.sufficiency
    if conclusion is None:
        return ""
    reference, smallest, undecided = conclusion.reference, conclusion.smallest, conclusion.undecided
    tests = queries.records_of(queries.having(tables, "sufficiency"))
    sufficient = [row["method"] for row in tests if row["outcome"] == "sufficient"]
    outside = [row["method"] for row in tests if row["outcome"] == "sufficient" and row["family"] == "holm"]
    differences = queries.having(tables, "differences")
    bands: dict[str, Any] = {} if differences is None else {str(row.method): row for row in differences.itertuples()}
    better = [name for name, row in bands.items() if row.band_low > 0 and name not in sufficient]
    if smallest is not None:
        text = f"On this evidence train {_words(smallest)}{saved_costs(tables, record, smallest, reference)}"
        if smallest in FROZEN:
            text = f"On this evidence train no block: {_words(smallest)} is enough{saved_costs(tables, record, smallest, reference)}"
        if outside:
            text += f"; outside the sequence of depths, also sufficient: {listed(outside)}"
        text += "."
        if not conclusion.conditional_on_seeds:
            text += (
                " This procedure names a depth that loses more than the margin in at most "
                f"{100 * conclusion.alpha:.3g}% of studies with other test examples and other seeds."
            )
        return text + _better(bands, better, reference)
    if better:
        return f"On this evidence {reference} is not the best choice.{_better(bands, better, reference)}"
    if outside:
        return f"On this evidence train {listed(outside)}, which was shown to be sufficient; no depth was."
    comparison = compare(tables, record)
    decision = None if comparison is None else decide(comparison)
    if decision is not None and decision.verdict == "needed":
        return (
            f"On this evidence keep {reference}: every alternative loses more than {conclusion.margin:.3g} of accuracy."
        )
    if undecided is None:
        if decision is not None and decision.about.difference > 0:
            about = decision.about
            return (
                f"These data are inconclusive: {_words(about.name)} was ahead of {reference} here "
                f"({100 * about.difference:+.1f} points, simultaneous 95% band {100 * about.low:+.1f} to "
                f"{100 * about.high:+.1f}), but no depth below {reference} was shown to lose less than the margin."
            )
        return f"These data are inconclusive: no depth below {reference} was shown to lose less than the margin."
    row = bands.get(undecided)
    outcome = next((test["outcome"] for test in tests if test["method"] == undecided), "undecided")
    way_out = f" Evaluate {_words(undecided)} on more test examples." if conclusion.needed else ""
    if outcome == "undecidable":
        way_out = " Only more seeds could decide."
    if row is not None and row.band_high < 0:
        return (
            f"{reference} is more accurate than {_words(undecided)} ({100 * row.difference:+.1f} points, simultaneous 95% "
            f"band {100 * row.band_low:+.1f} to {100 * row.band_high:+.1f}), but whether by more than the margin is "
            f"undecided.{way_out}"
        )
    return (
        f"These data are inconclusive: they show neither that {_words(undecided)} loses less than the margin nor that "
        f"{reference} is more accurate.{way_out}"
    )


def _better(bands: dict[str, Any], names: Sequence[str], reference: str) -> str:
    """Methods with a simultaneous band above 0 that the sequence of tests did not reach."""
    if not names:
        return ""
    words = "{0} by {1.difference:+.4f} ({1.band_low:+.4f} to {1.band_high:+.4f})"
    methods = [words.format(_words(name), bands[name]) for name in names]
    return (
        f" By the 95% bands that hold for all methods at once, better than {reference}: {listed(methods)}. The sequence of "
        "tests, which ends at its first failure, did not reach that far; the bands do not depend on it."
    )


def saved_costs(tables: Tables, record: RunRecord, method: str, reference: str) -> str:
    """Shares of the reference's comparable costs."""
    costs = costs_by_method(tables, record)
    if costs is None or not {method, reference} <= set(costs.method):
        return ""
    rows: Any = costs.set_index("method")
    shares = [
        f"{rows.loc[method, name] / rows.loc[reference, name]:.0%} of the {COSTS[name].label}"
        for name in SAVED
        if name in rows and rows.loc[reference, name] > 0 and rows.loc[method, name] >= 0
    ]
    return f", at {listed(shares)} of {reference}" if shares else ""


def accuracy(row: Any) -> str:
    """Accuracy of a row with its interval."""
    return f"{row.accuracy:.3f} (95% interval {row.accuracy_low:.3f} to {row.accuracy_high:.3f})"


def listed(words: Sequence[str]) -> str:
    """Words joined by commas and a final "and"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
