"""Training the head alone, on what the frozen body puts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from layerprobe.data import Examples
from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize
from layerprobe.layers import forward

LEARNING_RATES = (3e-3, 1e-2, 3e-2)
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STEPS = 400
VALIDATION = 0.15


@dataclass(frozen=True)
class HeadFit:
    """What was chosen for a head, and how the choice came about."""

    learning_rate: float
    penalty: float
    gradient: float
    """Norm of the objective's gradient at the end; near 0 where training converged."""
    log: list[dict[str, Any]]


class _CachedBody(nn.Module):
    """Stands in for the body: puts out what the body put out before, through what of it belongs to the head."""

    def __init__(self, body: nn.Module, family: str, pooler: str) -> None:
        super().__init__()
        self.family = family
        self.pooler = body.pooler if pooler == "new" else None
        self.final_norm = getattr(body, "final_norm", None)
        self.rows: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        assert self.rows is not None
        rows = self.rows
        if self.final_norm is not None:
            norm: Any = self.final_norm
            rows = rows * norm.weight
            if norm.bias is not None:
                rows = rows + norm.bias
        pooler: Any = self.pooler
        if pooler is None:
            pooled = rows[:, 0]
        elif self.family == "albert":  # a bare linear map, with what follows it in the body's own forward
            pooled = torch.tanh(pooler(rows[:, 0]))
        else:
            pooled = pooler(rows)
        return BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=pooled)


@torch.inference_mode()
def head_inputs(
    model: nn.Module, encoder: Encoder, examples: Examples, *, max_length: int, device: str, progress: bool
) -> Tensor:
    """One row an example, `(n, 1, width)` float32: all that the head reads of the frozen body.

    BERT's head reads the pooler's output; those of RoBERTa, DistilBERT and ELECTRA the first token. ModernBERT's head
    starts at the final norm and may average over tokens: the norm's scale commutes with that mean, so the mean of the
    normalised tokens is enough.
    """
    body: Any = model.base_model
    encodings = tokenize(encoder, examples, max_length)
    rows: list[Tensor | None] = [None] * len(encodings)
    batches = length_sorted_batches([len(e["input_ids"]) for e in encodings], 32)
    for indices in tqdm(batches, desc="frozen body", unit="batch", leave=False, disable=not progress, delay=1):
        inputs = {key: value.to(device) for key, value in collate(encoder, encodings, indices).items()}
        if encoder.pooler == "pretrained":
            value = body(**inputs).pooler_output
        else:
            last = forward(model, inputs)[0][-1]
            norm = getattr(body, "final_norm", None)
            if norm is not None:
                last = nn.functional.layer_norm(last, norm.normalized_shape, eps=norm.eps)
            if norm is not None and model.config.classifier_pooling == "mean":  # type: ignore[union-attr]
                mask = inputs["attention_mask"].unsqueeze(-1)
                value = (last * mask).sum(1) / mask.sum(1)
            else:
                value = last[:, 0]
        for i, row in zip(indices, value, strict=True):
            rows[int(i)] = row.clone()
    return torch.stack([row for row in rows if row is not None]).unsqueeze(1).clone()


def train_head(
    model: nn.Module,
    encoder: Encoder,
    inputs: Tensor,
    labels: np.ndarray,
    trained: Sequence[str],
    *,
    seed: int,
    learning_rate: float | None,
    progress: bool,
) -> HeadFit:
    """Train the head to convergence on cached body outputs, in place.

    Full-batch Adam without dropout, its rate falling to zero along a cosine, on mean cross-entropy plus
    penalty / 2 * (sum of squared weights). Rate and penalty are the ones with the least cross-entropy on a stratified
    validation part of the training texts; the head is then trained again, from the same start, on all of them.
    """
    device = inputs.device
    with torch.inference_mode(False):
        target = torch.as_tensor(labels, device=device)
        inputs = inputs.clone()
    parameters = [parameter for name, parameter in model.named_parameters() if name in trained]
    start = [parameter.detach().clone() for parameter in parameters]
    prefix = str(model.base_model_prefix)
    body = getattr(model, prefix)
    stub = _CachedBody(body, encoder.family, encoder.pooler).to(device)
    log: list[dict[str, Any]] = []
    setattr(model, prefix, stub)
    try:
        rates = LEARNING_RATES if learning_rate is None else (learning_rate,)
        validation = _validation(labels, seed)
        choices = [(rate, penalty) for rate in rates for penalty in PENALTIES]
        scores = []
        for rate, penalty in tqdm(
            choices, desc="choosing rate and penalty", leave=False, disable=not progress, delay=1
        ):
            _restore(parameters, start)
            keep, held = torch.as_tensor(~validation, device=device), torch.as_tensor(validation, device=device)
            _descend(model, stub, parameters, inputs[keep], target[keep], rate, penalty)
            with torch.no_grad():
                stub.rows = inputs[held]
                scores.append(float(nn.functional.cross_entropy(_logits(model, stub.rows), target[held])))
            log.append(
                {"step": STEPS, "epoch": float(STEPS), "loss": scores[-1], "learning_rate": rate, "split": "validation"}
            )
        rate, penalty = choices[int(np.argmin(scores))]
        _restore(parameters, start)
        gradient = _descend(model, stub, parameters, inputs, target, rate, penalty, log)
    finally:
        setattr(model, prefix, body)
    return HeadFit(rate, penalty, gradient, log)


def _logits(model: nn.Module, rows: Tensor) -> Tensor:
    mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
    return model(input_ids=mask, attention_mask=mask).logits


def _descend(
    model: nn.Module,
    stub: _CachedBody,
    parameters: list[nn.Parameter],
    inputs: Tensor,
    labels: Tensor,
    rate: float,
    penalty: float,
    log: list[dict[str, Any]] | None = None,
) -> float:
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    stub.rows = inputs
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        entropy = nn.functional.cross_entropy(_logits(model, inputs), labels)
        squares = sum((p.square().sum() for p in parameters if p.dim() > 1), torch.zeros((), device=inputs.device))
        (entropy + penalty / 2 * squares).backward()
        if log is not None and (step == 1 or step % 20 == 0):
            now = {"loss": float(entropy.detach()), "learning_rate": optimizer.param_groups[0]["lr"], "split": "train"}
            log.append({"step": step, "epoch": float(step), **now})
        optimizer.step()
        schedule.step()
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())


def _restore(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _validation(labels: np.ndarray, seed: int) -> np.ndarray:
    """A stratified part of the rows, at least one of each class that has two or more, as a mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        if len(own) > 1:
            mask[own[: max(1, round(VALIDATION * len(own)))]] = True
    return mask
