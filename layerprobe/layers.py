"""The numbered layers of a model in a forward pass: reading, replacing and skipping them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerprobe.errors import EncoderError
from layerprobe.families import FAMILIES

Edit = Callable[[Tensor], Tensor]
"""From a layer's value, `(batch, tokens, width)`, to the value that replaces it."""


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a classifier in order; block i, counted from 0, outputs layer i + 1.

    A block that is run several times (ALBERT) is listed once per run.
    """
    body: Any = model.base_model
    stack = list(body.get_submodule(FAMILIES[body.config.model_type].blocks))
    n_layers = body.config.num_hidden_layers
    return [stack[i * len(stack) // n_layers] for i in range(n_layers)]


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
    """One forward pass: the L + 1 layers, each `(batch, tokens, width)`, and the logits `(batch, classes)`.

    The layers are read by hooks on the blocks, so that layer L is the last block's output in every family.
    """
    layers: list[Tensor] = []

    def read(layer: int, value: Tensor) -> None:
        layers.append(value)

    with _hooked(model, read):
        logits = model(**inputs).logits
    return tuple(layers), logits


@contextlib.contextmanager
def edited(model: nn.Module, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Within this context, every pass replaces the given layers before they reach the next block.

    Args:
        model: a classifier.
        edits: layer (0 = embeddings ... L) -> function of its value.
    """
    with _hooked(model, lambda layer, value: edits[layer](value) if layer in edits else None):
        yield


@contextlib.contextmanager
def skipping(model: nn.Module, layers: Collection[int]) -> Iterator[None]:
    """Within this context, the blocks that output these layers (1 ... L) return their input unchanged."""
    with _hooked(model, lambda layer, value: None, skipped=frozenset(layers)):
        yield


@contextlib.contextmanager
def resumed(model: nn.Module, layer: int, state: Callable[[], Tensor]) -> Iterator[None]:
    """Within this context, every pass starts from a given value of a layer: the blocks below it are not computed.

    Args:
        model: a classifier. The embeddings are still looked up, and give the body its masks.
        layer: 0 ... L.
        state: returns the layer's value for the current batch, `(batch, tokens, width)`.
    """
    with _hooked(model, lambda i, value: state() if i == layer else None, skipped=frozenset(range(1, layer + 1))):
        yield


@contextlib.contextmanager
def refuse_autocast(model: nn.Module, device: str) -> Iterator[None]:
    """Within this context, a pass in any other precision than float32 raises.

    The type of the outputs alone does not show autocast, under which norms still return float32.

    Args:
        model: a model with floating-point parameters.
        device: where it computes.

    Raises:
        EncoderError: if a parameter is not float32 or a module runs under autocast.
    """

    def refuse(precision: object) -> None:
        raise EncoderError(
            f"The model computes in {precision}, not float32, as a model does that was wrapped for mixed-precision "
            "training; save it and load it again."
        )

    def check(module: nn.Module, args: Any) -> None:
        if torch.is_autocast_enabled(torch.device(device).type):
            refuse("mixed precision")

    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            refuse(parameter.dtype)
    handles = [module.register_forward_pre_hook(check) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _hooked(
    model: nn.Module, edit: Callable[[int, Tensor], Tensor | None], skipped: frozenset[int] = frozenset()
) -> Iterator[None]:
    """Call `edit(layer, value)` at each layer of every pass; a result other than None replaces the value."""
    stack = list({id(block): block for block in blocks(model)}.values())
    body: Any = model.base_model
    layer = 0

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal layer
        layer = 0

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if layer:  # the input of any later block is the output of the block below, which `after` has seen
            return None
        value = edit(0, args[0] if args else kwargs["hidden_states"])
        if value is None:
            return None
        return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal layer
        layer += 1
        value = edit(layer, output[0] if isinstance(output, tuple) else output)
        return (value, *output[1:]) if value is not None and isinstance(output, tuple) else value

    def skippable(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if layer + 1 in skipped:
                return args[0] if args else kwargs["hidden_states"]
            return original(*args, **kwargs)

        return call

    handles = [body.register_forward_pre_hook(begin, with_kwargs=True)]
    for block in stack:
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
        if skipped:
            setattr(block, "forward", skippable(block.forward))  # noqa: B010
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if skipped:
            for block in stack:
                del block.forward
