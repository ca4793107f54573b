"""The supported model families: one row holds everything in which a family differs from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Family:
    """One family of encoders, known by the `model_type` of its configuration. Paths are relative to `model.base_model`."""

    blocks: str
    """Path of the list of transformer blocks."""
    matrices: Mapping[str, str]
    """Weight matrices of a block: end of the module's path -> role (`query`, `attention_output`, ...)."""
    shared_blocks: bool = False
    """Whether layers share their weights, so that no block can be trained or replaced alone."""
    segments: bool = False
    """Whether the model takes `token_type_ids`."""
    padded_positions: bool = False
    """Whether positions are numbered from `pad_token_id` + 1, so that the first rows of the position table are unused."""
    final_norm: str | None = None
    """Path of a norm between the last block and the head; it belongs to the head."""
    pooler_activation: Callable[[Tensor], Tensor] | None = None
    """Follows a pooler that is only a linear map of the first token; None if the pooler is a module of the whole layer."""
    head_pooling: str | None = None
    """Key of the configuration that decides which rows the head reads, `cls` or `mean`; None if it reads the first token."""

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the linear maps to queries and values (Hu et al. 2021), within a block."""
        roles = ("query", "value", "query_key_value")
        return tuple(path.rpartition(".")[2] for path, role in self.matrices.items() if role in roles)


_BERT = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "intermediate.dense": "feed_forward_in",
    "output.dense": "feed_forward_out",
}
_ALBERT = {
    "attention.query": "query",
    "attention.key": "key",
    "attention.value": "value",
    "attention.dense": "attention_output",
    "ffn": "feed_forward_in",
    "ffn_output": "feed_forward_out",
}
_DISTILBERT = {
    "attention.q_lin": "query",
    "attention.k_lin": "key",
    "attention.v_lin": "value",
    "attention.out_lin": "attention_output",
    "ffn.lin1": "feed_forward_in",
    "ffn.lin2": "feed_forward_out",
}
_MODERNBERT = {
    "attn.Wqkv": "query_key_value",
    "attn.Wo": "attention_output",
    "mlp.Wi": "feed_forward_in_gate",
    "mlp.Wo": "feed_forward_out",
}

FAMILIES: Mapping[str, Family] = {
    "bert": Family("encoder.layer", _BERT, segments=True),
    "roberta": Family("encoder.layer", _BERT, padded_positions=True),
    "electra": Family("encoder.layer", _BERT, segments=True),
    "albert": Family(
        "encoder.albert_layer_groups", _ALBERT, shared_blocks=True, segments=True, pooler_activation=torch.tanh
    ),
    "distilbert": Family("transformer.layer", _DISTILBERT),
    "modernbert": Family("layers", _MODERNBERT, final_norm="final_norm", head_pooling="classifier_pooling"),
}
"""The families by `model_type`."""
