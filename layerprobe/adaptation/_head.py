"""Training the head alone, on what the frozen body puts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from layerprobe.adaptation._validation import validation_folds
from layerprobe.encoder import Encoder

PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""From weak to strong: each fit goes on from the one before, and a head that a strong penalty has shrunk to nothing, which
is a stationary point of a head with a hidden layer, is then not where others start."""
UNVALIDATED = 1e-3
"""The penalty where no class has a text to spare for choosing."""
STEPS = 400
"""Of Adam, and at most of L-BFGS."""
CHOOSING_STEPS = 100
"""At most, of L-BFGS with one penalty on the way."""


@dataclass(frozen=True)
class HeadFit:
    """What was chosen for a head, and how the choice came about."""

    optimizer: str
    learning_rate: float | None
    """Of Adam; L-BFGS finds its own step lengths."""
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
    """Train the head to convergence on cached body outputs `(texts, 1, width)`, in place.

    The objective is mean cross-entropy, without dropout, plus penalty / 2 * (sum of squared weights, and of squared changes
    of a norm's scale), over all examples at once. The penalty is chosen by stratified cross-validation on the training examples (`validation_folds`): the
    strongest whose cross-entropy is within one standard error of the least (Breiman et al. 1984), so that a lucky choice on
    few examples does not give an over-confident head. The head is then trained with it on all of them, from the weights that it had in the first fold.
    It is minimised by L-BFGS; with a learning rate by Adam, the rate decaying to zero along a cosine, from the initial
    weights each time.
    """
    target = torch.as_tensor(labels, device=inputs.device)
    named = {name: parameter for name, parameter in model.named_parameters() if name in trained}
    parameters = list(named.values())
    # A norm's scale could take over what the penalty takes from the matrices, so it is held to its initial value.
    centers = [
        torch.zeros_like(p) if p.dim() > 1 else p.detach().clone() if name.endswith("norm.weight") else None
        for name, p in named.items()
    ]
    prefix = str(model.base_model_prefix)
    body = getattr(model, prefix)
    stub = _CachedBody(body, encoder.family, encoder.pooler).to(inputs.device)
    folds = [torch.as_tensor(held, device=inputs.device) for held in validation_folds(labels, seed)]
    start = _values(parameters)
    log: list[dict[str, Any]] = []
    setattr(model, prefix, stub)
    try:
        losses: dict[float, list[Tensor]] = {penalty: [] for penalty in PENALTIES}
        steps = dict.fromkeys(PENALTIES, 0)
        weights = dict.fromkeys((*PENALTIES, UNVALIDATED), start)
        bar = tqdm(
            total=len(folds) * len(PENALTIES),
            desc="choosing the head's penalty",
            leave=False,
            disable=not progress,
            delay=1,
        )
        for number, held in enumerate(folds):
            _restore(parameters, start)
            for candidate in PENALTIES:
                fit = _Objective(model, stub, parameters, centers, inputs[~held], target[~held], candidate)
                if learning_rate is not None:
                    _restore(parameters, start)
                    fit.adam(learning_rate)
                else:
                    fit.lbfgs(CHOOSING_STEPS)
                with torch.no_grad():
                    stub.rows = inputs[held]
                    logits = _logits(model, stub.rows).double().cpu()
                    losses[candidate].append(nn.functional.cross_entropy(logits, target[held].cpu(), reduction="none"))
                steps[candidate] += len(fit.losses)
                if number == 0:
                    weights[candidate] = _values(parameters)
                bar.update()
        bar.close()
        penalty = UNVALIDATED
        if folds:
            judged = {candidate: torch.cat(parts) for candidate, parts in losses.items()}
            log = [_entry(steps[c], float(judged[c].mean()), learning_rate, "validation") for c in PENALTIES]
            penalty = _strongest_within_one_error(judged)
        fit = _Objective(model, stub, parameters, centers, inputs, target, penalty)
        if learning_rate is not None:
            _restore(parameters, start)
            fit.adam(learning_rate)
        else:
            _restore(parameters, weights[penalty])
            fit.lbfgs(STEPS)
        every = max(1, len(fit.losses) // 20)
        log += [
            _entry(step, loss, learning_rate, "train")
            for step, loss in enumerate(fit.losses, 1)
            if step == 1 or step % every == 0
        ]
        gradient = fit.gradient()
    finally:
        setattr(model, prefix, body)
    return HeadFit("L-BFGS" if learning_rate is None else "Adam", learning_rate, penalty, gradient, log)


def _strongest_within_one_error(losses: Mapping[float, Tensor]) -> float:
    """The strongest penalty whose mean loss exceeds the least by at most a standard error of their paired difference.

    Args:
        losses: held-out losses of the same examples by penalty, from weak to strong.
    """
    best = min(losses, key=lambda penalty: float(losses[penalty].mean()))
    chosen = best
    for penalty, loss in losses.items():
        difference = loss - losses[best]
        if penalty > best and float(difference.mean()) <= float(difference.std()) / len(loss) ** 0.5:
            chosen = penalty
    return chosen


class _Objective:
    """Penalised cross-entropy of a head over all texts at once, and two ways down it."""

    def __init__(
        self,
        model: nn.Module,
        stub: _CachedBody,
        parameters: list[nn.Parameter],
        centers: list[Tensor | None],
        inputs: Tensor,
        labels: Tensor,
        penalty: float,
    ) -> None:
        self.model, self.stub, self.parameters = model, stub, parameters
        self.inputs, self.labels, self.penalty = inputs, labels, penalty
        self.centers = centers
        self.losses: list[float] = []
        """Cross-entropy at each evaluation, the penalty left out."""

    def evaluate(self) -> Tensor:
        """The objective, with its gradient left on the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        self.stub.rows = self.inputs
        entropy = nn.functional.cross_entropy(_logits(self.model, self.inputs), self.labels)
        squares = [
            (parameter - center).square().sum()
            for parameter, center in zip(self.parameters, self.centers, strict=True)
            if center is not None
        ]
        total = entropy + self.penalty / 2 * torch.stack(squares).sum()
        total.backward()
        self.losses.append(float(entropy.detach()))
        return total

    def lbfgs(self, steps: int) -> None:
        """At most so many iterations. A line search that ends at a kink (of a ReLU) is started again, while that helps."""
        before, done = np.inf, 0
        while done < steps and (now := float(self.evaluate().detach())) < before - 1e-6:
            before = now
            optimizer = torch.optim.LBFGS(
                self.parameters,
                max_iter=steps - done,
                max_eval=2 * (steps - done),
                history_size=20,
                tolerance_grad=1e-4,
                tolerance_change=1e-9,
                line_search_fn="strong_wolfe",
            )
            optimizer.step(self.evaluate)
            done += optimizer.state[self.parameters[0]]["n_iter"]

    def adam(self, rate: float) -> None:
        optimizer = torch.optim.Adam(self.parameters, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            self.evaluate()
            optimizer.step()
            schedule.step()

    def gradient(self) -> float:
        """Norm of the gradient where the parameters are now."""
        kept = len(self.losses)
        self.evaluate()
        del self.losses[kept:]
        return float(torch.stack([p.grad.norm() for p in self.parameters if p.grad is not None]).norm())


def _entry(step: int, loss: float, learning_rate: float | None, split: str) -> dict[str, Any]:
    rate = float("nan") if learning_rate is None else learning_rate
    return {"step": step, "epoch": float(step), "loss": loss, "learning_rate": rate, "split": split}


def _logits(model: nn.Module, rows: Tensor) -> Tensor:
    mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
    return model(input_ids=mask, attention_mask=mask).logits


def _values(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _restore(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
