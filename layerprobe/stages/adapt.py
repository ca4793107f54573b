"""The stage that adapts the encoder by one method and measures its quality before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.files import write_json
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import save
from layerprobe.stages._quality import ADAPTATION, PREDICTIONS, predictions_table, quality_row, tuning_row
from layerprobe.stages.frozen_blocks import FrozenBlocks, adapt_config, open_layers
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.adaptation import LabelMatch

TRAINING_LOG = TableSpec(
    "training_log",
    "Loss during training: one row per method, seed and logged step. Empty for a checkpoint.",
    columns(
        "method",
        "seed",
        step="training step, counted from the start of its phase",
        epoch="passes over the training examples so far",
        loss="cross-entropy, in nats",
        learning_rate="learning rate at the step",
        split="`train`; `validation` for the search of a learning rate",
    ),
)
LABELS_VERSION = 1
"""Of how a checkpoint's labels are matched; raised instead of the stage's version, which would train models again."""
CHECKPOINT_LABELS = TableSpec(
    "checkpoint_labels",
    "How the labels of a checkpoint were matched with the data's: one row per checkpoint and label.",
    columns(
        "method",
        "seed",
        "n",
        model_label="label of the checkpoint",
        label="label of the data that it was taken for",
        matched="`name` (equal names), `given` (data.labels) or `order` (the checkpoint does not name its labels)",
        fitted="label of the data in the one-to-one order under which most training examples are right; missing unless "
        "matched by order",
        accuracy="accuracy on the training examples as the labels were taken; missing likewise",
        fitted_accuracy="accuracy on the training examples in the fitted order, which was chosen on them",
    ),
)


@dataclass(frozen=True)
class Adapt(ModelStage):
    """An adapted model, its training log, its cost and its quality."""

    name: ClassVar = "adapt"
    version: ClassVar = 5
    accelerator: ClassVar = True
    keyed_by_content: ClassVar = (
        True  # frozen values follow from the encoder and the examples, which are in the identity
    )
    first_guess: ClassVar = 60.0
    opened: ClassVar = "checkpoint"
    tables: ClassVar = (ADAPTATION, PREDICTIONS, TRAINING_LOG, CHECKPOINT_LABELS)

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        assert self.method is not None
        return {"frozen": FrozenBlocks(self.method.own_pooling)} if self.method.reads_frozen else {}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        assert self.method is not None
        identity = {**self.named, "encoder": study.encoder, **study.texts}
        if self.method.checkpoint_folder is not None:
            labels = {"labels": dict(study.study.data.labels), "labels version": LABELS_VERSION}
            return identity | {"checkpoint": dict(study.checkpoints[self.method.name])} | labels
        return identity | self.method.identity(adapt_config(study)) | {"frozen": FrozenBlocks.version}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import adaptation

        assert self.method is not None and self.seed is not None
        corpus = context.corpus
        result = adaptation.adapt(
            context.encoder,
            corpus,
            folder / "checkpoint",
            method=self.method,
            seed=self.seed,
            config=adapt_config(context.resolved),
            frozen=open_layers(parents["frozen"]) if "frozen" in parents else None,
        )
        cost: dict[str, Any] = {
            "trainable_parameters": result.trainable_parameters,
            "total_parameters": result.total_parameters,
            "seconds": result.seconds,
            "learning_rate": result.settings.get("learning_rate"),
        }
        if self.method.trains:
            cost |= tuning_row(result.held_out)
        if result.cost is not None and result.flops is not None:
            cost |= {
                "flops": float(result.flops.total),
                "flops_frozen": float(result.flops.frozen),
                "peak_bytes": result.cost.peak_bytes,
                "memory_kind": result.cost.memory_kind,
                "energy_wh": result.cost.energy_wh,
                "energy_kind": result.cost.energy_kind,
                "energy_note": result.cost.energy_note,
                # What a task adds to the base that all tasks share, in float32.
                "bytes_stored": 4 * result.trainable_parameters,
                "frozen_bytes": result.settings["frozen_bytes"],
            }
        quality = [
            {**self.named, "when": when, "split": "test", **quality_row(measured), **cost}
            for when, measured in (("before", result.before), ("after", result.after))
        ]
        save(folder, "adaptation", pd.DataFrame(quality))
        save(folder, "training_log", result.log.assign(**self.named))
        predictions = predictions_table(corpus, corpus.test, result.predictions, {**self.named, "split": "test"})
        save(folder, "predictions", predictions)
        if result.label_match is not None:
            save(folder, "checkpoint_labels", _labels_table(result.label_match, corpus.label_names, self.named))
        checkpoint = self.method.checkpoint_folder
        settings = {
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "label_order": list(result.label_order),
            "steps": list(result.steps),
        }
        write_json(folder / "settings.json", settings | result.settings)

    def size(self, study: ResolvedStudy) -> int:
        assert self.method is not None
        return study.model_bytes * (1 + (study.study.adaptation.checkpoints or 0)) if self.method.trains else 0


def _labels_table(match: LabelMatch, names: Sequence[str], named: Mapping[str, Any]) -> pd.DataFrame:
    """One row per label of a checkpoint, in the order of its classes."""
    import pandas as pd

    taken = {number: names[label] for label, number in enumerate(match.order)}
    numbers = range(len(match.labels))
    table = pd.DataFrame(
        {
            "model_label": match.labels,
            "label": [taken[number] for number in numbers],
            "matched": match.matched,
            "fitted": pd.Series([None] * len(numbers), dtype=object),
            "accuracy": float("nan"),
            "fitted_accuracy": float("nan"),
            "n": 0,
        }
    ).assign(**named)
    if match.fitted is None:
        return table
    fitted = {number: names[label] for label, number in enumerate(match.fitted.order)}
    return table.assign(
        fitted=[fitted[number] for number in numbers],
        accuracy=match.fitted.accuracy,
        fitted_accuracy=match.fitted.fitted_accuracy,
        n=match.fitted.n,
    )
