"""The stages that compare the label effect of dictionaries with that of other bases of the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import dictionary_of, paired_rows, rows_of, save
from layerprobe.stages.capture import Capture, CaptureSae, CaptureTrain
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

SIDES = ("base", "adapted")
EFFECTS = "effects.parquet"
"""Label effects of one layer with their jackknife replicates: estimate 0 is of all examples, the others without a fold."""
BASE_DICTIONARY = "base dictionary"
BASIS = (
    "`trained` dictionary, `untrained` dictionary, `random directions`, `neurons`, `principal components`, a trained control "
    "named as in `sae.controls`, or `base dictionary` (on adapted rows)"
)

BASIS_CONTROLS = TableSpec(
    "basis_controls",
    "How strongly the latents of dictionaries and of other bases are associated with labels: one row per method, seed, "
    "layer, basis, seed of the basis, side, and with or without the between-label mean directions; of unchanged layers "
    "dictionaries alone. All have as many latents as the dictionary, with its densities on training rows.",
    columns(
        "method",
        "seed",
        "layer",
        "side",
        basis=BASIS,
        basis_seed="seed of the basis; of dictionaries, 0 for the first and 1 for the second",
        projected="whether the directions between the labels' means, on training examples of both sides, were removed",
        label_effect="mean over judged latents of the between-label share of the variance of activation ranks, among "
        "examples of similar length, minus its expectation under permuted labels",
        label_effect_low="lower end of its 95% interval over examples, for this basis",
        label_effect_high="upper end of its 95% interval over examples, for this basis",
        share_task="share of judged latents that are associated with a label (description; depends on the number of "
        "examples)",
        latents="number of latents",
        judged="number of latents that are active in at least 10 examples",
        n="number of test examples",
    ),
)
BASIS_EXCESS = TableSpec(
    "basis_excess",
    "By how much more the label effect of dictionaries rises from base to adapted than that of a control: one row per "
    "method, layer, control, and with or without the between-label mean directions.",
    columns(
        "method",
        "layer",
        control=BASIS,
        projected="as in `basis_controls`",
        rise="adapted minus base of the mean label effect of the dictionaries, over their seeds and the training seeds",
        control_rise="the same of the control",
        excess="rise minus control_rise",
        excess_low="lower end of its 95% interval, simultaneous over the layers that changed",
        excess_high="upper end of its 95% interval, simultaneous over the layers that changed",
        error="standard error of the excess",
        error_examples="the part due to the choice of test examples",
        error_dictionaries="the part due to the seed of the dictionaries, equal in all layers; missing with one seed",
        error_bases="the part due to the seed of the control; 0 if it has one basis",
        error_training="the part due to the training seed; missing with one seed",
        training_seeds="number of training seeds",
        dictionary_seeds="number of dictionary seeds on each side",
        n="number of test examples",
    ),
)
TASK_SPECIFIC = TableSpec(
    "task_specific",
    "What may be said of the features of each method: one row per method.",
    columns(
        "method",
        verdict="`task-specific`, `beyond untrained bases` (trained controls are missing), `not distinguishable` from a "
        "layer-wide label shift, `unchanged` or `undefined`",
        layers="layers where the projected label effect of dictionaries rises more than that of every control, separated by commas",
        dictionary_layers="layers with dictionaries, separated by commas",
        controls="controls that were measured, separated by commas",
        missing="controls of the list that were not measured, separated by commas",
        conditional="whether this holds for the given dictionaries only, because there is one dictionary seed",
        training_seeds="number of training seeds",
        n="number of test examples",
    ),
)


@dataclass(frozen=True)
class BasisControls(LayerStage):
    """Label effects of the dictionaries of a layer and of their controls, on both sides."""

    controls: tuple[str, ...] = ()

    name: ClassVar = "basis-controls"
    version: ClassVar = 1
    accelerator: ClassVar = True
    tables: ClassVar = (BASIS_CONTROLS,)
    first_guess: ClassVar = 8.0
    on_cpu: ClassVar = "label effects; principal and independent components of scikit-learn"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        for method, seed in shape.runs:
            for layer in shape.sae_layers:
                yield cls(method, seed, layer, shape.study.sae.controls)

    def dictionaries(self, side: str) -> dict[tuple[str, int], Sae]:
        """The dictionaries of a side, one per dictionary seed."""
        variants = ("trained", "second-seed") if "second-seed" in self.controls else ("trained",)
        of = (None, None) if side == "base" else (self.method, self.seed)
        return {("trained", number): Sae(*of, self.layer, one) for number, one in enumerate(variants)}  # type: ignore[arg-type]

    def trained_controls(self, side: str) -> dict[tuple[str, int], Sae]:
        """The controls of a side that are dictionaries; on adapted, those of base are among them."""
        from layerprobe import sae

        of = (None, None) if side == "base" else (self.method, self.seed)
        listed = [name for name in sae.TRAINED_BASES if name in self.controls]
        found = {(name, 0): Sae(*of, self.layer, name) for name in listed}  # type: ignore[arg-type]
        if side == "adapted":
            found |= {(BASE_DICTIONARY, number): task for (_, number), task in self.dictionaries("base").items()}
        return found

    def parents(self) -> Mapping[str, Stage]:
        parents: dict[str, Stage] = {}
        for side, of in zip(SIDES, ((None, None), (self.method, self.seed)), strict=True):
            parents |= {side: Capture(*of), f"{side} rows": CaptureSae(*of), f"{side} train": CaptureTrain(*of)}
            for task in (*self.dictionaries(side).values(), *self.trained_controls(side).values()):
                parents[task.role] = task
        return parents

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {**self.named, "controls": sorted(self.controls), "k": study.study.sae.k, "seed": study.study.seeds[0]}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import sae

        stores = dict(zip(SIDES, paired_rows(parents), strict=True))
        example = stores["base"].groups("token")
        labels = context.corpus.test.labels[: int(example.max()) + 1]
        training_labels = context.corpus.train.labels
        groups = [
            (rows_of(parents[f"{side} train"]).unit(unit, self.number), training_labels)
            for side in SIDES
            for unit in ("mean", "cls")
        ]
        removed = sae.bases.between_label_directions(*groups)
        unchanged = self._unchanged(parents)
        rows, effects = [], []
        readings: list[sae.Reading] = []
        for side in SIDES:
            if side == "base" or not unchanged:
                own, others = (
                    {key: dictionary_of(parents[task.role], context.device) for key, task in tasks.items()}
                    for tasks in (self.dictionaries(side), {} if unchanged else self.trained_controls(side))
                )
                first = next(iter(own.values()))
                side_rows = sae.SideRows(
                    rows_of(parents[f"{side} rows"]).tokens(self.number),
                    stores[side].tokens(self.number),
                    example,
                    labels,
                )
                readings = sae.basis_controls(
                    side_rows,
                    own,
                    None if unchanged else others,
                    removed,
                    k=context.study.sae.k or sae.default_k(first.d_in, first.d_sae),
                    seed=context.seed,
                )
            else:
                readings = readings + [replace(one, basis=BASE_DICTIONARY) for one in readings]
            for one in readings:
                key = {
                    "side": side,
                    "basis": one.basis,
                    "basis_seed": one.basis_seed,
                    "projected": one.projected,
                }
                low, high = one.effect.interval
                rows.append(
                    {
                        **self.named,
                        **key,
                        "label_effect": one.effect.value,
                        "label_effect_low": low,
                        "label_effect_high": high,
                        "share_task": one.share_task,
                        "latents": one.effect.latents,
                        "judged": one.effect.judged,
                        "n": one.effect.n,
                    }
                )
                values = np.concatenate([[one.effect.value], one.effect.replicates])
                effects.append(pd.DataFrame({**key, "estimate": np.arange(len(values)), "value": values}))
        save(folder, "basis_controls", pd.DataFrame(rows))
        pd.concat(effects, ignore_index=True).to_parquet(folder / EFFECTS, index=False)

    def _unchanged(self, parents: Mapping[str, Artifact]) -> bool:
        """Whether both sides have the same rows, and with them the same dictionaries and controls."""
        layer = str(self.layer)
        return all(
            parents[f"base{kind}"].meta.content[layer] == parents[f"adapted{kind}"].meta.content[layer]
            for kind in ("", " rows")
        )


@dataclass(frozen=True)
class BasisExcess(Stage):
    """The excess of the dictionaries' rise over each control, simultaneous over layers, and what follows from it."""

    readings: tuple[BasisControls, ...]

    name: ClassVar = "basis-excess"
    version: ClassVar = 1
    tables: ClassVar = (BASIS_EXCESS, TASK_SPECIFIC)
    on_cpu: ClassVar = "bootstrap over stored effects"

    @property
    def title(self) -> str:
        return "every method"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if readings := tuple(BasisControls.tasks(shape)):
            yield cls(readings)

    def parents(self) -> Mapping[str, Stage]:
        return {task.id: task for task in self.readings}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae

        by_method: dict[str, list[BasisControls]] = {}
        for task in self.readings:
            by_method.setdefault(str(task.named["method"]), []).append(task)
        rows, verdicts = [], []
        for method, tasks in by_method.items():
            layers = sorted({task.number for task in tasks})
            seeds = sorted({task.number_of_seed for task in tasks})
            found = {(task.number_of_seed, task.number): task.id for task in tasks}
            frames = {key: pd.read_parquet(parents[name].folder / EFFECTS) for key, name in found.items()}
            n = int(parents[tasks[0].id].table("basis_controls").n.iloc[0])
            projected: dict[str, sae.Excess] = {}
            for without in (False, True):
                read = _Effects(frames, seeds, layers, without)
                dictionary = read.of("trained")
                named = {"method": method, "projected": without, "n": n}
                named |= {"training_seeds": len(seeds), "dictionary_seeds": dictionary.shape[1]}
                for control in read.bases:
                    other = read.of(control)
                    excess = sae.excess(dictionary, other, trained=control in sae.TRAINED_BASES)
                    if without:
                        projected[control] = excess
                    rows.append(_excess_rows(excess, dictionary, other, layers).assign(control=control, **named))
                # The base's dictionary is compared seed by seed: base's own reading is part of both and cancels.
                paired = dictionary.copy()
                paired[..., 0, :] = read.of(BASE_DICTIONARY, adapted_only=True)[..., 0, :]
                nothing = paired[:, :1] * 0
                excess = sae.excess(paired, nothing)
                others = dictionary.copy()
                others[..., 1, :] = paired[..., 0, :]
                rows.append(_excess_rows(excess, dictionary, others, layers).assign(control=BASE_DICTIONARY, **named))
            decided = sae.task_specific(projected)
            verdicts.append(
                {
                    "method": method,
                    "verdict": decided.verdict,
                    "layers": _list([layers[position] for position in decided.layers]),
                    "dictionary_layers": _list(layers),
                    "controls": _list([name for name in sae.CONTROLS if name in projected]),
                    "missing": _list(decided.missing),
                    "conditional": decided.conditional,
                    "training_seeds": len(seeds),
                    "n": n,
                }
            )
        save(folder, "basis_excess", pd.concat(rows, ignore_index=True))
        save(folder, "task_specific", pd.DataFrame(verdicts))


