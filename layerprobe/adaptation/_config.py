"""The configuration of an adaptation, and the precision that it is computed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from layerprobe.device import has_bf16, has_tf32
from layerprobe.errors import ArgumentError

if TYPE_CHECKING:
    from layerprobe.pooled import Pooling

Precision = Literal["bf16", "tf32", "fp32"]


@dataclass(frozen=True)
class AdaptConfig:
    """How models are adapted, the same for all methods and seeds that are to be compared."""

    epochs: int = 2
    """Passes over the training examples; the head alone is trained to convergence instead."""
    batch_size: int = 16
    """Examples per training batch."""
    learning_rate: float = 5e-5
    """Peak learning rate of methods without a default of their own (`bitfit` and `lora` have one)."""
    head_learning_rate: float | None = None
    """Learning rate of Adam for the head of `head` and `lp-ft`. None trains it by L-BFGS, which needs none."""
    learning_rates: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Learning rates that take precedence, by method (`lora:8@4-6`) or by the part before its colon (`lora`)."""
    search: bool = False
    """Whether to choose the learning rate of the blocks among a third of it, itself, and three times it."""
    tuning: Literal["default", "equal"] = "default"
    """How much is chosen on held-out training examples. `default`: the penalty of a head, and with `search` the learning rate
    of the blocks. `equal`: one setting of every method (the learning rate of its blocks, else the penalty of its head) among
    a third of its default value, itself, and three times it, by the cross-entropy on one and the same part."""
    pooling: Pooling = "model"
    """The classification head: the family's own (`model`), or one linear layer on the mean of the tokens (`mean`) or on the
    first token (`cls`)."""
    checkpoints: int | None = None
    """Number of intermediate checkpoints of the blocks' training, evenly spaced before its end. None keeps none."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """A checkpoint's label -> the data's, for checkpoints whose labels have other names."""
    max_length: int = 128
    """Tokens per example, special ones included; longer examples are truncated."""
    precision: Literal["auto", "bf16", "tf32", "fp32"] = "auto"
    """Precision of the blocks' training; `auto` is bf16 where the processor has instructions for it, else fp32. `tf32`
    is float32 whose matrix products round their factors to 10 bits, on NVIDIA GPUs."""
    device: str = "cpu"
    """Where to compute."""

    @property
    def searches_rates(self) -> bool:
        """Whether learning rates of blocks are chosen on held-out examples."""
        return self.search or self.tuning == "equal"

    @property
    def resolved_precision(self) -> Precision:
        """Precision of the blocks' training on this device."""
        return precision(self.device, self.precision)


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
    if choice in ("bf16", "tf32", "fp32"):
        return cast("Precision", choice)  # the device was not asked, so that the keys of finished tasks need no torch
    # Without instructions for it, bf16 is emulated, and slower than float32.
    return "bf16" if has_bf16(device) else "fp32"
