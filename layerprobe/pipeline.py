"""From a study to a run: the plan of tasks, their order, and what is kept between runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe import hub, interrupt
from layerprobe.artifacts import Artifact, ArtifactStore, is_full
from layerprobe.errors import DataError, EncoderError, LayerprobeError, StorageError
from layerprobe.provenance import provenance
from layerprobe.record import (
    ArtifactRecord,
    Conclusion,
    DataRecord,
    EncoderRecord,
    MeasureRecord,
    MethodRecord,
    Provenance,
    RunRecord,
    StudyRecord,
    TaskRecord,
)
from layerprobe.runs import LOCK, PAGE, Run
from layerprobe.stages.depth import CONCLUSION, family_of, power_note
from layerprobe.study import Study, slug
from layerprobe.task import Parents, Task
from layerprobe.tasks import asked_methods, outline, seeds_of, tasks_of

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.adaptation import Method
    from layerprobe.inputs import Inputs


DATA_FILES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")
"""Endings of names that are files even where none is there: no Hub id ends so."""

OPENED = {"adapt": "checkpoint", "capture": "rows", "sae": "dictionary"}
"""Stage -> the folder of its artifacts that can be opened on its own."""
LABELS = {
    "paired_cosine": "Mean cosine of the same row",
    "cka": "CKA (debiased, linear)",
    "procrustes": "Procrustes similarity",
    "cka_angle": "CKA angle (radians)",
    "mean_cca": "Mean canonical correlation",
    "mean_squared_cca": "Mean squared canonical correlation",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes_angle": "Procrustes angle (radians)",
    "shape_distance": "Shape distance (radians)",
    "rsa": "RSA (correlation, Spearman)",
    "mutual_knn": "Mutual 10 nearest neighbours",
    "jaccard_knn": "Jaccard of 10 nearest neighbours",
    "linear_predictivity": "Linear predictivity (R²)",
}


@dataclass(frozen=True)
class PlannedTask:
    """A line of a plan."""

    stage: str
    name: str
    key: str | None
    """None while it hangs on something that is not known yet."""
    finished: bool
    size: int | None
    """Bytes, None while unknown."""


@dataclass(frozen=True)
class Plan:
    """What `run` would do: its tasks in order, the bytes they take, and what cannot be known yet."""

    tasks: tuple[PlannedTask, ...]
    home: Path
    free: int
    notes: tuple[str, ...] = field(default=())

    @property
    def needed(self) -> int:
        """Bytes that unfinished tasks would add."""
        return sum(task.size or 0 for task in self.tasks if not task.finished)


def plan(study: Study, *, device: str = "auto", home: Path | None = None) -> Plan:
    """What `run` would do for this study. Computes nothing, and needs no network: what it can't know is pending.

    Raises:
        StudyError, DataError, EncoderError: as `run` does, for what can be checked beforehand.
    """
    store = ArtifactStore(home)
    _stay_offline(study)
    try:
        inputs = _inputs(study, device, store.root, progress=False)
    except (DataError, EncoderError) as error:
        here = study.data.source if isinstance(error, DataError) else study.model.name
        if not _of_the_hub(here):
            raise
        return Plan(
            tuple(PlannedTask(stage, name, None, False, None) for stage, name in outline(study)),
            store.root,
            _free(store.root),
            (f"Keys and bytes are pending: {error}", *_power(study, asked_methods(study), study.data.test or 500)),
        )
    done: dict[str, Artifact] = {}
    lines = []
    for task in tasks_of(inputs):
        key = task.key(done)
        found = store.find(task.stage, task.name, key) if key else None
        if found:
            done[task.id] = found
        lines.append(PlannedTask(task.stage, task.name, key, found is not None, task.size))
    notes = _power(study, inputs.methods, len(inputs.corpus.test))
    return Plan(tuple(lines), store.root, _free(store.root), (*notes, *store.damaged))


def _power(study: Study, methods: Sequence[Method], texts: int) -> tuple[str, ...]:
    """How many test texts a conclusion about depth would take, where methods are compared at all."""
    family = family_of(methods, partial(seeds_of, study))
    return (power_note(family, study.adaptation.margin, texts),) if family else ()


def run(
    study: Study,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    home: Path | None = None,
    given: str | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Run:
    """Do what a study asks for, and write its run folder and report.

    Finished tasks are kept in the artifact store: a second run of the same study computes nothing again, and a run
    that was interrupted goes on from its last finished task.

    Args:
        study: what is asked for.
        out: the run folder; by default `reports/<study name>` below the working folder.
        device: `auto`, `cpu`, `cuda` or `mps`.
        home: root of the artifact store; by default `$LAYERPROBE_HOME` or the user's cache folder.
        given: the study's own text, kept in the run's record.
        command: the command that repeats the run, kept in the run's record.
        progress: whether to tell what happens on stderr.

    Raises:
        LayerprobeError: for what is the user's to mend; nothing finished is lost.
    """
    from filelock import FileLock, Timeout

    start = time.perf_counter()
    folder = Path(out) if out is not None else Path("reports") / slug(study.name)
    store = ArtifactStore(home)
    _stay_offline(study)
    record = RunRecord(
        name=study.name,
        question=study.question,
        study=StudyRecord(given=given, resolved=study.resolved()),
        command=command or f"layerprobe.run(Study.load(...), out={str(folder)!r})",
        provenance=Provenance(**provenance(device)),
    )
    Run.prepare(folder)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StorageError(
            f"Another run is writing to {folder}; wait for it, or give another folder with --out."
        ) from None
    result = None
    try:
        result = Run.create(folder, record)
        inputs = _inputs(study, device, store.root, progress=progress)
        record.data = DataRecord(**inputs.describe_data())
        record.encoder = EncoderRecord(**inputs.describe_encoder())
        record.provenance.device, record.provenance.precision = inputs.device, inputs.precision
        record.methods = _method_records(inputs)
        record.measures = _measure_records(study)
        tasks = tasks_of(inputs)
        _check_space(tasks, store)
        done: dict[str, Artifact] = {}
        for number, task in enumerate(tasks, 1):
            key = task.key(done)
            assert key is not None, f"{task.id} stands before one of its parents"
            tell = _Teller(f"[{number}/{len(tasks)}] {task.id}", progress)
            parents = {parent: done[parent] for parent in task.parents}
            artifact = store.make(
                task.stage,
                task.name,
                key,
                _builder(task, parents, tell),
                about=task.identity(done),
                resumable=task.resumable,
            )
            tell.finished(artifact)
            done[task.id] = artifact
            record.tasks.append(
                TaskRecord(stage=task.stage, name=task.name, key=key, seconds=artifact.seconds, reused=artifact.reused)
            )
            part = OPENED.get(task.stage)
            if part and (artifact.folder / part).is_dir():
                record.artifacts.append(
                    ArtifactRecord(stage=task.stage, name=task.name, folder=str(artifact.folder / part))
                )
            result.save()
        _finish(result, inputs, done, store)
        record.provenance.finished = datetime.now(UTC).isoformat(timespec="seconds")
        record.provenance.seconds = time.perf_counter() - start
        record.status = "complete"
        result.save()
        from layerprobe.report import write_report

        write_report(result, folder / PAGE)
    except BaseException as error:
        if result is not None:
            record.status, record.error = "failed", _one_line(error)
            _save_quietly(result)
        if is_full(error) and not isinstance(error, LayerprobeError):
            raise StorageError(
                f"The disk is full: the run in {folder} could not be written. Every finished task is kept in "
                f"{store.root}; free some space, or give a folder on a larger disk with --out, and run the same command "
                "again."
            ) from error
        raise
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)
    return result


class _Teller:
    """Tells of one task on stderr: a line when it begins, and how long it took."""

    def __init__(self, title: str, progress: bool) -> None:
        self.title = title
        self.progress = progress
        self.began = False

    def begin(self) -> None:
        self.began = True
        if self.progress:
            print(self.title, file=sys.stderr, flush=True)

    def finished(self, artifact: Artifact) -> None:
        if self.progress:
            how = "kept from before" if artifact.reused else f"{artifact.seconds:.1f} s"
            print(f"    {how}" if self.began else f"{self.title}: {how}", file=sys.stderr, flush=True)


def _builder(task: Task, parents: Parents, tell: _Teller) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        tell.begin()
        task.build(folder, parents)

    return build


def _inputs(study: Study, device: str, home: Path, *, progress: bool) -> Inputs:
    if progress:
        print("Reading the data and the model", file=sys.stderr, flush=True)
    from layerprobe.inputs import load_inputs

    return load_inputs(study, device, home, progress=progress)


def _finish(result: Run, inputs: Inputs, done: Parents, store: ArtifactStore) -> None:
    """Gather the tables of all tasks, and the findings made from them."""
    import pandas as pd

    from layerprobe.report import findings

    record = result.record
    parts: dict[str, list[pd.DataFrame]] = {"examples": [inputs.examples_table()]}
    for artifact in done.values():
        for path in sorted((artifact.folder / "tables").glob("*.parquet")):
            parts.setdefault(path.stem, []).append(pd.read_parquet(path))
        if (artifact.folder / CONCLUSION).exists():
            conclusion = json.loads((artifact.folder / CONCLUSION).read_text(encoding="utf-8"))
            record.sufficiency = Conclusion(**conclusion)
    gathered = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    tables = {name: _with_method_columns(table, record) for name, table in gathered.items()}
    result.save_tables(tables)
    assert record.data is not None
    record.data.notes += inputs.notes()
    record.recomputed = list(store.damaged)
    record.findings = findings(tables, record)


def _with_method_columns(table: pd.DataFrame, record: RunRecord) -> pd.DataFrame:
    """The table with `depth`, `is_control` and `is_reference` after its column `method`, if it has one."""
    import pandas as pd

    if "method" not in table:
        return table
    known = {method.name: method for method in record.methods}
    table, place = table.copy(), list(table.columns).index("method") + 1
    depths = [known[name].depth if name in known else None for name in table.method]
    columns: dict[str, Any] = {
        "is_reference": [name not in known for name in table.method],
        "is_control": [name in known and known[name].is_control for name in table.method],
        "depth": pd.Series(depths, dtype="Int64", index=table.index),
    }
    for name, values in columns.items():
        if name not in table:  # the table of sufficiency has its own depths
            table.insert(place, name, values)
    return table


def _method_records(inputs: Inputs) -> list[MethodRecord]:
    layers = inputs.encoder.n_layers
    return [
        MethodRecord(
            name=method.name,
            label=f"checkpoint:…/{Path(method.path).name}" if method.path and "/" in method.path else None,
            depth={"head": 0, "top": method.k, "full": layers}.get(method.kind),
            trains_embeddings=method.kind in ("full", "lp-ft", "shuffled-labels"),
            is_control=method.kind == "shuffled-labels",
            uses_seed=method.kind != "checkpoint",
            changes_body=method.kind != "head",
        )
        for method in inputs.methods
    ]


def _measure_records(study: Study) -> list[MeasureRecord]:
    from math import isfinite

    from layerprobe.similarity import MEASURES

    baselines = {"paired_cosine_baseline": "paired_cosine"}
    return [
        MeasureRecord(
            name=measure.name,
            label=LABELS.get(measure.name, measure.name),
            kind=measure.kind,
            low=measure.low if isfinite(measure.low) else None,
            high=measure.high if isfinite(measure.high) else None,
            symmetric=measure.symmetric,
            exact=measure.name != "linear_predictivity",
            baseline_of=baselines.get(measure.name),
            citation=measure.citation,
        )
        for measure in MEASURES
        if {measure.name, baselines.get(measure.name)} & set(study.similarity.measures)
    ]


def _check_space(tasks: list[Task], store: ArtifactStore) -> None:
    done: dict[str, Artifact] = {}
    needed = 0
    for task in tasks:
        key = task.key(done)
        if key and store.folder(task.stage, task.name, key).exists():
            folder = store.folder(task.stage, task.name, key)
            done[task.id] = Artifact(folder, key, 0.0, reused=True)
        else:
            needed += task.size
    free = _free(store.root)
    if needed > free:
        raise StorageError(
            f"This study needs about {needed / 1e6:,.1f} MB in {store.root} and {free / 1e6:,.1f} MB are free; lower "
            'activations.examples or sae.rows, choose activations.dtype = "float16", or set LAYERPROBE_HOME to a '
            "larger disk."
        )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _of_the_hub(name: str) -> bool:
    """Whether a model or a data source is neither bundled nor a path."""
    path = Path(name).expanduser()
    pathlike = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix.lower() in DATA_FILES
    return not (name.startswith("bundled:") or pathlike or path.exists())


def _stay_offline(study: Study) -> None:
    """Keep libraries from looking anything up that the study does not need."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_MODE", "disabled")
    sources = [study.data.source, *(one.source for one in study.data.ood)]
    if not any(_of_the_hub(name) for name in (study.model.name, *sources)):
        hub.stay_offline()
    elif "HF_HUB_OFFLINE" not in os.environ and not hub.allow():
        print(
            f"{hub.endpoint()} is out of reach: going on as with HF_HUB_OFFLINE=1, with what is on this disk.",
            file=sys.stderr,
        )


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt) or interrupt.heard():
        return "interrupted"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, LayerprobeError) else f"{type(error).__name__}: {text}"


def _save_quietly(result: Run) -> None:
    """Record a failure where that is still possible: on a full disk the first error is the one to show."""
    try:
        result.save()
    except OSError:
        print(f"The run's record in {result.folder} could not be updated.", file=sys.stderr)