@dataclass(frozen=True)
class _Effects:
    """Label effects of one method, as arrays."""

    frames: Mapping[tuple[int, int], Any]
    seeds: list[int]
    layers: list[int]
    projected: bool

    @property
    def bases(self) -> list[str]:
        """Controls that were read on both sides."""
        from layerprobe import sae

        names = dict.fromkeys(name for frame in self.frames.values() for name in frame.basis)
        found = [name for name in names if name not in ("trained", BASE_DICTIONARY)]
        return found or list(sae.UNTRAINED_BASES)

    def of(self, basis: str, *, adapted_only: bool = False) -> Any:
        """Training seeds x seeds of the basis x layers x sides x estimates.

        Unchanged layers, of which no control was read, have zeros, which give them no rise.
        """
        import numpy as np

        sides = SIDES[1:] if adapted_only else SIDES
        read = {key: self._read(frame, basis, sides) for key, frame in self.frames.items()}
        like = self._read(next(iter(self.frames.values())), "trained", sides)
        shape = (max(1, *(len(part) for part in read.values())), *like.shape[1:])
        values = [
            [part if len(part := read[seed, layer]) else np.zeros(shape) for layer in self.layers]
            for seed in self.seeds
        ]
        return np.moveaxis(np.array(values), 2, 1)

    def _read(self, frame: Any, basis: str, sides: tuple[str, ...]) -> Any:
        """Seeds of the basis x sides x estimates."""
        rows = frame[(frame.basis == basis) & (frame.projected == self.projected) & frame.side.isin(sides)]
        rows = rows.assign(order=rows.side.map(SIDES.index)).sort_values(["basis_seed", "order", "estimate"])
        return rows.value.to_numpy().reshape(rows.basis_seed.nunique(), len(sides), -1 if len(rows) else 0)


def _excess_rows(excess: Any, dictionary: Any, other: Any, layers: list[int]) -> Any:
    import pandas as pd

    rise, control_rise = ((part[..., 1, 0] - part[..., 0, 0]).mean(axis=(0, 1)) for part in (dictionary, other))
    return pd.DataFrame(
        {
            "layer": layers,
            "rise": rise,
            "control_rise": control_rise,
            "excess": excess.value,
            "excess_low": excess.low,
            "excess_high": excess.high,
            "error": excess.error,
            "error_examples": excess.error_examples,
            "error_dictionaries": excess.error_dictionaries,
            "error_bases": excess.error_bases,
            "error_training": excess.error_training,
        }
    )


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
