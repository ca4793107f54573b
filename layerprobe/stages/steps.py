"""The stage that follows transfer along training: how well dictionaries reconstruct the kept checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import dictionary_of, paired_rows, save
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.capture import Capture
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

TRANSFER_STEPS = TableSpec(
    "transfer_steps",
    "Reconstruction of kept checkpoints: one row per method, seed, step, layer and dictionary.",
    columns(
        "method",
        "seed",
        "layer",
        "n",
        step="training step; 0 is the base, the last one the adapted model",
        trained_on="`base` or `adapted`: side that the dictionary was trained on",
        l0="active latents per token, on average",
        explained_variance="share of the rows' variance that is reconstructed, at most 1",
        ev_low="lower end of its 95% interval over examples",
        ev_high="upper end of its 95% interval over examples",
        loss_recovered="share of the loss added by mean-ablating the layer that the reconstruction avoids; missing for the base",
        loss_recovered_low="lower end of its 95% interval over examples",
        loss_recovered_high="upper end of its 95% interval over examples",
        why="why a recovered share is undefined; empty if it is defined",
        accuracy="accuracy of the checkpoint on the test examples, 0 to 1; missing for the base",
    ),
)


@dataclass(frozen=True)
class Steps(ModelStage):
    """Explained variance, sparsity and task loss of the dictionaries of both sides on each kept checkpoint.

    Step 0 is the base, which has no classifier and so no task loss; the last step is the adapted model.
    """

    layers: tuple[int | str, ...] = ()

    name: ClassVar = "steps"
    version: ClassVar = 2
    tables: ClassVar = (TRANSFER_STEPS,)
    accelerator: ClassVar = True
    first_guess: ClassVar = 15.0

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if shape.study.adaptation.checkpoints and shape.sae_layers:
            for method, seed in shape.runs:
                if method.trains_blocks:
                    yield cls(method, seed, shape.sae_layers)

    @property
    def dictionaries(self) -> tuple[Sae, ...]:
        return tuple(
            dictionary for layer in self.layers for dictionary in (Sae(layer=layer), Sae(self.method, self.seed, layer))
        )

    def parents(self) -> Mapping[str, Stage]:
        return {
            "adapt": Adapt(self.method, self.seed),
            "base": Capture.of_base(),
            "adapted": Capture(self.method, self.seed),
            **{task.id: task for task in self.dictionaries},
        }

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        controls = sorted(study.study.sae.controls)
        return {**self.named, "controls": controls, "examples": study.study.internals.examples}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae
        from layerprobe.activations import CaptureConfig, capture
        from layerprobe.encoder import load_classifier

        base, adapted = paired_rows(parents)
        adapt = parents["adapt"]
        log = adapt.table("training_log")
        last_step = int(log[log["split"] == "train"].step.max())
        checkpoints = {int(path.name.removeprefix("step-")): path for path in sorted(adapt.folder.glob("step-*"))}
        loaded = {task: dictionary_of(parents[task.id], context.device) for task in self.dictionaries}
        examples, max_length = context.rerun_examples, context.study.data.max_length
        rows: list[dict[str, Any]] = []

        def measure(step: int, store: Any, model: Any) -> None:
            for layer in self.layers:
                assert isinstance(layer, int)
                sides: dict[str, Any] = {
                    task.side: dictionary for task, dictionary in loaded.items() if task.layer == layer
                }
                losses = None
                if model is not None:
                    losses = sae.task_loss(
                        model.to(context.device), context.encoder, examples, layer, sides, max_length=max_length
                    ).set_index("variant")
                for side, dictionary in sides.items():
                    tokens = store.tokens(layer)
                    quality = sae.evaluate(dictionary, tokens, sae.encode(dictionary, tokens), store.groups("token"))
                    row: dict[str, Any] = {"step": step, "layer": layer, "trained_on": side, "l0": quality.l0}
                    row |= {"explained_variance": quality.explained_variance}
                    row |= {"ev_low": quality.ev_low, "ev_high": quality.ev_high, "n": quality.examples}
                    if losses is not None:
                        names = ["loss_recovered", "loss_recovered_low", "loss_recovered_high", "why"]
                        row |= losses.loc[side, names].to_dict() | {"accuracy": losses.loc["clean", "accuracy"]}
                    rows.append(row)

        measure(0, base, None)
        config = CaptureConfig(
            max_length=max_length,
            layers=tuple(layer for layer in self.layers if isinstance(layer, int)),
            token_examples=context.study.activations.examples,
            pooled=False,
            batch_size=base.batch_size,
        )
        for step, path in checkpoints.items():
            model = load_classifier(path, context.encoder)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                target, test = Path(scratch) / "rows", context.corpus.test
                measure(step, capture(model, context.encoder, test, target, config, device=context.device), model)
        measure(last_step, adapted, context.adapted_model(adapt))
        save(folder, "transfer_steps", pd.DataFrame(rows).assign(**self.named))
