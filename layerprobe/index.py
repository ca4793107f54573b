"""The index of a folder of runs: one page that lists them all, kept up to date after each run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from layerprobe.errors import LayerprobeError, StorageError
from layerprobe.files import digest, write_json, write_text
from layerprobe.record import RunRecord
from layerprobe.runs import PAGE, RECORD, Run

if TYPE_CHECKING:
    from layerprobe.report.overview import IndexedComparison, IndexedRun, Overview

KEPT = ".index.json"
"""File next to the index with what was read from the tables of each run."""
MARK = b'<meta name="generator" content="layerprobe index">'
"""What an index is recognised by among the first `HEAD` bytes of its page; the template `index.html.j2` has it."""
HEAD = 1000
SCHEMA = 1
"""Version of that file."""
LOCK = ".index.lock"
FOLDER = "reports"
"""Name of folders whose index every run updates."""
WAIT = 30.0
"""Seconds to wait for another process that writes the same index."""


@dataclass(frozen=True)
class Index:
    """The index of a folder."""

    page: Path
    problems: tuple[str, ...]
    """Folders that it does not show, each with the reason."""


def write_index(folder: str | Path, *, fresh: bool = True) -> Index:
    """Write `index.html` into a folder of runs: all runs in it, and those of the sweeps in it, with their answers.

    What is no run, or cannot be read, is left out and named. Tables of a run are read only if the run changed since the last
    time.

    Args:
        folder: the folder that holds the run folders.
        fresh: whether tables are also read again where the last index was written by another version of this package.

    Raises:
        StorageError: if the folder is missing, is a run itself, holds another `index.html`, or cannot be written.
    """
    from layerprobe.report import render_index

    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise StorageError(f"{folder} {what}; name a folder that holds run folders, such as reports.")
    if (folder / RECORD).exists():
        raise StorageError(f"{folder} is a run; name the folder that holds it.")
    page = folder / PAGE
    if page.exists() and not is_index(page):
        raise StorageError(f"{page} is not an index of runs, so it was left as it is; move it, or name another folder.")
    try:
        with _locked(folder):
            found = _read(folder, _kept(folder, fresh))
            write_text(
                page, render_index(_shown(Path(os.path.abspath(folder))), found.runs, found.comparisons, found.problems)
            )
            # Only what the next index would have to read again depends on it.
            with contextlib.suppress(OSError):
                write_json(folder / KEPT, {"schema": SCHEMA, "runs": found.kept})
    except OSError as error:
        raise StorageError(f"The index {page} cannot be written ({error.strerror or error}).") from error
    return Index(page, tuple(found.problems))


def update_index(run: Path) -> None:
    """Write the index of the folder that holds a run or sweep, if its name is `reports` or it has an index already.

    A failure is one line on stderr: it never fails the run.
    """
    folder = Path(os.path.abspath(run)).parent
    try:
        if folder.name == FOLDER or is_index(folder / PAGE):
            write_index(folder, fresh=False)
    except Exception as error:
        reason = str(error) if isinstance(error, LayerprobeError) else f"{type(error).__name__}: {error}"
        print(f"layerprobe: the index of runs was not updated: {' '.join(reason.split())}", file=sys.stderr)


def is_index(page: Path) -> bool:
    """Whether a file is an index of runs."""
    try:
        with page.open("rb") as file:
            return MARK in file.read(HEAD)
    except OSError:
        return False


class _Kept(NamedTuple):
    """What the last index read of a run."""

    key: str
    source: str
    """Digest of the version of this package that read it."""
    overview: Overview


@dataclass
class _Found:
    """What a folder holds."""

    runs: list[IndexedRun] = field(default_factory=list)
    comparisons: list[IndexedComparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    """What is kept of each run for the next index, by address of the run, as JSON values."""


def _read(folder: Path, before: Mapping[str, _Kept]) -> _Found:
    """Runs in a folder, and in folders of it that hold runs themselves."""
    found = _Found()
    for path in _folders(folder):
        try:
            inner = [] if _has_record(path) else [one for one in _folders(path) if _has_record(one)]
        except OSError as error:
            found.problems.append(f"{_shown(path)}: cannot be read ({error.strerror})")
            continue
        if inner:
            _add_comparison(found, folder, path)
        for run in inner or [path]:
            _add_run(found, before, folder, run)
    return found


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder, without hidden ones and links to what it is in itself."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in found if not (path.is_symlink() and folder.resolve().is_relative_to(path.resolve()))]


def _has_record(path: Path) -> bool:
    return os.path.exists(path / RECORD)


def _add_run(found: _Found, before: Mapping[str, _Kept], folder: Path, path: Path) -> None:
    """Add a run, or why it is not shown."""
    from layerprobe.report.overview import IndexedRun

    name, address = _names(folder, path)
    try:
        run = Run.load(path)
        key, kept = _key(run.record), before.get(address)
        if kept is None or kept.key != key:
            kept = _Kept(key, _source(), run.overview())
    except Exception as error:  # what others wrote into the folder must not keep the other runs from being listed
        reason = str(error) if isinstance(error, LayerprobeError) else f"{type(error).__name__}: {error}"
        reason = reason if _has_record(path) else f"holds no {RECORD}"
        found.problems.append(f"{name}: {' '.join(reason.split())}")
        return
    found.kept[address] = {**kept._asdict(), "overview": kept.overview.model_dump(mode="json")}
    link = f"{address}/{PAGE}" if (path / PAGE).is_file() else None
    found.runs.append(IndexedRun(name, link, run.record, kept.overview))


def _add_comparison(found: _Found, folder: Path, path: Path) -> None:
    """Add the page of a comparison, if there is one."""
    from layerprobe.report.comparison.page import RECORD as COMPARISON
    from layerprobe.report.overview import IndexedComparison

    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        labels = json.loads((path / COMPARISON).read_text(encoding="utf-8"))["runs"].keys()
        if (path / PAGE).is_file():
            name, address = _names(folder, path)
            found.comparisons.append(IndexedComparison(name, f"{address}/{PAGE}", tuple(map(str, labels))))


def _key(record: RunRecord) -> str:
    """Digest of everything that an overview follows from."""
    content = record.to_json()
    for name in ("command", "provenance", "tasks", "artifacts"):
        del content[name]
    return digest(content)


def _kept(folder: Path, fresh: bool) -> dict[str, _Kept]:
    """What the last index left, with `fresh` only of this version; nothing if the file is missing or damaged."""
    from layerprobe.report.overview import Overview

    try:
        content = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        runs = content["runs"].items() if content["schema"] == SCHEMA else ()
        found = {name: _Kept(one["key"], one["source"], Overview.model_validate(one["overview"])) for name, one in runs}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {name: one for name, one in found.items() if one.source == _source() or not fresh}


def _source() -> str:
    from layerprobe.provenance import source_digest

    return source_digest()


def _names(folder: Path, path: Path) -> tuple[str, str]:
    """A folder below another one: as it is shown, and as an address."""
    parts = path.relative_to(folder).parts
    # A name may hold a colon or bytes that are no text.
    return "/".join(map(_text, parts)), "./" + "/".join(quote(os.fsencode(part), safe="") for part in parts)


def _shown(path: Path) -> str:
    return _text(path.name or str(path))


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time read the runs and write the index, so that the last one knows of all runs.

    After `WAIT` seconds the index is written all the same: the file is replaced as a whole.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    with contextlib.suppress(Timeout, NotImplementedError):
        lock.acquire(timeout=WAIT)
    try:
        yield
    finally:
        lock.release()
