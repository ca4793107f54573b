"""The stage that matches the base dictionary with its controls, the null of matching it with an adapted one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from layerprobe.context import Context
from layerprobe.stage import LayerStage, Stage
from layerprobe.stages._artifacts import dictionary_of
from layerprobe.stages.capture import Capture
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact


@dataclass(frozen=True)
class Match(LayerStage):
    """Matches of the base dictionary of a layer with those that differ from it by chance alone."""

    controls: tuple[str, ...] = ()

    name: ClassVar = "match"
    version: ClassVar = 2
    accelerator: ClassVar = True

    @property
    def dictionaries(self) -> tuple[Sae, ...]:
        second = (Sae(layer=self.layer, variant="second-seed"),) if "second-seed" in self.controls else ()
        return (Sae(layer=self.layer), Sae(layer=self.layer, variant="other-order"), *second)

    def parents(self) -> Mapping[str, Stage]:
        encodes = [Encode(dictionary, Capture.of_base()) for dictionary in self.dictionaries]
        return {
            **{dictionary.role: dictionary for dictionary in self.dictionaries},
            **{encode.role: encode for encode in encodes},
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe import sae

        base, *others = (
            (dictionary_of(parents[one.role], context.device), codes_of(parents, Encode(one, Capture.of_base())))
            for one in self.dictionaries
        )
        for dictionary, other in zip(self.dictionaries[1:], others, strict=True):
            matching = sae.match(base[0], other[0], base[1], other[1])
            matching.table.to_parquet(folder / f"{dictionary.variant}.parquet", index=False)
            matching.reverse.to_parquet(folder / f"{dictionary.variant}-reverse.parquet", index=False)


def null_matching(match: Artifact, variant: str) -> Any:
    """The matches of the base dictionary with one of its controls."""
    import pandas as pd

    from layerprobe.sae import Matching

    table, reverse = (pd.read_parquet(match.folder / f"{name}.parquet") for name in (variant, f"{variant}-reverse"))
    return Matching(table, reverse)
