"""The command line: parse, call, print a path."""

from __future__ import annotations

import math
import os
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerprobe import interrupt
from layerprobe.errors import LayerprobeError, StudyError
from layerprobe.study import Study

if TYPE_CHECKING:
    from layerprobe.runs import Run
    from layerprobe.similarity import Measure
    from layerprobe.sweep import Sweep

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="What did fine-tuning do to every layer of this transformer?",
)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study to run; `analyses/` has examples.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder. Default: reports/<study name>.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key of the study. Repeatable."),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Device to compute on.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="auto|fp32|tf32|bf16",
        help="Precision of fine-tuning. auto: bf16 if the processor supports it, else fp32.",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", metavar="N", help="Number of tasks that run at the same time.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="M", help="Threads per task. Default: all cores, or the cores divided by the jobs."
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="auto|serial|processes|ray",
        help="What runs the tasks. auto: this process for one job, else worker processes.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="Ray cluster. Default: $RAY_ADDRESS, else this machine alone."),
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", metavar="N", help="Training seed, instead of the study's. Repeatable.")
]


@app.command()
def run(
    study: StudyPath,
    out: Out = None,
    overrides: Overrides = None,
    device: Device = "auto",
    precision: Precision = "auto",
    jobs: Jobs = 1,
    threads: Threads = None,
    executor: Executor = "auto",
    address: Address = None,
    seed: Seeds = None,
) -> None:
    """Run a study and write its report."""
    _run(
        study,
        out,
        overrides or [],
        _How(device, precision, jobs, threads, executor, address),
        seed or [],
        verb=["run", str(study)],
    )


@app.command()
def demo(
    out: Out = None,
    overrides: Overrides = None,
    device: Device = "auto",
    precision: Precision = "auto",
    jobs: Jobs = 1,
    threads: Threads = None,
    executor: Executor = "auto",
    address: Address = None,
    seed: Seeds = None,
) -> None:
    """Run the quickstart on the bundled model and tweets: fine-tune, compare every layer, report. A few minutes."""
    _run(
        analyses() / "quickstart.toml",
        out,
        overrides or [],
        _How(device, precision, jobs, threads, executor, address),
        seed or [],
        verb=["demo"],
    )


@app.command()
def plan(
    study: StudyPath,
    overrides: Overrides = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seeds = None,
) -> None:
    """List the tasks of a study, which of them are finished, and the disk space needed. Computes nothing."""
    from rich.filesize import decimal

    from layerprobe.terminal import print_table

    if _is_sweep(study):
        _plan_sweep(study, overrides or [], device, precision, seed or [])
        return
    with _one_sentence():
        loaded = _load(study, overrides or [], seed or [])
        print(f"Planning {loaded.name}: reading the data and the model", file=sys.stderr, flush=True)
        from layerprobe import pipeline
        from layerprobe.display import duration

        planned = pipeline.plan(loaded, device=device, precision=precision)
    rows = [
        (
            task.stage,
            task.name,
            (task.key or "unknown")[:16],
            "finished" if task.finished else "pending",
            "" if task.finished else duration(task.seconds) if task.seconds >= 1 else "<1 s",
            "unknown" if task.size is None else decimal(task.size) if task.size else "small",
        )
        for task in planned.tasks
    ]
    print_table(("stage", "parameters", "key", "state", "time", "size"), rows)
    for note in planned.notes:
        print(note)
    pending = [task for task in planned.tasks if not task.finished]
    if pending:
        measured = sum(task.measured for task in pending)
        basis = (
            f"from the times of earlier tasks for {measured} of {len(pending)} tasks" if measured else "a rough guess"
        )
        also = ", guessed for the others" if 0 < measured < len(pending) else ""
        print(f"Time: about {duration(planned.seconds)} with one job ({basis}{also}).")
    if all(task.size is not None for task in planned.tasks):
        print(f"To be added: about {decimal(planned.needed)} in {planned.home} ({decimal(planned.free)} free).")


@app.command()
def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A CSV, TSV, JSONL or Parquet file of labelled texts.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="STUDY.toml", help="File to write. Default: named after the data.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Bundled model, local folder or Hub id.")
    ] = "bundled:minilm-l6",
) -> None:
    """Write a commented study for a data file: columns, classes and sizes are read from the file."""
    from layerprobe.starter import write_starter

    with _one_sentence():
        starter = write_starter(data, out or Path(f"{data.stem}.toml"), model)
    for line in starter.summary:
        print(line)
    print(f"Next: {shlex.join(['layerprobe', 'plan', str(starter.path)])}")
    print(starter.path)


