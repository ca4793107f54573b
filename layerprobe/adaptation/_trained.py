"""Which parameters a method trains, in which modules dropout runs, and in what precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from layerprobe.adaptation._methods import Method, frozen_layer
from layerprobe.encoder import Encoder, head_parameter_names
from layerprobe.errors import ArgumentError, StudyError
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


def trained_parameter_names(model: nn.Module, encoder: Encoder, method: Method) -> frozenset[str]:
    """Parameters that a method trains, of a classifier (for `lora`: of one that has its additions).

    `top:k` trains everything above the output of block L - k: the top k blocks, a pooler, and the head.

    Raises:
        StudyError: if `bitfit` finds no bias term in the blocks.
    """
    parameters = dict(model.named_parameters())
    if method.kind in ("full", "lp-ft", "shuffled-labels"):
        return frozenset(parameters)
    if method.kind == "checkpoint":
        return frozenset()
    above = head_parameter_names(model, encoder)
    if method.kind == "head":
        return above
    if method.kind == "lora":
        return above | {name for name in parameters if ".lora_" in name}
    if method.kind == "bitfit":
        inside = {id(p) for block in blocks(model) for p in block.parameters()}
        biases = {name for name in parameters if name.endswith("bias")}
        if not any(id(parameters[name]) in inside for name in biases):
            raise StudyError(
                f"The method 'bitfit' trains bias terms, but the blocks of {encoder.name} ({encoder.family}) have none; "
                "use lora:r or top:k."
            )
        return above | biases
    assert method.k is not None
    top = {id(p) for block in blocks(model)[len(blocks(model)) - method.k :] for p in block.parameters()}
    pooler = f"{model.base_model_prefix}.pooler."
    return above | {name for name, p in parameters.items() if id(p) in top or name.startswith(pooler)}


@contextmanager
def frozen_in_eval(model: nn.Module, encoder: Encoder, method: Method) -> Iterator[None]:
    """Keep all that stands below the lowest trained block in eval mode, although the Trainer calls `train()` on the whole.

    Dropout there would make a frozen layer differ from the pretrained one's in every step. Above it dropout runs
    everywhere, also in modules whose own weights stay as they are.
    """
    layer = frozen_layer(method, encoder.n_layers)
    frozen: list[nn.Module] = []
    if layer is not None:
        stack = blocks(model)
        trained = {id(module) for block in stack[layer:] for module in block.modules()}
        frozen = [
            module
            for module in model.modules()
            if id(module) not in trained
            and (own := list(module.parameters()))
            and not any(parameter.requires_grad for parameter in own)
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
