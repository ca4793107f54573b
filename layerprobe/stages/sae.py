"""The stage that trains sparse autoencoders on one layer of one model, and their controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage
from layerprobe.stages._artifacts import dictionary_of, rows_of
from layerprobe.stages.capture import CaptureSae
from layerprobe.store import Artifact, ArtifactMeta

Variant = Literal["trained", "other-order", "second-seed", "frozen-decoder", "untrained"]
"""`trained`; the controls: trained further on the same rows in another order, from another seed, with a frozen random
decoder, or not at all."""

CONTINUED_PASSES, CONTINUED_STEPS = 2, 100
"""Training of a dictionary that starts from another one: passes over its rows, and the least number of batches."""


@dataclass(frozen=True)
class Sae(LayerStage):
    """A dictionary of one layer, in the format of sae-lens. Those of an adapted model start from the base's.

    It is keyed by the content of its rows, so that equal rows have one dictionary; one that would start from the base's on
    rows that equal the base's is the base's.
    """

    variant: Variant = "trained"

    name: ClassVar = "sae"
    version: ClassVar = 4
    keyed_by_content: ClassVar = True
    resumable: ClassVar = True
    accelerator: ClassVar = True
    first_guess: ClassVar = 15.0
    opened: ClassVar = "dictionary"

    @property
    def title(self) -> str:
        return super().title + ("" if self.variant == "trained" else f", {self.variant.replace('-', ' ')}")

    @property
    def role(self) -> str:
        """Side and variant, as a role among the parents of a stage that reads several dictionaries."""
        return f"{self.side} {self.variant}"

    @property
    def start(self) -> Sae | None:
        """The dictionary that training starts from."""
        if self.variant == "other-order" or (self.method is not None and self.variant == "trained"):
            return Sae(layer=self.layer)
        if self.method is not None and self.variant == "second-seed":
            return Sae(layer=self.layer, variant="second-seed")
        return None

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {
            "rows": CaptureSae(self.method, self.seed),
            "base rows": CaptureSae.of_base(),
        }
        if self.start is not None:
            parents["start"] = self.start
        if self.variant == "untrained":
            parents["trained"] = Sae(self.method, self.seed, self.layer)
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        settings = study.study.sae
        rows, base = (parents[role].content[str(self.layer)] for role in ("rows", "base rows"))
        identity = {
            "rows": rows,
            "architecture": settings.architecture,
            "expansion": settings.expansion,
            "k": settings.k,
            "seed": study.study.seeds[0],
            "variant": self.variant,
        }
        if self.variant == "untrained":
            identity["trained"] = parents["trained"].key
        if self.start is not None and (rows != base or self.variant == "other-order"):
            identity["start"] = parents["start"].key
        return identity

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe import sae

        rows = rows_of(parents["rows"]).tokens(self.number)
        config = sae_config(context, self.variant, len(rows), continued=self.start is not None)
        if self.variant == "untrained":
            trained = dictionary_of(parents["trained"])
            untrained = sae.untrained(trained, rows, config)
            untrained.sae.to("cpu").save_model(folder / "dictionary")
            return
        start = dictionary_of(parents["start"]) if self.start is not None else None
        sae.train(rows, folder / "dictionary", config, start=start, device=context.device)

    def size(self, study: ResolvedStudy) -> int:
        return study.dictionary_bytes


def sae_config(context: Context, variant: Variant, rows: int, *, continued: bool) -> Any:
    """The SAE library's configuration of one variant."""
    from layerprobe.sae import SaeConfig

    settings, seed, batch = context.study.sae, context.seed, 1024
    return SaeConfig(
        architecture=settings.architecture,
        expansion=settings.expansion,
        k=settings.k,
        samples=max(CONTINUED_PASSES * rows, CONTINUED_STEPS * min(batch, rows)) if continued else None,
        batch_size=batch,
        seed=seed + 1 if variant == "second-seed" else seed,
        order_seed=seed + 2 if variant == "other-order" else None,
        frozen_decoder=variant == "frozen-decoder",
    )


def compared_dictionaries(stage: LayerStage, controls: tuple[str, ...]) -> tuple[Sae, ...]:
    """The dictionaries of a layer whose base and adapted models are compared, in the order of the tables."""
    method, seed, layer = stage.method, stage.seed, stage.layer
    dictionaries = [Sae(layer=layer), Sae(method, seed, layer), Sae(layer=layer, variant="other-order")]
    if "frozen-decoder" in controls:
        dictionaries.append(Sae(layer=layer, variant="frozen-decoder"))
    if "second-seed" in controls:
        dictionaries += [Sae(layer=layer, variant="second-seed"), Sae(method, seed, layer, "second-seed")]
    return tuple(dictionaries)
