"""What the tables and the page in a run folder were made from, so that a repeated run leaves them as they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from layerprobe.errors import StorageError
from layerprobe.files import checksum, digest, write_json
from layerprobe.provenance import source_digest, versions
from layerprobe.record import RunRecord
from layerprobe.runs import MADE, PAGE, RECORD
from layerprobe.stage import ResolvedStudy, Stage
from layerprobe.store import Artifact

TIMES = ("started", "finished", "seconds")
"""What the record says of the time of a run: a page that is left as it is shows that of the run that made it."""


class Outputs:
    """The tables and the page that an earlier run left in a folder; made before a new record is written there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: RunRecord | None = None
        self.made: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError, StorageError):
            record = RunRecord.read(folder / RECORD)
            content = json.loads((folder / MADE).read_text(encoding="utf-8"))
            if record.status == "complete":
                self.record = record
                self.made = {str(name): str(value) for name, value in dict(content).items()}

    def tables_hold(self, source: str) -> bool:
        """Whether the tables there were made from the same things, and each is as it was written."""
        if self.record is None or self.made.get("tables") != source:
            return False
        names = {path.stem for path in (self.folder / "tables").glob("*.parquet")}
        return names == set(self.record.tables) and all(
            _is(self.folder / "tables" / f"{name}.parquet", table.sha256) for name, table in self.record.tables.items()
        )

    def page_holds(self, source: str) -> bool:
        """Whether the page there was made from the same things, and is as it was written."""
        return self.made.get("page") == source and _is(self.folder / PAGE, self.made.get("sha256"))

    def note(self, tables: str, page: str) -> None:
        """Write what tables and page were made from."""
        made = {"tables": tables, "page": page}
        with contextlib.suppress(FileNotFoundError):
            made["sha256"] = checksum(self.folder / PAGE)
        write_json(self.folder / MADE, made)


def tables_source(resolved: ResolvedStudy, finished: Mapping[Stage, Artifact], tasks: Sequence[Stage]) -> str:
    """Digest of everything that the tables of a run follow from."""
    facts = {field.name: getattr(resolved, field.name) for field in fields(resolved) if field.name != "study"}
    artifacts = [[task.id, asdict(finished[task].meta)] for task in tasks]
    return _digest({"study": resolved.study.resolved(), "facts": facts, "artifacts": artifacts})


def page_source(record: RunRecord) -> str:
    """Digest of everything that the page of a run follows from, but for its time, its command and what was reused in it.

    Commands may differ in options that change no result, such as the number of jobs.
    """
    content = record.to_json()
    del content["command"]
    for name in TIMES:
        del content["provenance"][name]
    for task in content["tasks"]:
        del task["reused"]
    return _digest(content)


def _digest(value: Any) -> str:
    plain = json.loads(json.dumps(value, default=asdict))
    return digest({"source": source_digest(), "versions": versions(), "value": plain})


def _is(path: Path, sha256: str | None) -> bool:
    """Whether a file is there with this checksum."""
    try:
        return checksum(path) == sha256
    except OSError:
        return False
