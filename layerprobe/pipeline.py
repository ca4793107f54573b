"""From a study to a run: plan the tasks, hand them to an executor, collect their tables and write the report."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe import hub, interrupt
from layerprobe.context import Context, shared_context
from layerprobe.display import Display
from layerprobe.errors import DataError, EncoderError, LayerprobeError, StorageError, StudyError
from layerprobe.executors import Settings, find_executor
from layerprobe.files import is_disk_full
from layerprobe.graph import expand
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
from layerprobe.resolve import resolve
from layerprobe.runs import LOCK, PAGE, Run
from layerprobe.stage import ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages import REGISTRY
from layerprobe.stages.depth import CONCLUSION, family_of, power_note
from layerprobe.store import Artifact, ArtifactMeta, ArtifactStore
from layerprobe.study import Study, slug

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = TableSpec(
    "examples",
    "The test examples: one row per example.",
    columns(
        "example_id",
        text="the text; the two texts of a pair are separated by ⏐",
        label="its label",
        split="always `test`",
    ),
)

NEAR_COPIES = TableSpec(
    "near_copies",
    "Near copies of examples across the parts of the data: one row per part that they were searched for in.",
    columns(
        part="`train`, `unseen` (examples that give the rows for dictionaries) or `out-of-domain`",
        name="name of the out-of-domain set; empty for the others",
        of="the part or parts that hold the originals",
        n="examples of `part` that were compared, as first drawn",
        n_of="examples of `of`",
        copies="examples of `part` that are near copies of examples of `of`",
        originals="examples of `of` that have a near copy in `part`",
        equal_text="near copies with equal text after Unicode NFKC, case folding and collapsing white space",
        equal_tokens="further near copies with equal tokens within data.max_length",
        similar="further near copies whose sets of word shingles have a Jaccard similarity of at least .7",
        same_label="near copies with the label of one of their originals",
        removed="near copies that were removed from `part`: all, or none if data.near_duplicates is `keep`",
        replaced="removed near copies that were replaced by other examples; 0 for `unseen`",
    ),
)
ADDED_TABLES = (EXAMPLES, NEAR_COPIES)
"""Tables that come from the data and not from a stage."""


@dataclass(frozen=True)
class PlannedTask:
    """One line of a plan."""

    stage: str
    name: str
    key: str | None
    """None while it depends on something that is not known yet."""
    finished: bool
    size: int | None
    """Bytes, None while unknown."""


@dataclass(frozen=True)
class Plan:
    """What `run` would do: its tasks in order, the bytes they take, and what cannot be known yet."""

    tasks: tuple[PlannedTask, ...]
    home: Path
    free: int
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Bytes that unfinished tasks would add."""
        return sum(task.size or 0 for task in self.tasks if not task.finished)


def plan(study: Study, *, device: str = "auto", precision: str = "auto", home: Path | None = None) -> Plan:
    """What `run` would do for this study. Computes nothing, and needs no network: what it cannot know is pending.

    Raises:
        StudyError, DataError, EncoderError: as `run` does, for what can be checked beforehand.
    """
    store = ArtifactStore(home)
    _stay_offline(study)
    try:
        resolved = resolve(study, device, precision).resolved
    except (DataError, EncoderError) as error:
        name = study.data.source if isinstance(error, DataError) else study.model.name
        if not hub.is_hub_id(name):
            raise
        tasks = tuple(PlannedTask(task.name, task.title, None, False, None) for task in expand(study, None))
        notes = (f"Keys and bytes are pending: {error}", *_power(StudyShape(study, None), study.data.test or 500))
        return Plan(tasks, store.root, _free(store.root), notes)
    damaged: list[str] = []
    lines = tuple(_planned(resolved, store, damaged))
    notes = (*_near_copies(resolved), *_power(resolved.shape, resolved.n_test), *damaged)
    return Plan(lines, store.root, _free(store.root), notes)


