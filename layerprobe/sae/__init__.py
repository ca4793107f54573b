"""Sparse autoencoders over stored activations: trained with sae-lens, judged on held-out rows."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerprobe.sae import crosscoder
    from layerprobe.sae._associations import associations
    from layerprobe.sae._census import census
    from layerprobe.sae._codes import sparse_codes
    from layerprobe.sae._controls import untrained
    from layerprobe.sae._crosscoder import Crosscoder
    from layerprobe.sae._dictionary import Dictionary, load
    from layerprobe.sae._evaluation import SaeQuality, evaluate
    from layerprobe.sae._exhibit import Exhibit, exhibit, foremost
    from layerprobe.sae._labels import LabelNull, label_null
    from layerprobe.sae._matching import Matching, match
    from layerprobe.sae._matching_null import NullComparison, compare_to_null
    from layerprobe.sae._properties import Properties, token_properties
    from layerprobe.sae._recipe import default_k, default_width
    from layerprobe.sae._shift import crossing, latent_shares, shift
    from layerprobe.sae._task_loss import task_loss
    from layerprobe.sae._training import train, train_many

_HOMES = {
    "Crosscoder": "_crosscoder",
    "Dictionary": "_dictionary",
    "Exhibit": "_exhibit",
    "Matching": "_matching",
    "NullComparison": "_matching_null",
    "SaeQuality": "_evaluation",
    "compare_to_null": "_matching_null",
    "census": "_census",
    "LabelNull": "_labels",
    "Properties": "_properties",
    "associations": "_associations",
    "crossing": "_shift",
    "default_k": "_recipe",
    "default_width": "_recipe",
    "evaluate": "_evaluation",
    "exhibit": "_exhibit",
    "foremost": "_exhibit",
    "label_null": "_labels",
    "latent_shares": "_shift",
    "load": "_dictionary",
    "match": "_matching",
    "task_loss": "_task_loss",
    "shift": "_shift",
    "sparse_codes": "_codes",
    "token_properties": "_properties",
    "train": "_training",
    "train_many": "_training",
    "untrained": "_controls",
}

__all__ = [
    "Crosscoder",
    "Dictionary",
    "Exhibit",
    "LabelNull",
    "Matching",
    "NullComparison",
    "Properties",
    "SaeQuality",
    "associations",
    "census",
    "compare_to_null",
    "crosscoder",
    "crossing",
    "default_k",
    "default_width",
    "evaluate",
    "exhibit",
    "foremost",
    "label_null",
    "latent_shares",
    "load",
    "match",
    "shift",
    "sparse_codes",
    "task_loss",
    "token_properties",
    "train",
    "train_many",
    "untrained",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"layerprobe.sae.{_HOMES[name]}"), name)
    if name == "crosscoder":
        return importlib.import_module("layerprobe.sae.crosscoder")
    raise AttributeError(f"module 'layerprobe.sae' has no attribute {name!r}; it has {', '.join(__all__)}")
