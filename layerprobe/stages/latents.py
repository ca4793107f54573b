"""The stage that compares the latents of both sides: their associations, their matches, and the joint census."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape
from layerprobe.stages import associations as stored
from layerprobe.stages._artifacts import dictionary_of, paired_rows, save
from layerprobe.stages.associations import Associations
from layerprobe.stages.capture import Capture
from layerprobe.stages.crosscoder import Crosscoder
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.match import Match, null_matching
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta


@dataclass(frozen=True)
class Latents(LayerStage):
    """The latents of both sides: associations and their shares, matches compared with their null, and the census."""

    controls: tuple[str, ...] = ()
    crosscoder: bool = True

    name: ClassVar = "latents"
    version: ClassVar = 3
    accelerator: ClassVar = True
    first_guess: ClassVar = 5.0

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        settings = shape.study.sae
        for method, seed in shape.runs:
            for layer in shape.sae_layers:
                yield cls(method, seed, layer, settings.controls, settings.crosscoder)

    @property
    def dictionaries(self) -> tuple[Sae, ...]:
        """Base and adapted, then from the second seed if there is one."""
        variants = ("trained", "second-seed") if "second-seed" in self.controls else ("trained",)
        sides = (None, None), (self.method, self.seed)
        return tuple(Sae(*side, self.layer, variant) for variant in variants for side in sides)  # type: ignore[arg-type]

    @property
    def captures(self) -> dict[str, Capture]:
        return {"base": Capture.of_base(), "adapted": Capture(self.method, self.seed)}

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {**self.captures, "null": Match(layer=self.layer, controls=self.controls)}
        for dictionary in self.dictionaries:
            encode = Encode(dictionary, self.captures[dictionary.side])
            parents |= {dictionary.role: dictionary, encode.role: encode}
            parents[f"{dictionary.role} associations"] = Associations(dictionary)
        if self.crosscoder:
            parents["crosscoder"] = Crosscoder(self.method, self.seed, self.layer)
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae

        base, adapted = paired_rows(parents)
        tokens = {"base": base.tokens(self.number), "adapted": adapted.tokens(self.number)}

        def with_codes(task: Sae) -> tuple[Any, Any]:
            codes = codes_of(parents, Encode(task, self.captures[task.side]))
            return dictionary_of(parents[task.role], context.device), codes

        first, *others = self.dictionaries
        loaded = with_codes(first)
        pairs = []
        for task in others:
            if task.side == "adapted":
                variant = {"trained": "other-order", "second-seed": "second-seed"}[task.variant]
                start = {"trained": "same start", "second-seed": "different starts"}[task.variant]
                other = with_codes(task)
                matching = sae.match(loaded[0], other[0], loaded[1], other[1])
                pairs.append((start, matching, null_matching(parents["null"], variant, len(tokens["base"]))))
        rows = []
        for start, matching, null in pairs:
            for on in ("cosine", "correlation"):
                compared = sae.compare_to_null(matching, null, on=on, seed=context.seed)
                fields = {key: value for key, value in vars(compared).items() if key not in ("lost", "kept", "new")}
                rows.append({**self.named, "start": start, **fields})
        save(folder, "matching", pd.DataFrame(rows))
        census = self._census(context, parents, tokens, folder)
        _, matching, null = pairs[0]
        compared = sae.compare_to_null(matching, null, seed=context.seed)
        tables = []
        for task, partners, unmatched in (
            (self.dictionaries[0], matching.table, set(compared.lost)),
            (self.dictionaries[1], matching.reverse, set(compared.new)),
        ):
            table = pd.read_parquet(parents[f"{task.role} associations"].folder / stored.TABLE)
            table = table.merge(partners.drop(columns=["density", "live"]), on="latent", how="left")
            table["unmatched"] = table["latent"].isin(unmatched)
            if census is not None:
                table = table.join(_nearest_joint(census[0], census[1], dictionary_of(parents[task.role]), task.side))
            tables.append(table.assign(**self.named, side=task.side))
        save(folder, "latents", pd.concat(tables, ignore_index=True))
        shares = []
        for task in self.dictionaries:
            table = pd.read_parquet(parents[f"{task.role} associations"].folder / stored.SHARES)
            dictionary = {"trained": "first", "second-seed": "second-seed"}[task.variant]
            shares.append(table.assign(**self.named, side=task.side, dictionary=dictionary))
        save(folder, "latent_shares", pd.concat(shares, ignore_index=True))

    def _census(
        self, context: Context, parents: Mapping[str, Artifact], tokens: Mapping[str, Any], folder: Path
    ) -> Any:
        """The joint dictionary and the census of its latents, which is written; None without a joint dictionary."""
        from layerprobe import sae

        if not self.crosscoder or not (parents["crosscoder"].folder / "crosscoder").is_dir():
            return None
        joint = sae.Crosscoder.load(parents["crosscoder"].folder / "crosscoder", device=context.device)
        codes = joint.encode(tokens["base"], tokens["adapted"])
        census = sae.census(joint, tokens["base"], tokens["adapted"], codes)
        variance = joint.explained_variance(tokens["base"], tokens["adapted"], codes)
        quality = {"ev_base": variance[0], "ev_adapted": variance[1], "d_sae": joint.d_sae, "k": joint.k}
        save(folder, "census", census.assign(**self.named, **quality))
        return joint, census


def _nearest_joint(joint: Any, census: Any, dictionary: Any, side: str) -> Any:
    """For each latent of one side's dictionary, the joint latent whose direction on that side is nearest, and its Delta."""
    import numpy as np
    import pandas as pd

    live = np.flatnonzero(census["kind"] != "dead")
    directions = joint.decoder[live, 0 if side == "base" else 1].astype(np.float64)
    latents = dictionary.decoder.cpu().numpy().astype(np.float64)
    directions, latents = (
        z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for z in (directions, latents)
    )
    cosine = latents @ directions.T
    nearest = census.iloc[live[cosine.argmax(1)]]
    return pd.DataFrame(
        {
            "joint": nearest["latent"].to_numpy(),
            "joint_cosine": cosine.max(1),
            "delta": nearest["delta"].to_numpy(),
            "joint_kind": nearest["kind"].to_numpy(),
        }
    )
