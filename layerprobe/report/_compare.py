"""Several runs on one page: what each concluded, side by side, and paired where they were judged on the same texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from layerprobe.errors import StorageError, StudyError
from layerprobe.files import write_json, write_text
from layerprobe.record import DataRecord, EncoderRecord
from layerprobe.report import _compare_figures as figures
from layerprobe.report._depth_figures import COSTS, spoken
from layerprobe.report._depth_words import after_on_test, prices, recommendation, reference_of
from layerprobe.report._findings import REFERENCES, methods
from layerprobe.report.page import make_environment
from layerprobe.report.queries import drift_of, unit_of
from layerprobe.report.sections.made.context import downloads
from layerprobe.sufficiency import differences as paired_differences

if TYPE_CHECKING:
    from layerprobe.runs import Run

PAGE = "index.html"
RECORD = "compare.json"
"""Tells a comparison's folder from anything else."""


def compare_runs(runs: Sequence[Run], out: str | Path) -> Path:
    """Write one self-contained page across runs: other models, other data, other settings.

    Runs that were judged on the same texts with the same labels are compared text by text; others stand beside each other as
    separate studies, and the page says so.

    Args:
        runs: two or more finished runs.
        out: a new or empty folder, or that of an earlier comparison; `index.html` and `compare.json` are written to it.

    Returns:
        The page.

    Raises:
        StorageError: if a run is unfinished or given twice, or `out` holds something else.
        StudyError: if the runs have no method in common.
    """
    for run in runs:
        _check_finished(run)
    _check_different(runs)
    tables = [{name: run.table(name) for name in run.tables} for run in runs]
    common = _common(runs, tables)
    folder = _folder(Path(out))
    labels = _labels(runs)
    context = _context(labels, runs, tables, common)
    html = (
        make_environment().get_template("compare.html.j2").render(downloads=downloads(context.pop("tables")), **context)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "schema": 1,
            "kind": "comparison",
            "runs": dict(zip(labels, (str(r.folder) for r in runs), strict=True)),
        }
        write_json(folder / RECORD, about)
        write_text(folder / PAGE, html)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); give another with --out.") from error
    return folder / PAGE


# What can be compared -------------------------------------------------------------------------------------------------


def _check_finished(run: Run) -> None:
    status = run.record.status
    if status != "complete":
        why = run.record.error or "not ended"
        raise StorageError(f"The run in {run.folder} is {status} ({why}); finish it first with: {run.record.command}")
    if "adaptation" not in run.tables:
        raise StorageError(f"The run in {run.folder} holds no table of quality; run its study again.")


