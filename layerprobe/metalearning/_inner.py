"""The inner loop: a few gradient steps on the support examples of one task, and the meta-gradient through them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from layerprobe.errors import ArgumentError
from layerprobe.metalearning._counts import Counts
from layerprobe.metalearning._learner import HEAD, Learner, Parameters, State

ALIASES = {"anil": "head", "maml": "full", "boil": "body"}
DIVERGED = 1e4
"""An inner loss above this is called divergent."""


@dataclass(frozen=True)
class InnerConfig:
    """The inner loop: which parameters it adapts, and how."""

    depth: str = "head"
    """`head` (ANIL, Raghu et al. 2020), `top:k` (head and top k blocks), `full` (MAML, Finn et al. 2017) or `body` (all but the
    head: BOIL, Oh et al. 2021); the names of the algorithms are accepted."""
    steps: int = 5
    """Number of gradient steps, at least 1."""
    rate: float = 0.1
    """Inner rate, above 0."""
    first_order: bool = False
    """Whether the meta-gradient ignores second derivatives."""
    l2: float = 0.0
    """Adds l2/2 |w|^2 of the head's weights and bias to the inner loss, which makes it strongly convex in the head."""
    learned_rates: bool = False
    """Whether each part and the head have a rate of their own, all starting at `rate`, that the outer loop learns."""

    def __post_init__(self) -> None:
        depth = ALIASES.get(self.depth.lower(), self.depth)
        object.__setattr__(self, "depth", depth)
        if depth not in ("head", "full", "body") and not re.fullmatch(r"top:[1-9]\d*", depth):
            raise ArgumentError(
                f"{{depth}} is {self.depth!r}; it is head (ANIL), top:k such as top:2, full (MAML) or body (BOIL).",
                "depth",
            )
        if self.steps < 1:
            raise ArgumentError(
                f"{{steps}} is {self.steps}; the inner loop takes at least 1 step. The reader without one is `nil`.",
                "steps",
            )
        if not (0 < self.rate < float("inf")):
            raise ArgumentError(f"{{rate}} is {self.rate:g}; it must be above 0 and finite.", "rate")
        if not (0 <= self.l2 < float("inf")):
            raise ArgumentError(f"{{l2}} is {self.l2:g}; it must be 0 or more and finite.", "l2")

    @property
    def adapts_head(self) -> bool:
        return self.depth != "body"

    def blocks(self, n_layers: int) -> int | None:
        """Number of top blocks that it adapts; None for the whole body, embeddings included.

        Raises:
            ArgumentError: if the model has fewer blocks.
        """
        if self.depth in ("full", "body"):
            return None
        k = 0 if self.depth == "head" else int(self.depth.partition(":")[2])
        if k > n_layers:
            raise ArgumentError(
                f"{{depth}} is {self.depth}, but the model has {n_layers} blocks; lower k, or use full.", "depth"
            )
        return k

    def level(self, learner: Learner) -> int:
        """Number of parts that it leaves unchanged."""
        k = self.blocks(learner.n_layers)
        if k is None:
            return 0
        return len(learner.parts) if k == 0 else learner.n_layers + 1 - k

    def names(self, learner: Learner) -> tuple[str, ...]:
        """Names of the parameters that it adapts."""
        return (*learner.names_at(self.blocks(learner.n_layers)), *(HEAD if self.adapts_head else ()))


@dataclass(frozen=True)
class Task:
    """The examples of one episode. Labels are class positions within the episode.

    Attributes:
        support: input of the examples to adapt on.
        support_labels: their classes.
        query: input of the examples to score.
        query_labels: their classes.
    """

    support: State
    support_labels: Int[Tensor, " support"]
    query: State
    query_labels: Int[Tensor, " query"]


