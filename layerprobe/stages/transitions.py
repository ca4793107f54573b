"""The stage that reports what became of each matched latent: its kind in base, in adapted, and in a second base dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages import associations as stored
from layerprobe.stages._artifacts import save
from layerprobe.stages.associations import Associations
from layerprobe.stages.latents import Latents
from layerprobe.stages.match import Match, null_matching
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

TRANSITIONS = TableSpec(
    "transitions",
    "Kinds of matched latents in base and in adapted, compared with base and base trained in another order: one row per "
    "method, seed, layer, set of matches and pair of kinds.",
    columns(
        "method",
        "seed",
        "layer",
        matches="`all`: base latents that are judged and whose matches, one to one by decoder cosine, are judged in adapted and "
        "in the null; `close`: those of them whose match in adapted is not `unmatched`",
        kind_base="kind of the latent in base: `task`, `general`, `both` or `unexplained`, here by the most lenient of the "
        "thresholds on p of the three dictionaries",
        kind_adapted="kind of its match in adapted: one of these, or `task or both`",
        latents="number of base latents of this kind",
        left_out="number of judged base latents of this kind that are not in this set",
        count="how many of them have the other kind in adapted",
        null_count="how many of them have it in the null, base trained on the same rows in another order",
        rate="share of them that have it in adapted",
        null_rate="share of them that have it in the null",
        excess="difference of the two",
        low="lower end of its 95% interval over latents, given these dictionaries and examples",
        high="upper end of its 95% interval over latents",
        all_low="lower end of the interval that holds for all layers at once",
        all_high="upper end of the interval that holds for all layers at once",
    ),
)


@dataclass(frozen=True)
class Transitions(ModelStage):
    """Transitions between kinds of latents by layer. In a layer that adaptation did not change, there are none."""

    latents: tuple[Latents, ...] = ()

    name: ClassVar = "transitions"
    version: ClassVar = 1
    tables: ClassVar = (TRANSITIONS,)
    on_cpu: ClassVar = "counts"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        by_run: dict[Any, list[Latents]] = {}
        for task in Latents.tasks(shape):
            by_run.setdefault((task.method, task.seed), []).append(task)
        return (cls(method, seed, tuple(tasks)) for (method, seed), tasks in by_run.items())

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {}
        for task in self.latents:
            dictionaries = (*task.dictionaries[:2], Sae(layer=task.layer, variant="other-order"))
            parents |= {one.title: one for one in map(Associations, dictionaries)}
            parents |= {
                f"latents {task.layer}": task,
                f"null {task.layer}": Match(layer=task.layer, controls=task.controls),
            }
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        tables = [self._of_layer(task, parents) for task in self.latents]
        save(folder, "transitions", pd.concat(tables, ignore_index=True).assign(**self.named))

    def _of_layer(self, task: Latents, parents: Mapping[str, Artifact]) -> Any:
        import numpy as np
        import pandas as pd

        from layerprobe import sae

        dictionaries = (*task.dictionaries[:2], Sae(layer=task.layer, variant="other-order"))
        read = [parents[Associations(one).title] for one in dictionaries]
        base, adapted, second = sae.comparable_kinds([pd.read_parquet(one.folder / stored.TABLE) for one in read])
        latents = parents[f"latents {task.layer}"].table("latents").query("side == 'base'").sort_values("latent")
        null = null_matching(parents[f"null {task.layer}"], "other-order").table.sort_values("latent")
        in_adapted = sae.matched_kinds(latents["partner"], adapted)
        # Where the rows are equal, there was no second training whose chance the null could show.
        in_null = in_adapted if read[0].key == read[1].key else sae.matched_kinds(null["partner"], second)
        of_kind, tables = pd.Series(base).value_counts(), []
        for matches, kept in (("all", slice(None)), ("close", ~latents["unmatched"].to_numpy(dtype=bool))):
            sides = [np.array(side, dtype=object)[kept].tolist() for side in (base, in_adapted, in_null)]
            table = sae.transitions(*sides, layers=len(self.latents))
            table["left_out"] = table["kind_base"].map(of_kind) - table["latents"]
            tables.append(table.assign(matches=matches, layer=task.number))
        return pd.concat(tables, ignore_index=True)
