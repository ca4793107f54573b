"""A run: tidy tables and one typed record, read and written without torch."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from layerprobe.errors import StorageError
from layerprobe.files import checksum, given_path, os_problem, read_table, write_atomically
from layerprobe.record import Finding, RunRecord, TableRecord

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from layerprobe.activations import ActivationStore
    from layerprobe.report import Card
    from layerprobe.report.overview import Overview
    from layerprobe.sae import Dictionary

RECORD = "run.json"
PAGE = "index.html"
LOCK = ".lock"
MADE = ".made.json"
"""File in a run folder with the digests of what its tables and its page were made from."""
PARTIAL = re.compile(r"\..+\.\d+\.partial")
"""Names of the files that a process leaves which is killed while it writes."""
UNDOCUMENTED = "undocumented"


class TableDescription(Protocol):
    """What `save_tables` needs to know of a table besides its rows; a stage's `TableSpec` is one."""

    @property
    def description(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, str]: ...


class TableIndex(dict[str, TableRecord]):
    """The tables of a run by name, each with its description, columns and number of rows."""

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {table}" for name, table in self.items()) or "no tables"


class Run:
    """A run folder: `run.json`, `tables/*.parquet` and, once written, `index.html`.

    Attributes:
        folder: path of the run folder.
        record: content of `run.json`; `save` writes it.
    """

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder = folder
        self.record = record
        self._verified: set[str] = set()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, status={self.record.status!r}, tables={list(self.tables)})"

    def _repr_html_(self) -> str:
        """Status, answer, and tables with their numbers of rows."""
        record = self.record
        status = f"{record.status} ({record.error})" if record.error else record.status
        answer, findings = (
            "".join(f"<li>{escape(line)}</li>" for line in lines)
            for lines in (self.answer(), [finding.text for finding in record.findings])
        )
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{table.rows:,}</td><td>{escape(table.description)}</td></tr>"
            for name, table in self.tables.items()
        )
        return (
            f"<p><b>{escape(record.name)}</b>: {escape(status)}<br>{escape(record.question)}</p><ul>{answer}</ul>"
            f"<details><summary>Numbers with intervals</summary><ul>{findings}</ul></details>"
            f"<table><thead><tr><th>table</th><th>rows</th><th>description</th></tr></thead><tbody>{rows}</tbody></table>"
        )

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read a run folder.

        Raises:
            StorageError: if the folder is missing, holds no run, or was written under another schema.
        """
        given_path(folder)
        folder = Path(folder)
        try:
            return cls(folder, RunRecord.read(folder / RECORD))
        except FileNotFoundError:
            what = "does not exist" if not folder.exists() else f"holds no {RECORD}"
            raise StorageError(f"{folder} {what}; name a folder that `layerprobe run` wrote.") from None

    @classmethod
    def create(cls, folder: Path, record: RunRecord) -> Run:
        """Begin a run in a new or empty folder, or over an earlier run.

        Raises:
            StorageError: as `prepare`.
        """
        cls.prepare(folder)
        run = cls(folder, record)
        run.save()
        return run

    @staticmethod
    def prepare(folder: Path) -> None:
        """Make the folder of a run, or check that an existing one is empty or holds a run; nothing in it is changed.

        Raises:
            StorageError: if the folder holds something else, or cannot be written.
        """
        given_path(folder)
        try:
            if folder.exists() and not folder.is_dir():
                raise StorageError(f"{folder} is a file, not a folder; give another with --out.")
            if folder.exists() and _holds_anything(folder) and not _is_run(folder):
                raise StorageError(
                    f"{folder} holds something other than a layerprobe run; nothing in it was touched. "
                    "Give an empty or new folder with --out."
                )
            (folder / "tables").mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise OSError(errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES, "not writable")
        except OSError as error:
            if error.errno == errno.EROFS:
                raise StorageError(f"{folder} is on a read-only disk; give another folder with --out.") from error
            if error.errno == errno.EEXIST:
                raise StorageError(f"{os_problem(error, folder)}; remove it, or give another with --out.") from error
            if error.errno in (errno.EACCES, errno.EPERM) and error.filename and not os.access(folder, os.R_OK):
                raise StorageError(f"{folder} cannot be read ({error.strerror}); give another with --out.") from error
            raise StorageError(f"{folder} cannot be written ({error.strerror}); give another with --out.") from error

    def save(self) -> None:
        """Write `run.json`."""
        self.record.write(self.folder / RECORD)

    @staticmethod
    def remove_partial_files(folder: Path) -> None:
        """Remove what a process has left that was killed while it wrote to a run folder; only while the run is locked."""
        for path in (*folder.iterdir(), *(folder / "tables").iterdir()):
            if PARTIAL.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)

    @property
    def tables(self) -> TableIndex:
        """Name, description, columns and number of rows of each table."""
        return TableIndex(sorted(self.record.tables.items()))

    def table(self, name: str) -> pd.DataFrame:
        """One tidy table, one row per observation.

        Raises:
            KeyError: if the run has no such table; the message lists those it has.
            StorageError: if the file is missing or does not match the checksum in the record.
        """
        if name not in self.record.tables:
            raise KeyError(f"this run has no table {name!r}; it has {', '.join(self.tables) or 'none yet'}")
        path = self._path(name)
        if name not in self._verified:
            try:
                matches = checksum(path) == self.record.tables[name].sha256
                problem = None if matches else f"{path} does not match its checksum in {RECORD}"
            except OSError as error:
                problem = os_problem(error, path)
            if problem:
                raise StorageError(f"{problem}; repeat the run with: {self.record.command}")
            self._verified.add(name)
        return read_table(path)

    def save_tables(
        self, tables: Mapping[str, pd.DataFrame], specs: Mapping[str, TableDescription] | None = None
    ) -> None:
        """Write tidy tables in place of those of an earlier run, each atomically, and describe them in the record.

        The record itself is not written; call `save` afterwards.

        Args:
            tables: tables by name.
            specs: descriptions by name; what has none is recorded as undocumented.
        """
        records = {}
        for name, table in tables.items():
            path, spec = self._path(name), (specs or {}).get(name)
            write_atomically(path, partial(table.to_parquet, index=False))
            meanings = spec.columns if spec else {}
            records[name] = TableRecord(
                description=spec.description if spec else UNDOCUMENTED,
                columns={str(column): meanings.get(str(column), "") for column in table.columns},
                rows=len(table),
                sha256=checksum(path),
            )
        for path in (self.folder / "tables").glob("*.parquet"):
            if path.stem not in tables and path.is_file():
                path.unlink()
        self.record.tables = records
        self._verified = set()

    def figure(self, name: str, **options: Any) -> go.Figure:
        """One figure of the report.

        Args:
            name: such as `drift` or `layer_strip`.
            options: keyword arguments of the figure's function, such as `measure="cka"`.

        Raises:
            KeyError: if there is no such figure, or this run lacks a table that it needs.
            ValueError: if there is nothing to draw with these options.
        """
        from layerprobe.report import figure_function

        figure = figure_function(name)(_Tables(self), self.record, **options)
        if figure is None:
            given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
            raise ValueError(f"the figure {name!r} has nothing to draw in this run with {given}")
        return figure

    def save_figure(self, name: str, path: str | Path, **options: Any) -> Path:
        """Write one figure to a file: `.html`, or, with the extra `export` and a Chrome, `.png`, `.svg` or `.pdf`.

        Args:
            name: as in `figure`.
            path: the file; its ending decides the format.
            options: as in `figure`.

        Raises:
            KeyError, ValueError: as `figure`.
            LayerprobeError: if the ending is unknown, or the image cannot be drawn.
        """
        from layerprobe.report.images import save_figure

        return save_figure(self.figure(name, **options), path)

    @property
    def findings(self) -> list[Finding]:
        """What the numbers of the run show, one sentence each, with the section of the page that it belongs to."""
        return self.record.findings

    def cards(self) -> list[Card]:
        """The cards of the answer: where, what changed, was it needed."""
        from layerprobe.report import cards

        return cards(_Tables(self), self.record)

    def answer(self) -> list[str]:
        """The answer as plain lines: cards, and what to do; why there is none if a table is missing or damaged."""
        from layerprobe.report import answer_lines

        try:
            return answer_lines(_Tables(self), self.record)
        except StorageError as error:
            return [str(error)]

    def overview(self) -> Overview:
        """What an index of runs shows: the cards without their details, what to do, and the layer strip."""
        from layerprobe.report import overview

        return overview(_Tables(self), self.record)

    def artifacts(self) -> dict[str, Path]:
        """Folders by task: adapted models, SAEs that `SAE.load_from_disk` opens, and activation stores.

        They are in the artifact store, from which they may have been removed since.
        """
        return {f"{one.stage}: {one.name}": Path(one.folder) for one in self.record.artifacts}

    def model(self, method: str, seed: int | None = None) -> Any:
        """An adapted classifier, in float32 and eval mode on the CPU. Loads torch and the base model.

        Args:
            method: such as `full`.
            seed: training seed; by default the first one that the method was trained with.

        Raises:
            KeyError: if the run has no such model; the message lists those it has.
            StorageError: if it was removed from the artifact store.
            EncoderError: if the base model cannot be loaded.
        """
        from layerprobe.context import load_study_encoder
        from layerprobe.encoder import load_classifier
        from layerprobe.study import Study

        keyword, _, folder = method.partition(":")
        if keyword == "checkpoint" and method in [one.name for one in self.record.methods]:
            path = given_path(folder)
        else:
            path = self._artifact("adapt", *_chosen(self._names("adapt"), method, seed))
        return load_classifier(path, load_study_encoder(Study.parse(self.record.study.resolved)))

    def sae(
        self,
        layer: int,
        side: Literal["base", "adapted"] = "adapted",
        *,
        method: str | None = None,
        seed: int | None = None,
    ) -> Dictionary:
        """The sparse autoencoder of one layer; `.sae` is the object of sae-lens. Loads torch and sae-lens.

        Args:
            layer: one of the layers with dictionaries.
            side: whose activations it was trained on.
            method: for `adapted`; by default the last method of the study, such as `full`.
            seed: training seed of the adapted model; by default the first one.

        Raises:
            KeyError: if the run has no such dictionary; the message lists those it has.
            StorageError: if it was removed from the artifact store, or is damaged.
        """
        from layerprobe.sae import load

        return load(self._artifact("sae", *self._on_side("sae", side, method, seed, f" layer {layer}")))

    def activations(
        self, side: Literal["base", "adapted"] = "adapted", *, method: str | None = None, seed: int | None = None
    ) -> ActivationStore:
        """Activations of the test examples at every layer, memory-mapped. Loads torch.

        Args:
            side: of the base, or of an adapted model.
            method: for `adapted`; by default the last method of the study, such as `full`.
            seed: training seed of the adapted model; by default the first one.

        Raises:
            KeyError: if the run has no such activations; the message lists those it has.
            StorageError: if they were removed from the artifact store, or are damaged.
        """
        from layerprobe.activations import ActivationStore

        return ActivationStore.open(self._artifact("capture", *self._on_side("capture", side, method, seed, "")))

    def _names(self, stage: str) -> list[str]:
        return [one.name for one in self.record.artifacts if one.stage == stage]

    def _on_side(
        self, stage: str, side: str, method: str | None, seed: int | None, ending: str
    ) -> tuple[str, list[str]]:
        """Name of a task of the base or of an adapted model, and the names there are."""
        names = self._names(stage)
        if side not in ("base", "adapted"):
            raise KeyError(f"{side!r} is no side of a comparison; the sides are base and adapted")
        if side == "base":
            return f"base{ending}", names
        if method is None:
            methods = [one.name for one in self.record.methods if not one.is_control]
            method = methods[-1] if methods else "adapted"
        return _chosen(names, method, seed, ending)

    def _artifact(self, stage: str, name: str, names: list[str]) -> Path:
        """Folder of an artifact, checked to be there."""
        if name not in names:
            raise KeyError(f"this run has no {stage} of {name!r}; it has {', '.join(map(repr, names)) or 'none'}")
        folder = next(Path(one.folder) for one in self.record.artifacts if (one.stage, one.name) == (stage, name))
        if not folder.is_dir():
            raise StorageError(
                f"{folder} was removed from the artifact store; repeat the run with: {self.record.command}"
            )
        return folder

    def _path(self, name: str) -> Path:
        return self.folder / "tables" / f"{name}.parquet"


def _chosen(names: list[str], method: str, seed: int | None, ending: str = "") -> tuple[str, list[str]]:
    """Name of the task of a method and seed (by default the first one), and the names there are."""
    if seed is None:
        start = f"{method} seed "
        first = next((name for name in names if name.startswith(start) and name.endswith(ending)), None)
        return first if first else f"{method}{ending}", names
    return f"{method} seed {seed}{ending}", names


class _Tables(Mapping[str, "pd.DataFrame"]):
    """The tables of a run, each read when it is used."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._read: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._read:
            self._read[name] = self._run.table(name)
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._run.record.tables

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.record.tables)

    def __len__(self) -> int:
        return len(self._run.record.tables)


def _holds_anything(folder: Path) -> bool:
    """Whether there is more than what a run that was killed at its first step leaves."""
    return any(
        path.name not in (LOCK, "tables") or (path.is_dir() and any(path.iterdir())) for path in folder.iterdir()
    )


def _is_run(folder: Path) -> bool:
    """Whether the folder holds a run of any schema, or what is left of one whose record is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return _holds_nothing_else(folder)
    return isinstance(record, dict) and "schema" in record and "status" in record


def _holds_nothing_else(folder: Path) -> bool:
    """Whether a folder without a readable record holds the other files of a run, and nothing else."""
    names = {path.name for path in folder.iterdir() if not PARTIAL.fullmatch(path.name)}
    tables = list((folder / "tables").iterdir()) if (folder / "tables").is_dir() else []
    return (
        names <= {RECORD, PAGE, LOCK, MADE, "tables"}
        and not names.isdisjoint((LOCK, MADE))
        and all(path.suffix == ".parquet" or PARTIAL.fullmatch(path.name) for path in tables)
    )
