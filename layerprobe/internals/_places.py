"""Where each weight of the body stands: which layer it makes."""

from __future__ import annotations

from typing import Any

from torch import nn

from layerprobe.encoder import Encoder, head_parameter_names
from layerprobe.layers import FAMILIES, blocks

POOLER = -1
"""The place of a pretrained pooler: body, above the last block."""


def places(model: nn.Module, encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Name of each parameter of the body -> the layers that it makes.

    `(0,)` for the embeddings, with the projection to the blocks' width that ELECTRA and ALBERT have; `(i,)` for block i;
    `(1, ..., L)` for ALBERT's shared block; `(POOLER,)` for a pretrained pooler. What belongs to the head is not there.
    """
    head = head_parameter_names(model, encoder)
    body: Any = model.base_model
    stack = list(body.get_submodule(FAMILIES[encoder.family]))
    made = {id(block): tuple(i for i, own in enumerate(blocks(model), 1) if own is block) for block in stack}
    where = f"{model.base_model_prefix}.{FAMILIES[encoder.family]}."
    result = {}
    for name, _ in model.named_parameters():
        if name in head:
            continue
        if name.startswith(where):
            number = int(name.removeprefix(where).partition(".")[0])
            result[name] = made[id(stack[number])]
        elif name.startswith(f"{model.base_model_prefix}.pooler."):
            result[name] = (POOLER,)
        else:
            result[name] = (0,)
    return result