def _planned(resolved: ResolvedStudy, store: ArtifactStore, damaged: list[str]) -> Iterable[PlannedTask]:
    """Every task with its key, as far as its parents are finished; reads `meta.json` files alone."""
    metas: dict[Stage, ArtifactMeta] = {}
    for task in expand(resolved.study, resolved.n_layers):
        key, parents = None, task.parents()
        if all(parent in metas for parent in parents.values()):
            key = task.key(resolved, {role: metas[parent] for role, parent in parents.items()})
            artifact, problem = store.inspect(task.name, task.title, key)
            if artifact is not None:
                metas[task] = artifact.meta
            elif problem is not None:
                damaged.append(f"{task.id} is damaged ({problem}) and would be computed again.")
        yield PlannedTask(task.name, task.title, key, task in metas, task.size(resolved))


def _near_copies(resolved: ResolvedStudy) -> Iterable[str]:
    """What would be removed because it repeats an example of another part."""
    from layerprobe.report import near_copy_sentences

    found = near_copies_table(resolved)
    return near_copy_sentences(found[found.copies > 0])


def near_copies_table(resolved: ResolvedStudy) -> pd.DataFrame:
    """The near copies found in each part, as the table `near_copies`."""
    import pandas as pd

    return pd.DataFrame([asdict(count) for count in resolved.near_copies], columns=list(NEAR_COPIES.columns))


def _power(shape: StudyShape, examples: int) -> tuple[str, ...]:
    """How many test examples a conclusion about depth would take, where methods are compared at all."""
    family = family_of(shape)
    return (power_note(family, shape.study.adaptation.margin, examples, len(shape.study.seeds)),) if family else ()


def run(
    study: Study,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    jobs: int = 1,
    threads: int | None = None,
    executor: str = "auto",
    address: str | None = None,
    home: Path | None = None,
    given: str | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Run:
    """Run a study, and write its run folder and report.

    Finished tasks are kept in the artifact store: a second run of the same study computes nothing again, and an interrupted
    run resumes after its last finished task.

    Args:
        study: the study.
        out: the run folder; by default `reports/<study name>` below the working folder.
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: of fine-tuning: `bf16`, `fp32`, or `auto`, which is bf16 where the processor has instructions for it.
        jobs: tasks that run side by side. With more than one, a script must call `run` below
            `if __name__ == "__main__":`.
        threads: threads per task; by default torch's own number for one job, else the cores divided by the jobs.
        executor: `serial`, `processes`, `ray`, or `auto`: serial for one job, else processes.
        address: address of a Ray cluster, such as `auto` or `ray://host:10001`; by default `$RAY_ADDRESS`, else a cluster
            on this machine alone.
        home: root of the artifact store; by default `$LAYERPROBE_HOME` or the user's cache folder.
        given: text of the study file, kept in the record of the run.
        command: the command that repeats the run, kept in the record of the run.
        progress: whether to show progress on stderr.

    Raises:
        LayerprobeError: for user errors; nothing finished is lost.
    """
    from filelock import FileLock, Timeout

    for name, number in (("jobs", jobs), ("threads", threads)):
        if number is not None and number < 1:
            raise StudyError(f"--{name} is {number}; it is a whole number of 1 or more.")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise StudyError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: this process is one of several that a launcher started, and each would "
            "run the whole study; start layerprobe without the launcher, and see docs/scaling.md for one training on several "
            "devices."
        )
    execute = find_executor(executor, jobs)
    if address is not None and executor != "ray":
        raise StudyError(f"--address {address} is for the executor ray; add --executor ray, or leave the address out.")
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
        if progress:
            print("Reading the data and the model", file=sys.stderr, flush=True)
        resolved = resolve(study, device, precision).resolved
        context = shared_context(resolved)
        _describe(result.record, context)
        _check_space(resolved, store)
        tasks = expand(study, resolved.n_layers)
        settings = Settings(store.root, jobs, threads, address)
        finished: dict[Stage, Artifact] = {}
        with Display(tasks, store.root, jobs, visible=progress) as display:

            def complete(unfinished: Sequence[Stage]) -> None:
                for done in execute(unfinished, resolved, settings, display.on_event):
                    finished[done.task] = done.artifact
                    display.finished(done)
                    result.record.recomputed += done.damaged
                    result.record.tasks = [_task_record(*pair) for pair in finished.items()]
                    result.save()

            complete(tasks)
            reused = [task for task, artifact in finished.items() if artifact.reused]
            if damaged := [task for task in reused if not store.verify(finished[task])]:
                result.record.recomputed += store.damaged
                complete(damaged)
        result.record.artifacts = list(_opened(finished))
        _collect(result, context, finished, tasks)
        result.record.provenance.finished = datetime.now(UTC).isoformat(timespec="seconds")
        result.record.provenance.seconds = time.perf_counter() - start
        result.record.status = "complete"
        result.save()
        from layerprobe.report import write_report

        write_report(result, folder / PAGE)
    except BaseException as error:
        if result is not None:
            result.record.status, result.record.error = "failed", _one_line(error)
            _save_quietly(result)
        if is_disk_full(error) and not isinstance(error, LayerprobeError):
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


