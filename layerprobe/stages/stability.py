"""The stage that compares the latents that a second seed finds too with those that it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context, relabelled
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import dictionary_of, rows_of, save
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.capture import Capture
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

STABILITY = TableSpec(
    "stability",
    "The adapted model's dictionary without its stable or its unstable latents, of about equal energy: one row per method, "
    "seed, layer and ablated group. A latent is stable if the second dictionary seed has a partner with a cosine of at "
    "least .7.",
    columns(
        "method",
        "seed",
        "layer",
        "n",
        ablated="`none`, `stable` or `unstable`",
        latents="number of ablated latents",
        of="number of live latents of the group",
        energy_share="their share of the sum of squared activation x decoder norm",
        task_loss="cross-entropy of the classifier with the reconstruction of the others in place of the layer, in nats",
        loss_recovered="share of the loss added by mean-ablating the layer that this avoids",
        loss_recovered_low="lower end of its 95% interval over examples",
        loss_recovered_high="upper end of its 95% interval over examples",
        why="why it is undefined; empty if it is defined",
    ),
)
SUBSPACES = TableSpec(
    "subspace_overlap",
    "Subspaces of the adapted dictionary's latents without a partner in the second seed, and of that seed's without one "
    "here: one row per method, seed and layer.",
    columns(
        "method",
        "seed",
        "layer",
        latents="number of unstable live latents",
        latents_second="number of those of the second seed",
        dimensions="dimensions of either subspace",
        overlap="mean squared cosine of the principal angles, 1 for one subspace",
        null_mean="the same for as many directions drawn from the rows' covariance, mean over draws",
        null_high="its largest value over draws",
        draws="number of draws",
    ),
)


@dataclass(frozen=True)
class Stability(LayerStage):
    """Stable and unstable latents of the adapted model: what ablating them costs the classifier, and their subspaces."""

    name: ClassVar = "stability"
    version: ClassVar = 1
    tables: ClassVar = (STABILITY, SUBSPACES)
    accelerator: ClassVar = True
    on_cpu: ClassVar = "subspaces in float64"
    first_guess: ClassVar = 10.0

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if "second-seed" in shape.study.sae.controls:
            for method, seed in shape.runs:
                if method.changes_body:
                    for layer in shape.sae_layers:
                        yield cls(method, seed, layer)

    @property
    def encodes(self) -> tuple[Encode, Encode]:
        rows = Capture(self.method, self.seed)
        one, other = (Encode(Sae(self.method, self.seed, self.layer, v), rows) for v in ("trained", "second-seed"))
        return one, other

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {"adapted": self.encodes[0].capture, "classifier": Adapt(self.method, self.seed)}
        for encode in self.encodes:
            parents |= {encode.dictionary.role: encode.dictionary, encode.role: encode}
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {**self.named, "examples": study.study.internals.examples}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import sae

        one, other = (dictionary_of(parents[encode.dictionary.role], context.device) for encode in self.encodes)
        codes = [codes_of(parents, encode) for encode in self.encodes]
        matching = sae.match(one, other, *codes)
        stable = sae.stable_latents(matching)
        live = [table["live"].to_numpy() for table in (matching.table, matching.reverse)]
        unmatched = [
            dictionary.decoder.cpu().numpy()[~found & active]
            for dictionary, found, active in zip((one, other), stable, live, strict=True)
        ]
        if min(map(len, unmatched)) >= 2:
            rows = rows_of(parents["adapted"]).tokens(self.number)
            overlap = sae.subspace_overlap(unmatched[0], unmatched[1], rows, seed=context.seed)
            counts = {"latents": len(unmatched[0]), "latents_second": len(unmatched[1])}
            save(folder, "subspace_overlap", pd.DataFrame([{**self.named, **counts, **vars(overlap)}]))
        if not (stable[0] & live[0]).any() or not (~stable[0] & live[0]).any():
            return
        groups = {"none": np.zeros(one.d_sae, dtype=bool)}
        groups |= sae.of_equal_energy(one, codes[0], stable[0], live[0], seed=context.seed)
        energy = codes[0].power(2).sum(0) * one.decoder.cpu().double().square().sum(1).numpy()
        of = {"none": 0, "stable": int((stable[0] & live[0]).sum()), "unstable": int((~stable[0] & live[0]).sum())}
        losses = sae.task_loss(
            context.adapted_model(parents["classifier"]).to(context.device),
            context.encoder,
            relabelled(parents["classifier"], context.rerun_examples),
            self.number,
            {name: sae.PartialDictionary(one.sae, ~group) for name, group in groups.items()},
            max_length=context.study.data.max_length,
        ).set_index("variant")
        table: list[dict[str, Any]] = []
        for name, group in groups.items():
            loss = losses.loc[name]
            row = {
                **self.named,
                "ablated": name,
                "latents": int(group.sum()),
                "of": of[name],
                "task_loss": loss["loss"],
            }
            row["energy_share"] = float(energy[group].sum() / energy.sum())
            names = ("loss_recovered", "loss_recovered_low", "loss_recovered_high", "why", "n")
            table.append(row | {column: loss[column] for column in names})
        save(folder, "stability", pd.DataFrame(table))
