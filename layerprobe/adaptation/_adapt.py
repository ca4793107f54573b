"""Adapting a pretrained encoder to labelled texts by one method, and measuring what it gained."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from layerprobe.adaptation._methods import Method
from layerprobe.adaptation._quality import Quality, probabilities, quality
from layerprobe.data import Examples
from layerprobe.encoder import Encoder, head_parameter_names, load_classifier, quiet, tokenize
from layerprobe.errors import StudyError
from layerprobe.layers import blocks

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Adaptation:
    """An adapted model and what it gained."""

    checkpoint: Path
    """Folder with the weights, as `save_pretrained` writes it."""
    before: Quality
    """On the test texts, under a fresh head."""
    after: Quality
    """On the test texts, from the saved weights loaded afresh in float32."""
    log: pd.DataFrame
    """step, epoch, loss, learning_rate, split."""
    trainable_parameters: int
    total_parameters: int
    seconds: float
    """Spent on training, choices included."""
    settings: dict[str, Any]
    """What was chosen or resolved: precision, learning rate, penalty."""
    predictions: np.ndarray
    """Class probabilities on the test texts, `(n, classes)`, in the order of the label names."""


def precision(device: str) -> Literal["bf16", "fp32"]:
    """Precision of training: bf16 autocast where the processor has instructions for it."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # Without these instructions bf16 on a CPU is emulated, and slower than float32.
    return "bf16" if device == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def trained_parameter_names(model: nn.Module, encoder: Encoder, method: Method) -> frozenset[str]:
    """Parameters that a method trains.

    `top:k` trains everything above the output of block L - k: the top k blocks, a pooler, and the head.
    """
    names = frozenset(name for name, _ in model.named_parameters())
    if method.kind in ("full", "shuffled-labels"):
        return names
    if method.kind == "checkpoint":
        return frozenset()
    above = head_parameter_names(model, encoder)
    if method.kind == "head":
        return above
    assert method.k is not None
    top = {id(p) for block in blocks(model)[len(blocks(model)) - method.k :] for p in block.parameters()}
    pooler = f"{model.base_model_prefix}.pooler."
    return above | {name for name, p in model.named_parameters() if id(p) in top or name.startswith(pooler)}


def adapt(
    encoder: Encoder,
    train: Examples,
    test: Examples,
    label_names: Sequence[str],
    folder: str | Path,
    *,
    method: Method,
    seed: int,
    epochs: int = 2,
    batch_size: int = 16,
    learning_rate: float = 5e-5,
    head_learning_rate: float | None = None,
    max_length: int = 128,
    device: str = "cpu",
    progress: bool = True,
) -> Adaptation:
    """Adapt an encoder by one method, save it, and measure it on the test texts before and after.

    Args:
        encoder: the pretrained encoder.
        train: training texts; `head` sets 15% of them aside to choose its learning rate and penalty, then uses all.
        test: test texts; looked at only to measure.
        label_names: one name a class.
        folder: where the adapted model is saved; not used by `checkpoint`.
        method: how to adapt.
        seed: decides the head's initial weights, the order of batches and dropout; equal seeds give equal results on
            one machine.
        epochs, batch_size, learning_rate: of `top:k`, `full` and `shuffled-labels`.
        head_learning_rate: of `head`; by default chosen.
        max_length: word pieces kept of a text.
        device: where to compute.
        progress: whether to draw progress bars on stderr.

    Raises:
        EncoderError: if a checkpoint does not fit the encoder.
        StudyError: if a checkpoint's labels are not the data's, or training diverged.
    """
    import pandas as pd

    folder = Path(folder)
    measure: dict[str, Any] = {"max_length": max_length, "device": device, "progress": progress}
    model = encoder.classifier(label_names, seed=seed)
    before = quality(probabilities(model, encoder, test, **measure), test.labels)
    total = sum(parameter.numel() for parameter in model.parameters())
    columns = ["step", "epoch", "loss", "learning_rate", "split"]
    if method.kind == "checkpoint":
        assert method.path is not None
        path = Path(method.path).expanduser()
        tuned = load_classifier(path, encoder)
        order, note = _label_order(tuned.config, label_names, str(path))
        found = probabilities(tuned, encoder, test, **measure)[:, order]
        after = quality(found, test.labels)
        settings: dict[str, Any] = {"labels": note}
        return Adaptation(path, before, after, pd.DataFrame(columns=columns), 0, total, 0.0, settings, found)

    trained = trained_parameter_names(model, encoder, method)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    model.to(device)  # type: ignore[arg-type]
    start = time.perf_counter()
    if method.kind == "head":
        log, settings = _train_head(
            model, encoder, train, sorted(trained), seed, head_learning_rate, max_length, device, progress
        )
    else:
        log, settings = _train_blocks(
            model, encoder, train, method, seed, epochs, batch_size, learning_rate, max_length, device, progress
        )
    seconds = time.perf_counter() - start
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise StudyError(
            f"Training by {method.name} diverged (its weights are not finite); lower adaptation.learning_rate."
        )
    _save(model, encoder, folder)
    found = probabilities(load_classifier(folder, encoder), encoder, test, **measure)
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if name in trained)
    table = pd.DataFrame(log, columns=columns)
    return Adaptation(folder, before, quality(found, test.labels), table, count, total, seconds, settings, found)