# The record ------------------------------------------------------------------------------------------------------------


def _describe(record: RunRecord, context: Context) -> None:
    """Record what is known of data, encoder, methods and measures before the first task."""
    from layerprobe.similarity import MEASURES

    corpus, encoder, resolved = context.corpus, context.encoder, context.resolved
    record.data = DataRecord(
        name=corpus.name,
        label_names=list(corpus.label_names),
        n_train=len(corpus.train),
        n_test=len(corpus.test),
        n_unseen=len(corpus.unseen),
        notes=[*corpus.notes, *_notes(context)],
        fingerprint=corpus.fingerprint,
        revision=corpus.revision,
    )
    names = ("name", "family", "n_layers", "width", "fingerprint", "pooler", "revision")
    record.encoder = EncoderRecord(**{name: getattr(encoder, name) for name in names})
    record.provenance.device, record.provenance.precision = resolved.device, resolved.precision
    record.methods = [
        MethodRecord(
            name=method.name,
            label=method.label,
            trains_embeddings=method.frozen_layer(resolved.n_layers) is None,
            depth=method.depth(resolved.n_layers),
            is_control=method.is_control,
            uses_seed=method.uses_seed,
            changes_body=method.changes_body,
        )
        for method in (resolved.shape.methods if context.study.few_shot is None else ())
    ]
    record.measures = [
        MeasureRecord(
            name=measure.name,
            label=measure.label,
            kind=measure.kind,
            low=_finite(measure.range[0]),
            high=_finite(measure.range[1]),
            symmetric=measure.symmetric,
            exact=measure.attains_top,
            baseline_of=measure.baseline_of,
            citation=measure.citation,
        )
        for measure in MEASURES
        if {measure.name, measure.baseline_of} & set(context.study.similarity.measures)
    ]


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _notes(context: Context) -> list[str]:
    """What a reader must know of how the examples were used."""
    notes = [note for ood in context.ood for note in ood.notes]
    if context.resolved.sae_layers and context.resolved.sae_source == "train":
        notes.append(
            "The source has too few examples that fine-tuning did not see, so dictionaries were trained on training "
            "examples, which an adapted model has partly memorised."
        )
    if "cls" in context.study.similarity.units:
        notes.append(
            "The embedding (layer 0) of the first token is the same vector for all examples unless the model has no fixed "
            "positions or adds segments; where it is the same, the similarity of first tokens is undefined and left out."
        )
    return notes


def _task_record(task: Stage, artifact: Artifact) -> TaskRecord:
    return TaskRecord(
        stage=task.name,
        name=task.title,
        key=artifact.key,
        seconds=artifact.meta.seconds,
        reused=artifact.reused,
        concurrent=artifact.meta.concurrent_tasks,
    )


