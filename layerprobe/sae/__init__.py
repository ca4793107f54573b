"""Sparse autoencoders over stored activations: trained with sae-lens, judged on held-out rows."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprobe.sae._controls import untrained
    from layerprobe.sae._dictionary import Dictionary, load
    from layerprobe.sae._evaluation import SaeQuality, evaluate
    from layerprobe.sae._latents import TaskLatents, latent_means, task_latents
    from layerprobe.sae._training import train, train_many

_HOMES = {
    "Dictionary": "_dictionary",
    "SaeQuality": "_evaluation",
    "TaskLatents": "_latents",
    "evaluate": "_evaluation",
    "latent_means": "_latents",
    "load": "_dictionary",
    "task_latents": "_latents",
    "train": "_training",
    "train_many": "_training",
    "untrained": "_controls",
}

__all__ = [
    "Dictionary",
    "SaeQuality",
    "TaskLatents",
    "evaluate",
    "latent_means",
    "load",
    "task_latents",
    "train",
    "train_many",
    "untrained",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"layerprobe.sae.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'layerprobe.sae' has no attribute {name!r}; it has {', '.join(__all__)}")