@dataclass(frozen=True)
class Adapted:
    """The result of an inner loop.

    Attributes:
        parameters: all parameters; only those that the inner loop adapts differ from the initial ones.
        losses: the inner loss before each step, a regularisation included.
    """

    parameters: Mapping[str, Tensor]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class MetaGradient:
    """The query loss of one task after its inner loop, and its derivatives through the inner loop.

    Attributes:
        loss: mean cross-entropy over the query examples.
        accuracy: share of query examples that are classified correctly.
        gradients: derivative by each parameter of the outer loop.
    """

    loss: float
    accuracy: float
    gradients: Mapping[str, Tensor]


def adapt(
    learner: Learner,
    parameters: Parameters,
    support: State,
    labels: Int[Tensor, " support"],
    config: InnerConfig,
    *,
    differentiable: bool = False,
    rates: Mapping[str, Tensor] | None = None,
    counts: Counts | None = None,
) -> Adapted:
    """Adapt parameters to the support examples of one task by gradient descent.

    The part of the body below the adapted blocks is run once, whatever the number of steps.

    Args:
        learner: the model.
        parameters: initial parameters.
        support: input of the support examples.
        labels: their classes.
        config: which parameters are adapted, and how.
        differentiable: whether the adapted parameters can be differentiated by the initial ones.
        rates: rate of each part and of `head`, for learned rates.
        counts: receives the number of passes and gradients.

    Raises:
        ArgumentError: if the inner loss diverges: which step, and a rate that does not.
    """
    level = config.level(learner)
    if support.level > level:
        raise ArgumentError(
            f"{{depth}} is {config.depth}, but the input starts above part {support.level} of the model, whose value was cached; "
            "cache a lower part, or adapt fewer blocks.",
            "depth",
        )
    with torch.set_grad_enabled(differentiable):
        lower = learner.apply(parameters, support, to=level)
    adapted, losses = _descend(learner, parameters, lower, labels, config, differentiable, rates, counts)
    if diverged(losses[-1]):
        _refuse_rate(learner, parameters, lower, labels, config, losses)
    return Adapted(adapted, losses)


def meta_gradient(
    learner: Learner,
    parameters: Parameters,
    task: Task,
    config: InnerConfig,
    *,
    outer: Sequence[str],
    rates: Mapping[str, Tensor] | None = None,
    counts: Counts | None = None,
) -> MetaGradient:
    """The query loss after the inner loop and its derivatives by the initial parameters, through the inner loop.

    Args:
        learner: the model.
        parameters: initial parameters; those of `outer` require a gradient.
        task: the examples.
        config: the inner loop.
        outer: names of the parameters (`rate of <part>` for rates) to differentiate by.
        rates: rate of each part and of `head`, for learned rates.
        counts: receives the number of passes and gradients.

    Raises:
        ArgumentError: if the inner loss diverges.
    """
    options = {"differentiable": True, "rates": rates, "counts": counts}
    adapted = adapt(learner, parameters, task.support, task.support_labels, config, **options)  # type: ignore[arg-type]
    logits = learner.logits(adapted.parameters, task.query)
    loss = nn.functional.cross_entropy(logits, task.query_labels)
    if counts is not None:
        counts.outer_gradients += 1
    wanted = {**parameters, **{f"rate of {name}": rate for name, rate in (rates or {}).items()}}
    gradients = torch.autograd.grad(loss, [wanted[name] for name in outer], allow_unused=True)
    filled = {
        name: torch.zeros_like(wanted[name]) if gradient is None else gradient
        for name, gradient in zip(outer, gradients, strict=True)
    }
    accuracy = (logits.detach().argmax(1) == task.query_labels).double().mean()
    return MetaGradient(float(loss.detach()), float(accuracy), filled)