def _opened(finished: Mapping[Stage, Artifact]) -> Iterable[ArtifactRecord]:
    """Folders that people may open on their own."""
    for task, artifact in finished.items():
        if task.opened is not None and (artifact.folder / task.opened).is_dir():
            yield ArtifactRecord(stage=task.name, name=task.title, folder=str(artifact.folder / task.opened))


def _collect(result: Run, context: Context, finished: Mapping[Stage, Artifact], tasks: Sequence[Stage]) -> None:
    """Collect the tables of all tasks, and the findings that follow from them."""
    import pandas as pd

    from layerprobe.report import findings

    parts: dict[str, list[pd.DataFrame]] = {
        EXAMPLES.name: [_examples_table(context)],
        NEAR_COPIES.name: [near_copies_table(context.resolved)],
    }
    for task in tasks:
        artifact = finished[task]
        for name in artifact.table_names:
            table = artifact.table(name)
            if "seconds" in table.columns:
                table = table.assign(concurrent_tasks=artifact.meta.concurrent_tasks)
            parts.setdefault(name, []).append(table)
        if CONCLUSION in artifact.meta.files:
            conclusion = json.loads((artifact.folder / CONCLUSION).read_text(encoding="utf-8"))
            result.record.sufficiency = Conclusion(**conclusion)
    tables = {
        name: _with_facts(pd.concat(frames, ignore_index=True), context.resolved) for name, frames in parts.items()
    }
    specs = {spec.name: spec for stage in REGISTRY for spec in stage.tables} | {
        spec.name: spec for spec in ADDED_TABLES
    }
    result.save_tables(tables, specs)
    result.record.findings = findings(tables, result.record)


def _with_facts(table: pd.DataFrame, resolved: ResolvedStudy) -> pd.DataFrame:
    """Add what is known of each row's method, so that no reader of the table parses its name."""
    import pandas as pd

    if "method" not in table.columns or resolved.study.few_shot is not None:
        return table
    methods = {method.name: method for method in resolved.shape.methods}
    depths = {name: method.depth(resolved.n_layers) for name, method in methods.items()}
    facts: dict[str, Any] = {
        "depth": pd.Series([depths.get(name) for name in table["method"]], dtype="Int64", index=table.index),
        "is_control": [name in methods and methods[name].is_control for name in table["method"]],
        "is_reference": [name not in methods for name in table["method"]],
    }
    return table.assign(**{name: values for name, values in facts.items() if name not in table.columns})


def _examples_table(context: Context) -> pd.DataFrame:
    import pandas as pd

    test = context.corpus.test
    texts = test.texts if test.pairs is None else [f"{a} ⏐ {b}" for a, b in zip(test.texts, test.pairs, strict=True)]
    labels = [context.corpus.label_names[label] for label in test.labels]
    return pd.DataFrame({"example_id": test.ids, "text": texts, "label": labels, "split": "test"})


# Disk, network and errors ----------------------------------------------------------------------------------------------


def _check_space(resolved: ResolvedStudy, store: ArtifactStore) -> None:
    needed = sum(task.size or 0 for task in _planned(resolved, store, []) if not task.finished)
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


def _stay_offline(study: Study) -> None:
    """Keep libraries from looking anything up that the study does not need."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_MODE", "disabled")
    names: Sequence[str] = (study.model.name, study.data.source, *(ood.source for ood in study.data.ood))
    if not any(hub.is_hub_id(name) for name in names):
        hub.stay_offline()
    elif "HF_HUB_OFFLINE" not in os.environ and not hub.allow():
        print(
            f"{hub.endpoint()} cannot be reached: the run uses what is on this disk, as with HF_HUB_OFFLINE=1.",
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
        print(f"The record of the run in {result.folder} could not be updated.", file=sys.stderr)
