"""The configuration of an adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from layerprobe.pooled import Pooling


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
    def resolved_precision(self) -> Literal["bf16", "tf32", "fp32"]:
        """Precision of the blocks' training on this device."""
        from layerprobe.adaptation._trained import precision

        return precision(self.device, self.precision)