def adapt_heads(
    vectors: Float[Tensor, "tasks support width"],
    labels: Int[Tensor, "tasks support"],
    head: tuple[Float[Tensor, "ways width"], Float[Tensor, " ways"]],
    config: InnerConfig,
) -> tuple[Float[Tensor, "tasks ways width"], Float[Tensor, "tasks ways"]]:
    """The inner loop of `head` for many tasks at once, on vectors of a body that does not change.

    Args:
        vectors: support vectors of each task.
        labels: their classes.
        head: initial weights and bias.
        config: number of steps, rate and l2.

    Returns:
        Weights and bias of each task.

    Raises:
        ArgumentError: if the inner loss of a task diverges.
    """
    tasks, n, _ = vectors.shape
    weight, bias = (value.detach().expand(tasks, *value.shape).clone() for value in head)
    targets = nn.functional.one_hot(labels, head[1].shape[0]).to(vectors.dtype)
    for step in range(1, config.steps + 1):
        logarithms = torch.baddbmm(bias[:, None], vectors, weight.transpose(1, 2)).log_softmax(-1)
        losses = -(logarithms * targets).sum((1, 2)) / n
        losses = losses + config.l2 / 2 * ((weight**2).sum((1, 2)) + (bias**2).sum(1))
        if diverged(float(losses.max())):
            raise ArgumentError(
                f"{{rate}} is {config.rate:g}, with which the inner loss diverges (at step {step} of {config.steps}); try "
                f"{config.rate / 10:g}.",
                "rate",
            )
        slope = (logarithms.exp() - targets) / n
        weight = weight - config.rate * (slope.transpose(1, 2) @ vectors + config.l2 * weight)
        bias = bias - config.rate * (slope.sum(1) + config.l2 * bias)
    return weight, bias


def diverged(loss: float) -> bool:
    return not loss < DIVERGED


def _descend(
    learner: Learner,
    parameters: Parameters,
    lower: State,
    labels: Tensor,
    config: InnerConfig,
    differentiable: bool,
    rates: Mapping[str, Tensor] | None,
    counts: Counts | None,
) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """The adapted parameters and the losses; ends early once the loss diverges."""
    names = config.names(learner)
    second_order = differentiable and not config.first_order
    current = dict(parameters)
    if not differentiable:
        current |= {name: parameters[name].detach() for name in names}
    losses: list[float] = []
    for _ in range(config.steps):
        with torch.enable_grad():
            # Leaves of their own, unless the history of earlier steps is to be kept.
            leaves = {
                name: current[name]
                if differentiable and current[name].requires_grad
                else current[name].detach().requires_grad_()
                for name in names
            }
            loss = nn.functional.cross_entropy(learner.logits({**current, **leaves}, lower), labels)
            if config.l2 and config.adapts_head:
                loss = loss + config.l2 / 2 * sum((leaves[name] ** 2).sum() for name in HEAD)
            gradients = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=second_order, materialize_grads=True
            )
        if counts is not None:
            gradients = counts.inner(gradients, second_order)
        losses.append(float(loss.detach()))
        for name, leaf, gradient in zip(names, leaves.values(), gradients, strict=True):
            rate = config.rate if rates is None else rates[name.partition(".")[0]]
            with torch.set_grad_enabled(differentiable):
                current[name] = (leaf if differentiable else leaf.detach()) - rate * gradient
        if diverged(losses[-1]):
            break
    return current, tuple(losses)


def _refuse_rate(
    learner: Learner, parameters: Parameters, lower: State, labels: Tensor, config: InnerConfig, losses: Sequence[float]
) -> None:
    with torch.no_grad():
        fixed = State(lower.level, lower.value)
    rate = config.rate
    for _ in range(40):
        rate /= 2
        _, tried = _descend(learner, parameters, fixed, labels, replace(config, rate=rate), False, None, None)
        if not diverged(tried[-1]) and tried[-1] <= tried[0]:
            break
    raise ArgumentError(
        f"{{rate}} is {config.rate:g}, with which the inner loss diverges (at step {len(losses)} of {config.steps}); "
        f"{rate:.2g} does not diverge on this task.",
        "rate",
    )
