"""A pretrained encoder as a learner: embeddings, blocks, and the mean over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from layerprobe.errors import ArgumentError
from layerprobe.families import FAMILIES
from layerprobe.layers import blocks
from layerprobe.metalearning._learner import Learner, Parameters

if TYPE_CHECKING:
    from layerprobe.encoder import Encoder


@dataclass(frozen=True)
class TokenState:
    """The tokens of a batch between two blocks.

    Attributes:
        hidden: values of a layer, `(examples, tokens, width)`.
        mask: 1 for real tokens, 0 for padding, `(examples, tokens)`.
        calls: what each block is called with besides the hidden values.
    """

    hidden: Tensor
    mask: Tensor
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


@dataclass(frozen=True)
class Batch:
    """A batch between two parts, in groups of similar length, each of which is padded to its own longest example.

    Attributes:
        groups: inputs of the embeddings, or what a part made of them.
        places: place of each example of the batch among those of all groups, one group after the other.
    """

    groups: tuple[Any, ...]
    places: Int[Tensor, " examples"]

    @property
    def hidden(self) -> Tensor:
        """Values of the first group, through which passes are counted."""
        return self.groups[0].hidden

    def map(self, function: Callable[[Any], Any]) -> Batch:
        return replace(self, groups=tuple(function(group) for group in self.groups))


def encoder_learner(
    encoder: Encoder, *, ways: int, seed: int = 0, random: bool = False, device: str = "cpu"
) -> Learner:
    """A learner from a pretrained encoder: its vectors are means over real tokens, as of `head:mean`.

    Attention is eager, since fused attention has no second derivative. Dropout is off.

    Args:
        encoder: the pretrained encoder.
        ways: number of classes of an episode.
        seed: seed of the head, and of the weights if `random`.
        random: whether all weights are random, as a baseline.
        device: where it computes.

    Raises:
        ArgumentError: if its blocks share their weights, so that top blocks cannot be adapted alone.
    """
    family = FAMILIES[encoder.family]
    if family.shared_blocks:
        raise ArgumentError(
            f"{{encoder}} is {encoder.name} of the family {encoder.family}, whose blocks share their weights; no block can be adapted "
            "alone. Use a model of another family.",
            "encoder",
        )
    model: Any = encoder.classifier(tuple(str(i) for i in range(ways)), seed=seed, pooling="mean")
    body = model.base_model
    body.set_attn_implementation("eager")
    if random:
        _randomise(body, seed)
    body.to(device).requires_grad_(False)
    *parts, pool = _parts(model, encoder)
    return Learner(parts, width=encoder.width, ways=ways, seed=seed, pool=pool)


def load_parameters(model: Any, encoder: Encoder, parameters: Parameters) -> None:
    """Write the parameters of an encoder's learner into a classifier of the same encoder that pools by the mean, in place."""
    *parts, pool = _parts(model, encoder)
    learner = Learner(parts, width=encoder.width, ways=model.classifier.out_features, pool=pool)
    named = {
        f"{name}.{key}": value
        for name, part in zip(learner.names, learner.parts, strict=True)
        for key, value in part.named_parameters()
    }
    named |= {f"head.{key}": value for key, value in model.classifier.named_parameters()}
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(parameters[name])


def _parts(model: Any, encoder: Encoder) -> list[nn.Module]:
    """The body of a classifier as a learner's parts: embeddings, blocks, and the mean over tokens."""
    family, body, stack = FAMILIES[encoder.family], model.base_model, blocks(model)
    norm = body.get_submodule(family.final_norm) if family.final_norm else None
    return [_Embeddings(body, stack), *(_Block(block, i) for i, block in enumerate(stack)), _Pool(norm)]


class _Embeddings(nn.Module):
    """From token ids to the input of the first block, with the masks and positions that the blocks are called with."""

    def __init__(self, body: Any, stack: Sequence[nn.Module]) -> None:
        super().__init__()
        # Only the modules outside the blocks: their parameters are this part's.
        self.outside: tuple[Any, tuple[Any, ...]] = (body, tuple(stack))  # a tuple, so that they are not submodules
        inside = {id(module) for block in stack for module in block.modules()}
        for name, module in body.named_modules():
            if name and id(module) not in inside and any(True for _ in module.parameters(recurse=False)):
                self.add_module(name.replace(".", "_"), module)

    def forward(self, batch: Batch) -> Batch:
        return batch.map(self.embed)

    def embed(self, inputs: dict[str, Tensor]) -> TokenState:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            first.append(hidden)
            calls.append((args[1:], kwargs))
            return hidden

        body, stack = self.outside
        for block in stack:
            block.forward = record
        try:
            body(**inputs)
        finally:
            for block in stack:
                del block.forward
        return TokenState(first[0], inputs["attention_mask"], tuple(calls))


class _Block(nn.Module):
    """One block, from tokens to tokens."""

    def __init__(self, block: nn.Module, number: int) -> None:
        super().__init__()
        self.block, self.number = block, number

    def forward(self, batch: Batch) -> Batch:
        return batch.map(self.run)

    def run(self, state: TokenState) -> TokenState:
        args, kwargs = state.calls[self.number]
        output = self.block(state.hidden, *args, **kwargs)
        return replace(state, hidden=output[0] if isinstance(output, tuple) else output)


class _Pool(nn.Module):
    """The mean over real tokens, after the final norm of families that have one."""

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, batch: Batch) -> Tensor:
        return torch.cat([self.mean(state) for state in batch.groups])[batch.places]

    def mean(self, state: TokenState) -> Tensor:
        hidden = state.hidden if self.norm is None else self.norm(state.hidden)
        mask = state.mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


def _randomise(body: Any, seed: int) -> None:
    """Fresh weights by the model's own initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in body.modules():
            vars(module).pop("_is_hf_initialized", None)
            for parameter in module.parameters(recurse=False):
                vars(parameter).pop("_is_hf_initialized", None)
            body._init_weights(module)
