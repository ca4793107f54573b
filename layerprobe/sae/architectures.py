"""The architectures of sparse autoencoders: to add one, add its row to `ARCHITECTURES`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerprobe.errors import ArgumentError


@dataclass(frozen=True)
class Architecture:
    """How dictionaries of one architecture are trained and saved."""

    name: str
    """The name that sae-lens registers it under."""
    config: str
    """sae-lens' training configuration class."""
    trainer: str | None = None
    """Training class in `_sparse` with the losses and gradients of sae-lens' class, but faster. None: sae-lens' class."""
    uses_k: bool = False
    """Whether `k` sets the number of active latents."""
    penalty: tuple[str, float] | None = None
    """Sparsity penalty (`l1` or `l0`) and its coefficient, reached after a quarter of the steps."""
    nested: bool = False
    """Whether the first 1/8, 1/4 and 1/2 of the latents are trained to reconstruct the rows by themselves."""
    saved_as: str | None = None
    """Architecture of the saved dictionary. None: the same."""
    recalibrated: bool = False
    """Whether the saved threshold is set on training rows: sae-lens' running estimate lags behind in short runs."""

    def build(self, *, d_in: int, d_sae: int, k: int, steps: int) -> Any:
        """A training SAE of sae-lens, with weights drawn from torch's global generator on the CPU."""
        import sae_lens

        from layerprobe.sae import _sparse

        options: dict[str, Any] = {"k": k} if self.uses_k else {}
        if self.penalty:
            norm, coefficient = self.penalty
            options |= {f"{norm}_coefficient": coefficient, f"{norm}_warm_up_steps": steps // 4}
        if self.nested:
            options["matryoshka_widths"] = sorted({max(1, d_sae // part) for part in (8, 4, 2, 1)})
        config = getattr(sae_lens, self.config)(
            d_in=d_in, d_sae=d_sae, normalize_activations="expected_average_only_in", **options
        )
        if self.trainer:
            return getattr(_sparse, self.trainer)(config)
        return sae_lens.TrainingSAE.from_dict(config.to_dict())


_ONE_THRESHOLD: dict[str, Any] = {"saved_as": "jumprelu", "recalibrated": True}

ARCHITECTURES: Mapping[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("topk", "TopKTrainingSAEConfig", "TopK", uses_k=True),
        Architecture("batchtopk", "BatchTopKTrainingSAEConfig", "BatchTopK", uses_k=True, **_ONE_THRESHOLD),
        Architecture("standard", "StandardTrainingSAEConfig", penalty=("l1", 2.0)),
        Architecture("jumprelu", "JumpReLUTrainingSAEConfig", penalty=("l0", 1.0)),
        Architecture("gated", "GatedTrainingSAEConfig", penalty=("l1", 2.0)),
        Architecture(
            "matryoshka_batchtopk",
            "MatryoshkaBatchTopKTrainingSAEConfig",
            "Matryoshka",
            uses_k=True,
            nested=True,
            **_ONE_THRESHOLD,
        ),
    )
}


def find_architecture(name: str) -> Architecture:
    """The row of an architecture.

    Raises:
        ArgumentError: if there is none of this name.
    """
    if name not in ARCHITECTURES:
        raise ArgumentError(
            f"{{architecture}} is {name!r}; the architectures are {', '.join(ARCHITECTURES)}.", "architecture"
        )
    return ARCHITECTURES[name]
