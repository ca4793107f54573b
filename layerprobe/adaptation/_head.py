"""Training the head alone, on the output of the frozen body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from layerprobe.adaptation._validation import SEARCH_FACTORS, HeldOut, validation_folds, validation_part
from layerprobe.encoder import head_parameter_names
from layerprobe.families import FAMILIES
from layerprobe.progress import track

if TYPE_CHECKING:
    from layerprobe.adaptation._fit import Training

PENALTIES: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""From weak to strong: each fit starts from the previous one, so that none starts from a head that a strong penalty has
shrunk to zero, which is a stationary point of a head with a hidden layer."""
UNVALIDATED = 1e-3
"""The penalty where no class has an example to spare for validation, and the middle one with equal tuning."""
STEPS = 400
"""Of Adam, and at most of L-BFGS."""
CHOOSING_STEPS = 100
"""At most, of L-BFGS with one penalty in cross-validation."""


@dataclass(frozen=True)
class HeadFit:
    """What was chosen for a head, and the log of its training."""

    penalty: float
    gradient: float
    """Norm of the objective's gradient at the end; near 0 where training converged."""
    log: list[dict[str, Any]]
    held_out: HeldOut | None
    """With the chosen penalty, on the held-out examples; None where no penalty was chosen."""


def train_head(training: Training, model: Any, examples: np.ndarray) -> HeadFit:
    """Train the head to convergence on the frozen values of layer L, in place; the model is put in eval mode.

    The objective is mean cross-entropy, without dropout, plus penalty / 2 * (sum of squared weights, and of squared changes
    of a norm's scale), over all examples at once. The penalty is chosen by stratified cross-validation on the training
    examples (`validation_folds`): the strongest whose cross-entropy is within one standard error of the least (Breiman et
    al. 1984), so that a lucky choice on few examples does not give an over-confident head. With equal tuning it is the one
    of three with the least cross-entropy on `validation_part`, or the default one before a search of the blocks' learning
    rate. The head is then trained with it on all of them, from the weights that it had in the first fold. The objective is minimised by L-BFGS; with
    `head_learning_rate` by Adam, the rate decaying to zero along a cosine, from the initial weights each time.

    Args:
        training: data, seed and configuration.
        model: a classifier.
        examples: numbers of the examples to train on.
    """
    encoder, config = training.encoder, training.config
    inputs = training.frozen[encoder.n_layers].batch(examples).to(config.device)
    labels = torch.as_tensor(training.labels[examples], device=config.device)
    equal = config.tuning == "equal"
    penalties, masks = PENALTIES, validation_folds(training.labels[examples], training.seed)
    if equal:
        held = validation_part(training.labels[examples], training.seed)
        penalties = tuple(UNVALIDATED * factor for factor in SEARCH_FACTORS)
        masks = [] if training.method.trains_blocks or not held.any() else [held]
    folds = [torch.as_tensor(held, device=config.device) for held in masks]
    body = model.base_model
    head = _Objective(model, head_parameter_names(model, encoder), config.head_learning_rate)
    setattr(model.eval(), model.base_model_prefix, _CachedBody(body, encoder.family, encoder.pooler).to(config.device))
    try:
        start = values = head.values()
        first_fold = dict.fromkeys(penalties, start)
        losses: dict[float, list[Tensor]] = {penalty: [] for penalty in penalties}
        right: dict[float, list[Tensor]] = {penalty: [] for penalty in penalties}
        steps = dict.fromkeys(penalties, 0)
        pairs = list(product(range(len(folds)), penalties))
        for fold, penalty in track(pairs, "choosing the head's penalty"):
            out = folds[fold]
            if penalty == penalties[0] or head.rate is not None:
                values = start
            steps[penalty] += len(head.minimise(values, inputs[~out], labels[~out], penalty, CHOOSING_STEPS))
            losses[penalty].append(head.losses(inputs[out], labels[out]))
            right[penalty].append(head.right(inputs[out], labels[out]))
            values = head.values()
            if fold == 0 and head.rate is None:
                first_fold[penalty] = values
        log, held_out = [], None
        chosen = UNVALIDATED
        if folds:
            validation = {penalty: torch.cat(parts) for penalty, parts in losses.items()}
            means = {penalty: float(loss.mean()) for penalty, loss in validation.items()}
            log = [head.entry(steps[p], means[p], "validation") for p in penalties]
            chosen = min(penalties, key=lambda p: means[p]) if equal else _strongest_within_one_error(validation)
            accuracy = float(torch.cat(right[chosen]).double().mean())
            held_out = HeldOut(accuracy, means[chosen], len(validation[chosen]), len(penalties))
        history = head.minimise(first_fold[chosen] if folds else start, inputs, labels, chosen, STEPS)
        every = max(1, len(history) // 20)
        log += [
            head.entry(step, loss, "train") for step, loss in enumerate(history, 1) if step == 1 or step % every == 0
        ]
        return HeadFit(chosen, head.gradient(), log, held_out)
    finally:
        setattr(model, model.base_model_prefix, body)


class _CachedBody(nn.Module):
    """Replaces the body: its input is the body's frozen output, which it passes through the parts that belong to the head."""

    def __init__(self, body: nn.Module, family: str, pooler: str) -> None:
        super().__init__()
        self.activation = FAMILIES[family].pooler_activation
        self.pooler: Any = body.pooler if pooler == "new" else None
        norm = FAMILIES[family].final_norm
        self.final_norm: Any = body.get_submodule(norm) if norm else None

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        rows = inputs_embeds
        if self.final_norm is not None:
            rows = rows * self.final_norm.weight
            if self.final_norm.bias is not None:
                rows = rows + self.final_norm.bias
        if self.pooler is None:
            pooled = rows[:, 0]
        elif self.activation is not None:
            pooled = self.activation(self.pooler(rows[:, 0]))
        else:
            pooled = self.pooler(rows)
        return BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=pooled)