def _train_head(
    model: nn.Module,
    encoder: Encoder,
    train: Examples,
    trained: list[str],
    seed: int,
    learning_rate: float | None,
    max_length: int,
    device: str,
    progress: bool,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from layerprobe.adaptation._head import VALIDATION, head_inputs, train_head

    model.eval()
    inputs = head_inputs(model, encoder, train, max_length=max_length, device=device, progress=progress)
    fit = train_head(
        model, encoder, inputs, train.labels, trained, seed=seed, learning_rate=learning_rate, progress=progress
    )
    settings = {
        "precision": "fp32",
        "learning_rate": fit.learning_rate,
        "penalty": fit.penalty,
        "validation_share": VALIDATION,
        "gradient_norm": fit.gradient,
    }
    return fit.log, settings


def _train_blocks(
    model: nn.Module,
    encoder: Encoder,
    train: Examples,
    method: Method,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_length: int,
    device: str,
    progress: bool,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from layerprobe.adaptation._training import train_blocks

    labels = train.labels
    if method.kind == "shuffled-labels":
        labels = np.random.default_rng(seed).permutation(labels)
    used = precision(device)
    log = train_blocks(
        model,
        encoder,
        tokenize(encoder, train, max_length),
        labels,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        precision=used,
        device=device,
        progress=progress,
    )
    return log, {"precision": used, "learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}


def _save(model: Any, encoder: Encoder, folder: Path) -> None:
    model.to("cpu")
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        model.save_pretrained(folder, safe_serialization=True)
        encoder.tokenizer.save_pretrained(folder)


def _label_order(config: Any, label_names: Sequence[str], path: str) -> tuple[list[int], str]:
    """For each of our classes, its number in a checkpoint; and how the two were matched."""
    theirs = [str(config.id2label[i]) for i in range(config.num_labels)]
    if len(theirs) != len(label_names):
        raise StudyError(
            f"The checkpoint {path} has {len(theirs)} labels ({', '.join(theirs)}) but the data has {len(label_names)} "
            f"({', '.join(label_names)}); give the data it was fine-tuned for."
        )
    if sorted(theirs) == sorted(label_names):
        return [theirs.index(name) for name in label_names], "matched by name"
    if theirs == [f"LABEL_{i}" for i in range(len(theirs))]:
        return list(range(len(theirs))), "the checkpoint does not name its labels; taken in the data's sorted order"
    raise StudyError(
        f"The checkpoint {path} has the labels {', '.join(theirs)} but the data has {', '.join(label_names)}; "
        "rename the data's labels, or the checkpoint's id2label, so that they agree."
    )
