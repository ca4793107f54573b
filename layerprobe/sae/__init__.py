"""Sparse autoencoders over stored activations: trained with sae-lens, judged on held-out rows."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprobe.sae._dictionary import Dictionary, load
    from layerprobe.sae._evaluation import SaeQuality, evaluate
    from layerprobe.sae._exhibit import Exhibit, exhibit, foremost
    from layerprobe.sae._latents import TaskLatents, latent_means, task_latents
    from layerprobe.sae._matching import Matching, match
    from layerprobe.sae._matching_null import NullComparison, compare_to_null
    from layerprobe.sae._task_loss import task_loss
    from layerprobe.sae._training import train, untrained

_HOMES = {
    "Dictionary": "_dictionary",
    "Exhibit": "_exhibit",
    "Matching": "_matching",
    "NullComparison": "_matching_null",
    "SaeQuality": "_evaluation",
    "TaskLatents": "_latents",
    "compare_to_null": "_matching_null",
    "evaluate": "_evaluation",
    "exhibit": "_exhibit",
    "foremost": "_exhibit",
    "latent_means": "_latents",
    "load": "_dictionary",
    "match": "_matching",
    "task_loss": "_task_loss",
    "task_latents": "_latents",
    "train": "_training",
    "untrained": "_training",
}

__all__ = [
    "Dictionary",
    "Exhibit",
    "Matching",
    "NullComparison",
    "SaeQuality",
    "TaskLatents",
    "compare_to_null",
    "evaluate",
    "exhibit",
    "foremost",
    "latent_means",
    "load",
    "match",
    "task_latents",
    "task_loss",
    "train",
    "untrained",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"layerprobe.sae.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'layerprobe.sae' has no attribute {name!r}; it has {', '.join(__all__)}")
