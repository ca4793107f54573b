"""The sections of the comparison page in order, and the variables of their templates."""

from __future__ import annotations

from typing import Any

from layerprobe.report import queries
from layerprobe.report.comparison import figures
from layerprobe.report.comparison.sentences import setting_notes
from layerprobe.report.comparison.tables import ComparedRun, Comparison, timed_costs_of
from layerprobe.report.costs import COSTS, format_cost, timing_note
from layerprobe.report.section import Section, Tables
from layerprobe.report.sections.made.context import downloads
from layerprobe.report.sections.quality.sentences import recommendation


def conclusions(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """Each run with its recommendation and its smallest sufficient depth as a share of the blocks."""
    return {"rows": [(run, recommendation(run.tables, run.record), _share_of_smallest(run)) for run in comparison.runs]}


def _share_of_smallest(run: ComparedRun) -> str:
    """The smallest sufficient depth in words; empty if there is none."""
    smallest = run.record.sufficiency and run.record.sufficiency.smallest
    if not smallest:
        return ""
    found = queries.method(smallest, run.record)
    depth = 0 if found is None else found.depth  # logistic regression trains no block
    return "" if depth is None else f"{100 * depth / run.n_layers:.0f}% of the blocks"


def accuracies(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """Paired differences between runs."""
    return {"paired": queries.records_of(queries.having(tables, "paired"))}


def drifts(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """Methods to choose among, the deepest first."""
    return {"methods": [name for name in reversed(comparison.common) if name in set(tables["drift"].method)]}


def costs(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """Costs to choose among, the table of costs in words, and which are not compared."""
    table = tables["cost"]
    measured = {name: cost.label for name, cost in COSTS.items() if name in table}
    rows = [row | {"cells": [format_cost(row[name], name) for name in measured]} for row in table.to_dict("records")]
    return {"costs": measured, "rows": rows, "note": timing_note(timed_costs_of(comparison.runs))}


def notes_of(comparison: Comparison) -> list[str]:
    """What limits the comparison."""
    return [*comparison.notes, *setting_notes(comparison)]


def _section(id: str, title: str, **options: Any) -> Section[Comparison]:
    return Section(id=id, title=title, template=f"comparison/{id}.html.j2", **options)


NO_DRIFT, NO_COST = "The runs share no measure of drift.", "No cost was measured in these runs."
SECTIONS = (
    _section("runs", "Runs"),
    _section("sufficiency", "How deep was enough?", figures={"differences": figures.differences}, context=conclusions),
    _section("quality", "How good?", requires=("quality",), figures={"quality": figures.quality}, context=accuracies),
    _section(
        "drift",
        "Where did it change?",
        requires=("drift",),
        missing=NO_DRIFT,
        figures={"drift": figures.drift},
        context=drifts,
    ),
    _section(
        "cost", "What did it cost?", requires=("cost",), missing=NO_COST, figures={"cost": figures.cost}, context=costs
    ),
    _section("each", "What does each run report?"),
    _section("comparable", "What can be compared?", context=lambda _, comparison: {"notes": notes_of(comparison)}),
    _section("made", "How was this made?", context=lambda tables, _: {"downloads": downloads(tables)}),
)
