"""What adaptation changed inside: linear probes of the task, changes of the weights, and which layers are needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprobe.internals._interventions import interventions
    from layerprobe.internals._probes import probe_layers
    from layerprobe.internals._weights import compare_weights

_MODULES = {"compare_weights": "_weights", "interventions": "_interventions", "probe_layers": "_probes"}

__all__ = ["compare_weights", "interventions", "probe_layers"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"layerprobe.internals.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'layerprobe.internals' has no attribute {name!r}; it has {', '.join(__all__)}")
