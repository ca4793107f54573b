"""Training a model by one method, on all training texts or on a part of them, at a given or a searched learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from layerprobe.adaptation._cost import TrainingFlops, training_flops
from layerprobe.adaptation._frozen import Frozen
from layerprobe.adaptation._head import train_head
from layerprobe.adaptation._lora import add_lora
from layerprobe.adaptation._methods import Method, frozen_layer
from layerprobe.adaptation._rates import SEARCH_FACTORS
from layerprobe.adaptation._trained import trained_parameter_names
from layerprobe.adaptation._training import train_blocks
from layerprobe.adaptation._validation import SHARE, validation_part
from layerprobe.encoder import Encoder, head_parameter_names


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training, but for its texts and its learning rate."""

    encoder: Encoder
    label_names: tuple[str, ...]
    method: Method
    pooling: Literal["model", "mean", "cls"]
    encodings: list[dict[str, list[int]]]
    labels: np.ndarray
    """The true ones, also for `shuffled-labels`."""
    frozen: Mapping[int, Frozen]
    """Frozen layers' values, as far as the method reads them."""
    seed: int
    epochs: int
    batch_size: int
    head_learning_rate: float | None
    device: str
    progress: bool
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the blocks' training."""


@dataclass(frozen=True)
class Fit:
    """A trained model (a `lora` one still has its additions apart), its log, and what was chosen or resolved."""

    model: Any
    log: list[dict[str, Any]]
    settings: dict[str, Any]


def begin(recipe: Recipe) -> Any:
    """The pretrained body under a fresh head, with just what the method trains requiring gradients."""
    model: Any = recipe.encoder.classifier(recipe.label_names, seed=recipe.seed, pooling=recipe.pooling)
    if recipe.method.kind == "lora":
        add_lora(model, recipe.encoder, recipe.method, seed=recipe.seed)
    trained = trained_parameter_names(model, recipe.encoder, recipe.method)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model.to(recipe.device)


def fit(
    recipe: Recipe,
    model: nn.Module,
    texts: np.ndarray,
    learning_rate: float,
    *,
    permuted: bool = True,
    checkpoints: int = 0,
    keep: Callable[[int], None] | None = None,
) -> Fit:
    """Train a model that `begin` made, in place, on some of the training texts.

    Args:
        recipe: what is the same for every candidate.
        model: the fresh model.
        texts: numbers of the texts to train on.
        learning_rate: peak rate of the blocks.
        permuted: whether `shuffled-labels` permutes them; a search of its rate does not, so that the control is trained
            at the rate of `full`.
        checkpoints: how often, evenly spaced before the end of the blocks' training, `keep` is called.
        keep: called with the number of steps done, the model as it then is.
    """
    method = recipe.method
    log: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    if method.kind in ("head", "lp-ft"):
        log, settings = _fit_head(recipe, model, texts)
    if method.kind == "head":
        return Fit(model, log, settings)
    if method.kind == "lp-ft":
        settings = {f"head_{key}": value for key, value in settings.items()}
    labels = recipe.labels
    if method.kind == "shuffled-labels" and permuted:
        labels = np.random.default_rng(recipe.seed).permutation(labels)
    layer = frozen_layer(method, recipe.encoder.n_layers)
    after = train_blocks(
        model,
        recipe.encoder,
        recipe.encodings,
        labels,
        texts,
        method=method,
        frozen=recipe.frozen.get(layer) if layer else None,
        seed=recipe.seed,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=learning_rate,
        precision=recipe.precision,
        checkpoints=checkpoints,
        keep=keep,
        device=recipe.device,
        progress=recipe.progress,
    )
    done = log[-1]["step"] if log else 0  # a head's steps come first, and are counted on
    log = log + [{**entry, "step": done + entry["step"]} for entry in after]
    settings |= {
        "precision": recipe.precision,
        "learning_rate": learning_rate,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
    }
    return Fit(model, log, settings)


