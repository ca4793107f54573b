"""From a study to a run: the plan of tasks, their order, and what is kept between runs."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.artifacts import Artifact, ArtifactStore, digest
from layerprobe.errors import DataError, EncoderError, LayerprobeError, StorageError
from layerprobe.runs import PAGE, Run
from layerprobe.study import Study, slug

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.stages import Inputs

Parents = Mapping[str, Artifact]


@dataclass(frozen=True)
class Task:
    """One stage's work on one thing: what it is made from, and how."""

    stage: str
    name: str
    identity: Callable[[Parents], dict[str, Any]]
    """What decides the result, besides the parents' keys; may read finished parents."""
    build: Callable[[Path, Parents], None]
    """Writes the artifact's data into an empty folder."""
    parents: tuple[str, ...] = ()
    size: int = 0
    """Bytes that it will take, estimated from above."""
    keyed_by_content: bool = False
    """Whether the identity is all there is to the key, so that equal content made in two ways is one artifact."""

    @property
    def id(self) -> str:
        return f"{self.stage}: {self.name}"

    def key(self, done: Parents) -> str | None:
        """The task's key, or None while a parent is unfinished."""
        from layerprobe.stages import VERSIONS

        if any(parent not in done for parent in self.parents):
            return None
        parents = [] if self.keyed_by_content else [done[parent].key for parent in self.parents]
        return digest(
            {"stage": self.stage, "version": VERSIONS[self.stage], "identity": self.identity(done), "parents": parents}
        )


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
        inputs, notes = _inputs(study, device, progress=False), ()
    except (DataError, EncoderError) as error:
        if not _hub_sources(study):
            raise
        return Plan(_outline(study), store.root, _free(store.root), (f"Keys and bytes are pending: {error}",))
    done: dict[str, Artifact] = {}
    lines = []
    for task in _tasks(inputs):
        key = task.key(done)
        found = store.find(task.stage, task.name, key) if key else None
        if found:
            done[task.id] = found
        lines.append(PlannedTask(task.stage, task.name, key, found is not None, task.size))
    return Plan(tuple(lines), store.root, _free(store.root), notes + tuple(store.damaged))


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
    record: dict[str, Any] = {
        "status": "running",
        "name": study.name,
        "question": study.question,
        "study": {"given": given, "resolved": study.resolved()},
        "command": command or f"layerprobe.run(Study.load(...), out={str(folder)!r})",
        "provenance": _provenance(device),
        "tasks": [],
        "findings": [],
        "error": None,
    }
    result = Run.create(folder, record)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StorageError(
            f"Another run is writing to {folder}; wait for it, or give another folder with --out."
        ) from None
    try:
        inputs = _inputs(study, device, progress=progress)
        result.record |= {"data": inputs.describe_data(), "encoder": inputs.describe_encoder()}
        result.record["provenance"] |= {"device": inputs.device, "precision": inputs.precision}
        tasks = _tasks(inputs)
        _check_space(tasks, store)
        done: dict[str, Artifact] = {}
        for number, task in enumerate(tasks, 1):
            key = task.key(done)
            assert key is not None, f"{task.id} stands before one of its parents"
            tell = _Teller(f"[{number}/{len(tasks)}] {task.id}", progress)
            parents = {parent: done[parent] for parent in task.parents}
            artifact = store.make(task.stage, task.name, key, _builder(task, parents, tell), about=task.identity(done))
            tell.finished(artifact)
            done[task.id] = artifact
            result.record["tasks"].append(
                {
                    "stage": task.stage,
                    "name": task.name,
                    "key": key,
                    "seconds": artifact.seconds,
                    "reused": artifact.reused,
                }
            )
            result.save()
        _finish(result, inputs, done, store)
        result.record["provenance"] |= {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - start,
        }
        result.record["status"] = "complete"
        result.save()
        from layerprobe.report import write_report

        write_report(result, folder / PAGE)
    except BaseException as error:
        result.record |= {"status": "failed", "error": _one_line(error)}
        _save_quietly(result)
        raise
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)
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


