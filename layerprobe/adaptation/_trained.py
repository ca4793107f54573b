"""In which modules dropout is active during training, and the precision of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from torch import nn

from layerprobe.device import has_bf16, has_tf32
from layerprobe.errors import ArgumentError
from layerprobe.layers import blocks

Precision = Literal["bf16", "tf32", "fp32"]


def precision(device: str, choice: str = "auto") -> Precision:
    """Precision of training: the chosen one; `auto` is bf16 autocast where the processor has instructions for it.

    Frozen blocks, whose values are computed once, and heads on top of them are computed in float32 everywhere, as is
    everything that is measured; `tf32` rounds the factors of matrix products in the training of blocks alone.

    Raises:
        ArgumentError: if the choice is unknown or the device cannot train in it.
    """
    if choice not in ("auto", "bf16", "tf32", "fp32"):
        raise ArgumentError(f"{{precision}} is {choice!r}; it is auto, bf16, tf32 or fp32.", "precision")
    if choice == "bf16" and not (device == "cpu" or has_bf16(device)):
        raise ArgumentError(f"{{precision}} is bf16, which the device {device} cannot train in; use fp32.", "precision")
    if choice == "tf32" and not has_tf32(device):
        raise ArgumentError(
            f"{{precision}} is tf32, which the device {device} does not compute in (NVIDIA GPUs do, from compute capability 8 "
            "on); use fp32.",
            "precision",
        )
    # Without these instructions bf16 is emulated, and slower than float32.
    resolved: dict[str, Precision] = {"bf16": "bf16", "tf32": "tf32", "fp32": "fp32"}
    return resolved.get(choice, "bf16" if has_bf16(device) else "fp32")


@contextmanager
def frozen_in_eval(model: nn.Module, layer: int | None) -> Iterator[None]:
    """Keep everything up to a frozen layer in eval mode, although the Trainer calls `train()` on the whole model.

    Dropout there would make a frozen layer differ from the base model's in every step. Above it dropout is active
    everywhere, also in modules whose own weights are not trained.
    """
    frozen: list[nn.Module] = []
    if layer is not None:
        above = {id(module) for block in blocks(model)[layer:] for module in block.modules()}
        frozen = [
            module
            for module in model.modules()
            if id(module) not in above
            and (parameters := list(module.parameters()))
            and not any(parameter.requires_grad for parameter in parameters)
        ]
    for module in frozen:
        module.eval()
        setattr(module, "train", partial(_stay, module))  # noqa: B010
    try:
        yield
    finally:
        for module in frozen:
            del module.train


def _stay(module: nn.Module, mode: bool = True) -> Any:
    """`train()` of a frozen module: it stays in eval mode."""
    return module
