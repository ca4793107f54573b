"""Fine-tuning of a pretrained encoder by one method, its quality and its cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from layerprobe.adaptation._config import AdaptConfig
from layerprobe.adaptation.methods import (
    Method,
    cached_layers,
    check_learning_rates,
    expand_methods,
    parse_method,
)

if TYPE_CHECKING:
    from layerprobe.adaptation._adapt import Adaptation, adapt
    from layerprobe.adaptation._cost import Cost, Meter, TrainingFlops, training_flops
    from layerprobe.adaptation._frozen import Frozen, FrozenValues, cache_bytes, compute_frozen, open_frozen
    from layerprobe.adaptation._quality import CALIBRATION_BINS, Quality, probabilities, quality, reference
    from layerprobe.adaptation._trained import precision

_HOMES = {
    **dict.fromkeys(("Adaptation", "adapt"), "_adapt"),
    **dict.fromkeys(("Cost", "Meter", "TrainingFlops", "training_flops"), "_cost"),
    **dict.fromkeys(("Frozen", "FrozenValues", "cache_bytes", "compute_frozen", "open_frozen"), "_frozen"),
    **dict.fromkeys(("CALIBRATION_BINS", "Quality", "probabilities", "quality", "reference"), "_quality"),
    "precision": "_trained",
}

__all__ = [
    "CALIBRATION_BINS",
    "AdaptConfig",
    "Adaptation",
    "Cost",
    "Frozen",
    "FrozenValues",
    "Meter",
    "Method",
    "Quality",
    "TrainingFlops",
    "adapt",
    "cache_bytes",
    "cached_layers",
    "check_learning_rates",
    "compute_frozen",
    "expand_methods",
    "open_frozen",
    "parse_method",
    "precision",
    "probabilities",
    "quality",
    "reference",
    "training_flops",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"layerprobe.adaptation.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'layerprobe.adaptation' has no attribute {name!r}")
