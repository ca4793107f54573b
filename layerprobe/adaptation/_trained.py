"""In which modules dropout is active during training, and the precision of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from layerprobe.errors import ArgumentError
from layerprobe.layers import blocks


def precision(device: str, choice: str = "auto") -> Literal["bf16", "fp32"]:
    """Precision of training: the chosen one; `auto` is bf16 autocast where the processor has instructions for it.

    Frozen blocks, whose values are computed once, and heads on top of them are computed in float32 everywhere.

    Raises:
        ArgumentError: if the choice is unknown or the device cannot train in bf16.
    """
    if choice not in ("auto", "bf16", "fp32"):
        raise ArgumentError(f"{{precision}} is {choice!r}; it is auto, bf16 or fp32.", "precision")
    if choice == "bf16" and (device == "mps" or (device == "cuda" and not torch.cuda.is_bf16_supported())):
        raise ArgumentError(f"{{precision}} is bf16, which the device {device} cannot train in; use fp32.", "precision")
    if choice != "auto":
        return "bf16" if choice == "bf16" else "fp32"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # Without these instructions bf16 on a CPU is emulated, and slower than float32.
    return "bf16" if device == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


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
