"""The stages that compare layers in few-shot studies: before and after the inner loop, and between bodies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.device import for_device
from layerprobe.few_shot import naming_few_shot_keys, outer_depth, section_of
from layerprobe.stage import COLUMNS, Json, ResolvedStudy, Stage, StudyShape, TableSpec
from layerprobe.stages._artifacts import save
from layerprobe.stages._few_shot import (
    BODY_COLUMNS,
    BodyStage,
    bodies,
    chosen_inner,
    data_identity,
    inner_identity,
    make_inputs,
    make_learner,
    read_parameters,
    test_episodes,
)
from layerprobe.stages.meta_prefix import MetaPrefix
from layerprobe.stages.meta_rates import MetaRates
from layerprobe.stages.meta_train import MetaTrain
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    import numpy as np

    from layerprobe.metalearning import InnerConfig, Learner, TextInputs

MEASURES = ("cka", "svcca", "paired_cosine")
ROWS_PER_COMPONENT = 10
IDENTICAL = "identical by construction"
FEW_SHOT_LAYERS = TableSpec(
    "few_shot_layers",
    "Layers of meta-trained bodies compared on the probe examples: one row per comparison, layer and measure.",
    {
        **BODY_COLUMNS,
        "comparison": "`inner loop` (before and after adaptation to an episode), `meta-training` (pretrained and meta-trained) or "
        "`between models` (two meta-trained bodies of one seed)",
        "other": "what it is compared with: `after` adaptation, `pretrained`, or depth of the inner loop of the other body",
        "part": "`layer`, or `head`, which is compared by its logits",
        "layer": f"{COLUMNS['layer']}; missing for the head",
        "measure": "`cka` (debiased), `svcca` (99% of the variance, 10 or more rows per component), `paired_cosine`, or `weight_change` "
        "(norm of the change of the block's weights by their norm before)",
        "value": "the measure; for `inner loop` its mean over episodes",
        "ci_low": "lower end of its 95% interval: over episodes (Student's t) for `inner loop`, else over examples",
        "ci_high": "upper end of its 95% interval",
        "n": "number of probe examples",
        "episodes": "number of episodes; missing for comparisons of bodies",
        "note": f"why a value is missing; `{IDENTICAL}` where the parameters up to this layer are equal, which was checked",
    },
)


@dataclass(frozen=True)
class Sides:
    """The values of the probe examples in one state of a model.

    Attributes:
        layers: mean over tokens of each layer.
        vectors: what the head reads.
        logits: what it makes of them.
    """

    layers: Mapping[int, np.ndarray]
    vectors: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class MetaSimilarity(BodyStage):
    """Layers of a meta-trained body before and after the inner loop, and compared with the pretrained body."""

    has_prefix: bool = False

    name: ClassVar = "meta-similarity"
    version: ClassVar = 1
    first_guess: ClassVar = 120.0
    tables: ClassVar = (FEW_SHOT_LAYERS,)

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        has_prefix = outer_depth(shape.study) is not None
        return (cls(*body, has_prefix) for body in bodies(shape) if body[0] == "meta-trained")

    def parents(self) -> Mapping[str, Stage]:
        prefix: dict[str, Stage] = {"prefix": MetaPrefix()} if self.has_prefix else {}
        trained = MetaTrain(self.body, self.inner, self.seed, self.has_prefix)
        return {**prefix, "trained": trained, "rates": MetaRates.of_pretrained(self.has_prefix)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        sizes = {"layer_tasks": few.layer_tasks, "probes": few.probes}
        return {**data_identity(study), **sizes, **self.named, "loop": inner_identity(study, self.inner)}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np

        learner = make_learner(context, self.seed)
        inputs = make_inputs(context, learner, parents.get("prefix"))
        pretrained = learner.parameters()
        parameters, rates = read_parameters(learner, parents["trained"])
        probes = context.few_shot.probes
        before = sides(learner, parameters, inputs, probes)
        config = chosen_inner(context, parents["rates"], self.inner)
        rows = self.inner_loop_rows(context, learner, inputs, parameters, config, rates, before)
        outer = outer_depth(context.study)
        unchanged = 0 if outer is None else learner.n_layers + 1 - outer
        base = sides(learner, pretrained, inputs, probes)
        own = {**self.named, "comparison": "meta-training", "other": "pretrained", "episodes": None}
        same = {layer for layer in range(unchanged) if equal_below(learner, pretrained, parameters, layer)}
        rows += [own | row for row in compared(base, before, same, learner.n_layers, context.device)]
        for (part, layer), change in weight_changes(learner, pretrained, parameters).items():
            is_same = layer in same if part == "layer" else False
            rows.append(own | weight_row(part, layer, change, len(probes), is_same))
        save(folder, "few_shot_layers", layer_table(rows))
        for layer, values in before.layers.items():
            np.save(folder / f"layer-{layer}.npy", values)
        np.save(folder / "logits.npy", before.logits)

    def inner_loop_rows(
        self,
        context: Context,
        learner: Learner,
        inputs: TextInputs,
        parameters: Mapping[str, Any],
        config: InnerConfig,
        rates: Mapping[str, Any] | None,
        before: Sides,
    ) -> list[dict[str, Any]]:
        """Rows of the comparison `inner loop`, averaged over episodes."""
        import numpy as np

        from layerprobe.errors import MeasureError
        from layerprobe.metalearning import adapt
        from layerprobe.progress import track
        from layerprobe.stats import mean_interval

        probes, few = context.few_shot.probes, section_of(context.study)
        unchanged = range(min(config.level(learner), learner.n_layers + 1))
        values: dict[tuple[str, int | None, str], list[float]] = {}
        notes: dict[tuple[str, int | None, str], str] = {}
        for episode in track(test_episodes(context, few.layer_tasks), "layers before and after the inner loop"):
            task = inputs.task(episode)
            with naming_few_shot_keys():
                adapted = adapt(learner, parameters, task.support, task.support_labels, config, rates=rates).parameters
            if unchanged and not equal_below(learner, parameters, adapted, max(unchanged)):
                raise MeasureError(
                    f"The inner loop `{self.inner}` changed weights that it leaves unchanged by definition; the comparison of its "
                    "layers is not valid."
                )
            body = before if len(unchanged) > learner.n_layers else None
            after = sides(learner, adapted, inputs, probes, unchanged=body)
            for row in measured(before, after, set(unchanged), learner.n_layers, context.device):
                key = row["part"], row["layer"], row["measure"]
                if row["value"] is None:
                    notes.setdefault(key, row["note"])
                else:
                    values.setdefault(key, []).append(row["value"])
            for (part, layer), change in weight_changes(learner, parameters, adapted).items():
                values.setdefault((part, layer, "weight_change"), []).append(change)
        own = {
            **self.named,
            "comparison": "inner loop",
            "other": "after",
            "n": len(probes),
            "episodes": few.layer_tasks,
        }
        rows = []
        for part, layer in places(learner.n_layers):
            for measure in (*MEASURES, "weight_change"):
                key = part, layer, measure
                row = own | {"part": part, "layer": layer, "measure": measure, "note": ""}
                if part == "layer" and layer in unchanged:
                    value = 0.0 if measure == "weight_change" else 1.0
                    rows.append(row | {"value": value, "ci_low": value, "ci_high": value, "note": IDENTICAL})
                elif key in notes:
                    # A mean over the other episodes alone would be of a selection.
                    rows.append(row | {"value": None, "ci_low": None, "ci_high": None, "note": notes[key]})
                elif key in values:
                    mean, low, high = mean_interval(np.array(values[key]))
                    bounds = (0.0, np.inf) if measure == "weight_change" else (-1.0, 1.0)
                    low, high = np.clip([low, high], *bounds)
                    rows.append(row | {"value": mean, "ci_low": low, "ci_high": high})
        return rows

    def size(self, study: ResolvedStudy) -> int:
        return 4 * section_of(study.study).probes * study.width * (study.n_layers + 1)


@dataclass(frozen=True)
class MetaBetween(Stage):
    """Layers of bodies that were meta-trained with different inner loops, compared with each other."""

    seed: int
    compared: tuple[MetaSimilarity, ...]

    name: ClassVar = "meta-between"
    version: ClassVar = 1
    few_shot: ClassVar = True
    first_guess: ClassVar = 20.0
    tables: ClassVar = (FEW_SHOT_LAYERS,)
    accelerator: ClassVar = True

    @property
    def title(self) -> str:
        return f"meta-trained seed {self.seed}"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        tasks = tuple(MetaSimilarity.tasks(shape))
        for seed in shape.study.seeds:
            yield cls(seed, tuple(task for task in tasks if task.seed == seed))

    def parents(self) -> Mapping[str, Stage]:
        return {task.inner: task for task in self.compared}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {
            "seed": self.seed,
            "inner": [task.inner for task in self.compared],
            "outer": section_of(study.study).outer,
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np

        n_layers, outer = context.resolved.n_layers, outer_depth(context.study)
        # Neither body was trained below the top blocks of the outer loop, which `meta-training` has checked.
        same = set(range(0 if outer is None else n_layers + 1 - outer))
        rows: list[dict[str, Any]] = []

        def opened(artifact: Artifact) -> Sides:
            numbers = range(n_layers + 1)
            files = {layer: artifact.folder / f"layer-{layer}.npy" for layer in numbers}
            layers = {layer: np.load(file, allow_pickle=False) for layer, file in files.items() if file.exists()}
            logits = np.load(artifact.folder / "logits.npy", allow_pickle=False)
            return Sides(layers, layers[n_layers], logits)

        for (one, first), (two, second) in combinations(parents.items(), 2):
            own = {"method": "meta-trained", "seed": self.seed, "inner": one, "other": two}
            own |= {"comparison": "between models", "episodes": None}
            rows += [own | row for row in compared(opened(first), opened(second), same, n_layers, context.device)]
        save(folder, "few_shot_layers", layer_table(rows))


# Comparisons -----------------------------------------------------------------------------------------------------------


def sides(
    learner: Learner,
    parameters: Mapping[str, Any],
    inputs: TextInputs,
    rows: np.ndarray,
    *,
    unchanged: Sides | None = None,
) -> Sides:
    """All layers and the logits of these rows; with `unchanged`, only the logits are computed."""
    if unchanged is not None:
        layers, vectors = unchanged.layers, unchanged.vectors
    else:
        layers = inputs.layers(learner, parameters, rows)
        # Without a final norm, the vectors are the means over tokens of the last layer.
        has_norm = any(name.startswith("pool.") for name in parameters)
        vectors = inputs.vectors(learner, parameters, rows) if has_norm else layers[learner.n_layers]
    weight, bias = (parameters[f"head.{name}"].detach().cpu().numpy() for name in ("weight", "bias"))
    return Sides(layers, vectors, vectors @ weight.T + bias)


def places(n_layers: int) -> list[tuple[str, int | None]]:
    """Part and layer of everything that is compared."""
    return [*(("layer", layer) for layer in range(n_layers + 1)), ("head", None)]


def measured(before: Sides, after: Sides, same: set[int], n_layers: int, device: str) -> Iterable[dict[str, Any]]:
    """Each measure of each layer that is not in `same`, and of the logits; value None with a note where it is undefined."""
    from layerprobe import similarity
    from layerprobe.errors import MeasureError

    for part, layer in places(n_layers):
        if layer in same or (layer is not None and layer not in after.layers):
            continue
        x, y = (for_device(side.logits if layer is None else side.layers[layer], device) for side in (before, after))
        for measure in MEASURES:
            options = {"rows_per_component": ROWS_PER_COMPONENT} if measure == "svcca" else {}
            try:
                value: float | None = getattr(similarity, measure)(x, y, **options)
                note = ""
            except MeasureError as error:
                value, note = None, f"{error} The rows are the probe examples (few_shot.probes)."
            yield {"part": part, "layer": layer, "measure": measure, "value": value, "note": note}


def compared(one: Sides, two: Sides, same: set[int], n_layers: int, device: str) -> Iterable[dict[str, Any]]:
    """Rows of a comparison of two bodies, with intervals over examples; layers in `same` are identical by construction."""
    import numpy as np

    from layerprobe import similarity

    n = len(one.logits)
    for row in measured(one, two, same, n_layers, device):
        row |= {"n": n, "ci_low": None, "ci_high": None}
        if row["value"] is not None:
            x, y = (
                for_device(side.logits if row["layer"] is None else side.layers[row["layer"]], device)
                for side in (one, two)
            )
            found = similarity.compare({0: x}, {0: y}, np.arange(n), measures=(row["measure"],)).iloc[0]
            row |= {"value": found["value"], "ci_low": found["ci_low"], "ci_high": found["ci_high"]}
        yield row
    for layer in sorted(same):
        for measure in MEASURES:
            ends = {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0}
            yield {"part": "layer", "layer": layer, "measure": measure, "n": n, "note": IDENTICAL, **ends}


def weight_row(part: str, layer: int | None, change: float, n: int, is_same: bool) -> dict[str, Any]:
    row = {"part": part, "layer": layer, "measure": "weight_change", "value": change, "n": n}
    return row | {"ci_low": None, "ci_high": None, "note": IDENTICAL if is_same else ""}


def equal_below(learner: Learner, one: Mapping[str, Any], two: Mapping[str, Any], layer: int) -> bool:
    """Whether all parameters up to a layer are equal, bit by bit."""
    import torch

    parts = {*learner.names[: layer + 1]}
    return all(torch.equal(value, two[name]) for name, value in one.items() if name.partition(".")[0] in parts)


def weight_changes(
    learner: Learner, before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[tuple[str, int | None], float]:
    """Norm of the change of each block's weights, and of the head's, divided by their norm before."""
    owners = {name: ("layer", i) for i, name in enumerate(learner.names[: learner.n_layers + 1])}
    changed: dict[tuple[str, int | None], float] = {}
    norms: dict[tuple[str, int | None], float] = {}
    for name, value in before.items():
        # The final norm of families that have one belongs to the head.
        owner: tuple[str, int | None] = owners.get(name.partition(".")[0], ("head", None))
        difference = (after[name].detach() - value).double()
        changed[owner] = changed.get(owner, 0.0) + float((difference**2).sum())
        norms[owner] = norms.get(owner, 0.0) + float((value.double() ** 2).sum())
    return {owner: (square / norms[owner]) ** 0.5 for owner, square in changed.items() if norms[owner] > 0}


def layer_table(rows: list[dict[str, Any]]) -> Any:
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(FEW_SHOT_LAYERS.columns))
    floats = dict.fromkeys(("value", "ci_low", "ci_high"), float)
    return table.astype({**floats, "layer": "Int64", "episodes": "Int64"})
