"""The stages that compare exclusive latents of a joint dictionary with those of dictionaries without exclusive features."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import paired_rows, save
from layerprobe.stages.capture import Capture, CaptureSae
from layerprobe.stages.crosscoder import Crosscoder, crosscoder_config
from layerprobe.store import Artifact, ArtifactMeta

EXCLUSIVE = TableSpec(
    "exclusive",
    "Exclusive latents of the joint dictionary compared with those that nulls have: one row per method, seed, layer and "
    "kind of null.",
    columns(
        "method",
        "seed",
        "layer",
        null="`noise`: base against base with noise of the residual's covariance on both sides; `seeds`: two adapted models "
        "that differ by the training seed",
        nulls="number of null dictionaries",
        live="number of live latents of the joint dictionary",
        candidates="number of latents that the census names base-only or adapted-only",
        null_mean="mean number of those in a null dictionary",
        null_high="95th percentile of their number in a further null dictionary",
        found="number of candidates beyond these nulls at a false-discovery rate of 5%; 0 if there are no more candidates "
        "than `null_high`",
        base_only="number of base-only latents beyond the nulls of every kind",
        adapted_only="number of adapted-only latents beyond the nulls of every kind",
        fewest="fewer exclusive latents than this cannot be shown with so many null dictionaries",
    ),
)
TABLE = "census.parquet"


@dataclass(frozen=True)
class CensusNull(LayerStage):
    """The census of one joint dictionary of sides without an exclusive feature; empty where no row changed."""

    draw: int | None = None
    """Number of the draw of noise."""
    other_seed: int | None = None
    """Training seed of the second model, where two adapted models are compared."""

    name: ClassVar = "census-null"
    version: ClassVar = 1
    accelerator: ClassVar = True
    first_guess: ClassVar = 25.0

    @property
    def title(self) -> str:
        return f"{super().title}, {f'noise {self.draw}' if self.other_seed is None else f'seed {self.other_seed}'}"

    def parents(self) -> Mapping[str, Stage]:
        sides: dict[str, Any] = {"base": (None, None), "adapted": (self.method, self.seed)}
        if self.other_seed is not None:
            sides = {"base": (self.method, self.seed), "adapted": (self.method, self.other_seed)}
        parents: dict[str, Stage] = {role: Capture(*side) for role, side in sides.items()}
        parents |= {f"{role} sae rows": CaptureSae(*side) for role, side in sides.items()}
        if self.other_seed is None:
            parents["crosscoder"] = Crosscoder(self.method, self.seed, self.layer)
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        settings = study.study.sae
        named = {**self.named, "draw": self.draw, "other_seed": self.other_seed}
        return {**named, "expansion": settings.expansion, "k": settings.k, "first_seed": study.study.seeds[0]}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe import sae

        stores = paired_rows(parents)
        base, adapted = (store.tokens(self.number) for store in stores)
        stored = paired_rows(parents, "base sae rows", "adapted sae rows")
        base_training, adapted_training = (store.tokens(self.number) for store in stored)
        groups = stores[0].groups("token")
        if stores[0].content(self.number) == stores[1].content(self.number):
            return
        seed = context.seed
        if self.draw is not None:
            joint = sae.Crosscoder.load(parents["crosscoder"].folder / "crosscoder", device=context.device)
            codes = joint.encode(base, adapted)
            table = sae.census(joint, base, adapted, codes, groups)
            covariances = sae.residual_covariances(joint, base, adapted, codes, table)
            seed += 1 + self.draw
            # Independent noise on the rows that are trained on and on those that are read.
            base_training, adapted_training = sae.noise_null(base_training, covariances, seed=2 * seed)
            base, adapted = sae.noise_null(base, covariances, seed=2 * seed + 1)
        config = crosscoder_config(context, base_training.shape, seed)
        null = sae.crosscoder.train(base_training, adapted_training, config, device=context.device)
        table = sae.census(null, base, adapted, null.encode(base, adapted), groups)
        table.to_parquet(folder / TABLE, index=False)


@dataclass(frozen=True)
class Exclusive(LayerStage):
    """Exclusive latents beyond those of null dictionaries."""

    draws: int = 0
    pairs: tuple[tuple[int, int], ...] = ()
    """Pairs of training seeds of the method."""

    name: ClassVar = "exclusive"
    version: ClassVar = 1
    accelerator: ClassVar = True
    tables: ClassVar = (EXCLUSIVE,)

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        settings = shape.study.sae
        if not settings.crosscoder or not settings.census_nulls:
            return
        for method, seed in shape.runs:
            if method.changes_body:
                pairs = tuple(itertools.combinations(shape.seeds(method), 2))[: settings.census_nulls]
                for layer in shape.sae_layers:
                    yield cls(method, seed, layer, settings.census_nulls, pairs)

    @property
    def nulls(self) -> dict[str, tuple[CensusNull, ...]]:
        """By kind."""
        at = self.method, self.layer
        nulls = {
            "noise": tuple(CensusNull(at[0], self.seed, at[1], draw=draw) for draw in range(self.draws)),
            "seeds": tuple(CensusNull(at[0], one, at[1], other_seed=other) for one, other in self.pairs),
        }
        return {kind: tasks for kind, tasks in nulls.items() if tasks}

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {
            "base": Capture.of_base(),
            "adapted": Capture(self.method, self.seed),
            "crosscoder": Crosscoder(self.method, self.seed, self.layer),
        }
        return parents | {task.id: task for tasks in self.nulls.values() for task in tasks}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae

        if not (parents["crosscoder"].folder / "crosscoder").is_dir():
            return
        stores = paired_rows(parents)
        base, adapted = (store.tokens(self.number) for store in stores)
        joint = sae.Crosscoder.load(parents["crosscoder"].folder / "crosscoder", device=context.device)
        table = sae.census(joint, base, adapted, joint.encode(base, adapted), stores[0].groups("token"))
        # Two training seeds that leave the layer equal have no exclusive latent, and no dictionary.
        none = table.assign(kind="shared", nu_statistic=float("inf"))
        results = {}
        for kind, tasks in self.nulls.items():
            files = [parents[task.id].folder / TABLE for task in tasks]
            nulls = [pd.read_parquet(file) if file.is_file() else none for file in files]
            results[kind] = sae.exclusive_features(table, nulls)
        beyond_all = set.intersection(*(set(result.latents) for result in results.values()))
        kinds = table.loc[table["latent"].isin(beyond_all), "kind"]
        rows = [
            {
                **self.named,
                "null": kind,
                "nulls": len(result.null_candidates),
                "live": int((table["kind"] != "dead").sum()),
                "candidates": result.candidates,
                "null_mean": sum(result.null_candidates) / len(result.null_candidates),
                "null_high": result.null_high,
                "found": len(result.latents),
                "base_only": int((kinds == "base_only").sum()),
                "adapted_only": int((kinds == "adapted_only").sum()),
                "fewest": result.fewest,
            }
            for kind, result in results.items()
        ]
        save(folder, "exclusive", pd.DataFrame(rows))
