"""Random changes of weights that are as large as those of an adaptation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from layerprobe.encoder import Encoder
from layerprobe.errors import EncoderError
from layerprobe.internals._weights import parameter_layers


@torch.no_grad()
def random_change(base: nn.Module, adapted: nn.Module, encoder: Encoder, *, seed: int) -> nn.Module:
    """Base with a random Gaussian change of each parameter of the body, of the same Frobenius norm as the adapted model's.

    A control without training for drift: what changes as much under it does not come from what was learnt, but from the
    size of the change alone. In an embedding table the norm of each row is kept, since adaptation changes the rows of tokens
    that occur in the training examples, and no others.

    Args:
        base: the pretrained body with any head.
        adapted: the adapted classifier.
        encoder: the encoder that base was loaded from.
        seed: seed of the change.

    Raises:
        EncoderError: if the two are not of one architecture.
    """
    model = copy.deepcopy(base)
    before, after = dict(model.named_parameters()), dict(adapted.named_parameters())
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    generator = torch.Generator().manual_seed(seed)
    for name in parameter_layers(adapted, encoder):
        if name not in before or before[name].shape != after[name].shape:
            raise EncoderError(
                f"Base has no weight {name} of this shape; give the model that {{adapted}} was fine-tuned from."
            )
        change = after[name] - before[name]
        noise = torch.randn(change.shape, generator=generator, dtype=change.dtype)
        by_row = id(before[name]) in embeddings
        before[name].add_(noise * (_norm(change, by_row) / _norm(noise, by_row)))
    return model


def _norm(value: Tensor, by_row: bool) -> Tensor:
    return torch.linalg.vector_norm(value, dim=-1, keepdim=True) if by_row else torch.linalg.vector_norm(value)
