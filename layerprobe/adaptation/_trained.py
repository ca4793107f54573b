"""In which modules dropout is active during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from layerprobe.layers import blocks


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
