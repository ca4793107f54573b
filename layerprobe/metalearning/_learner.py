"""A model in consecutive parts, run with explicit parameters, so that a loss can be differentiated through updates of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from layerprobe.errors import ArgumentError

Parameters = Mapping[str, Tensor]
"""Tensors by name: `<part>.<name within the part>`, and `head.weight`, `head.bias`."""

HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class State:
    """The input of a part.

    Attributes:
        level: number of parts that have been applied; 0 for the model's own input.
        value: what the next part takes; after the last part, one vector per example, `(examples, width)`.
    """

    level: int
    value: Any


class Learner:
    """A body in consecutive parts under a linear head.

    Args:
        parts: the body, from its input to one vector per example: the embeddings, then one part per block. Each part takes
            the output of the one before. Parts run in eval mode.
        width: length of the vectors.
        ways: number of classes.
        seed: seed of the head's initial weights, which are normal with standard deviation 0.02; the bias is zero.
        pool: follows the last block and makes one vector per example of its output; None if the last block does.

    Raises:
        ArgumentError: if there is no block.
    """

    def __init__(
        self, parts: Sequence[nn.Module], *, width: int, ways: int, seed: int = 0, pool: nn.Module | None = None
    ) -> None:
        if len(parts) < 2:
            raise ArgumentError(
                f"{{parts}} has {len(parts)} parts; it takes the embeddings (nn.Identity if there are none) and one or more "
                "blocks.",
                "parts",
            )
        self.n_layers = len(parts) - 1
        self.names = ("embeddings", *(f"block {i}" for i in range(1, len(parts))), *(("pool",) if pool else ()))
        self.parts = tuple(part.eval() for part in (*parts, *((pool,) if pool is not None else ())))
        generator = torch.Generator().manual_seed(seed)
        reference = next((p for part in self.parts for p in part.parameters()), torch.zeros(()))
        weight = torch.randn(ways, width, generator=generator, dtype=reference.dtype) * 0.02
        self._head = {HEAD[0]: weight.to(reference.device), HEAD[1]: reference.new_zeros(ways)}

    def parameters(self) -> dict[str, Tensor]:
        """The current parameters, detached."""
        body = {
            f"{name}.{key}": value.detach()
            for name, part in zip(self.names, self.parts, strict=True)
            for key, value in part.named_parameters()
        }
        return body | self._head

    def names_at(self, depth: int | None) -> tuple[str, ...]:
        """Names of the parameters of the top `depth` blocks and what follows them, without the head; None for the whole body."""
        first = 0 if depth is None else self.n_layers + 1 - depth
        if depth == 0:
            return ()
        kept = set(self.names[first:])
        return tuple(name for name in self.parameters() if name.partition(".")[0] in kept)

    def apply(self, parameters: Parameters, state: State, *, to: int | None = None) -> State:
        """Run the parts after `state.level`, up to and including part number `to` (counted from 1); by default all.

        Args:
            parameters: the parameters to use.
            state: the input of part `state.level`.
            to: the level to reach.
        """
        value = state.value
        end = len(self.parts) if to is None else to
        for level in range(state.level, end):
            prefix = f"{self.names[level]}."
            own = {key.removeprefix(prefix): tensor for key, tensor in parameters.items() if key.startswith(prefix)}
            value = functional_call(self.parts[level], own, (value,))
        return State(max(state.level, end), value)

    def vectors(self, parameters: Parameters, state: State) -> Float[Tensor, "examples width"]:
        """One vector per example."""
        return self.apply(parameters, state).value

    def logits(self, parameters: Parameters, state: State) -> Float[Tensor, "examples ways"]:
        """Scores of the classes."""
        return nn.functional.linear(self.vectors(parameters, state), parameters[HEAD[0]], parameters[HEAD[1]])
