"""The methods that train parameters of the model itself, and the one that trains nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from layerprobe.adaptation.methods._method import Method, Phase
from layerprobe.errors import ArgumentError
from layerprobe.files import given_path

if TYPE_CHECKING:
    import numpy as np

    from layerprobe.encoder import Encoder


@dataclass(frozen=True)
class Head(Method):
    """Trains everything above the last block, except a pretrained pooler, to convergence.

    `head` has the head of the study's other methods; `head:mean` and `head:cls` have one linear layer on the mean of the
    tokens or on the first token, whatever the others have.
    """

    pooling: Literal["mean", "cls"] | None = None
    """What its head reads; None is the configuration's `pooling`."""
    syntax: ClassVar[str] = "head, head:mean, head:cls"
    phases: ClassVar[tuple[Phase, ...]] = ("head",)
    changes_body: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "head" if self.pooling is None else f"head:{self.pooling}"

    @classmethod
    def parse(cls, text: str, n_layers: int | None) -> Self | None:
        match text.split(":", 1):
            case ["head"]:
                return cls()
            case ["head", "mean" | "cls" as pooling]:
                return cls(pooling)
            case ["head", _]:
                raise ArgumentError(
                    f"The method {text!r} does not name what its head reads; write head (as the study's other methods), "
                    "head:mean or head:cls.",
                    "method",
                )
        return None

    @property
    def own_pooling(self) -> Literal["mean", "cls"] | None:
        return self.pooling

    def body_parameters(self, model: Any, encoder: Encoder) -> frozenset[str]:
        return frozenset()

    def frozen_layer(self, n_layers: int) -> int:
        return n_layers

    def depth(self, n_layers: int | None) -> int:
        return 0


@dataclass(frozen=True)
class Top(Method):
    """Trains the top k blocks and everything above them."""

    k: int
    """Number of blocks."""
    syntax: ClassVar[str] = "top:k (k top blocks)"

    @property
    def name(self) -> str:
        return f"top:{self.k}"

    @classmethod
    def parse(cls, text: str, n_layers: int | None) -> Self | None:
        keyword, _, k = text.partition(":")
        if keyword != "top":
            return None
        if not k.isdecimal() or int(k) < 1 or (n_layers is not None and int(k) > n_layers):
            allowed = f"1 to {n_layers}" if n_layers else "1 up to the number of blocks"
            also = "; to train no block, use head" if k == "0" else ""
            raise ArgumentError(f"The method {text!r} has no valid number of blocks; k is {allowed}{also}.", "method")
        return cls(int(k))

    def body_parameters(self, model: Any, encoder: Encoder) -> frozenset[str]:
        from layerprobe.layers import blocks

        top = {id(p) for block in blocks(model)[-self.k :] for p in block.parameters()}
        pooler = f"{model.base_model_prefix}.pooler."
        return frozenset(name for name, p in model.named_parameters() if id(p) in top or name.startswith(pooler))

    def frozen_layer(self, n_layers: int) -> int:
        return n_layers - self.k

    def depth(self, n_layers: int | None) -> int:
        return self.k

    @property
    def reference_rank(self) -> float:
        return self.k

    @property
    def needs_separate_blocks(self) -> bool:
        return True


@dataclass(frozen=True)
class Full(Method):
    """Trains every parameter, embeddings included."""

    syntax: ClassVar[str] = "full"

    def depth(self, n_layers: int | None) -> int | None:
        return n_layers

    @property
    def reference_rank(self) -> float:
        return math.inf


@dataclass(frozen=True)
class LpFt(Method):
    """Trains the head to convergence, then every parameter (Kumar et al. 2022)."""

    syntax: ClassVar[str] = "lp-ft"
    phases: ClassVar[tuple[Phase, ...]] = ("head", "blocks")


@dataclass(frozen=True)
class BitFit(Method):
    """Trains every bias term, and the head (Ben Zaken et al. 2022)."""

    syntax: ClassVar[str] = "bitfit"
    # Fewer parameters need larger steps. The published 1e-4 to 1e-3 are for tens of epochs.
    default_rate: ClassVar[float] = 3e-3

    def body_parameters(self, model: Any, encoder: Encoder) -> frozenset[str]:
        from layerprobe.layers import blocks

        if not any(name.endswith("bias") for block in blocks(model) for name, _ in block.named_parameters()):
            raise ArgumentError(
                f"The method 'bitfit' trains bias terms, but the blocks of {encoder.name} ({encoder.family}) have none; "
                "use lora:r or top:k.",
                "method",
            )
        return frozenset(name for name, _ in model.named_parameters() if name.endswith("bias"))


@dataclass(frozen=True)
class Checkpoint(Method):
    """Trains nothing: the adapted model is read from a folder."""

    path: str
    syntax: ClassVar[str] = "checkpoint:PATH"
    phases: ClassVar[tuple[Phase, ...]] = ()
    uses_seed: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"checkpoint:{self.path}"

    @classmethod
    def parse(cls, text: str, n_layers: int | None) -> Self | None:
        keyword, _, path = text.partition(":")
        return cls(path) if keyword == "checkpoint" and path else None

    @property
    def checkpoint_folder(self) -> Path:
        return given_path(self.path)

    @property
    def label(self) -> str | None:
        return f"checkpoint:…/{self.checkpoint_folder.name}" if "/" in self.path else None


@dataclass(frozen=True)
class ShuffledLabels(Method):
    """The control of `full`: trains every parameter on permuted labels. Drift that appears here too is unrelated to the task."""

    syntax: ClassVar[str] = "shuffled-labels"
    is_control: ClassVar[bool] = True
    control_of: ClassVar[str] = Full.syntax

    @property
    def rate_names(self) -> tuple[str, ...]:
        return (self.name, Full.syntax)

    def training_labels(self, labels: np.ndarray, seed: int) -> np.ndarray:
        import numpy as np

        return np.random.default_rng(seed).permutation(labels)
