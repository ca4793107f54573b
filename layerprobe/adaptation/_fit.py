"""Training a model by one method, on all training examples or on a part of them, at a given or a chosen learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from layerprobe.adaptation._config import AdaptConfig
from layerprobe.adaptation._cost import TrainingFlops, training_flops
from layerprobe.adaptation._frozen import FrozenValues
from layerprobe.adaptation._head import train_head
from layerprobe.adaptation._quality import probabilities
from layerprobe.adaptation._training import train_blocks
from layerprobe.adaptation._validation import SEARCH_FACTORS, SHARE, HeldOut, validation_part
from layerprobe.adaptation.methods import Method
from layerprobe.data import Corpus
from layerprobe.encoder import Encoder, head_parameter_names


@dataclass(frozen=True)
class Training:
    """Everything that decides a training, except its examples and its learning rate."""

    encoder: Encoder
    corpus: Corpus
    method: Method
    seed: int
    config: AdaptConfig
    encodings: list[dict[str, list[int]]]
    """`tokenize` of the training examples."""
    labels: np.ndarray
    """To train on, `(examples,)`: those of the training examples, or permuted ones."""
    frozen: FrozenValues
    """Of the layers that the method reads, over the training examples."""


@dataclass(frozen=True)
class Fit:
    """The log of a training, and what was chosen or resolved in it."""

    log: list[dict[str, Any]]
    settings: dict[str, Any]
    held_out: HeldOut | None = None
    """Quality with the chosen penalty of the head; None where none was chosen."""


def new_model(training: Training) -> Any:
    """The pretrained body under a fresh head, in which only the parameters that the method trains require gradients."""
    encoder, method, config = training.encoder, training.method, training.config
    model: Any = encoder.classifier(training.corpus.label_names, seed=training.seed, pooling=config.pooling)
    method.prepare(model, encoder, training.seed)
    _require_gradients(model, method.trainable(model, encoder))
    return model.to(config.device)


def fit(
    training: Training,
    model: nn.Module,
    examples: np.ndarray,
    learning_rate: float,
    keep: Callable[[int], None] | None = None,
) -> Fit:
    """Train a model that `new_model` made, in place.

    Args:
        training: what all candidates share.
        model: the fresh model.
        examples: numbers of the examples to train on.
        learning_rate: peak rate of the blocks.
        keep: called with the number of steps done at each of `config.checkpoints` points before the end of the blocks'
            training.
    """
    config, log, settings, held_out = training.config, [], {}, None
    for phase in training.method.phases:
        if phase == "head":
            head = train_head(training, model, examples)
            log, held_out = head.log, head.held_out
            settings = {
                "precision": "fp32",
                "optimizer": "L-BFGS" if config.head_learning_rate is None else "Adam",
                "learning_rate": config.head_learning_rate,
                "penalty": head.penalty,
                "gradient_norm": head.gradient,
            }
        else:
            done = log[-1]["step"] if log else 0  # steps of a head come first
            blocks = train_blocks(training, model, examples, learning_rate, keep)
            log = log + [{**entry, "step": done + entry["step"]} for entry in blocks]
            settings = {f"head_{key}": value for key, value in settings.items()} | {
                "precision": config.resolved_precision,
                "learning_rate": learning_rate,
                "epochs": config.epochs,
                "batch_size": config.batch_size,
            }
    return Fit(log, settings, held_out)


def fit_flops(training: Training, model: Any, result: Fit, *, candidates: int) -> TrainingFlops:
    """Operations of a completed training and of the search before it.

    Args:
        training: what was trained.
        model: the trained model, before `method.finish`.
        result: of `fit`.
        candidates: number of learning rates that were tried, each on the examples outside the validation part.
    """
    lengths = [len(encoding["input_ids"]) for encoding in training.encodings]
    trainable = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    total = TrainingFlops(0, 0, 0)
    for phase in training.method.phases:
        if phase == "head":
            epochs = max(entry["epoch"] for entry in result.log if entry["split"] == "train")
            _require_gradients(model, head_parameter_names(model, training.encoder))
        else:
            epochs = training.config.epochs * (1 + candidates * (1 - SHARE))
            _require_gradients(model, trainable)
        total += training_flops(model, lengths, batch_size=training.config.batch_size, epochs=epochs)
    return total


@dataclass(frozen=True)
class RateSearch:
    """The learning rate that was chosen."""

    rate: float
    log: list[dict[str, Any]]
    """An entry per candidate, with its validation loss."""
    held_out: HeldOut | None
    """Quality of the chosen candidate; None where no example could be spared."""


def search_rate(training: Training, around: float) -> RateSearch:
    """Choose the learning rate with the least cross-entropy on a validation part of the training examples.

    Each candidate is trained from the start, for as many epochs as the final training, on the other training examples.
    Without an example to spare, or if all candidates diverge, the rate is `around`.
    """
    held = validation_part(training.labels, training.seed)
    log: list[dict[str, Any]] = []
    results: dict[float, HeldOut] = {}
    for factor in SEARCH_FACTORS if held.any() else ():
        model, rate = new_model(training), around * factor
        result = fit(training, model, np.flatnonzero(~held), rate)
        found, step = _held_out(training, model, np.flatnonzero(held)), result.log[-1]["step"] if result.log else 0
        epochs = float(training.config.epochs)
        log.append({"step": step, "epoch": epochs, "loss": found.loss, "learning_rate": rate, "split": "validation"})
        if np.isfinite(found.loss):
            results[rate] = replace(found, candidates=len(SEARCH_FACTORS))
    # Of equal losses, the rate nearest to the one without a search.
    best = min(results, key=lambda rate: (results[rate].loss, abs(np.log(rate / around))), default=around)
    return RateSearch(best, log, results.get(best))


def _held_out(training: Training, model: nn.Module, examples: np.ndarray) -> HeldOut:
    """Quality of a model on some of the training examples."""
    predicted = probabilities(model, training.encoder, training.corpus.train.take(examples), training.config)
    labels = training.labels[examples]
    with np.errstate(divide="ignore"):
        loss = float(-np.log(predicted[np.arange(len(examples)), labels]).mean())
    return HeldOut(float((predicted.argmax(axis=1) == labels).mean()), loss, len(examples))


def _require_gradients(model: nn.Module, names: frozenset[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
