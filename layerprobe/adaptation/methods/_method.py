"""The interface of an adaptation method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from layerprobe.adaptation._config import AdaptConfig
from layerprobe.errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np

    from layerprobe.encoder import Encoder

Phase = Literal["head", "blocks"]
MANY_BLOCKS = 1000


@dataclass(frozen=True)
class Method:
    """How a model is adapted. The fields of a subclass are its parameters; one without parameters needs only `syntax` and
    `body_parameters`.
    """

    syntax: ClassVar[str]
    """How it is written, as error messages list it."""
    phases: ClassVar[tuple[Phase, ...]] = ("blocks",)
    """What is trained, in order: `head` is the head alone, to convergence, on the values of the frozen body; `blocks` is
    gradient descent on `trainable`. Empty where the method refers to a finished model."""
    changes_body: ClassVar[bool] = True
    """Whether any layer of the adapted model may differ from the base model's."""
    uses_seed: ClassVar[bool] = True
    """Whether the result depends on the seed."""
    is_control: ClassVar[bool] = False
    """Whether it is a control that learns no task."""
    control_of: ClassVar[str | None] = None
    """Name of the method that it is a control of."""
    default_rate: ClassVar[float | None] = None
    """Peak learning rate of its blocks; None is the configuration's `learning_rate`."""

    # Names ------------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The canonical text of the method: `parse` of it gives an equal method."""
        return self.syntax

    @property
    def label(self) -> str | None:
        """A shorter name for figures; None where the name is short."""
        return None

    @classmethod
    def parse(cls, text: str, n_layers: int | None) -> Self | None:
        """Read a method from its text; None if the text names another method.

        Args:
            text: such as `top:2`.
            n_layers: number of blocks, where known.

        Raises:
            ArgumentError: if the parameters are malformed or out of range.
        """
        return cls() if text == cls.syntax else None

    @property
    def rate_names(self) -> tuple[str, ...]:
        """Keys of `learning_rates` that set its learning rate, in order of precedence; none if no blocks are trained."""
        names = (self.name, self.name.partition(":")[0])
        return tuple(dict.fromkeys(names)) if self.trains_blocks else ()

    # What is trained --------------------------------------------------------------------------------------------------

    def trainable(self, model: Any, encoder: Encoder) -> frozenset[str]:
        """Names of the parameters of a classifier, after `prepare`, that are trained: the head and `body_parameters`."""
        from layerprobe.encoder import head_parameter_names

        return head_parameter_names(model, encoder) | self.body_parameters(model, encoder)

    def body_parameters(self, model: Any, encoder: Encoder) -> frozenset[str]:
        """Names of the parameters that are trained besides the head: by default, all."""
        return frozenset(name for name, _ in model.named_parameters())

    @property
    def reads_frozen(self) -> bool:
        """Whether training reads values of the base model, in a model of many blocks."""
        return bool(self.cached_layers(MANY_BLOCKS))

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return bool(self.phases)

    @property
    def trains_blocks(self) -> bool:
        """Whether the parameters are trained by gradient descent on the whole model."""
        return "blocks" in self.phases

    def frozen_layer(self, n_layers: int) -> int | None:
        """The highest layer (0 ... L) that is as in the base model, with all layers below it; None if layer 0 changes."""
        return None

    def cached_layers(self, n_layers: int) -> tuple[int, ...]:
        """Layers (1 ... L) of the base model whose values training reads instead of computing them in every epoch."""
        layers = {n_layers if phase == "head" else self.frozen_layer(n_layers) for phase in self.phases}
        return tuple(sorted(layer for layer in layers if layer))

    def depth(self, n_layers: int | None) -> int | None:
        """Number of top blocks that are trained; None where that is undefined, or unknown without `n_layers`."""
        return None

    @property
    def reference_rank(self) -> float | None:
        """Preference as the reference that other methods are compared with, highest first; None if unsuitable."""
        return None

    @property
    def needs_separate_blocks(self) -> bool:
        """Whether some blocks are trained and others not, which is impossible where blocks share their weights."""
        return False

    def check(self, encoder: Encoder) -> None:
        """Check that the method is applicable to an encoder.

        Raises:
            ArgumentError: if it is not.
        """
        from layerprobe.families import FAMILIES

        if self.needs_separate_blocks and FAMILIES[encoder.family].shared_blocks:
            raise ArgumentError(
                f"The method {self.name!r} trains some blocks and not others, but all blocks of {encoder.name} "
                f"({encoder.family}) share their weights; use head, full, lp-ft, bitfit or lora:r.",
                "method",
            )
        self.parse(self.name, encoder.n_layers)

    # Training ---------------------------------------------------------------------------------------------------------

    def prepare(self, model: Any, encoder: Encoder, seed: int) -> None:
        """Modify a classifier before training, in place."""

    def step_groups(self, model: Any, encoder: Encoder) -> tuple[tuple[str, ...], ...]:
        """Names of parameters in groups whose steps are scaled to one relative size; none leaves the optimiser's steps."""
        return ()

    def finish(self, model: Any) -> None:
        """Turn a trained classifier into a plain one of its family, in place."""

    def training_labels(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """The labels `(examples,)` to train on, from the true ones."""
        return labels

    @property
    def own_pooling(self) -> Literal["mean", "cls"] | None:
        """What its head reads where that is not the configuration's `pooling`."""
        return None

    def configured(self, config: AdaptConfig) -> AdaptConfig:
        """The configuration as it applies to this method."""
        return config if self.own_pooling is None else replace(config, pooling=self.own_pooling)

    def learning_rate(self, config: AdaptConfig) -> float:
        """Peak learning rate of the blocks."""
        for name in self.rate_names:
            if name in config.learning_rates:
                return config.learning_rates[name]
        return config.learning_rate if self.default_rate is None else self.default_rate

    @property
    def checkpoint_folder(self) -> Path | None:
        """Folder of the finished model that a method without training refers to."""
        return None

    def identity(self, config: AdaptConfig) -> dict[str, Any]:
        """The values that decide the result besides encoder, examples, seed and the method's name."""
        config, keys = self.configured(config), ["pooling", "tuning"]
        if "head" in self.phases:
            keys += ["head_learning_rate"]
        if self.trains_blocks:
            keys += ["epochs", "batch_size", "search", "checkpoints"]
        values = {key: getattr(config, key) for key in keys} | {"precision": config.resolved_precision}
        return values | ({"rate": self.learning_rate(config)} if self.trains_blocks else {})
