"""What stages read from and write to artifacts: models, pairs of captures, tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.artifacts import Artifact
from layerprobe.inputs import Inputs
from layerprobe.task import Parents

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.activations import ActivationStore
    from layerprobe.data import Examples

Build = Callable[[Path, Parents], None]
"""Writes an artifact's data into an empty folder, from finished parents."""


def model_of(inputs: Inputs, done: Parents, adapt: str | None) -> Any:
    """A model loaded afresh from saved weights, in float32 and eval mode: the pretrained one, or an adapted one."""
    from layerprobe.encoder import load_classifier

    if adapt is None:
        return inputs.encoder.classifier(inputs.corpus.label_names, seed=0, pooling=inputs.study.adaptation.pooling)
    return load_classifier(checkpoint_folder(done[adapt]), inputs.encoder)


def checkpoint_folder(artifact: Artifact) -> Path:
    """Where an adapted model's weights are: in the artifact, or where the user keeps them."""
    settings = json.loads((artifact.folder / "settings.json").read_text(encoding="utf-8"))
    return Path(settings["checkpoint"]).expanduser() if settings["checkpoint"] else artifact.folder / "checkpoint"


def label_order(artifact: Artifact) -> list[int]:
    """For each of the data's classes, its number in an adapted model: a user's checkpoint may number them otherwise."""
    return json.loads((artifact.folder / "settings.json").read_text(encoding="utf-8"))["label_order"]


def numbered(artifact: Artifact, examples: Examples) -> Examples:
    """The same texts, their labels numbered as the adapted model numbers its classes."""
    import numpy as np

    return replace(examples, labels=np.asarray(label_order(artifact), dtype=np.int64)[examples.labels])


def pair_of(done: Parents, capture: str, base: str = "capture: base") -> tuple[ActivationStore, ActivationStore]:
    """Two captures of the same texts, checked to be of the same rows."""
    from layerprobe.activations import ActivationStore, check_paired

    one, other = (ActivationStore.open(done[name].folder / "rows") for name in (base, capture))
    check_paired(one, other)
    return one, other


def save(folder: Path, name: str, table: pd.DataFrame) -> None:
    (folder / "tables").mkdir(exist_ok=True)
    table.to_parquet(folder / "tables" / f"{name}.parquet", index=False)
