"""Low-rank additions to attention matrices: put in with peft, and folded into the weights after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layerprobe.adaptation._methods import Method
from layerprobe.encoder import Encoder
from layerprobe.errors import StudyError
from layerprobe.layers import blocks

TARGETS: Mapping[str, tuple[str, ...]] = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "electra": ("query", "value"),
    "albert": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "modernbert": ("Wqkv",),
}
"""Linear maps of each block that get an addition: query and value (Hu et al. 2021); ModernBERT has them in one matrix."""

SCALE = 2
"""lora_alpha / r: the same for every rank, so that a rank is not also a step size."""


def lora_modules(model: nn.Module, encoder: Encoder, method: Method) -> list[str]:
    """Full names of the linear maps that a `lora` method adds to.

    Raises:
        StudyError: if a block lacks one of those that its family has.
    """
    names = {id(module): name for name, module in model.named_modules()}
    stack = blocks(model)
    found: list[str] = []
    for layer in method.layers or range(1, len(stack) + 1):
        block = stack[layer - 1]
        for target in TARGETS[encoder.family]:
            own = [
                names[id(module)]
                for name, module in block.named_modules()
                if name.rpartition(".")[2] == target and isinstance(module, nn.Linear)
            ]
            if len(own) < 1:
                raise StudyError(
                    f"The method {method.name!r} adds to the {target} map of each block, but block {layer} of "
                    f"{encoder.name} ({encoder.family}) has none; use bitfit or top:k."
                )
            found += own
    return list(dict.fromkeys(found))  # ALBERT's one block is met once a layer


def add_lora(model: nn.Module, encoder: Encoder, method: Method, *, seed: int) -> None:
    """Put additions of the method's rank into a classifier, in place; at first they add nothing."""
    from peft import LoraConfig, inject_adapter_in_model

    assert method.rank is not None
    config = LoraConfig(
        r=method.rank,
        lora_alpha=SCALE * method.rank,
        lora_dropout=0.0,
        target_modules=lora_modules(model, encoder, method),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def merge_lora(model: nn.Module) -> None:
    """Fold the additions into the weights and take them out: a plain classifier again, in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    # What peft notes down on the model would make `save_pretrained` look for adapters.
    for note in ("peft_config", "_hf_peft_config_loaded"):
        if note in model.__dict__:
            delattr(model, note)
