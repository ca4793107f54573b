"""The stage that finds, for each method, the layers at which the adapted latents are more associated with labels than base's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Stage, StudyShape, TableSpec, columns
from layerprobe.stages import associations as stored
from layerprobe.stages._artifacts import save
from layerprobe.stages.associations import Associations
from layerprobe.stages.latents import Latents
from layerprobe.store import Artifact

QUANTITY = (
    "`label_effect` (mean squared label effect of latents), `share_task` (share of task latents) or `mass_task` (their "
    "share of activations)"
)
CROSSING = TableSpec(
    "crossing",
    "The first layer at which the latents of the adapted model are more associated with labels than the base's: one row per "
    "method and quantity.",
    columns(
        "method",
        quantity=QUANTITY,
        verdict="`onset`: some lower end is above 0; `none`; `flat`: both sides are equal; `conditional`: on the one "
        "dictionary seed; `description`: there is no interval; `undefined`",
        layer="first layer whose lower end is above 0; missing without an onset. The increase began at this layer or below",
        after="the layer with dictionaries before it; missing if there is none",
        after_high="upper end of the difference there: what may have begun already",
        layers="layers that have dictionaries",
        dictionaries="number of dictionary seeds on each side",
        runs="number of training runs; with one, the result holds for this adapted model",
        note="what there is only one of; else empty",
    ),
)
CROSSING_LAYERS = TableSpec(
    "crossing_layers",
    "Differences adapted minus base behind `crossing`: one row per method, quantity and layer.",
    columns(
        "method",
        "layer",
        quantity=QUANTITY,
        base="mean over dictionary seeds in base",
        adapted="mean over dictionary seeds and training runs in adapted",
        difference="adapted minus base",
        low="lower end of the 95% interval that holds for all layers at once; missing for quantities without an interval and "
        "with one dictionary seed",
        high="upper end of this interval",
        lowest="smallest difference over pairs of a dictionary seed and a training run",
        highest="largest difference over these pairs",
        example_error="standard error over test examples; missing for quantities without an interval",
        dictionary_error="standard error over dictionary seeds; missing with one",
        run_error="standard error over training runs; missing with one",
        degrees="degrees of freedom of the three together",
    ),
)
NOTES = {
    (True, True): "only one training run and one dictionary seed",
    (True, False): "only one training run",
    (False, True): "only one dictionary seed",
    (False, False): "",
}


@dataclass(frozen=True)
class Crossing(Stage):
    """Differences between adapted and base in how strongly latents are associated with labels, and their first layer.

    An onset is named for the label effect alone, which has a valid interval over examples. Shares of task latents, which
    are thresholded by a false-discovery rate, are given as description.
    """

    latents: tuple[Latents, ...]

    name: ClassVar = "crossing"
    version: ClassVar = 3
    tables: ClassVar = (CROSSING, CROSSING_LAYERS)
    on_cpu: ClassVar = "bootstrap over stored activations"

    @property
    def title(self) -> str:
        return "every method"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if latents := tuple(Latents.tasks(shape)):
            yield cls(latents)

    def parents(self) -> Mapping[str, Stage]:
        tasks = (Associations(dictionary) for task in self.latents for dictionary in task.dictionaries)
        return {task.title: task for task in tasks}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        methods: dict[str, list[Latents]] = {}
        for task in self.latents:
            assert task.method is not None
            methods.setdefault(task.method.name, []).append(task)
        summaries, by_layer = [], []
        for method, tasks in methods.items():
            for quantity in ("label_effect", "share_task", "mass_task"):
                summary, rows = _compared(tasks, parents, quantity)
                summaries.append({"method": method, "quantity": quantity, **summary})
                by_layer.append(rows.assign(method=method, quantity=quantity))
        numbers = dict.fromkeys(("layer", "after"), "Int64")
        save(folder, "crossing", pd.DataFrame(summaries).astype(numbers))
        save(folder, "crossing_layers", pd.concat(by_layer, ignore_index=True))


def _compared(tasks: list[Latents], parents: Mapping[str, Artifact], quantity: str) -> tuple[dict[str, Any], Any]:
    """One method's comparison by one quantity, over its training runs, dictionary seeds and layers."""
    import numpy as np
    import pandas as pd

    from layerprobe import sae

    layers = np.array(sorted({task.number for task in tasks}))
    runs: dict[int | None, dict[int, Latents]] = {}
    for task in tasks:
        runs.setdefault(task.seed, {})[task.number] = task

    def values(of_layer: Mapping[int, Latents], side: str) -> Any:
        """Dictionaries x layers x (all examples, without each fold)."""
        by_layer = [
            [
                _values(parents[Associations(one).title], quantity)
                for one in of_layer[layer].dictionaries
                if one.side == side
            ]
            for layer in layers
        ]
        return np.array(by_layer).swapaxes(0, 1)

    base, adapted = (np.array([values(run, side) for run in runs.values()]) for side in ("base", "adapted"))
    difference, described = adapted - base, quantity != "label_effect"
    # Two zeros stand for the folds of quantities that have none.
    left_out = np.zeros((*difference.shape[:-1], 2)) if described else difference[..., 1:]
    found = sae.crossing(layers, difference[..., 0], left_out)
    pairs = difference[..., 0].reshape(-1, len(layers))
    rows = pd.DataFrame(
        {
            "layer": layers,
            "base": base[..., 0].mean((0, 1)),
            "adapted": adapted[..., 0].mean((0, 1)),
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "lowest": pairs.min(0),
            "highest": pairs.max(0),
            "example_error": found.example_error,
            "dictionary_error": found.dictionary_error,
            "run_error": found.run_error,
            "degrees": found.degrees,
        }
    )
    verdict: str = found.verdict
    if described:
        rows[["low", "high", "example_error", "degrees"]] = np.nan
        verdict = verdict if verdict in ("flat", "undefined") else "description"
    onset, after = (None, None) if described else (found.onset, found.after)
    return {
        "verdict": verdict,
        "layer": onset,
        "after": after,
        "after_high": np.nan if after is None else float(found.high[found.layers == after][0]),
        "layers": ", ".join(map(str, layers)),
        "dictionaries": found.dictionaries,
        "runs": found.runs,
        "note": NOTES[found.runs == 1, found.dictionaries == 1],
    }, rows


def _values(associations: Artifact, quantity: str) -> Any:
    """A quantity of one dictionary on all examples, followed by its values without each fold if it has any."""
    import pandas as pd

    if quantity == "label_effect":
        return pd.read_parquet(associations.folder / stored.EFFECT).effect.to_numpy()
    return pd.read_parquet(associations.folder / stored.SHARES)[quantity].to_numpy(dtype=float)
