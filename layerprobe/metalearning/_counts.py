"""Counts of gradients, second-order products and passes, taken by hooks while the inner and outer loop run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from layerprobe.metalearning._learner import Learner


@dataclass
class Counts:
    """What one or more inner and outer loops computed.

    Attributes:
        inner_gradients: gradients of an inner loss.
        outer_gradients: gradients of a query loss.
        second_order_products: reverse passes through an inner gradient; each gives a Hessian-vector product of the adapted
            parameters and the mixed product of the others.
        forward_passes: forward passes of each part, by its name.
        backward_passes: backward passes of each part, by its name.
    """

    inner_gradients: int
    outer_gradients: int
    second_order_products: int
    forward_passes: dict[str, int]
    backward_passes: dict[str, int]

    def inner(self, gradients: Sequence[Tensor], second_order: bool) -> tuple[Tensor, ...]:
        """Count an inner gradient, and later the reverse pass through it."""
        self.inner_gradients += 1
        if not second_order:
            return tuple(gradients)
        # One node for all of them, so that one reverse pass counts once.
        return _Mark.apply(self, *gradients)


@contextmanager
def counting(learner: Learner) -> Iterator[Counts]:
    """Within this context, count the passes of a learner; give the counts to `meta_gradient` or `adapt`.

    A part's backward passes are counted where its output receives a gradient.
    """
    counts = Counts(0, 0, 0, dict.fromkeys(learner.names, 0), dict.fromkeys(learner.names, 0))
    handles: list[RemovableHandle] = []

    def hook(name: str) -> Any:
        def after(module: torch.nn.Module, args: Any, output: Any) -> Any:
            counts.forward_passes[name] += 1
            value = first_tensor(output)
            if value is not None and value.requires_grad:

                def received(gradient: Tensor) -> None:
                    counts.backward_passes[name] += 1

                value.register_hook(received)

        return after

    try:
        for name, part in zip(learner.names, learner.parts, strict=True):
            handles.append(part.register_forward_hook(hook(name)))
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(value: Any) -> Tensor | None:
    """The tensor of a part's output: itself, or its attribute `hidden`."""
    return value if isinstance(value, Tensor) else getattr(value, "hidden", None)


class _Mark(torch.autograd.Function):
    """The identity; counts the reverse passes through it."""

    @staticmethod
    def forward(ctx: Any, counts: Counts, *gradients: Tensor) -> tuple[Tensor, ...]:
        ctx.counts = counts
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        ctx.counts.second_order_products += 1
        return (None, *gradients)
