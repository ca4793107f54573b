"""A content-addressed store: the output of a task is found again by what it was computed from."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import StorageError
from layerprobe.files import (
    Stamp,
    checked_files,
    checksum,
    digest,
    given_path,
    home,
    is_disk_full,
    is_intact,
    is_settled,
    os_problem,
    read_table,
    remove_checked,
    stamp,
    write_json,
)
from layerprobe.study import slug

if TYPE_CHECKING:
    import pandas as pd

META = "meta.json"
SCHEMA = 3


@dataclass(frozen=True)
class ArtifactMeta:
    """The content of an artifact's `meta.json`."""

    stage: str
    title: str
    key: str
    identity: Mapping[str, Any]
    """What decided the result, besides the parents."""
    seconds: float
    """Wall-clock time of the computation."""
    concurrent_tasks: int
    """The largest number of tasks that ran on this machine in the same run while this one was computed, itself included."""
    content: Mapping[str, str]
    """Digests of parts of the content, such as of each layer of a capture; children may be keyed by them."""
    files: Mapping[str, Mapping[str, Any]]
    """`sha256` and `bytes` of each file."""
    schema: int = SCHEMA


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its metadata."""

    folder: Path
    meta: ArtifactMeta
    reused: bool = True
    """False if it was computed by this process."""

    @property
    def key(self) -> str:
        return self.meta.key

    def table(self, name: str) -> pd.DataFrame:
        """One of its tables."""
        return read_table(self.folder / "tables" / f"{name}.parquet")

    @property
    def table_names(self) -> tuple[str, ...]:
        return tuple(Path(name).stem for name in self.meta.files if Path(name).parent == Path("tables"))


@dataclass
class Draft:
    """What a build reports besides the files that it writes."""

    content: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    """sha256 of files that were hashed while they were written, by path relative to the folder."""
    concurrent_tasks: int = 1


class ArtifactStore:
    """Finished folders under one root, as `<stage>/<slug>-<key>/`.

    A folder is written under a hidden name and renamed when complete, with `meta.json` (sha256 and size of every file, and
    a checksum of its own) written last; a killed run leaves nothing that looks finished. A lock for each key lets two runs share the work.
    `find` checks `meta.json` and sizes; `verify` compares every byte, once per artifact and process, before it is opened;
    `check` compares the bytes of those files that were written to since they were compared last.

    Raises:
        StorageError: if the root is a file.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = home() if root is None else given_path(root)
        if self.root.exists() and not self.root.is_dir():
            raise StorageError(f"{self.root} is a file, not a folder; set LAYERPROBE_HOME to a folder.")
        self.damaged: list[str] = []
        """A sentence for each damaged artifact that was removed."""
        self._verified: set[Path] = set()

    def folder(self, stage: str, title: str, key: str) -> Path:
        """Where the artifact of this key is, or would be: the name is for people, the key decides."""
        matches = sorted((self.root / stage).glob(f"[a-z0-9]*-{key[:16]}"))
        return matches[0] if matches else self.root / stage / f"{slug(title)}-{key[:16]}"

    def find(self, stage: str, title: str, key: str) -> Artifact | None:
        """The finished artifact of this key, or None."""
        return self.inspect(stage, title, key)[0]

    def inspect(self, stage: str, title: str, key: str) -> tuple[Artifact | None, str | None]:
        """The finished artifact of this key, or None; and what is damaged if there is one that cannot be used."""
        folder = self.folder(stage, title, key)
        if not (folder.exists() or folder.is_symlink()):
            return None, None
        meta, problem = _read_meta(folder, key)
        return (Artifact(folder, meta), None) if meta is not None else (None, problem)

    def check(self, artifact: Artifact) -> bool:
        """`verify` for an artifact that is not opened: files with the stamp of an earlier verification are not read."""
        return artifact.folder in self._verified or _is_unchanged(artifact) or self.verify(artifact)

    def verify(self, artifact: Artifact) -> bool:
        """Whether all files match their checksums; if not, the artifact is listed in `damaged` and removed.

        Raises:
            StorageError: if it is damaged and cannot be removed.
        """
        folder = artifact.folder
        if folder in self._verified:
            return True
        stamps = _stamps(artifact)
        if _mismatch(artifact) is None:
            self._verified.add(folder)
            _write_stamps(artifact, stamps)
            return True
        try:
            with self._lock(folder, artifact.key):
                # Another process may have computed it again in the meantime.
                meta, problem = _read_meta(folder, artifact.key)
                mismatch = problem if meta is None else _mismatch(Artifact(folder, meta))
                if mismatch is not None and (folder.exists() or folder.is_symlink()):
                    self._remove(folder, mismatch)
        except OSError as error:
            raise StorageError(_in_words(error, folder, f"{artifact.meta.stage} {artifact.meta.title}")) from error
        return False

    def make(
        self,
        stage: str,
        title: str,
        key: str,
        build: Callable[[Path], Draft],
        *,
        identity: Mapping[str, Any],
        resumable: bool = False,
    ) -> Artifact:
        """The artifact of this key: found, or built by `build(folder)` in an empty folder and then sealed.

        A `resumable` build finds in its folder the files that an interrupted one wrote by `write_checked`, as far as they match
        their checksums.

        Raises:
            StorageError: if the disk is full, or something in the store cannot be read or written.
        """
        target = self.folder(stage, title, key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._lock(target, key):
                artifact, problem = self.inspect(stage, title, key)
                if artifact is not None:
                    return artifact
                if problem is not None:
                    self._remove(target, problem)
                partial = target.with_name(f".{key[:16]}.partial")
                if resumable and partial.is_dir():
                    self._keep_checked(partial, f"{stage}/{target.name}")
                else:
                    _remove_path(partial)
                partial.mkdir(exist_ok=True)
                try:
                    start = time.perf_counter()
                    draft = build(partial)
                    seconds = time.perf_counter() - start
                    meta = ArtifactMeta(
                        stage,
                        title,
                        key,
                        dict(identity),
                        seconds,
                        draft.concurrent_tasks,
                        dict(draft.content),
                        _file_metas(partial, draft.checksums),
                    )
                    write_json(partial / META, {**asdict(meta), "checksum": digest(asdict(meta))})
                    partial.rename(target)
                except BaseException as error:
                    if not (resumable and isinstance(error, KeyboardInterrupt)):
                        shutil.rmtree(partial, ignore_errors=True)
                    raise
                self._verified.add(target)
                artifact = Artifact(target, meta, reused=False)
                _write_stamps(artifact, _stamps(artifact))
                return artifact
        except Exception as error:
            if is_disk_full(error):
                raise StorageError(
                    f"The disk is full: {stage} {title} could not be written to {self.root}. Every finished task "
                    "is kept there; free some space, or set LAYERPROBE_HOME to a larger disk, and run the same "
                    "command again."
                ) from error
            if isinstance(error, OSError):
                raise StorageError(_in_words(error, target, f"{stage} {title}")) from error
            raise

    def _lock(self, folder: Path, key: str) -> AbstractContextManager[object]:
        from filelock import FileLock

        return FileLock(folder.with_name(f".{key[:16]}.lock"))

    def _keep_checked(self, partial: Path, name: str) -> None:
        """Remove everything from the folder of an interrupted build but the checked files that are intact."""
        kept = set()
        for path in checked_files(partial):
            if is_intact(path):
                kept |= {path, *path.parent.glob(f"{path.name}.*")}
            else:
                self.damaged.append(f"{name}: {path.name} does not match its checksum; computed again")
                remove_checked(path)
        for path in sorted(partial.rglob("*"), reverse=True):
            if path not in kept and not (path.is_dir() and any(path.iterdir())):
                _remove_path(path)

    def _remove(self, folder: Path, problem: str) -> None:
        _remove_path(folder)
        if folder.exists():
            raise StorageError(
                f"{folder} is damaged ({problem}) and cannot be removed; remove it, and run the same command again."
            )
        self.damaged.append(f"{folder.parent.name}/{folder.name}: {problem}; computed again")


def _in_words(error: OSError, target: Path, what: str) -> str:
    """The message for something that cannot be read or written while an artifact is made."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else target
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and path.is_relative_to(target.parent):
        verb = "read" if path.exists() and not os.access(path, os.R_OK) else "written"
        return f"{path} cannot be {verb} ({error.strerror}); set LAYERPROBE_HOME to a writable folder."
    return (
        f"{os_problem(error, target)}, so {what} was not finished. Every finished task is kept; put that right, and run the same "
        "command again."
    )


def _remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _file_metas(folder: Path, checksums: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        name: {"sha256": checksums.get(name) or checksum(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }


def _mismatch(artifact: Artifact, names: Iterable[str] | None = None) -> str | None:
    """What is wrong with the files of an artifact (by default all), compared byte by byte."""
    for name in artifact.meta.files if names is None else names:
        expected = artifact.meta.files[name]
        try:
            if checksum(artifact.folder / name) != expected["sha256"]:
                return f"{name} does not match its checksum"
        except OSError:
            return f"{name} is missing or unreadable"
    return None


# Stamps: which files have not been written to since they were compared with their checksums ----------------------------


def _stamps(artifact: Artifact) -> dict[str, Stamp] | None:
    """The stamps of an artifact's files, taken before they are compared; None if one is missing."""
    try:
        return {name: stamp(artifact.folder / name) for name in artifact.meta.files}
    except OSError:
        return None


def _stamps_path(artifact: Artifact) -> Path:
    return artifact.folder.with_name(f".{artifact.key[:16]}.verified")


def _write_stamps(artifact: Artifact, stamps: Mapping[str, Stamp] | None) -> None:
    """Keep the stamps of files that match their checksums. A store that cannot be written is compared again next time."""
    if stamps is None:
        return
    settled = {name: value for name, value in stamps.items() if is_settled(value)}
    with contextlib.suppress(OSError):
        write_json(_stamps_path(artifact), {"meta": digest(asdict(artifact.meta)), "stamps": settled})


def _is_unchanged(artifact: Artifact) -> bool:
    """Whether every file has the stamp with which it matched its checksum; files without a stamp are compared."""
    try:
        content = json.loads(_stamps_path(artifact).read_text(encoding="utf-8"))
        if content["meta"] != digest(asdict(artifact.meta)):
            return False
        stamps = content["stamps"]
        new = [name for name in artifact.meta.files if name not in stamps]
        if any(stamp(artifact.folder / name) != value for name, value in stamps.items()):
            return False
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return not new or _mismatch(artifact, new) is None


def _read_meta(folder: Path, key: str) -> tuple[ArtifactMeta | None, str]:
    """The metadata of a folder whose files are there in full size, or None and what is wrong."""
    try:
        content = json.loads((folder / META).read_text(encoding="utf-8"))
        expected = content.pop("checksum")
        meta = ArtifactMeta(**content)
        sizes = {name: int(about["bytes"]) for name, about in meta.files.items() if about["sha256"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, "its meta.json is missing or unreadable"
    if meta.key != key:
        return None, "it belongs to another key"
    if digest(content) != expected:
        return None, "its meta.json does not match its checksum"
    for name, size in sizes.items():
        try:
            actual = (folder / name).stat().st_size
        except OSError:
            return None, f"{name} is missing"
        if actual != size:
            return None, f"{name} has {actual} bytes instead of {size}"
    return meta, ""