def _inputs(study: Study, device: str, *, progress: bool) -> Inputs:
    if progress:
        print("Reading the data and the model", file=sys.stderr, flush=True)
    from layerprobe.stages import load_inputs

    return load_inputs(study, device, progress=progress)


def _tasks(inputs: Inputs) -> list[Task]:
    """Every task of a study, parents first."""
    from layerprobe import stages

    made = [
        Task("capture", "base", inputs.capture_identity, stages.capture_base(inputs), size=inputs.capture_bytes),
        Task("capture-train", "base", inputs.train_identity, stages.capture_train(inputs), size=inputs.train_bytes),
        Task(
            "reference",
            "logistic",
            inputs.reference_identity,
            stages.reference(inputs),
            parents=("capture-train: base", "capture: base"),
        ),
    ]
    layers = inputs.sae_layers
    if layers:
        made.append(
            Task(
                "capture-sae", "base", inputs.sae_rows_identity, stages.capture_sae(inputs, None), size=inputs.sae_bytes
            )
        )
        made += [_dictionary(inputs, "base", layer, "capture-sae: base") for layer in layers]
    for method in inputs.methods:
        for seed in inputs.seeds(method):
            made += _method_tasks(inputs, method, seed)
        if len(inputs.seeds(method)) > 1 and method.kind != "head":  # a head leaves every layer to the base
            made.append(_seeds_task(inputs, method))
    return made


def _seeds_task(inputs: Inputs, method: Method) -> Task:
    from layerprobe import comparisons

    captures = [(seed, f"capture: {_called(method.name, seed)}") for seed in inputs.seeds(method)]
    pairs = [(*one, *other) for one, other in itertools.pairwise(captures)]
    return Task(
        "seeds",
        method.name,
        inputs.similarity_identity(method, captures[0][0]),
        comparisons.seeds(inputs, method, pairs),
        parents=tuple(name for _, name in captures),
    )


def _method_tasks(inputs: Inputs, method: Method, seed: int) -> Iterable[Task]:
    from layerprobe import comparisons, stages

    name = _called(method.name, seed)
    adapt, capture = f"adapt: {name}", f"capture: {name}"
    yield Task(
        "adapt",
        name,
        inputs.adapt_identity(method, seed),
        stages.adapt(inputs, method, seed),
        size=inputs.model_bytes(method),
    )
    yield Task(
        "capture",
        name,
        inputs.capture_identity,
        stages.capture_adapted(inputs, adapt),
        parents=(adapt, "capture: base"),
        size=inputs.capture_bytes,
    )
    yield Task(
        "similarity",
        name,
        inputs.similarity_identity(method, seed),
        comparisons.similarity(inputs, method, seed, capture),
        parents=("capture: base", capture),
    )
    yield Task(
        "nulls",
        name,
        inputs.nulls_identity(method, seed),
        comparisons.nulls(inputs, method, seed, capture),
        parents=("capture: base", capture),
    )
    yield Task(
        "geometry",
        name,
        inputs.geometry_identity(method, seed),
        comparisons.geometry(inputs, method, seed, capture),
        parents=("capture: base", capture),
    )
    yield Task(
        "sentences",
        name,
        inputs.sentences_identity(method, seed),
        stages.sentences(inputs, method, seed, capture),
        parents=("capture: base", capture),
    )
    if not inputs.sae_layers:
        return
    rows = f"capture-sae: {name}"
    yield Task(
        "capture-sae",
        name,
        inputs.sae_rows_identity,
        stages.capture_sae(inputs, adapt),
        parents=(adapt, "capture-sae: base"),
        size=inputs.sae_bytes,
    )
    for layer in inputs.sae_layers:
        yield _dictionary(inputs, name, layer, rows)
        base_sae, adapted_sae = f"sae: base layer {layer}", f"sae: {name} layer {layer}"
        yield Task(
            "features",
            f"{name} layer {layer}",
            inputs.features_identity(method, seed, layer),
            stages.features(inputs, method, seed, layer, capture, rows, base_sae, adapted_sae),
            parents=("capture: base", capture, "capture-sae: base", rows, base_sae, adapted_sae),
        )


