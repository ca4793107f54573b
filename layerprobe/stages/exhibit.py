"""The stage that collects, for the top latents of each side, histograms, classes and examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import paired_rows, save
from layerprobe.stages.capture import Capture
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.latents import Latents
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

SHOWN_LATENTS = 40
"""Latents of each layer and side that a reader can open."""

ON = "activations that are read: of `base`, of `adapted`, or of the matched latent on its own side (`match`)"
LATENT_HISTOGRAMS = TableSpec(
    "latent_histograms",
    "Histograms of the activations of the top latents: one row per latent, reading and bin.",
    columns(
        "method",
        "seed",
        "layer",
        "side",
        latent="number of the latent",
        on=ON,
        low="lower end of the bin; 0 to 0 counts inactive tokens",
        high="upper end of the bin, inclusive",
        tokens="number of tokens in the bin",
    ),
)
LATENT_CLASSES = TableSpec(
    "latent_classes",
    "Activations of the top latents by label: one row per latent, reading and label.",
    columns(
        "method",
        "seed",
        "layer",
        "side",
        "n",
        latent="number of the latent",
        on=ON,
        label="label of the examples",
        mean="mean over examples of the mean activation over tokens",
        low="lower end of its 95% interval over examples",
        high="upper end of its 95% interval over examples",
        active="share of examples in which the latent is active",
    ),
)
LATENT_EXAMPLES = TableSpec(
    "latent_examples",
    "Test examples in which the top latents are active: one row per latent and token.",
    columns(
        "method",
        "seed",
        "layer",
        "side",
        "example_id",
        "token_index",
        "token",
        "special",
        latent="number of the latent",
        choice="`top` (among the highest activations) or `quantile` (at evenly spaced ranks)",
        rank="rank of the example by its highest activation; 0 is the highest",
        level="share of the active examples with a lower highest activation",
        base="activation on base; missing for adapted latents of an unchanged layer",
        adapted="activation on adapted; missing where the layer is unchanged",
        match="activation of the matched latent on its own side; missing where the layer is unchanged",
    ),
)


@dataclass(frozen=True)
class Exhibit(LayerStage):
    """Activations of the top latents of each side on their own side, on the other side, and those of their matches.

    Where the two sides are equal, the base's alone.
    """

    controls: tuple[str, ...] = ()
    crosscoder: bool = True

    name: ClassVar = "exhibit"
    version: ClassVar = 2
    tables: ClassVar = (LATENT_HISTOGRAMS, LATENT_CLASSES, LATENT_EXAMPLES)
    on_cpu: ClassVar = "activations that `encode` stored"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        settings = shape.study.sae
        for method, seed in shape.runs:
            for layer in shape.sae_layers:
                yield cls(method, seed, layer, settings.controls, settings.crosscoder)

    @property
    def encodes(self) -> dict[tuple[str, str], Encode]:
        """Codes by the side of the dictionary and the side of the rows."""
        dictionaries = Sae(layer=self.layer), Sae(self.method, self.seed, self.layer)
        captures = Capture.of_base(), Capture(self.method, self.seed)
        return {
            (dictionary.side, capture.side): Encode(dictionary, capture)
            for dictionary in dictionaries
            for capture in captures
        }

    def parents(self) -> Mapping[str, Stage]:
        return {
            "base": Capture.of_base(),
            "adapted": Capture(self.method, self.seed),
            "latents": Latents(self.method, self.seed, self.layer, self.controls, self.crosscoder),
            **{encode.role: encode for encode in self.encodes.values()},
        }

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import sae

        base, adapted = paired_rows(parents)
        unchanged = np.array_equal(base.tokens(self.number), adapted.tokens(self.number))
        sides = ["base"] if unchanged else ["base", "adapted"]
        labels = context.corpus.test.labels[: int(base.rows["example"].max()) + 1]
        latents = parents["latents"].table("latents")
        codes = {key: codes_of(parents, encode) for key, encode in self.encodes.items() if set(key) <= set(sides)}
        tables: dict[str, list[pd.DataFrame]] = {name: [] for name in ("histograms", "classes", "examples")}
        for side in sides:
            table = latents[latents["side"] == side]
            top = sae.top_latents(table, SHOWN_LATENTS)
            readings = {on: codes[side, on][:, top] for on in sorted(sides, key=lambda on: on != side)}
            if not unchanged:
                other = "adapted" if side == "base" else "base"
                readings["match"] = _partners(codes[other, other], table.set_index("latent").loc[top, "partner"])
            shown = sae.exhibit(readings, top, base.rows, labels, context.corpus.label_names)
            for name, frames in tables.items():
                frames.append(getattr(shown, name).assign(**self.named, side=side))
        tables["examples"] = [
            frame.assign(example_id=base.example_ids[frame["example"].astype(int)]).drop(columns="example")
            for frame in tables["examples"]
        ]
        for name, frames in tables.items():
            save(folder, f"latent_{name}", pd.concat(frames, ignore_index=True))


def _partners(codes: Any, partners: Any) -> Any:
    """Activations of each latent's match; zero where it has none."""
    import numpy as np
    from scipy.sparse import csc_array

    known = partners.notna().to_numpy()
    places = np.flatnonzero(known)
    pick = csc_array(
        (np.ones(len(places), dtype=np.float32), (partners[known].to_numpy(dtype=np.int64), places)),
        shape=(codes.shape[1], len(partners)),
    )
    return (codes @ pick).tocsc()