@app.command()
def sweep(
    path: Annotated[
        Path, typer.Argument(metavar="SWEEP.toml", help="The sweep to run; `analyses/sweeps` has an example.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of page and runs. Default: reports/<sweep name>."),
    ] = None,
    overrides: Overrides = None,
    device: Device = "auto",
    precision: Precision = "auto",
    jobs: Jobs = 1,
    threads: Threads = None,
    executor: Executor = "auto",
    address: Address = None,
    seed: Seeds = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="List the tasks instead, shared ones once, and the disk space.")
    ] = False,
) -> None:
    """Run a study for every combination of models, data or settings as one graph, and compare the runs on one page."""
    if plan:
        _plan_sweep(path, overrides or [], device, precision, seed or [])
        return
    how = _How(device, precision, jobs, threads, executor, address)
    command = shlex.join(["layerprobe", "sweep", str(path), *_options(out, overrides or [], how, seed or [])])
    with _one_sentence(resume=command):
        from layerprobe.pipeline import Computation
        from layerprobe.sweep import run_sweep

        loaded = _load_sweep(path, overrides or [], seed or [])
        result = run_sweep(loaded, Computation(**vars(how)), out=out, command=command)
    for name, run in result.runs.items():
        if name in result.failures:
            print(f"layerprobe: the combination {name} failed: {run.record.error}", file=sys.stderr)
    if result.problem is not None:
        print(f"layerprobe: the runs are not compared: {result.problem}", file=sys.stderr)
    if result.page is not None:
        print(result.page)
    if not all(isinstance(error, LayerprobeError) for error in result.failures.values()):
        raise typer.Exit(1)
    if result.failures or result.problem is not None:
        raise typer.Exit(2)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that `run` wrote.")]) -> None:
    """Rebuild the report of a run from its tables. Needs neither torch nor the model."""
    from layerprobe.errors import StorageError
    from layerprobe.report import write_report
    from layerprobe.runs import PAGE, Run

    with _one_sentence():
        loaded = Run.load(run_dir)
        if loaded.record.status != "complete":
            raise StorageError(
                f"The run in {run_dir} is {loaded.record.status} ({loaded.record.error or 'not ended'}); "
                f"finish it first with: {loaded.record.command}"
            )
        path = write_report(loaded, loaded.folder / PAGE)
    print(path)


@app.command()
def compare(
    run_dirs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN_DIR [NAME=]RUN_DIR ...",
            help="Folders that `run` wrote, with names for the page. Default: the names of their studies.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the comparison: a new or empty one.")],
) -> None:
    """Compare finished runs (of other models, data or methods) on one page. Needs neither torch nor the models."""
    from layerprobe.report import compare_runs

    with _one_sentence():
        path = compare_runs(_named_runs(run_dirs), out)
    print(path)


def _named_runs(words: list[str]) -> Sequence[Run] | Mapping[str, Run]:
    """Runs by label if any is given, where the others are labelled by their studies' names."""
    from layerprobe.errors import StorageError
    from layerprobe.runs import Run

    runs: list[tuple[str, Run]] = []
    for word in words:
        # A folder may have an equals sign in its path.
        name, sign, path = ("", "", word) if Path(word).exists() else word.partition("=")
        runs.append((name.strip(), Run.load(path)) if sign else ("", Run.load(word)))
    if not any(name for name, _ in runs):
        return [run for _, run in runs]
    labelled: dict[str, Run] = {}
    for name, run in runs:
        label = name or run.record.name
        if label in labelled:
            raise StorageError(
                f"{labelled[label].folder} and {run.folder} are both named {label!r}; give each a name of its own: NAME=RUN_DIR."
            )
        labelled[label] = run
    return labelled


@app.command()
def measures(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON: one object per measure.")] = False,
) -> None:
    """List the similarity measures: range, symmetry, invariances, minimum number of rows, source."""
    from layerprobe.similarity import MEASURES
    from layerprobe.terminal import print_table

    if as_json:
        import json

        print(json.dumps([_described(measure) for measure in MEASURES], indent=1, ensure_ascii=False))
        return
    rows = [
        (
            measure.name,
            measure.kind,
            f"{measure.range[0]:.3g} to {measure.range[1]:.3g}",
            "yes" if measure.symmetric else "no",
            ", ".join(sorted(measure.invariances)) or "nothing",
            f"{measure.min_rows}+",
            measure.citation,
        )
        for measure in MEASURES
    ]
    header = ("measure", "kind", "range", "symmetric", "invariant to", "rows", "source")
    print_table(header, rows, whole=("measure", "kind", "range", "rows"))


def _described(measure: Measure) -> dict[str, object]:
    """A measure as JSON values; an open end of its range is null."""
    return {
        "measure": measure.name,
        "label": measure.label,
        "kind": measure.kind,
        "range": [bound if math.isfinite(bound) else None for bound in measure.range],
        "symmetric": measure.symmetric,
        "invariances": sorted(measure.invariances),
        "min_rows": measure.min_rows,
        "baseline_of": measure.baseline_of,
        "source": measure.citation,
    }


@app.command()
def doctor() -> None:
    """Check the installation: versions, device, bundled assets, disk space."""
    import shutil

    from rich.filesize import decimal

    from layerprobe.files import home
    from layerprobe.provenance import versions

    for package, version in versions().items():
        print(f"{package:14} {version}")
    with _one_sentence():
        from layerprobe import accelerators, adaptation, bundled, resolve

        device = resolve.resolve_device("auto")
        print(f"{'device':14} {device}, fine-tuning in {adaptation.precision(device)}")
        for heading, text in accelerators.describe(device):
            print(f"{heading:14} {text}")
        assets = {"minilm-l6": bundled.model_folder, "tweets": bundled.data_files, "bbc-news": bundled.data_files}
        for name, find in assets.items():
            try:
                find(name)
                state = "found, checksum correct"
            except LayerprobeError as error:
                state = str(error)
            print(f"{'bundled:' + name:18} {state}")
        root = home()
        there = next(folder for folder in (root, *root.parents) if folder.exists())
        writable = "writable" if os.access(there, os.W_OK) else "NOT writable"
        print(f"{'artifacts':14} {root} ({writable}, {decimal(shutil.disk_usage(there).free)} free)")


