"""A run: tidy tables beside one record of how they came about, read and written without torch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.artifacts import write_json
from layerprobe.errors import StorageError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
RECORD = "run.json"
PAGE = "index.html"
LOCK = ".lock"


class Run:
    """A run folder: `run.json`, `tables/*.parquet` and, once written, `index.html`.

    Attributes:
        folder: where it stands.
        record: the content of `run.json`: schema version, status (running, complete or failed), the study as given and
            as resolved, provenance, tasks with their keys and seconds, findings, error.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, status={self.record.get('status')!r}, tables={list(self.tables)})"

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read a run folder.

        Raises:
            StorageError: if the folder is missing, holds no run, or was written under another schema.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = "does not exist" if not folder.exists() else f"holds no {RECORD}"
            raise StorageError(f"{folder} {what}; name a folder that `layerprobe run` wrote.") from None
        except (ValueError, OSError) as error:
            raise StorageError(f"{folder / RECORD} cannot be read ({error}); run the study again.") from None
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            given = record.get("schema") if isinstance(record, dict) else None
            raise StorageError(f"{folder / RECORD} has schema {given!r}, this version reads {SCHEMA}; run it again.")
        return cls(folder, record)

    @classmethod
    def create(cls, folder: Path, record: dict[str, Any]) -> Run:
        """Begin a run in a new or empty folder, or over an earlier run.

        Raises:
            StorageError: as `prepare`.
        """
        cls.prepare(folder)
        run = cls(folder, {"schema": SCHEMA, **record})
        run.save()
        return run

    @staticmethod
    def prepare(folder: Path) -> None:
        """Make the folder of a run, or check that one that exists is empty or holds a run; change nothing in it.

        Raises:
            StorageError: if the folder holds something else, or cannot be written.
        """
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
            raise StorageError(f"{folder} cannot be written ({error.strerror}); give another with --out.") from error

    def save(self) -> None:
        """Write `run.json`."""
        write_json(self.folder / RECORD, self.record)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that this run holds."""
        return tuple(sorted(path.stem for path in (self.folder / "tables").glob("*.parquet")))

    def table(self, name: str) -> pd.DataFrame:
        """One tidy table: one observation a row.

        Raises:
            KeyError: if the run holds no such table; the message lists those there are.
        """
        import pandas as pd

        path = self.folder / "tables" / f"{name}.parquet"
        if name not in self.tables:
            raise KeyError(f"this run has no table {name!r}; it has {', '.join(self.tables) or 'none yet'}")
        return pd.read_parquet(path)

    def save_tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write tidy tables, each whole or not at all, in place of those of an earlier run."""
        folder = self.folder / "tables"
        for name, table in tables.items():
            partial = folder / f".{name}.partial"
            try:
                table.to_parquet(partial, index=False)
                partial.replace(folder / f"{name}.parquet")
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
        for name in set(self.tables) - set(tables):
            (folder / f"{name}.parquet").unlink()


def _holds_anything(folder: Path) -> bool:
    """Whether there is more than what a run that was killed at its first step leaves."""
    return any(
        path.name not in (LOCK, "tables") or (path.is_dir() and any(path.iterdir())) for path in folder.iterdir()
    )


def _is_run(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "schema" in record and "status" in record
