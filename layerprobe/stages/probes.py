"""The stage that trains linear probes of the labels on each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import paired_rows, rows_of, save
from layerprobe.stages.capture import Capture, CaptureTrain
from layerprobe.store import Artifact, ArtifactMeta

BASE_TABLE = "probes.parquet"

PROBES = TableSpec(
    "probes",
    "Linear probes of the labels on the mean vectors of each layer: one row per method, seed, side and layer.",
    columns(
        "method",
        "seed",
        "side",
        "layer",
        "n",
        accuracy="accuracy on the test examples, 0 to 1",
        accuracy_low="lower end of its 95% Wilson interval",
        accuracy_high="upper end of its 95% Wilson interval",
        balanced_accuracy="mean recall of the classes on the test examples, 0 to 1; one over the number of classes by chance",
        balanced_accuracy_low="lower end of its 95% interval over test examples",
        balanced_accuracy_high="upper end of its 95% interval over test examples",
        auroc="mean area under the ROC curve of each class against the rest, on the test examples; .5 by chance",
        auroc_low="lower end of its 95% interval over test examples",
        auroc_high="upper end of its 95% interval over test examples",
        macro_f1="F1 averaged over classes, on the test examples, 0 to 1",
        loss="cross-entropy on the test examples, in nats",
        control_accuracy="accuracy on the test examples of the same probes of control tasks: random labels that the words determine",
        train_accuracy="accuracy on the training examples",
        control_train_accuracy="accuracy on the training examples of the probes of control tasks: what a probe can memorise",
        selectivity="accuracy minus control accuracy (Hewitt and Liang 2019)",
        selectivity_low="lower end of its 95% interval over test examples and control tasks",
        selectivity_high="upper end of its 95% interval over test examples and control tasks",
        penalty="strength of the L2 penalty, chosen by cross-validation",
    ),
)


@dataclass(frozen=True)
class Probes(ModelStage):
    """Accuracy of linear probes by layer, base and adapted; a layer that equals the base's has the base's values."""

    name: ClassVar = "probes"
    version: ClassVar = 4
    tables: ClassVar = (PROBES,)
    first_guess: ClassVar = 15.0
    on_cpu: ClassVar = "logistic regressions of scikit-learn, on one vector per example"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if "probes" not in shape.study.internals.parts:
            return ()
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        base: dict[str, Stage] = {"base train": CaptureTrain.of_base(), "base test": Capture.of_base()}
        if self.method is None:
            return base
        train, test = CaptureTrain(self.method, self.seed), Capture(self.method, self.seed)
        return {**base, "train": train, "test": test, "base probes": Probes.of_base()}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {**({} if self.method is None else self.named), "analysis_seed": study.study.seeds[0]}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        if self.method is None:
            train, test = rows_of(parents["base train"]), rows_of(parents["base test"])
            _probe(context, train, test, list(train.layers)).to_parquet(folder / BASE_TABLE, index=False)
            return
        trains = paired_rows(parents, "base train", "train")
        tests = paired_rows(parents, "base test", "test")
        changed = [
            layer
            for layer in trains[0].layers
            if not all(np.array_equal(base.mean(layer), adapted.mean(layer)) for base, adapted in (trains, tests))
        ]
        base = pd.read_parquet(parents["base probes"].folder / BASE_TABLE)
        adapted = [base[~base.layer.isin(changed)]]
        if changed:
            adapted.append(_probe(context, trains[1], tests[1], changed))
        sides = {"base": base, "adapted": pd.concat(adapted).sort_values("layer")}
        table = pd.concat([rows.assign(side=side) for side, rows in sides.items()], ignore_index=True)
        save(folder, "probes", table.assign(**self.named))


def _probe(context: Context, train: Any, test: Any, layers: list[int]) -> Any:
    from layerprobe.encoder import tokenize
    from layerprobe.internals import control_labels, probe_layers

    corpus, length = context.corpus, context.study.data.max_length
    train_words, test_words = (
        [encoding["input_ids"] for encoding in tokenize(context.encoder, examples, length)]
        for examples in (corpus.train, corpus.test)
    )
    return probe_layers(
        {layer: train.mean(layer) for layer in layers},
        corpus.train.labels,
        {layer: test.mean(layer) for layer in layers},
        corpus.test.labels,
        control_labels(train_words, test_words, corpus.train.labels, seed=context.seed),
        seed=context.seed,
    )
