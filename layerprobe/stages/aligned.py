"""The stage that separates, in the transfer of dictionaries, shift and rotation of the rows from other change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import dictionary_of, paired_rows, save
from layerprobe.stages.capture import Capture, CaptureSae
from layerprobe.stages.crosscoder import Crosscoder
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

ALIGNED_TRANSFER = TableSpec(
    "aligned_transfer",
    "The base's dictionary and its controls on adapted test tokens after alignment of the rows: one row per method, seed, "
    "layer, dictionary and alignment. The alignments are fitted on the tokens that dictionaries were trained on.",
    columns(
        "method",
        "seed",
        "layer",
        "n",
        kind="as in `sae`, of the base's dictionary",
        alignment="`none`; `mean`; `scale` (mean and one factor); `rotation` (mean and orthogonal Procrustes); or `ridge` "
        "(an affine map there, and another one back)",
        explained_variance="share of the adapted rows' variance that is reconstructed",
        ev_low="lower end of its 95% interval over examples",
        ev_high="upper end of its 95% interval over examples",
        gap_share="share of the gap to the adapted model's dictionary that the alignment closes: 0 for none of it",
        gap_share_low="lower end of its 95% interval over examples, for these dictionaries",
        gap_share_high="upper end of its 95% interval over examples, for these dictionaries",
        why="why the share is undefined; empty if it is defined",
        home="explained variance of the same rows by the adapted model's dictionary",
    ),
)
DIFFERENCE_PCA = TableSpec(
    "difference_pca",
    "Variance of the difference adapted - base of test tokens that its principal components and the joint dictionary "
    "explain: one row per method, seed, layer and number of components, which are fitted on the tokens that dictionaries "
    "were trained on.",
    columns(
        "method",
        "seed",
        "layer",
        "n",
        components="number of principal components",
        explained_variance="share of the difference's variance that they explain",
        ev_low="lower end of its 95% interval over examples",
        ev_high="upper end of its 95% interval over examples",
        joint="share that the joint dictionary's reconstruction explains, the same in all rows of a layer",
        joint_low="lower end of its 95% interval over examples",
        joint_high="upper end of its 95% interval over examples",
        excess="share explained by the components minus that by the joint dictionary",
        excess_low="lower end of its paired 95% interval over examples",
        excess_high="upper end of its paired 95% interval over examples",
        coefficients="whether there are as many components as active latents of the joint dictionary per token, rounded",
        l0="active latents of the joint dictionary per token, on average",
        d_sae="number of latents of the joint dictionary",
    ),
)


@dataclass(frozen=True)
class Aligned(LayerStage):
    """Transfer after alignment, and the difference's principal components; empty where adaptation changed no row."""

    controls: tuple[str, ...] = ()
    crosscoder: bool = True

    name: ClassVar = "aligned"
    version: ClassVar = 1
    tables: ClassVar = (ALIGNED_TRANSFER, DIFFERENCE_PCA)
    accelerator: ClassVar = True
    on_cpu: ClassVar = "the alignment, by an SVD in float64"
    first_guess: ClassVar = 5.0

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        settings = shape.study.sae
        controls = tuple(name for name in settings.controls if name in ("untrained", "frozen-decoder"))
        for method, seed in shape.runs:
            if method.changes_body:
                for layer in shape.sae_layers:
                    yield cls(method, seed, layer, controls, settings.crosscoder)

    @property
    def dictionaries(self) -> tuple[Sae, ...]:
        """The base's, then its controls."""
        variants = ("trained", *self.controls)
        return tuple(Sae(layer=self.layer, variant=variant) for variant in variants)  # type: ignore[arg-type]

    @property
    def home(self) -> Encode:
        return Encode(Sae(self.method, self.seed, self.layer), Capture(self.method, self.seed))

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {
            "base": Capture.of_base(),
            "adapted": Capture(self.method, self.seed),
            "base sae rows": CaptureSae.of_base(),
            "adapted sae rows": CaptureSae(self.method, self.seed),
            **{dictionary.role: dictionary for dictionary in (*self.dictionaries, self.home.dictionary)},
            self.home.role: self.home,
        }
        if self.crosscoder:
            parents["crosscoder"] = Crosscoder(self.method, self.seed, self.layer)
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae

        test, training = paired_rows(parents), paired_rows(parents, "base sae rows", "adapted sae rows")
        base, adapted = (store.tokens(self.number) for store in test)
        if test[0].content(self.number) == test[1].content(self.number):
            return
        base_fit, adapted_fit = (store.tokens(self.number) for store in training)
        groups, n = test[0].groups("token"), len(set(test[0].groups("token")))
        alignments = sae.fit_alignments(base_fit, adapted_fit, training[0].groups("token"))
        dictionary = dictionary_of(parents[self.home.dictionary.role], context.device)
        home = sae.evaluate(dictionary, adapted, codes_of(parents, self.home), groups)
        tables = []
        for task in self.dictionaries:
            table = sae.aligned_transfer(
                dictionary_of(parents[task.role], context.device), home, alignments, adapted, groups
            )
            tables.append(table.assign(**self.named, kind=task.variant, home=home.explained_variance, n=n))
        save(folder, "aligned_transfer", pd.concat(tables, ignore_index=True))
        if not self.crosscoder or not (parents["crosscoder"].folder / "crosscoder").is_dir():
            return
        joint = sae.Crosscoder.load(parents["crosscoder"].folder / "crosscoder", device=context.device)
        components = sae.principal_components(base_fit, adapted_fit)
        codes = joint.encode(base, adapted)
        table = sae.difference_pca(joint, components, base, adapted, codes, groups)
        save(folder, "difference_pca", table.assign(**self.named, d_sae=joint.d_sae, n=n))
