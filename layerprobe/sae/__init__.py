"""Sparse autoencoders on stored activations: trained with sae-lens, evaluated on held-out rows, compared and described."""

# ruff: noqa: F401, the imports below are for type checkers

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprobe.sae import architectures, crosscoder
    from layerprobe.sae._associations import associations
    from layerprobe.sae._census import census
    from layerprobe.sae._config import SaeConfig, default_k, default_width
    from layerprobe.sae._dictionary import Dictionary, encode, load, load_codes, save_codes
    from layerprobe.sae._evaluation import SaeQuality, evaluate
    from layerprobe.sae._exhibit import Exhibit, exhibit, top_latents
    from layerprobe.sae._labels import LabelNull, label_null
    from layerprobe.sae._matching import Matching, match
    from layerprobe.sae._matching_null import NullComparison, compare_to_null
    from layerprobe.sae._properties import Properties, token_properties
    from layerprobe.sae._shares import crossing, latent_shares
    from layerprobe.sae._task_loss import task_loss
    from layerprobe.sae._training import train, untrained
    from layerprobe.sae.crosscoder import Crosscoder, CrosscoderConfig

_NAMES = {
    "_associations": ("associations",),
    "_census": ("census",),
    "_config": ("SaeConfig", "default_k", "default_width"),
    "_dictionary": ("Dictionary", "encode", "load", "load_codes", "save_codes"),
    "_evaluation": ("SaeQuality", "evaluate"),
    "_exhibit": ("Exhibit", "exhibit", "top_latents"),
    "_labels": ("LabelNull", "label_null"),
    "_matching": ("Matching", "match"),
    "_matching_null": ("NullComparison", "compare_to_null"),
    "_properties": ("Properties", "token_properties"),
    "_shares": ("crossing", "latent_shares"),
    "_task_loss": ("task_loss",),
    "_training": ("train", "untrained"),
    "crosscoder": ("Crosscoder", "CrosscoderConfig"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_MODULES, "architectures", "crosscoder"])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"layerprobe.sae.{_MODULES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"layerprobe.sae.{name}")
    raise AttributeError(f"module 'layerprobe.sae' has no attribute {name!r}; it has {', '.join(__all__)}")
