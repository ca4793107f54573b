"""Files that are written whole or not at all, digests of what they hold, and the folder that this package writes to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def home() -> Path:
    """Folder of artifacts and data: `$LAYERPROBE_HOME`, else the user's cache folder."""
    if given := os.environ.get("LAYERPROBE_HOME"):
        return Path(given).expanduser().resolve()
    from platformdirs import user_cache_path

    return user_cache_path("layerprobe")


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


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checksum(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk caused an error; not every library raises an OSError for it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):  # safetensors has an error of its own
            return True
        error = error.__cause__
    return False
