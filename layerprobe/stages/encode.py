"""The stage that encodes the test rows of one layer with one dictionary, once for all that read the codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from layerprobe.context import Context
from layerprobe.stage import Json, ResolvedStudy, Stage
from layerprobe.stages._artifacts import dictionary_of, rows_of
from layerprobe.stages.capture import Capture
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta


@dataclass(frozen=True)
class Encode(Stage):
    """Sparse codes of a dictionary on one side's test tokens."""

    dictionary: Sae
    capture: Capture

    name: ClassVar = "encode"
    version: ClassVar = 1
    keyed_by_content: ClassVar = True
    accelerator: ClassVar = True
    first_guess: ClassVar = 1.0

    @property
    def title(self) -> str:
        return f"{self.dictionary.title} on {self.capture.title}"

    @property
    def role(self) -> str:
        """Role among the parents of a stage that reads several codes."""
        return f"{self.dictionary.role} on {self.capture.side}"

    def parents(self) -> Mapping[str, Stage]:
        return {"dictionary": self.dictionary, "rows": self.capture}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        rows = parents["rows"].content[str(self.dictionary.layer)]
        return {"dictionary": parents["dictionary"].key, "rows": rows}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe import sae

        rows = rows_of(parents["rows"]).tokens(self.dictionary.number)
        codes = sae.encode(dictionary_of(parents["dictionary"], context.device), rows)
        sae.save_codes(codes, folder / "codes")

    def size(self, study: ResolvedStudy) -> int:
        active = study.study.sae.k or max(1, study.width // 12)
        return 8 * active * study.captured_tokens


def codes_of(parents: Mapping[str, Artifact], encode: Encode) -> Any:
    """The codes of a parent."""
    from layerprobe import sae

    return sae.load_codes(parents[encode.role].folder / "codes")
