"""The outer loop: Adam on the mean meta-gradient over tasks, validated, stopped early, and resumable."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from layerprobe.errors import ArgumentError
from layerprobe.files import is_intact, remove_checked, write_atomically, write_checked
from layerprobe.metalearning._evaluate import evaluate_tasks
from layerprobe.metalearning._inner import InnerConfig, MetaGradient, Task, diverged, meta_gradient
from layerprobe.metalearning._learner import HEAD, Learner
from layerprobe.progress import report

CHECKPOINT = "meta-training.safetensors"
RATE = "rate of "


@dataclass(frozen=True)
class OuterConfig:
    """The outer loop."""

    depth: int | None = None
    """Number of top blocks that it trains besides the head; None for everything."""
    steps: int = 100
    """Largest number of outer steps."""
    rate: float = 1e-4
    """Adam's rate."""
    tasks_per_step: int = 4
    """Episodes whose meta-gradients are averaged."""
    validate_every: int = 10
    """Outer steps between two validations."""
    validation_tasks: int = 20
    """Episodes per validation; the same every time."""
    patience: int | None = None
    """Validations without a lower loss after which training stops; None never stops early."""
    keep: tuple[int, ...] = ()
    """Outer steps after which the trained parameters are written to `kept_file(folder, step)`. Training does not stop early
    before the last of them."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("tasks_per_step", 1), ("validate_every", 1), ("validation_tasks", 1)):
            if getattr(self, name) < least:
                raise ArgumentError(f"{{{name}}} is {getattr(self, name)}; it must be at least {least}.", name)
        if not (0 < self.rate < float("inf")):
            raise ArgumentError(f"{{rate}} is {self.rate:g}; it must be above 0 and finite.", "rate")
        if self.depth is not None and self.depth < 0:
            raise ArgumentError(f"{{depth}} is {self.depth}; it must be 0 or more, or None for everything.", "depth")
        if not all(1 <= step <= self.steps for step in self.keep):
            raise ArgumentError(
                f"{{keep}} is {list(self.keep)}; its steps must be 1 to {self.steps} ({{steps}}).", "keep", "steps"
            )


@dataclass(frozen=True)
class OuterStep:
    """One outer step.

    Attributes:
        step: its number, from 1; 0 for the validation before the first.
        loss: mean query loss of its tasks after the inner loop; None at step 0.
        accuracy: mean query accuracy of its tasks; None at step 0.
        gradient_norm: norm of the mean meta-gradient; None at step 0.
        head_gradient_norm: norm of its part by the head; None at step 0.
        validation_loss: mean query loss on the validation episodes, None between validations.
        validation_accuracy: mean query accuracy on them.
        seconds: time since the start of training, validations excluded.
    """

    step: int
    loss: float | None
    accuracy: float | None
    gradient_norm: float | None
    head_gradient_norm: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class MetaTrained:
    """The result of meta-training.

    Attributes:
        parameters: those of the step with the lowest validation loss.
        rates: learned inner rates by part; None unless they are learned.
        best_step: the step they are from; 0 if no step improved the validation loss.
        log: one entry per outer step.
    """

    parameters: Mapping[str, Tensor]
    rates: Mapping[str, Tensor] | None
    best_step: int
    log: tuple[OuterStep, ...]


Tasks = Callable[[int], Task]
"""The episode of a number, the same every time."""


def meta_train(
    learner: Learner,
    tasks: Tasks,
    validation: Tasks,
    inner: InnerConfig,
    outer: OuterConfig,
    *,
    folder: str | Path | None = None,
) -> MetaTrained:
    """Learn initial parameters from which the inner loop adapts well.

    Args:
        learner: the model; its current parameters are the start.
        tasks: meta-training episodes; numbers from 0 are used once.
        validation: meta-validation episodes.
        inner: the inner loop.
        outer: the outer loop.
        folder: where the state is kept after each validation, so that an interrupted training resumes and ends with the same
            parameters; None keeps nothing.

    Raises:
        ArgumentError: if the inner loop adapts blocks that the outer loop does not train, or diverges.
    """
    check_depths(inner, outer, learner.n_layers)
    loop = Outer(learner, inner, outer)

    def gradient(task: Task) -> MetaGradient:
        return meta_gradient(learner, loop.parameters, task, inner, outer=list(loop.trained), rates=loop.rates)

    return loop.train(gradient, tasks, validation, folder, "meta-training")


def check_depths(inner: InnerConfig, outer: OuterConfig, n_layers: int) -> None:
    """Whether the outer loop trains what the inner loop adapts.

    Raises:
        ArgumentError: if not, naming `depth` and `outer`.
    """
    inside = inner.blocks(n_layers)
    if outer.depth is not None and outer.depth > n_layers:
        raise ArgumentError(f"{{outer}} is top:{outer.depth}, but the model has {n_layers} blocks; lower it.", "outer")
    if outer.depth is not None and (inside is None or inside > outer.depth):
        raise ArgumentError(
            f"{{depth}} is {inner.depth}, but the outer loop trains only the top {outer.depth} blocks ({{outer}}); the inner loop "
            "can adapt no more than the outer loop trains: raise {outer}, or lower {depth}.",
            *("depth", "outer"),
        )


class Outer:
    """The state of meta-training, or of the training of a baseline.

    Args:
        learner: the model; its current parameters are the start.
        inner: the inner loop, with which validation episodes are read.
        outer: the outer loop.
        further: further parameters to train, such as a head of their own; validation episodes are then read with the
            learner's initial head.
    """

    def __init__(
        self, learner: Learner, inner: InnerConfig, outer: OuterConfig, further: Mapping[str, Tensor] | None = None
    ) -> None:
        self.learner, self.inner, self.outer, self.further = learner, inner, outer, further
        self.parameters = dict(learner.parameters())
        names = [*learner.names_at(outer.depth), *(HEAD if further is None else ())]
        for name in names:
            self.parameters[name] = self.parameters[name].clone().requires_grad_()
        self.rates: dict[str, Tensor] | None = None
        if inner.learned_rates and further is None:
            like = self.parameters[HEAD[0]]
            adapted = sorted({name.partition(".")[0] for name in inner.names(learner)})
            self.rates = {part: like.new_tensor(inner.rate).requires_grad_() for part in adapted}
        self.trained = {name: self.parameters[name] for name in names}
        self.trained |= {name: value.clone().requires_grad_() for name, value in (further or {}).items()}
        self.trained |= {f"{RATE}{part}": rate for part, rate in (self.rates or {}).items()}
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=outer.rate)
        self.log: list[OuterStep] = []
        self.seconds = 0.0
        self.best_step, self.best_loss, self.unimproved = 0, float("inf"), 0
        self.best = self._copy()

    @property
    def patience_spent(self) -> bool:
        return self.outer.patience is not None and self.unimproved >= self.outer.patience

    def train(
        self,
        gradient: Callable[[Task], MetaGradient],
        tasks: Tasks,
        validation: Tasks,
        folder: str | Path | None,
        label: str,
    ) -> MetaTrained:
        """Take outer steps along the mean gradient over tasks until the steps or the patience are spent."""
        if self.outer.keep and folder is None:
            raise ArgumentError("{keep} needs {folder}, where the parameters are written.", "keep", "folder")
        path = None if folder is None else Path(folder) / CHECKPOINT
        first = self.resume(path) if path is not None else None
        if first is None:
            self.validate(validation, None)
            first = 0
        for step in range(first + 1, self.outer.steps + 1):
            if self.patience_spent and step > max(self.outer.keep, default=0):
                break
            start = time.perf_counter()
            entry = self.advance(step, tasks, gradient)
            self.seconds += time.perf_counter() - start
            if path is not None and step in self.outer.keep:
                self.keep(kept_file(path.parent, step))
            if step % self.outer.validate_every == 0 or step == self.outer.steps:
                self.validate(validation, entry)
                if path is not None:
                    self.save(path)
            else:
                self.log.append(
                    OuterStep(**entry, validation_loss=None, validation_accuracy=None, seconds=self.seconds)
                )
            speed = step * self.outer.tasks_per_step / max(self.seconds, 1e-9)
            now = (
                f"{label}: loss {entry['loss']:.3f}, accuracy {entry['accuracy']:.2f}, {speed:.1f} episodes per second"
            )
            report(now, step, self.outer.steps)
        if path is not None:
            remove_checked(path)
        return self.result()

    def advance(self, step: int, tasks: Tasks, gradient: Callable[[Task], MetaGradient]) -> dict[str, Any]:
        """One outer step; its entry of the log without validation."""
        count = self.outer.tasks_per_step
        total = {name: torch.zeros_like(value) for name, value in self.trained.items()}
        losses, accuracies = [], []
        for number in range((step - 1) * count, step * count):
            result = gradient(tasks(number))
            if diverged(result.loss):
                raise ArgumentError(
                    f"{{rate}} of the outer loop is {self.outer.rate:g}, with which the query loss diverges (at outer step "
                    f"{step}); try {self.outer.rate / 10:g}.",
                    "rate",
                )
            for name, value in result.gradients.items():
                total[name] += value / count
            losses.append(result.loss)
            accuracies.append(result.accuracy)
        for name, value in self.trained.items():
            value.grad = total[name]
        self.optimizer.step()
        if self.rates is not None:
            with torch.no_grad():
                for rate in self.rates.values():
                    rate.clamp_(min=0)
        squares = {name: float((value.double() ** 2).sum()) for name, value in total.items()}
        heads = (*HEAD, *(self.further or {}))
        return {
            "step": step,
            "loss": float(np.mean(losses)),
            "accuracy": float(np.mean(accuracies)),
            "gradient_norm": sum(value for name, value in squares.items() if not name.startswith(RATE)) ** 0.5,
            "head_gradient_norm": sum(squares.get(name, 0.0) for name in heads) ** 0.5,
        }

    def validate(self, validation: Tasks, entry: Mapping[str, Any] | None) -> None:
        """Measure the validation episodes, keep the best parameters, and complete the step's entry."""
        fixed = {name: value.detach() for name, value in self.parameters.items()}
        rates = None if self.rates is None else {part: rate.detach() for part, rate in self.rates.items()}
        tasks = (validation(number) for number in range(self.outer.validation_tasks))
        measured = evaluate_tasks(self.learner, fixed, tasks, self.inner, rates)
        loss, accuracy = (float(value) for value in np.mean(measured, axis=0))
        if loss < self.best_loss:
            self.best_loss, self.unimproved, self.best = loss, 0, self._copy()
            self.best_step = entry["step"] if entry else 0
        else:
            self.unimproved += 1
        empty = {"step": 0, "loss": None, "accuracy": None, "gradient_norm": None, "head_gradient_norm": None}
        self.log.append(
            OuterStep(**(entry or empty), validation_loss=loss, validation_accuracy=accuracy, seconds=self.seconds)
        )

    def result(self) -> MetaTrained:
        parameters = {name: value.detach() for name, value in self.parameters.items()}
        parameters |= {name: value for name, value in self.best.items() if name in parameters}
        rates = None if self.rates is None else {part: self.best[f"{RATE}{part}"] for part in self.rates}
        return MetaTrained(parameters, rates, self.best_step, tuple(self.log))

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.trained.items()}

    # Resuming ----------------------------------------------------------------------------------------------------------

    @property
    def _key(self) -> str:
        """What must be equal for a state to be continued: configuration, and the parameters that training started from."""
        start = hashlib.sha256(json.dumps([asdict(self.inner), asdict(self.outer)], sort_keys=True).encode())
        for name, value in sorted(self.learner.parameters().items()):
            start.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return start.hexdigest()

    def keep(self, path: Path) -> None:
        """Write the trained parameters of this step."""
        tensors = {name: value.detach().contiguous().clone() for name, value in self.trained.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: save_file(tensors, temporary))

    def save(self, path: Path) -> None:
        tensors = {f"current.{name}": value.detach() for name, value in self.trained.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for name, value in self.trained.items():
            for key, moment in self.optimizer.state[value].items():
                tensors[f"adam.{key}.{name}"] = moment
        state = {
            "key": self._key,
            "log": [asdict(entry) for entry in self.log],
            "seconds": self.seconds,
            "best": [self.best_step, self.best_loss, self.unimproved],
        }
        tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checked(path, lambda temporary: save_file(tensors, temporary, {"state": json.dumps(state)}))

    def resume(self, path: Path) -> int | None:
        """Restore the state of an interrupted training of the same configuration; its last step, or None if there is none."""
        if not is_intact(path):
            # Missing or damaged: training starts again and replaces it.
            return None
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["key"] != self._key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(tensors[f"current.{name}"])
                self.best[name] = tensors[f"best.{name}"].to(value.device)
                self.optimizer.state[value] = {
                    key: tensors[f"adam.{key}.{name}"].to("cpu" if key == "step" else value.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.log = [OuterStep(**entry) for entry in state["log"]]
        self.seconds = state["seconds"]
        self.best_step, self.best_loss, self.unimproved = state["best"]
        return self.log[-1].step


def kept_file(folder: str | Path, step: int) -> Path:
    """Where the parameters after an outer step of `OuterConfig.keep` are: the trained ones, and learned rates as `rate of <part>`."""
    return Path(folder) / f"step-{step}.safetensors"
