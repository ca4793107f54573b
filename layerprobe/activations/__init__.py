"""Activations of an encoder: captured in one pass over the examples, stored as memory-mapped rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerprobe.activations._store import ActivationStore, check_paired, content_digests, estimate_bytes

if TYPE_CHECKING:
    from layerprobe.activations._capture import CaptureConfig, capture

__all__ = ["ActivationStore", "CaptureConfig", "capture", "check_paired", "content_digests", "estimate_bytes"]


def __getattr__(name: str) -> Any:
    if name in ("CaptureConfig", "capture"):  # these load torch
        from layerprobe.activations import _capture

        return getattr(_capture, name)
    raise AttributeError(f"module 'layerprobe.activations' has no attribute {name!r}")
