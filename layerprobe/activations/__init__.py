"""Activations of an encoder: captured in one pass over the texts, stored as memory-mapped rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerprobe.activations._store import ActivationStore, estimate_bytes, paired, twin

if TYPE_CHECKING:
    from layerprobe.activations._capture import capture

__all__ = ["ActivationStore", "capture", "estimate_bytes", "paired", "twin"]


def __getattr__(name: str) -> Any:
    if name == "capture":
        from layerprobe.activations._capture import capture

        return capture
    raise AttributeError(f"module 'layerprobe.activations' has no attribute {name!r}")
