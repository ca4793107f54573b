"""The sections of the comparison page in order, and the variables of their templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from layerprobe.report import queries
from layerprobe.report.comparison import figures
from layerprobe.report.comparison.answer import cards, warnings
from layerprobe.report.comparison.sentences import match_notes, setting_notes
from layerprobe.report.comparison.tables import ComparedRun, Comparison, timed_costs_of
from layerprobe.report.costs import COSTS, format_cost, timing_note
from layerprobe.report.section import Section, Tables
from layerprobe.report.sections.answer.context import BADGES
from layerprobe.report.sections.answer.where import where
from layerprobe.report.sections.made.context import downloads
from layerprobe.report.sections.quality.sentences import recommendation


class Cell(NamedTuple):
    """A cell of a table that can be sorted."""

    text: str
    value: float | str | None = None
    """What it is sorted by, by default its text; an empty text comes last."""


def answer(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """Cards, the meaning of their badges, and doubts about labels."""
    return {"cards": cards(tables, comparison), "badges": BADGES, "warnings": warnings(comparison)}


def overview(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """What each run is made of, and its main numbers."""
    columns = ["run", "model", "blocks", "data", "train", "test", "method", "seeds", "accuracy"]
    columns += ["changed layers", "sufficient depth", "finished"]
    methods = zip(comparison.runs, comparison.main.methods, strict=True)
    return {"columns": columns, "rows": [list(_cells(run, method)) for run, method in methods]}


def _cells(run: ComparedRun, method: str) -> Iterator[Cell]:
    record = run.record
    encoder, data, conclusion = record.encoder, record.data, record.sufficiency
    assert encoder is not None and data is not None  # as in every complete run
    yield Cell(run.label)
    yield Cell(encoder.name)
    yield Cell(str(encoder.n_layers), encoder.n_layers)
    yield Cell(data.name)
    for number in (data.n_train, data.n_test):
        yield Cell(f"{number:,}", number)
    after = queries.accuracy_after(run.tables)
    rows = None if after is None else after[after.method == method]
    if rows is None or rows.empty:
        yield from (Cell(run.label_of(method)), Cell(""), Cell(""))
    else:
        yield Cell(run.label_of(method))
        seeds = int(rows.seed.nunique()) if run.uses_seed(method) else 0
        yield Cell(str(seeds or ""), seeds or None)
        mean, low, high = float(rows.accuracy.mean()), rows.accuracy_low.min(), rows.accuracy_high.max()
        yield Cell(f"{mean:.1%} ({100 * low:.1f} to {100 * high:.1f})", mean)
    layers = where(run.tables, record, method).number
    yield Cell(layers.removesuffix(" layers"), _share(layers)) if layers != "–" else Cell("")
    depth = _depth_of_smallest(run)
    words = f" ({100 * depth / run.n_layers:.0f}% of the blocks)" if depth else ""
    smallest = conclusion and (conclusion.smallest or "none shown")
    yield Cell(f"{smallest}{words}", run.n_layers + 1 if depth is None else depth) if smallest else Cell("")
    finished = record.provenance.finished or ""
    yield Cell(finished[:10], finished)


def _share(layers: str) -> float:
    """ "4 of 7 layers" as a number."""
    part, total = layers.split(" of ")
    return int(part) / int(total.split()[0])


def conclusions(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """Each run with its recommendation and its smallest sufficient depth as a share of the blocks."""
    rows = []
    for run in comparison.runs:
        depth = _depth_of_smallest(run)
        share = "" if depth is None else f"{100 * depth / run.n_layers:.0f}% of the blocks"
        rows.append((run, recommendation(run.tables, run.record), share))
    return {"rows": rows}


def _depth_of_smallest(run: ComparedRun) -> int | None:
    """Blocks that the smallest sufficient method trains; None if there is no such method, or it has no depth."""
    smallest = run.record.sufficiency and run.record.sufficiency.smallest
    if not smallest:
        return None
    found = queries.method(smallest, run.record)
    return 0 if found is None else found.depth  # logistic regression trains no block


def accuracies(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """Paired differences between runs."""
    return {"paired": queries.records_of(queries.having(tables, "paired"))}


def costs(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    """The table of costs in words, and which are not compared."""
    table = tables["cost"]
    measured = {name: cost.label for name, cost in COSTS.items() if name in table}
    rows = [
        [Cell(row["run"]), Cell(row["method"]), Cell(f"{row['accuracy']:.3f}", row["accuracy"])]
        + [Cell(format_cost(row[name], name), row[name] if row[name] == row[name] else None) for name in measured]
        for row in table.to_dict("records")
    ]
    columns = ["run", "method", "accuracy", *measured.values()]
    return {"columns": columns, "rows": rows, "note": timing_note(timed_costs_of(comparison.runs))}


def notes_of(comparison: Comparison) -> list[str]:
    """What limits the comparison."""
    return [*comparison.notes, *match_notes(comparison), *setting_notes(comparison)]


def _section(id: str, title: str, **options: Any) -> Section[Comparison]:
    return Section(id=id, title=title, template=f"comparison/{id}.html.j2", **options)


NO_DRIFT, NO_COST = "The runs share no measure of drift.", "No cost was measured in these runs."
SECTIONS = (
    _section("answer", "Answer", context=answer),
    _section("runs", "Runs", context=overview, scripts=("sort.js",)),
    _section("quality", "How good?", requires=("quality",), figures={"quality": figures.quality}, context=accuracies),
    _section("drift", "Where did it change?", requires=("drift",), missing=NO_DRIFT, figures={"drift": figures.drift}),
    _section("sufficiency", "How deep was enough?", figures={"differences": figures.differences}, context=conclusions),
    _section(
        "cost", "What did it cost?", requires=("cost",), missing=NO_COST, figures={"cost": figures.cost}, context=costs
    ),
    _section("each", "What does each run report?"),
    _section("comparable", "What can be compared?", context=lambda _, comparison: {"notes": notes_of(comparison)}),
    _section("made", "How was this made?", context=lambda tables, _: {"downloads": downloads(tables)}),
)