def _strongest_within_one_error(losses: Mapping[float, Tensor]) -> float:
    """The strongest penalty whose mean loss exceeds the least by at most a standard error of their paired difference.

    Args:
        losses: held-out losses of the same examples by penalty, from weak to strong.
    """
    best = min(losses, key=lambda penalty: float(losses[penalty].mean()))
    differences = {penalty: loss - losses[best] for penalty, loss in losses.items()}
    return max(p for p, d in differences.items() if p == best or float(d.mean()) <= float(d.std()) / len(d) ** 0.5)


class _Objective:
    """Penalised cross-entropy of a head over all examples at once, minimised by Adam (with a rate) or L-BFGS (without)."""

    def __init__(self, model: nn.Module, names: frozenset[str], rate: float | None) -> None:
        self.model, self.rate = model, rate
        named = {name: parameter for name, parameter in model.named_parameters() if name in names}
        self.parameters = list(named.values())
        # A norm's scale could compensate for the penalty on the matrices, so it is penalised around its initial value.
        self.centers = [
            torch.zeros_like(p) if p.dim() > 1 else p.detach().clone() if name.endswith("norm.weight") else None
            for name, p in named.items()
        ]

    def values(self) -> list[Tensor]:
        """A copy of the parameters."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def minimise(self, start: list[Tensor], inputs: Tensor, labels: Tensor, penalty: float, steps: int) -> list[float]:
        """Cross-entropy, without the penalty, at each evaluation."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, start, strict=True):
                parameter.copy_(value)
        self.inputs, self.labels, self.penalty = inputs, labels, penalty
        self.history: list[float] = []
        if self.rate is None:
            self._lbfgs(steps)
        else:
            self._adam(self.rate)
        return self.history

    @torch.no_grad()
    def losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each example, in float64."""
        return nn.functional.cross_entropy(self._logits(inputs).cpu().double(), labels.cpu(), reduction="none")

    @torch.no_grad()
    def right(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Whether the most probable class of each example is the true one."""
        return (self._logits(inputs).argmax(dim=1) == labels).cpu()

    def gradient(self) -> float:
        """Norm of the gradient at the present parameters."""
        self._evaluate()
        return float(torch.stack([p.grad.norm() for p in self.parameters if p.grad is not None]).norm())

    def entry(self, step: int, loss: float, split: str) -> dict[str, Any]:
        """A row of the training log."""
        rate = np.nan if self.rate is None else self.rate
        return {"step": step, "epoch": float(step), "loss": loss, "learning_rate": rate, "split": split}

    def _logits(self, inputs: Tensor) -> Tensor:
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        return self.model(inputs_embeds=inputs, attention_mask=mask).logits

    def _evaluate(self) -> Tensor:
        """The objective; its gradient is left on the parameters."""
        for parameter in self.parameters:
            parameter.grad = None
        entropy = nn.functional.cross_entropy(self._logits(self.inputs), self.labels)
        centered = zip(self.parameters, self.centers, strict=True)
        squares = [(parameter - center).square().sum() for parameter, center in centered if center is not None]
        total = entropy + self.penalty / 2 * torch.stack(squares).sum()
        total.backward()
        self.history.append(float(entropy.detach()))
        return total

    def _lbfgs(self, steps: int) -> None:
        """At most so many iterations. A line search that ends at a kink (of a ReLU) is restarted as long as that helps."""
        before, done = np.inf, 0
        while done < steps and (now := float(self._evaluate().detach())) < before - 1e-6:
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
            optimizer.step(self._evaluate)
            done += optimizer.state[self.parameters[0]]["n_iter"]

    def _adam(self, rate: float) -> None:
        optimizer = torch.optim.Adam(self.parameters, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            self._evaluate()
            optimizer.step()
            schedule.step()