def _dictionary(inputs: Inputs, side: str, layer: int, rows: str) -> Task:
    from layerprobe import stages

    return Task(
        "sae",
        f"{side} layer {layer}",
        inputs.sae_identity(rows, layer),
        stages.train_sae(inputs, rows, layer),
        parents=(rows,),
        size=inputs.dictionary_bytes,
        keyed_by_content=True,
    )


def _called(method: str, seed: int) -> str:
    return f"{method} seed {seed}"


def _outline(study: Study) -> tuple[PlannedTask, ...]:
    """The plan of a study whose model or data is out of reach: names only."""
    from layerprobe.adaptation import parse_method

    layers = study.sae.layers if study.sae.layers is not None else ("early", "middle", "last")
    pairs: list[tuple[str, str]] = [("capture", "base"), ("capture-train", "base"), ("reference", "logistic")]
    if layers:
        pairs += [("capture-sae", "base"), *(("sae", f"base layer {layer}") for layer in layers)]
    methods = study.adaptation.methods
    names = ["every depth"] if methods == "depths" else [parse_method(method).name for method in methods]
    for method in names:
        for seed in study.seeds[:1] if method.startswith("checkpoint:") else study.seeds:
            name = _called(method, seed)
            pairs += [(stage, name) for stage in ("adapt", "capture", "similarity", "nulls", "geometry", "sentences")]
            if layers:
                pairs.append(("capture-sae", name))
                pairs += [(stage, f"{name} layer {layer}") for layer in layers for stage in ("sae", "features")]
    return tuple(PlannedTask(stage, name, None, False, None) for stage, name in pairs)


def _finish(result: Run, inputs: Inputs, done: Parents, store: ArtifactStore) -> None:
    """Gather the tables of all tasks, and the findings made from them."""
    import pandas as pd

    from layerprobe.report import findings

    parts: dict[str, list[pd.DataFrame]] = {"examples": [inputs.examples_table()]}
    for artifact in done.values():
        for path in sorted((artifact.folder / "tables").glob("*.parquet")):
            parts.setdefault(path.stem, []).append(pd.read_parquet(path))
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    result.save_tables(tables)
    result.record["data"]["notes"] += inputs.notes()
    result.record["recomputed"] = list(store.damaged)
    result.record["findings"] = [{"text": f.text, "figure": f.figure} for f in findings(tables, result.record)]


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
            f"This study needs about {needed / 1e9:.1f} GB in {store.root} and {free / 1e9:.1f} GB are free; lower "
            'activations.examples or sae.rows, choose activations.dtype = "float16", or set LAYERPROBE_HOME to a '
            "larger disk."
        )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _hub_sources(study: Study) -> bool:
    """Whether the study names something that is neither bundled nor on this disk."""
    model, source = study.model.name, study.data.source
    here = [name.startswith("bundled:") or Path(name).expanduser().exists() for name in (model, source)]
    return not all(here)


def _stay_offline(study: Study) -> None:
    """Keep libraries from looking anything up; they read these when first imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_MODE", "disabled")
    if not _hub_sources(study):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


PACKAGES = ("layerprobe", "torch", "transformers", "datasets", "sae-lens", "plotly", "numpy", "scipy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of the packages that a run's numbers depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _provenance(device: str) -> dict[str, Any]:
    commit, dirty = _git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
        "device": device,
        "precision": None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "seconds": None,
    }


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from and whether it was changed; None for an installed wheel."""
    source = Path(__file__).resolve().parent
    if not (source.parent / ".git").exists():
        return None, None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", source, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, LayerprobeError) else f"{type(error).__name__}: {text}"


def _save_quietly(result: Run) -> None:
    """Record a failure where that is still possible: on a full disk the first error is the one to show."""
    try:
        result.save()
    except OSError:
        print(f"The run's record in {result.folder} could not be updated.", file=sys.stderr)
