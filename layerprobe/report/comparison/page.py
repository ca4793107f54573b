"""Comparing run folders: which can be compared, and writing the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from layerprobe.errors import StorageError
from layerprobe.files import write_json, write_text
from layerprobe.report.comparison.sections import SECTIONS
from layerprobe.report.comparison.tables import ComparedRun, compare
from layerprobe.report.page import render_page

if TYPE_CHECKING:
    from layerprobe.runs import Run

PAGE = "index.html"
RECORD = "compare.json"
"""File that identifies the folder of a comparison."""
RUN_RECORD = "run.json"
"""File that identifies the folder of a run."""


def compare_runs(runs: Sequence[Run] | Mapping[str, Run], out: str | Path, *, notes: Sequence[str] = ()) -> Path:
    """Write one self-contained page about several runs: other models, other data, other settings.

    Runs with the same test examples and labels are compared example by example; others are shown together as separate
    studies, and the page says so. Methods are matched by name, and where names differ, checkpoint with checkpoint or main
    method with main method.

    Args:
        runs: two or more finished runs, or runs by the label that the page shows; by default labels are the studies' names.
        out: a new or empty folder, one that holds run folders alone, or that of an earlier comparison; `index.html` and
            `compare.json` are written to it.
        notes: what else limits the comparison, in sentences for the page.

    Returns:
        Path of the page.

    Raises:
        StorageError: if a run is unfinished or given twice, or `out` holds something else.
    """
    labels, runs = _labelled(runs)
    for run in runs:
        _check_finished(run)
    _check_different(runs)
    folder, compared = Path(out), []
    for label, run in zip(labels, runs, strict=True):
        compared.append(ComparedRun(label, str(run.folder), run.record, {name: run.table(name) for name in run.tables}))
    tables, comparison = compare(compared)
    check_folder(folder)
    html = render_page(tables, replace(comparison, notes=notes), SECTIONS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / RECORD, {"schema": 1, "kind": "comparison", "runs": {one.label: one.folder for one in compared}}
        )
        write_text(folder / PAGE, html)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); give another with --out.") from error
    return folder / PAGE


def _check_finished(run: Run) -> None:
    if (status := run.record.status) != "complete":
        why = run.record.error or "not ended"
        raise StorageError(f"The run in {run.folder} is {status} ({why}); finish it first with: {run.record.command}")
    if run.record.study.resolved.get("few_shot") is not None:
        raise StorageError(
            f"The run in {run.folder} is a few-shot study, which cannot be compared; its own report compares its inner loops."
        )
    if "adaptation" not in run.tables or not run.record.methods:
        raise StorageError(f"The run in {run.folder} holds no table of quality; run its study again.")


def _check_different(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        given = runs[0].folder if runs else "none"
        raise StorageError(f"A comparison takes two run folders or more, and got {given}; name another run.")
    seen: dict[Path | frozenset[str], Run] = {}
    for run in runs:
        keys = frozenset(task.key for task in run.record.tasks)
        identities = ((run.folder.resolve(), "the same folder, given twice"), (keys, "the same training and analysis"))
        for identity, what in identities:
            if identity and identity in seen:
                raise StorageError(
                    f"{seen[identity].folder} and {run.folder} are {what}; a comparison takes runs that differ in model, "
                    "data, method or settings."
                )
            seen[identity] = run


def check_folder(out: Path) -> None:
    """Refuse a folder in which something else than a comparison and its runs would be written over.

    Raises:
        StorageError: in one sentence.
    """
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file, not a folder; give another with --out.")
    if out.exists() and not all(map(_is_run, out.iterdir())) and not _is_comparison(out):
        raise StorageError(
            f"{out} holds something other than a comparison; nothing in it was touched. Give an empty or new folder with --out."
        )


def _is_run(path: Path) -> bool:
    """Whether a path is the folder of a run."""
    return (path / RUN_RECORD).is_file()


def _is_comparison(folder: Path) -> bool:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8")).get("kind") == "comparison"
    except (OSError, ValueError, AttributeError):
        return False


def _labelled(runs: Sequence[Run] | Mapping[str, Run]) -> tuple[list[str], list[Run]]:
    """Labels and runs; by default a label is the study's name, with model and data where names recur, numbered where these
    do, too.
    """
    if isinstance(runs, Mapping):
        return list(runs), list(runs.values())
    names = [run.record.name for run in runs]
    if len(set(names)) < len(names):
        records = [run.record for run in runs]
        names = [f"{one.name} · {one.encoder.name} · {one.data.name}" for one in records if one.encoder and one.data]
    unique = [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]
    return unique, list(runs)
