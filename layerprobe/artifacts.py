"""A content-keyed store: what was computed once is found again by what it was computed from."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerprobe.errors import StorageError
from layerprobe.study import slug

META = "meta.json"


def home() -> Path:
    """Folder of all artifacts: `$LAYERPROBE_HOME`, else the user's cache folder."""
    if given := os.environ.get("LAYERPROBE_HOME"):
        return Path(given).expanduser().resolve()
    from platformdirs import user_cache_path

    return user_cache_path("layerprobe")


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checksum(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A finished folder: its data, its key, and the seconds it took when it was made."""

    folder: Path
    key: str
    seconds: float
    reused: bool


class ArtifactStore:
    """Finished folders under one root, as `<stage>/<slug>-<key>/`.

    A folder is written under a hidden name and renamed when whole, its `meta.json` (with the checksum of every file)
    last; so a killed run leaves nothing that looks finished. A lock for each key lets two runs share the work.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()
        self.damaged: list[str] = []

    def folder(self, stage: str, name: str, key: str) -> Path:
        """Where the artifact of this key is, or would be: the name is for people, the key decides."""
        made = sorted((self.root / stage).glob(f"[a-z0-9]*-{key[:16]}"))
        return made[0] if made else self.root / stage / f"{slug(name)}-{key[:16]}"

    def find(self, stage: str, name: str, key: str) -> Artifact | None:
        """The finished artifact of this key, or None. A damaged one is named in `damaged` and removed."""
        folder = self.folder(stage, name, key)
        if not folder.exists():
            return None
        problem = _problem(folder, key)
        if problem is None:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            return Artifact(folder, key, meta["seconds"], reused=True)
        self.damaged.append(f"{stage}/{folder.name}: {problem}; computed again")
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def make(
        self,
        stage: str,
        name: str,
        key: str,
        build: Callable[[Path], None],
        *,
        about: Mapping[str, Any],
        resumable: bool = False,
    ) -> Artifact:
        """The artifact of this key: found, or built by `build(folder)` in an empty folder and then sealed.

        A `resumable` build finds in its folder what an interrupted one left there.

        Raises:
            StorageError: if the disk is full or the store cannot be written.
        """
        from filelock import FileLock

        target = self.folder(stage, name, key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_name(f".{key[:16]}.lock")):
                if found := self.find(stage, name, key):
                    return found
                partial = target.with_name(f".{key[:16]}.partial")
                if not resumable:
                    shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(exist_ok=True)
                try:
                    start = time.perf_counter()
                    build(partial)
                    seconds = time.perf_counter() - start
                    _seal(partial, key, {"stage": stage, "name": name, "about": dict(about), "seconds": seconds})
                    partial.rename(target)
                except BaseException as error:
                    if not (resumable and isinstance(error, KeyboardInterrupt)):
                        shutil.rmtree(partial, ignore_errors=True)
                    raise
                return Artifact(target, key, seconds, reused=False)
        except Exception as error:
            if is_full(error):
                raise StorageError(
                    f"The disk is full: {stage} {name} could not be written to {self.root}. Every finished task "
                    "is kept there; free some space, or set LAYERPROBE_HOME to a larger disk, and run the same "
                    "command again."
                ) from error
            if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise StorageError(
                    f"{target.parent} cannot be written ({error.strerror}); set LAYERPROBE_HOME to a folder that can."
                ) from error
            raise


def _seal(folder: Path, key: str, about: dict[str, Any]) -> None:
    files = {str(p.relative_to(folder)): checksum(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_json(folder / META, {"schema": 1, "key": key, **about, "files": files})


def _problem(folder: Path, key: str) -> str | None:
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its meta.json is missing or unreadable"
    if meta.get("key") != key:
        return "it belongs to another key"
    for name, expected in meta.get("files", {}).items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if checksum(folder / name) != expected:
            return f"{name} does not match its checksum"
    return None


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all: under another name first, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; not every library raises an OSError for it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):  # safetensors has an error of its own
            return True
        error = error.__cause__
    return False
