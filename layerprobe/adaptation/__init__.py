"""Fine-tuning at an adaptation depth, and what it gained."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from layerprobe.adaptation._methods import (
    Method,
    cached_layers,
    check_method,
    expand_methods,
    frozen_layer,
    parse_method,
)
from layerprobe.adaptation._rates import check_learning_rates, method_rate

if TYPE_CHECKING:
    from layerprobe.adaptation._adapt import Adaptation, adapt
    from layerprobe.adaptation._cost import Cost, Meter, TrainingFlops, training_flops
    from layerprobe.adaptation._frozen import cache_bytes
    from layerprobe.adaptation._quality import CALIBRATION_BINS, Quality, probabilities, quality, reference
    from layerprobe.adaptation._trained import precision, trained_parameter_names

_HOMES = {
    "Adaptation": "_adapt",
    "adapt": "_adapt",
    "Cost": "_cost",
    "Meter": "_cost",
    "TrainingFlops": "_cost",
    "training_flops": "_cost",
    "CALIBRATION_BINS": "_quality",
    "cache_bytes": "_frozen",
    "precision": "_trained",
    "trained_parameter_names": "_trained",
    "Quality": "_quality",
    "probabilities": "_quality",
    "quality": "_quality",
    "reference": "_quality",
}

__all__ = [
    "CALIBRATION_BINS",
    "Adaptation",
    "Cost",
    "Meter",
    "Method",
    "Quality",
    "TrainingFlops",
    "adapt",
    "cache_bytes",
    "cached_layers",
    "check_learning_rates",
    "check_method",
    "expand_methods",
    "frozen_layer",
    "method_rate",
    "parse_method",
    "precision",
    "probabilities",
    "quality",
    "reference",
    "trained_parameter_names",
    "training_flops",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"layerprobe.adaptation.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'layerprobe.adaptation' has no attribute {name!r}")
