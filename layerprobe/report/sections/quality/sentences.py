"""What training only the head loses, the smallest sufficient depth, and what to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.costs import COSTS, costs_by_method
from layerprobe.report.section import Tables

MAJORITY = "reference:majority"
SAVED = ("flops", "seconds", "trainable_parameters")
"""Costs that the recommendation names."""


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """The head compared with full fine-tuning, and the conclusion about depth with a recommendation."""
    texts = [head_sentence(tables, record)]
    if record.sufficiency:
        texts.append(f"{record.sufficiency.sentence} {recommendation(tables, record)}")
    return [Finding(text=text, figure="quality") for text in texts if text]


def head_sentence(tables: Tables, record: RunRecord) -> str:
    """How much accuracy the head alone loses against full fine-tuning; empty without both."""
    after, full = queries.accuracy_after(tables), queries.full(record)
    head = next((method.name for method in record.methods if method.depth == 0), None)
    if after is None or not {head, full} <= set(after.method):
        return ""
    paired = queries.having(tables, "differences")
    paired = None if paired is None else paired[(paired.method == head) & (paired.reference == full)]
    if paired is not None and len(paired):
        row = paired.iloc[0]
        seeds = f", means of {row.seeds} seeds" if row.seeds > 1 else ""
        text = (
            f"The head alone reaches accuracy {row.accuracy:.3f}, full fine-tuning {row.reference_accuracy:.3f}, on the same "
            f"{row.n:,} test examples{seeds}: training only the head {_loses(row.difference)} (difference {head} - {full} "
            f"{100 * row.difference:+.1f}, 95% interval {100 * row.ci_low:+.1f} to {100 * row.ci_high:+.1f}, "
            f"{'consistent with chance' if row.ci_low <= 0 <= row.ci_high else 'more than chance explains'})"
        )
    else:
        shared = set(after[after.method == head].seed) & set(after[after.method == full].seed)
        if not shared:
            return ""
        first, second = (after[(after.method == name) & (after.seed == min(shared))].iloc[0] for name in (head, full))
        text = (
            f"The head alone reaches accuracy {accuracy(first)}, full fine-tuning {accuracy(second)}: training "
            f"only the head {_loses(first.accuracy - second.accuracy)}; this run has no paired comparison of the two"
        )
    majority = after[after.method == MAJORITY]
    if len(majority):
        text += f"; always predicting the most frequent label reaches {majority.accuracy.iloc[0]:.3f}"
    return text + "."


def recommendation(tables: Tables, record: RunRecord) -> str:
    """What to train according to the conclusion about depth, what it saves and how certain that is; empty without one."""
    conclusion = record.sufficiency
    if conclusion is None:
        return ""
    reference, smallest, undecided = conclusion.reference, conclusion.smallest, conclusion.undecided
    tests = queries.records_of(queries.having(tables, "sufficiency"))
    sufficient = {row["method"]: row["family"] for row in tests if row["outcome"] == "sufficient"}
    if smallest is not None:
        text = f"On this evidence train {smallest}{_saved(tables, record, smallest, reference)}"
        others = [name for name, family in sufficient.items() if family == "holm"]
        if others:
            text += f"; outside the sequence of depths, also sufficient: {listed(others)}"
        text += f". This procedure names a depth that loses more than the margin in at most {100 * conclusion.alpha:.3g}% of studies."
    elif undecided and conclusion.needed:
        text = (
            f"On this evidence keep {reference}, or evaluate {undecided} on more test examples before ruling it out: these "
            "data are inconclusive."
        )
    elif undecided:
        text = f"On this evidence keep {reference}: {undecided} was shown to be neither sufficient nor inferior."
    else:
        text = (
            f"On this evidence keep {reference}: no shallower depth was shown to lose less than {conclusion.margin:.3g} of "
            "accuracy."
        )
    return text + _better(queries.having(tables, "differences"), list(sufficient))


def _better(differences: pd.DataFrame | None, sufficient: Sequence[str]) -> str:
    """Methods with a simultaneous band above 0 that the sequence of tests did not reach."""
    rows = (
        None if differences is None else differences[(differences.band_low > 0) & ~differences.method.isin(sufficient)]
    )
    if rows is None or rows.empty:
        return ""
    words = "{0.method} by {0.difference:+.4f} ({0.band_low:+.4f} to {0.band_high:+.4f})"
    methods = [words.format(row) for row in rows.itertuples()]
    return (
        f" However, by the 95% bands that hold for all methods at once, better than {rows.reference.iloc[0]}: "
        f"{listed(methods)}. The sequence of tests, which ends at its first failure, did not reach that far; the bands do "
        "not depend on it."
    )


def _saved(tables: Tables, record: RunRecord, method: str, reference: str) -> str:
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


def _loses(difference: float) -> str:
    return f"{'gives up' if difference <= 0 else 'gains'} {abs(100 * difference):.1f} points"


def accuracy(row: Any) -> str:
    """Accuracy of a row with its interval."""
    return f"{row.accuracy:.3f} (95% interval {row.accuracy_low:.3f} to {row.accuracy_high:.3f})"


def listed(words: Sequence[str]) -> str:
    """Words joined by commas and a final "and"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
