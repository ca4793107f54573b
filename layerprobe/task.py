"""One task of a study: a stage's work on one thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerprobe.artifacts import Artifact, digest

Parents = Mapping[str, Artifact]
Identity = Callable[[Parents], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One stage's work on one thing: what it is made from, and how."""

    stage: str
    name: str
    identity: Identity
    """What decides the result, besides the parents' keys; may read finished parents."""
    build: Callable[[Path, Parents], None]
    """Writes the artifact's data into an empty folder."""
    parents: tuple[str, ...] = ()
    size: int = 0
    """Bytes that it will take, estimated from above."""
    keyed_by_content: bool = False
    """Whether the identity is all there is to the key, so that equal content made in two ways is one artifact."""
    resumable: bool = False
    """Whether the build goes on from what an interrupted one left in its folder."""

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
