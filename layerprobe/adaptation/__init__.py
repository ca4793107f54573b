"""Fine-tuning at an adaptation depth, and what it gained."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from layerprobe.adaptation._methods import Method, expand_methods, parse_method

if TYPE_CHECKING:
    from layerprobe.adaptation._adapt import Adaptation, adapt, precision, trained_parameter_names
    from layerprobe.adaptation._cost import Cost, Meter, TrainingFlops, training_flops
    from layerprobe.adaptation._quality import CALIBRATION_BINS, Quality, probabilities, quality, reference

_HOMES = {
    "Adaptation": "_adapt",
    "adapt": "_adapt",
    "precision": "_adapt",
    "trained_parameter_names": "_adapt",
    "Cost": "_cost",
    "Meter": "_cost",
    "TrainingFlops": "_cost",
    "training_flops": "_cost",
    "CALIBRATION_BINS": "_quality",
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
    "expand_methods",
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
