"""Files that are written whole or not at all, digests of what they hold, and the folder that this package writes to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import StorageError

if TYPE_CHECKING:
    import pandas as pd

RESIDENT_BYTES = 256 * 2**20
"""Memory maps up to this size keep the pages that were read."""


def home() -> Path:
    """Folder of artifacts and data: `$LAYERPROBE_HOME`, else the user's cache folder."""
    if given := os.environ.get("LAYERPROBE_HOME"):
        return given_path(given).resolve()
    from platformdirs import user_cache_path

    return user_cache_path("layerprobe")


def given_path(name: str | Path) -> Path:
    """A path that a user gave, with `~` expanded; there need not be anything.

    Raises:
        StorageError: if nothing can have this path, or it cannot be looked at.
    """
    reason = None
    try:
        path = Path(name).expanduser()
        path.lstat()
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            reason = "permission denied"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError:
        reason = "there is no user of this name"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason is not None:
        shown = str(name) if len(str(name)) <= 200 else f"{str(name)[:200]}…"
        raise StorageError(f"{shown!r} cannot be read ({reason}); give another path.")
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: `write` gets a temporary path in the same folder, which is then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_checked(path: Path, write: Callable[[Path], object]) -> None:
    """`write_atomically`, with the file's checksum in a second file, without which `is_intact` is false."""
    note = _note(path)
    note.unlink(missing_ok=True)
    write_atomically(path, write)
    write_text(note, checksum(path))


def is_intact(path: Path) -> bool:
    """Whether a file is as `write_checked` wrote it."""
    try:
        return checksum(path) == _note(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def remove_checked(path: Path) -> None:
    """Remove what `write_checked` wrote."""
    for file in (path, _note(path)):
        file.unlink(missing_ok=True)


def checked_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that `write_checked` wrote there, intact or not."""
    for note in sorted(folder.rglob(f"*{_NOTE}")):
        yield note.with_name(note.name.removesuffix(_NOTE))


_NOTE = ".sha256"


def _note(path: Path) -> Path:
    """File of the checksum of a file."""
    return path.with_name(f"{path.name}{_NOTE}")


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checksum(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Stamp = list[int]
"""Size, times of the last change of content and of inode (ns), and inode of a file: a rewritten file has another one."""
SETTLED = 100_000_000
"""Nanoseconds after which a further change gets another time: file systems count time in steps of up to 10 ms."""


def stamp(path: Path) -> Stamp:
    """The stamp of a file."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def is_settled(value: Stamp) -> bool:
    """Whether a change of the file from now on would show in its stamp."""
    return time.time_ns() - max(value[1:3]) > SETTLED


def read_table(path: Path) -> pd.DataFrame:
    """A Parquet file.

    Raises:
        FileNotFoundError: with the file, which pyarrow leaves out.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error


def os_problem(error: OSError, path: Path) -> str:
    """`PATH cannot be used (REASON)`, for an error of the operating system.

    Args:
        error: its file is the one that is named, if it names one.
        path: what is named otherwise.
    """
    name = error.filename2 or error.filename  # of a rename, the target
    path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else path
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.ENOENT:
        while not path.parent.exists():
            path = path.parent
        reason = "it is missing"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        files = [one for one in (path, *path.parents) if one.is_file()]
        path = files[0] if files else path
        reason = "it is a file where a folder should be" if files else "it is a folder where a file should be"
    return f"{path} cannot be used ({reason})"


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk caused an error; not every library raises an OSError for it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):  # safetensors has an error of its own
            return True
        error = error.__cause__
    return False


def release_pages(mapped: Any) -> None:
    """Drop the pages of a large read-only `numpy.memmap` from this process; the system's file cache keeps them.

    Otherwise a process that has read a whole file is as large as the file. Does nothing for other arrays and for maps of
    up to 256 MiB.
    """
    source = getattr(mapped, "_mmap", None)
    if source is not None and mapped.mode == "r" and len(source) > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
        source.madvise(mmap.MADV_DONTNEED)
