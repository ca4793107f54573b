"""The stage that collects what each latent is active on, and for the top ones histograms, classes and more examples."""

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
from layerprobe.stages.tokens import TOKENS, Tokens, written
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
LATENT_TOKENS = TableSpec(
    "latent_tokens",
    "Tokens with the largest shares of each live latent's activation: one row per latent and token, at most 5 per latent.",
    columns(
        "method",
        "seed",
        "layer",
        "side",
        latent="number of the latent",
        rank="0 is the token with the largest share",
        token="the token as it is in the texts; in lower case where the tokenizer ignores case",
        share="share of the latent's activation, summed over the test tokens of its side, 0 to 1",
        active="occurrences of the token on which the latent is active",
        occurrences="all occurrences of the token",
    ),
)
LATENT_PEAKS = TableSpec(
    "latent_peaks",
    "Test examples with the highest activations of each live latent: one row per latent, example and active token, 3 examples "
    "per latent.",
    columns(
        "method",
        "seed",
        "layer",
        "side",
        "example_id",
        "token_index",
        latent="number of the latent",
        rank="rank of the example by its highest activation; 0 is the highest",
        activation="activation on its own side, above 0; of long examples, among the 40 tokens around the highest",
    ),
)


@dataclass(frozen=True)
class Exhibit(LayerStage):
    """What the latents of each side are active on; of the top ones, activations on the other side and those of matches too.

    Where the two sides are equal, the base's alone.
    """

    controls: tuple[str, ...] = ()
    crosscoder: bool = True

    name: ClassVar = "exhibit"
    version: ClassVar = 3
    tables: ClassVar = (LATENT_HISTOGRAMS, LATENT_CLASSES, LATENT_EXAMPLES, LATENT_TOKENS, LATENT_PEAKS)
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
            "tokens": Tokens(),
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
        example, index = (base.rows[name].to_numpy() for name in ("example", "token_index"))
        words = written(parents["tokens"].table(TOKENS.name), context.corpus.test)
        names = ("histograms", "classes", "examples", "tokens", "peaks")
        tables: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
        for side in sides:
            table = latents[latents["side"] == side]
            top = sae.top_latents(table, SHOWN_LATENTS)
            readings = {on: codes[side, on][:, top] for on in sorted(sides, key=lambda on: on != side)}
            if not unchanged:
                other = "adapted" if side == "base" else "base"
                readings["match"] = _partners(codes[other, other], table.set_index("latent").loc[top, "partner"])
            shown = sae.exhibit(readings, top, base.rows, labels, context.corpus.label_names)
            own = codes[side, side]
            found = {name: getattr(shown, name) for name in ("histograms", "classes", "examples")}
            found |= {"tokens": sae.top_tokens(own, words), "peaks": sae.top_peaks(own, example, index)}
            for name in ("examples", "peaks"):
                ids = base.example_ids[found[name]["example"].astype(int)]
                found[name] = found[name].assign(example_id=ids).drop(columns="example")
            for name, frames in tables.items():
                frames.append(found[name].assign(**self.named, side=side))
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
