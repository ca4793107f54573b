"""Sparse autoencoders over stored activations: trained with sae-lens, judged on held-out rows."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprobe.sae._associations import associations
    from layerprobe.sae._codes import sparse_codes
    from layerprobe.sae._dictionary import Dictionary, load
    from layerprobe.sae._evaluation import SaeQuality, evaluate
    from layerprobe.sae._labels import LabelNull, label_null
    from layerprobe.sae._latents import TaskLatents, latent_means, task_latents
    from layerprobe.sae._properties import Properties, token_properties
    from layerprobe.sae._shift import crossing, latent_shares, shift
    from layerprobe.sae._training import train, untrained

_HOMES = {
    "Dictionary": "_dictionary",
    "LabelNull": "_labels",
    "Properties": "_properties",
    "SaeQuality": "_evaluation",
    "TaskLatents": "_latents",
    "associations": "_associations",
    "crossing": "_shift",
    "evaluate": "_evaluation",
    "label_null": "_labels",
    "latent_means": "_latents",
    "latent_shares": "_shift",
    "load": "_dictionary",
    "shift": "_shift",
    "sparse_codes": "_codes",
    "task_latents": "_latents",
    "token_properties": "_properties",
    "train": "_training",
    "untrained": "_training",
}

__all__ = [
    "Dictionary",
    "LabelNull",
    "Properties",
    "SaeQuality",
    "TaskLatents",
    "associations",
    "crossing",
    "evaluate",
    "label_null",
    "latent_means",
    "latent_shares",
    "load",
    "shift",
    "sparse_codes",
    "task_latents",
    "token_properties",
    "train",
    "untrained",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"layerprobe.sae.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'layerprobe.sae' has no attribute {name!r}; it has {', '.join(__all__)}")