@dataclass(frozen=True)
class _How:
    """Options of a run that are not part of the study."""

    device: str
    precision: str
    jobs: int
    threads: int | None
    executor: str
    address: str | None

    def options(self) -> list[str]:
        """The options as words of a command, without those that have their default."""
        defaults = _How("auto", "auto", 1, None, "auto", None)
        changed = {name: value for name, value in vars(self).items() if value != getattr(defaults, name)}
        return [word for name, value in changed.items() for word in (f"--{name}", str(value))]


def main() -> None:
    """Entry point of the `layerprobe` command."""
    app()


def analyses() -> Path:
    """Folder of the studies that come with the package."""
    installed = Path(__file__).parent / "analyses"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "analyses"


def _run(
    path: Path,
    out: Path | None,
    overrides: list[str],
    how: _How,
    seeds: list[int],
    *,
    verb: list[str],
) -> None:
    command = shlex.join(["layerprobe", *verb, *_options(out, overrides, how, seeds)])
    with _one_sentence(resume=command):
        study = _load(path, overrides, seeds)
        from layerprobe import pipeline

        given = path.read_text(encoding="utf-8-sig")
        result = pipeline.run(
            study,
            out=out,
            device=how.device,
            precision=how.precision,
            jobs=how.jobs,
            threads=how.threads,
            executor=how.executor,
            address=how.address,
            given=given,
            command=command,
        )
    for line in result.answer():
        print(line)
    print(result.folder / "index.html")


def _options(out: Path | None, overrides: list[str], how: _How, seeds: list[int]) -> list[str]:
    """Options of a command, as its words."""
    options = [] if out is None else ["--out", str(out)]
    options += [word for override in overrides for word in ("--set", override)]
    options += how.options()
    return options + [word for seed in seeds for word in ("--seed", str(seed))]


def _is_sweep(path: Path) -> bool:
    """Whether a file is a sweep; problems with it are left to what reads it."""
    try:
        return "axes" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _load_sweep(path: Path, overrides: list[str], seeds: list[int]) -> Sweep:
    from layerprobe.sweep import Sweep

    loaded = Sweep.load(path, overrides)
    return loaded.model_copy(update={"seeds": tuple(seeds)}) if seeds else loaded


def _plan_sweep(path: Path, overrides: list[str], device: str, precision: str, seeds: list[int]) -> None:
    """Print every task of a sweep once, with the combinations that share it."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from layerprobe.sweep import plan_sweep

    with _one_sentence():
        planned = plan_sweep(_load_sweep(path, overrides, seeds), device=device, precision=precision)
    table = Table("stage", "parameters", "combinations", "key", "state", "size", box=None, pad_edge=False)
    count, tasks = len(planned.plans), planned.tasks
    for one in tasks:
        task, used = one.task, one.combinations
        size = "unknown" if task.size is None else decimal(task.size) if task.size else "small"
        who = used[0] if len(used) == 1 else f"all {count}" if len(used) == count else f"{len(used)} of {count}"
        state = "finished" if task.finished else "pending"
        table.add_row(task.stage, task.name, who, (task.key or "unknown")[:16], state, size)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    for note, names in planned.notes.items():
        console.print(note if len(names) == count else f"{'; '.join(names)}: {note}", markup=False)
    shared, total = sum(len(one.combinations) > 1 for one in tasks), sum(len(one.combinations) for one in tasks)
    console.print(
        f"{count} combinations with {total} tasks: {len(tasks)} different ones, of which {shared} are shared."
    )
    if all(one.task.size is not None for one in tasks):
        console.print(f"To be added: about {decimal(planned.needed)} in {planned.home} ({decimal(planned.free)} free).")


def _load(path: Path, overrides: list[str], seeds: list[int]) -> Study:
    if _is_sweep(path):
        raise StudyError(f"{path} is a sweep; run it with `layerprobe sweep`.")
    return Study.load(path, [*overrides, *([f"seeds={seeds}"] if seeds else [])])


@contextmanager
def _one_sentence(resume: str | None = None) -> Iterator[None]:
    """Show user errors as one sentence with exit code 2, and interruptions with 130 and the command that resumes."""
    try:
        with interrupt.listening():
            yield
    except BaseException as error:
        if isinstance(error, LayerprobeError) and not interrupt.heard():
            print(f"layerprobe: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        if not (isinstance(error, KeyboardInterrupt) or interrupt.heard()):
            raise
        hint = f" Every finished task is kept; resume with: {resume}" if resume else ""
        print(f"\nInterrupted.{hint}", file=sys.stderr)
        raise typer.Exit(130) from None
