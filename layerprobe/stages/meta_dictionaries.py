"""The stage that compares the dictionaries of the pretrained and of a meta-trained body, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.few_shot import outer_depth, section_of
from layerprobe.stage import COLUMNS, Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec
from layerprobe.stages._artifacts import dictionary_of, paired_rows, save
from layerprobe.stages._few_shot import BODY_COLUMNS
from layerprobe.stages.capture import Capture
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.match import Match, null_matching
from layerprobe.stages.meta_model import MetaTrainedBody
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

FEW_SHOT_DICTIONARIES = TableSpec(
    "few_shot_dictionaries",
    "Dictionaries of the pretrained and of a meta-trained body on the tokens of the probe examples: one row per body and layer.",
    {
        **BODY_COLUMNS,
        "layer": COLUMNS["layer"],
        **{
            name: f"explained variance of {whose}"
            for name, whose in (
                ("ev_pretrained", "the pretrained body's dictionary on its own activations"),
                ("ev_transferred", "the pretrained body's dictionary on the meta-trained body's activations"),
                ("ev_own", "the meta-trained body's dictionary on its own activations"),
            )
        },
        "lost_share": "share of live latents of the pretrained body's dictionary without a match by decoder direction in the other",
        "lost_low": "lower end of its 95% interval over latents",
        "lost_high": "upper end of its 95% interval over latents",
        "null_lost_share": "the same for two dictionaries of the pretrained body, trained in two orders of rows",
        "mean": "mean cosine of matched decoder directions",
        "null_mean": "the same for two dictionaries of the pretrained body",
        "difference": "mean minus null_mean, over latents that have both",
        "difference_low": "lower end of its 95% interval over latents",
        "difference_high": "upper end of its 95% interval over latents",
        "n": "number of live latents of the pretrained body's dictionary",
        "note": "`identical by construction` where both bodies have the same activations, and so the same dictionary",
    },
)


@dataclass(frozen=True)
class MetaDictionaries(LayerStage):
    """Explained variance and matches of both dictionaries of one layer, with the null of matching by chance alone."""

    name: ClassVar = "meta-dictionaries"
    version: ClassVar = 1
    few_shot: ClassVar = True
    accelerator: ClassVar = True
    tables: ClassVar = (FEW_SHOT_DICTIONARIES,)

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        few = section_of(shape.study)
        if few.dictionaries:
            for inner in few.inner:
                body = MetaTrainedBody(inner, outer_depth(shape.study) is not None)
                for seed in shape.study.seeds:
                    yield from (cls(body, seed, layer) for layer in shape.sae_layers)

    @property
    def inner(self) -> str:
        assert isinstance(self.method, MetaTrainedBody)
        return self.method.inner

    @property
    def encodes(self) -> dict[str, Encode]:
        base, own = Sae(layer=self.layer), Sae(self.method, self.seed, self.layer)
        rows = Capture(self.method, self.seed)
        return {
            "pretrained": Encode(base, Capture.of_base()),
            "transferred": Encode(base, rows),
            "own": Encode(own, rows),
        }

    def parents(self) -> Mapping[str, Stage]:
        captures = {"base": Capture.of_base(), "adapted": Capture(self.method, self.seed)}
        dictionaries = {one.dictionary.role: one.dictionary for one in self.encodes.values()}
        codes = {one.role: one for one in self.encodes.values()}
        return {**captures, **dictionaries, **codes, "null": Match(layer=self.layer)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae

        stores = dict(zip(("base", "adapted"), paired_rows(parents), strict=True))
        loaded = {
            name: (dictionary_of(parents[one.dictionary.role], context.device), codes_of(parents, one))
            for name, one in self.encodes.items()
        }
        row: dict[str, Any] = {"method": "meta-trained", "seed": self.seed, "inner": self.inner, "layer": self.number}
        for name, (dictionary, codes) in loaded.items():
            store = stores["base" if name == "pretrained" else "adapted"]
            quality = sae.evaluate(dictionary, store.tokens(self.number), codes, store.groups("token"))
            row[f"ev_{name}"] = quality.explained_variance
        (base, base_codes), (own, own_codes) = loaded["pretrained"], loaded["own"]
        matching = sae.match(base, own, base_codes, own_codes)
        compared = sae.compare_to_null(matching, null_matching(parents["null"], "other-order"), seed=context.seed)
        fields = {name: value for name, value in vars(compared).items() if name in FEW_SHOT_DICTIONARIES.columns}
        contents = [parents[side].meta.content[str(self.number)] for side in ("base", "adapted")]
        note = "identical by construction" if contents[0] == contents[1] else ""
        save(folder, "few_shot_dictionaries", pd.DataFrame([row | fields | {"note": note}]))
