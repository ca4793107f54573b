"""Training a model by one method, on all training examples or on a part of them, at a given or a chosen learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from layerprobe.adaptation._config import AdaptConfig
from layerprobe.adaptation._cost import TrainingFlops, training_flops
from layerprobe.adaptation._frozen import FrozenValues
from layerprobe.adaptation._head import train_head
from layerprobe.adaptation._training import train_blocks
from layerprobe.adaptation._validation import SHARE, validation_part
from layerprobe.adaptation.methods import Method
from layerprobe.encoder import Encoder, collate, head_parameter_names, length_sorted_batches

SEARCH_FACTORS = (1 / 3, 1.0, 3.0)
"""A search tries these multiples of the method's learning rate."""


@dataclass(frozen=True)
class Training:
    """Everything that decides a training, except its examples and its learning rate."""

    encoder: Encoder
    label_names: tuple[str, ...]
    encodings: list[dict[str, list[int]]]
    """Of the training examples, as `tokenize` gives them."""
    labels: np.ndarray
    """Of the training examples, `(examples,)`."""
    method: Method
    seed: int
    config: AdaptConfig
    frozen: FrozenValues
    """Of the layers that the method reads, over the training examples."""


@dataclass(frozen=True)
class Fit:
    """What a training logged, and what was chosen or resolved in it."""

    log: list[dict[str, Any]]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Search:
    """The learning rate that a search chose, and the validation loss of each candidate."""

    learning_rate: float
    losses: dict[float, float]
    log: list[dict[str, Any]]
    """One entry per candidate; its loss is the validation loss."""

    @property
    def settings(self) -> dict[str, Any]:
        losses = {f"{rate:.3g}": loss for rate, loss in self.losses.items()}
        return {"searched": losses} | ({"validation_share": SHARE} if losses else {})


def new_model(training: Training) -> Any:
    """The pretrained body under a fresh head, in which only the parameters that the method trains require gradients."""
    encoder, method, config = training.encoder, training.method, training.config
    model: Any = encoder.classifier(training.label_names, seed=training.seed, pooling=config.pooling)
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
    config, result = training.config, Fit([], {})
    for phase in training.method.phases:
        if phase == "head":
            head = train_head(training, model, examples)
            settings = {
                "precision": "fp32",
                "optimizer": "L-BFGS" if config.head_learning_rate is None else "Adam",
                "learning_rate": config.head_learning_rate,
                "penalty": head.penalty,
                "validation_share": SHARE,
                "gradient_norm": head.gradient,
            }
            prefix = "head_" if training.method.trains_blocks else ""
            result = Fit(head.log, {f"{prefix}{key}": value for key, value in settings.items()})
        else:
            log = train_blocks(training, model, examples, learning_rate, keep)
            done = result.log[-1]["step"] if result.log else 0  # steps of a head come first
            settings = {
                "precision": config.resolved_precision,
                "learning_rate": learning_rate,
                "epochs": config.epochs,
                "batch_size": config.batch_size,
            }
            log = result.log + [{**entry, "step": done + entry["step"]} for entry in log]
            result = Fit(log, result.settings | settings)
    return result


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


def search_rate(training: Training, around: float) -> Search:
    """Choose the learning rate with the least cross-entropy on a validation part of the training examples.

    Each candidate is trained from the start, for as many epochs as the final training, on the other training examples.
    `around` is chosen where no example can be spared.
    """
    held = validation_part(training.labels, training.seed)
    losses: dict[float, float] = {}
    log = []
    for factor in SEARCH_FACTORS if held.any() else ():
        rate = around * factor
        model = new_model(training)
        result = fit(training, model, np.flatnonzero(~held), rate)
        losses[rate] = loss = _loss(training, model, np.flatnonzero(held))
        step, epoch = result.log[-1]["step"] if result.log else 0, float(training.config.epochs)
        log.append({"step": step, "epoch": epoch, "loss": loss, "learning_rate": rate, "split": "validation"})
    finite = {rate: loss for rate, loss in losses.items() if np.isfinite(loss)}
    # Of equal losses, the rate nearest to the one without a search.
    best = min(finite or {around: 0.0}, key=lambda rate: (finite.get(rate, 0.0), abs(np.log(rate / around))))
    return Search(best, losses, log)


def _require_gradients(model: nn.Module, names: frozenset[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


@torch.inference_mode()
def _loss(training: Training, model: Any, examples: np.ndarray) -> float:
    """Mean cross-entropy of a model over some of the training examples, in nats."""
    model.eval()
    total = 0.0
    for batch in length_sorted_batches([len(training.encodings[i]["input_ids"]) for i in examples], 32):
        chosen = examples[batch]
        inputs = collate(training.encoder, training.encodings, chosen)
        logits = model(**{key: value.to(training.config.device) for key, value in inputs.items()}).logits.double().cpu()
        total += float(nn.functional.cross_entropy(logits, torch.as_tensor(training.labels[chosen]), reduction="sum"))
    return total / len(examples)