def fit_flops(recipe: Recipe, done: Fit, *, candidates: int) -> TrainingFlops:
    """Operations of a training that is done, with those of the search before it.

    Args:
        recipe: what was trained.
        done: how; a `lora` model still has its additions apart.
        candidates: how many were trained on the rest of the validation part.
    """
    lengths = [len(encoding["input_ids"]) for encoding in recipe.encodings]

    def of(epochs: float) -> TrainingFlops:
        return training_flops(done.model, lengths, batch_size=recipe.batch_size, epochs=epochs, cached=True)

    total = TrainingFlops(0, 0, 0)
    if recipe.method.kind in ("head", "lp-ft"):
        head = head_parameter_names(done.model, recipe.encoder)
        asked = {name: parameter.requires_grad for name, parameter in done.model.named_parameters()}
        for name, parameter in done.model.named_parameters():
            parameter.requires_grad_(name in head)
        passes = max(entry["epoch"] for entry in done.log if entry["split"] == "train")
        total = of(float(passes))
        for name, parameter in done.model.named_parameters():
            parameter.requires_grad_(asked[name])
    if recipe.method.kind == "head":
        return total
    return total + of(recipe.epochs * (1 + candidates * (1 - SHARE)))


def _fit_head(recipe: Recipe, model: Any, texts: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = torch.from_numpy(np.asarray(recipe.frozen[recipe.encoder.n_layers].rows[texts]))
    model.eval()
    found = train_head(
        model,
        recipe.encoder,
        rows.unsqueeze(1).to(recipe.device),
        recipe.labels[texts],
        sorted(head_parameter_names(model, recipe.encoder)),
        seed=recipe.seed,
        learning_rate=recipe.head_learning_rate,
        progress=recipe.progress,
    )
    settings = {
        "precision": "fp32",
        "optimizer": found.optimizer,
        "learning_rate": found.learning_rate,
        "penalty": found.penalty,
        "validation_share": SHARE,
        "gradient_norm": found.gradient,
    }
    return found.log, settings


def search_rate(recipe: Recipe, around: float) -> tuple[float, list[dict[str, Any]], dict[str, Any]]:
    """The learning rate with the least cross-entropy on a validation part of the training texts.

    Each candidate is trained from the start, for as many epochs as the final training, on the rest of the training texts.

    Returns:
        The rate (`around` where no text can be spared); a log entry for each candidate, its loss the validation one; what
        to note in the settings.
    """
    held = validation_part(recipe.labels, recipe.seed)
    if not held.any():
        return around, [], {"searched": {}}
    scores: dict[float, float] = {}
    log = []
    for factor in SEARCH_FACTORS:
        rate = around * factor
        model = begin(recipe)
        done = fit(recipe, model, np.flatnonzero(~held), rate, permuted=False)
        scores[rate] = loss = _loss(recipe, model, np.flatnonzero(held))
        step = done.log[-1]["step"] if done.log else 0
        log.append(
            {"step": step, "epoch": float(recipe.epochs), "loss": loss, "learning_rate": rate, "split": "validation"}
        )
    finite = {rate: loss for rate, loss in scores.items() if np.isfinite(loss)}
    # Of equal losses the one nearest to what would have been used.
    best = min(finite or {around: 0.0}, key=lambda rate: (finite.get(rate, 0.0), abs(np.log(rate / around))))
    return best, log, {"searched": {f"{rate:.3g}": loss for rate, loss in scores.items()}, "validation_share": SHARE}


@torch.inference_mode()
def _loss(recipe: Recipe, model: Any, texts: np.ndarray) -> float:
    """Mean cross-entropy of a model over some of the training texts, in nats."""
    from layerprobe.encoder import collate, length_sorted_batches

    model.eval()
    total = 0.0
    for batch in length_sorted_batches([len(recipe.encodings[i]["input_ids"]) for i in texts], 32):
        chosen = texts[batch]
        inputs = {k: v.to(recipe.device) for k, v in collate(recipe.encoder, recipe.encodings, chosen).items()}
        logits = model(**inputs).logits.double().cpu()
        total += float(nn.functional.cross_entropy(logits, torch.as_tensor(recipe.labels[chosen]), reduction="sum"))
    return total / len(texts)
