"""Full fine-tuning in which all layers take steps of one relative size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from layerprobe.adaptation.methods._method import Method
from layerprobe.errors import ArgumentError

if TYPE_CHECKING:
    from layerprobe.encoder import Encoder


@dataclass(frozen=True)
class EqualStep(Method):
    """Trains every parameter; after each step of the optimiser |dW| / |W| is made equal over layers (Billa 2026).

    It trains the task, so it is no control for drift as such. It shows whether layers change more where their weights
    take larger steps.
    """

    syntax: ClassVar[str] = "full:equal-step"

    def check(self, encoder: Encoder) -> None:
        from layerprobe.families import FAMILIES

        if FAMILIES[encoder.family].shared_blocks:
            raise ArgumentError(
                f"The method {self.name!r} makes the steps of layers equal, but all blocks of {encoder.name} "
                f"({encoder.family}) share their weights; use full.",
                "method",
            )

    def step_groups(self, model: Any, encoder: Encoder) -> tuple[tuple[str, ...], ...]:
        """The parameters of the embeddings, and of each block."""
        from layerprobe.encoder import head_parameter_names
        from layerprobe.layers import blocks

        names = {id(parameter): name for name, parameter in model.named_parameters()}
        of_blocks = [tuple(names[id(parameter)] for parameter in block.parameters()) for block in blocks(model)]
        above = head_parameter_names(model, encoder) | {name for group in of_blocks for name in group}
        pooler = f"{model.base_model_prefix}.pooler."
        embeddings = (name for name in names.values() if name not in above and not name.startswith(pooler))
        return (tuple(embeddings), *of_blocks)