def _check_different(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        given = f"got {runs[0].folder}" if runs else "got none"
        raise StorageError(f"A comparison takes two run folders or more, and {given}; name another run.")
    seen: dict[Any, Run] = {}
    for run in runs:
        trained = frozenset(task.key for task in run.record.tasks if task.stage == "adapt")
        for mark in (run.folder.resolve(), *([trained] if trained else [])):
            if mark in seen:
                what = (
                    "given twice"
                    if seen[mark].folder.resolve() == run.folder.resolve()
                    else "one and the same training"
                )
                raise StorageError(
                    f"{seen[mark].folder} and {run.folder} are {what}; a comparison takes runs that differ in model, data or method."
                )
        for mark in (run.folder.resolve(), *([trained] if trained else [])):
            seen[mark] = run


def _common(runs: Sequence[Run], tables: Sequence[Mapping[str, pd.DataFrame]]) -> list[str]:
    """Methods that every run has, by depth."""
    own = [methods({"adaptation": table["adaptation"]}) for table in tables]
    common = [name for name in own[0] if all(name in names for names in own)]
    if not common:
        said = "; ".join(f"{run.folder} has {', '.join(names)}" for run, names in zip(runs, own, strict=True))
        raise StudyError(f"The runs have no method in common ({said}); compare runs that share at least one.")
    return common


def _folder(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file, not a folder; give another with --out.")
    if out.exists() and any(out.iterdir()) and not _is_comparison(out):
        raise StorageError(
            f"{out} holds something other than a comparison; nothing in it was touched. Give an empty or new folder with --out."
        )
    return out


def _is_comparison(folder: Path) -> bool:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8")).get("kind") == "comparison"
    except (OSError, ValueError, AttributeError):
        return False


def _labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: the study's, with model and data where names recur, numbered where that is not enough."""
    names = [str(run.record.name) for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} · {_encoder(run).name} · {_data(run).name}" for name, run in zip(names, runs, strict=True)]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _encoder(run: Run) -> EncoderRecord:
    assert run.record.encoder is not None  # as in every complete run
    return run.record.encoder


def _data(run: Run) -> DataRecord:
    assert run.record.data is not None
    return run.record.data


# What the page shows --------------------------------------------------------------------------------------------------


def _context(
    labels: list[str], runs: Sequence[Run], tables: Sequence[Mapping[str, pd.DataFrame]], common: list[str]
) -> dict[str, Any]:
    layers = [_encoder(run).n_layers for run in runs]
    each = list(zip(labels, layers, tables, strict=True))
    quality: Any = _stack(each, after_on_test)
    gaps = _stack(each, _differences_of)
    bought = _stack(each, _prices_of)
    paired, groups, unpaired = _paired(labels, tables)
    measure, drifted = _drift(each)
    made: dict[str, dict[str, Any]] = {"quality": {"all": figures.quality(quality, labels)}}
    if gaps is not None:
        made["differences"] = {"all": figures.differences(gaps, labels)}
    shares = {COSTS[c][0]: figures.costs(bought, labels, c) for c in COSTS if bought is not None and c in bought}
    made["cost"] = {name: figure for name, figure in shares.items() if figure is not None}
    if measure and drifted is not None:
        shown = [name for name in reversed(common) if name in set(drifted.method)]
        made["drift"] = {name: figures.drift(drifted, labels, name, measure) for name in shown}
    drawn = {name: {key: f.to_plotly_json() for key, f in group.items()} for name, group in made.items() if group}
    own = {"quality": quality, "differences": gaps, "cost": bought, "paired": paired, "drift": drifted}
    return {
        "title": f"{len(runs)} runs side by side",
        "runs": [_about(*one) for one in zip(labels, runs, tables, strict=True)],
        "common": common,
        "notes": _notes(labels, runs),
        "groups": groups,
        "paired": [] if paired is None else paired.to_dict("records"),
        "unpaired": unpaired,
        "measure": measure,
        "costs": _cost_rows(bought),
        "depth": {
            "figures": {"groups": drawn, "slider": None},
            "choices": {name: list(group) for name, group in drawn.items()},
        },
        "tables": {name: table for name, table in own.items() if table is not None and len(table)},
    }


def _stack(each: Sequence[tuple[str, int, Any]], read: Any) -> pd.DataFrame | None:
    """One table over all runs, with the run and the share of the blocks that each method trains."""
    parts = []
    for label, n_layers, tables in each:
        table = read(tables)
        if table is None or table.empty:
            continue
        table = table[~table.method.str.startswith(REFERENCES)]
        shares = [figures.depth_share(name, n_layers) for name in table.method]
        parts.append(table.assign(run=label, depth=pd.Series(shares, index=table.index, dtype=float)))
    return pd.concat(parts, ignore_index=True) if parts else None


def _differences_of(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    gaps, verdicts = tables.get("differences"), tables.get("sufficiency")
    if gaps is None or verdicts is None:
        return None
    return gaps.merge(verdicts[["method", "outcome", "margin"]], on="method")


def _prices_of(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    bought = prices(tables)
    return None if bought is None else bought.assign(reference=reference_of(tables))


def _drift(each: Sequence[tuple[str, int, Mapping[str, pd.DataFrame]]]) -> tuple[str | None, pd.DataFrame | None]:
    """The first measure that all runs took, on the unit that each page opens with, by share of the blocks."""
    tables = [table.get("similarity") for _, _, table in each]
    if any(table is None or table.empty for table in tables):
        return None, None
    taken: list[Any] = [set(table.measure) for table in tables if table is not None]
    shared = [
        name
        for name in ("cka", "paired_cosine", *sorted(set.intersection(*taken)))
        if all(name in one for one in taken)
    ]
    shared = [name for name in shared if name != "paired_cosine_baseline"]
    if not shared:
        return None, None
    parts = []
    for label, n_layers, table in each:
        rows = table["similarity"]
        for method in dict.fromkeys(rows.method):
            one = drift_of(rows, method, shared[0], unit_of(rows))
            parts.append(one.assign(run=label, share=one.layer / n_layers))
    return shared[0], pd.concat(parts, ignore_index=True)


def _paired(
    labels: list[str], tables: Sequence[Mapping[str, pd.DataFrame]]
) -> tuple[pd.DataFrame | None, list[list[str]], list[str]]:
    """Differences between runs on the same texts, the groups of runs that share them, and what could not be paired."""
    answers = [_answers(table) for table in tables]
    groups: dict[Any, list[int]] = {}
    for i, rows in enumerate(answers):
        if rows is not None:
            texts = frozenset(zip(rows.example_id, rows.label, strict=True))
            groups.setdefault(texts, []).append(i)
    found, parts, unpaired = [group for group in groups.values() if len(group) > 1], [], []
    for group in found:
        known: dict[int, Any] = {i: answers[i] for i in group}
        for method in methods({"adaptation": known[group[0]]}):
            own = {i: rows[rows.method == method] for i, rows in known.items()}
            if any(rows.empty for rows in own.values()):
                continue
            seeds = set.intersection(*(set(rows.seed) for rows in own.values()))
            if not seeds:
                unpaired.append(f"{method} has no seed in common in {', '.join(labels[i] for i in group)}")
                continue
            results = pd.concat(
                rows[rows.seed.isin(seeds)].assign(method=labels[i], correct=rows.label == rows.predicted)
                for i, rows in own.items()
            )
            parts.append(
                paired_differences(results, reference=labels[group[0]])
                .rename(columns={"method": "run"})
                .assign(method=method)
            )
    return (pd.concat(parts, ignore_index=True) if parts else None), [[labels[i] for i in g] for g in found], unpaired


def _answers(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    rows = tables.get("predictions")
    if rows is None or rows.empty:
        return None
    return rows[rows["split"] == "test"] if "split" in rows.columns else rows


def _about(label: str, run: Run, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What one run asked, used and concluded."""
    record, concluded = run.record, run.record.sufficiency
    tested = tables.get("sufficiency")
    depths: Any = [] if tested is None or not concluded else tested[tested.method == concluded.smallest].depth.dropna()
    n_layers = _encoder(run).n_layers
    return {
        "label": label,
        "question": record.question,
        "model": _encoder(run).name,
        "blocks": n_layers,
        "data": _data(run).name,
        "n_train": _data(run).n_train,
        "n_test": _data(run).n_test,
        "findings": [finding.text for finding in record.findings],
        "concluded": concluded,
        "recommendation": recommendation(tables, concluded) if concluded else "",
        "share": next((f"{100 * k / n_layers:.0f}% of the blocks" for k in depths), ""),
        "folder": str(run.folder),
    }


def _notes(labels: list[str], runs: Sequence[Run]) -> list[str]:
    """What differs between the runs and bears on reading them side by side."""
    asked = [run.record.study.resolved for run in runs]
    adaptation = [one.get("adaptation", {}) for one in asked]
    places = {
        "margins": [run.record.sufficiency and run.record.sufficiency.margin for run in runs],
        "heads (adaptation.pooling)": [one.get("pooling") for one in adaptation],
        "epochs": [one.get("epochs") for one in adaptation],
        "training texts": [_data(run).n_train for run in runs],
        "seeds": [", ".join(map(str, one.get("seeds", ()))) or None for one in asked],
        "machines, so that seconds, memory and energy do not compare": [
            f"{run.record.provenance.platform}, {run.record.provenance.device}" for run in runs
        ],
    }
    found = []
    for what, values in places.items():
        if len(set(values)) > 1:
            said = "; ".join(
                f"{label}: {value if value is not None else 'not told'}"
                for label, value in zip(labels, values, strict=True)
            )
            found.append(f"The runs differ in their {what} ({said}).")
    return found


def _cost_rows(bought: pd.DataFrame | None) -> dict[str, Any] | None:
    if bought is None:
        return None
    columns = [c for c in COSTS if c in bought.columns]
    rows = [
        {
            "run": row["run"],
            "method": row["method"],
            "accuracy": row["accuracy"],
            "cells": [spoken(row[c], c) for c in columns],
        }
        for row in bought.to_dict("records")
    ]
    return {"columns": [COSTS[c][0] for c in columns], "rows": rows}
