"""The stage that trains sparse autoencoders on one layer of one model, and their controls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from layerprobe.context import Context
from layerprobe.files import write_json
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage
from layerprobe.stages._artifacts import dictionary_of, rows_of
from layerprobe.stages.capture import CaptureSae
from layerprobe.store import Artifact, ArtifactMeta

Variant = Literal[
    "start",
    "trained",
    "other-order",
    "second-start",
    "second-seed",
    "frozen-decoder",
    "soft-frozen-decoder",
    "frozen-encoder",
    "untrained",
]
"""`start`, trained on base rows, and `trained`, continued from it on the rows of either side. The controls: continued from
it on base rows in another order; `second-start` and `second-seed`, the same two from another seed; with a frozen random
decoder, one that may turn a little, or a frozen random encoder; or not trained at all."""

LEAST_COSINE = 0.8
"""Of the directions of `soft-frozen-decoder` with their start (Korznikov et al. 2026)."""

STARTS: Mapping[str, Variant] = {"trained": "start", "other-order": "start", "second-seed": "second-start"}
"""The variant that training of a variant continues from."""
CONTINUED_PASSES, CONTINUED_STEPS = 2, 100
"""Training of a dictionary that starts from another one: passes over its rows, and the least number of batches."""
BATCH = 1024
"""Rows per training step; a quarter of them where there are few."""
BUDGET = "training.json"


@dataclass(frozen=True)
class Sae(LayerStage):
    """A dictionary of one layer, in the format of sae-lens.

    Base's and adapted's dictionaries have the same training: both continue from one start, which is trained on base rows,
    for the same number of steps. The adapted one reads its rows in the order of `other-order`, so that base against
    adapted and the null, base against `other-order`, differ in the rows alone.

    A dictionary is keyed by the content of its rows; where the rows of an adapted model equal the base's, it is the
    base's.
    """

    variant: Variant = "trained"

    name: ClassVar = "sae"
    version: ClassVar = 6
    keyed_by_content: ClassVar = True
    resumable: ClassVar = True
    accelerator: ClassVar = True
    on_cpu: ClassVar = "mean and scale of the rows, in one pass over the file in float64"
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
        """The dictionary that training continues from."""
        return Sae(layer=self.layer, variant=STARTS[self.variant]) if self.variant in STARTS else None

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

    def other_order(self, contents: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether rows are read in the other order, given the digests of the rows and the base rows by layer."""
        rows, base = (contents[role][str(self.layer)] for role in ("rows", "base rows"))
        return self.variant == "other-order" or (self.start is not None and rows != base)

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        settings = study.study.sae
        identity = {
            "rows": parents["rows"].content[str(self.layer)],
            "architecture": settings.architecture,
            "expansion": settings.expansion,
            "k": settings.k,
            "seed": study.study.seeds[0],
            "variant": self.variant,
        }
        if self.variant == "untrained":
            identity["trained"] = parents["trained"].key
        if self.start is not None:
            contents = {role: parents[role].content for role in ("rows", "base rows")}
            identity |= {"start": parents["start"].key, "other order": self.other_order(contents)}
        return identity

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe import sae

        rows = rows_of(parents["rows"]).tokens(self.number)
        contents = {role: parents[role].meta.content for role in ("rows", "base rows")}
        config = sae_config(context, self.variant, len(rows), other_order=self.other_order(contents))
        if self.variant == "untrained":
            trained = dictionary_of(parents["trained"])
            untrained = sae.untrained(trained, rows, config)
            untrained.sae.to("cpu").save_model(folder / "dictionary")
            write_json(folder / BUDGET, {"steps": 0})
            return
        start = dictionary_of(parents["start"]) if self.start is not None else None
        sae.train(rows, folder / "dictionary", config, start=start, device=context.device)
        steps = sae.training_steps(config, len(rows))
        if start is not None:
            _prepend_history(folder, parents["start"])
            steps += steps_of(parents["start"])
        write_json(folder / BUDGET, {"steps": steps})

    def size(self, study: ResolvedStudy) -> int:
        return study.dictionary_bytes


def sae_config(context: Context, variant: Variant, rows: int, *, other_order: bool = False) -> Any:
    """The SAE library's configuration of one variant.

    What does not continue from a start makes as many steps as the start and its continuation together.
    """
    from layerprobe.sae import SaeConfig, training_steps

    settings, seed = context.study.sae, context.seed
    # In batches of all rows there would be no other order.
    batch = min(BATCH, max(1, rows // 4))
    continued = max(CONTINUED_PASSES * rows, CONTINUED_STEPS * batch)
    if variant in STARTS:
        samples = continued
    elif variant in STARTS.values():
        samples = None
    else:
        whole = SaeConfig(batch_size=batch)
        continuation = SaeConfig(batch_size=batch, samples=continued)
        samples = (training_steps(whole, rows) + training_steps(continuation, rows)) * batch
    seed += variant.startswith("second-")
    return SaeConfig(
        architecture=settings.architecture,
        expansion=settings.expansion,
        k=settings.k,
        samples=samples,
        batch_size=batch,
        seed=seed,
        order_seed=seed + 2 if other_order else None,
        frozen_decoder=variant == "frozen-decoder",
        frozen_encoder=variant == "frozen-encoder",
        least_cosine=LEAST_COSINE if variant == "soft-frozen-decoder" else None,
    )


def steps_of(sae: Artifact) -> int:
    """Training steps of a dictionary, those of its start included."""
    return int(json.loads((sae.folder / BUDGET).read_text(encoding="utf-8"))["steps"])


def _prepend_history(folder: Path, start: Artifact) -> None:
    """Put the start's training log before that of its continuation, whose steps are counted on."""
    import pandas as pd

    path = "dictionary/history.parquet"
    before, after = (pd.read_parquet(place / path) for place in (start.folder, folder))
    history = pd.concat([before, after.assign(step=after["step"] + steps_of(start))], ignore_index=True)
    history.to_parquet(folder / path, index=False)


def compared_dictionaries(stage: LayerStage, controls: tuple[str, ...]) -> tuple[Sae, ...]:
    """The dictionaries of a layer whose base and adapted models are compared, in the order of the tables."""
    method, seed, layer = stage.method, stage.seed, stage.layer
    dictionaries = [Sae(layer=layer), Sae(method, seed, layer), Sae(layer=layer, variant="other-order")]
    if "frozen-decoder" in controls:
        dictionaries.append(Sae(layer=layer, variant="frozen-decoder"))
    if "second-seed" in controls:
        dictionaries += [Sae(layer=layer, variant="second-seed"), Sae(method, seed, layer, "second-seed")]
    return tuple(dictionaries)
