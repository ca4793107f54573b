"""A model's numbered layers in a forward pass: read, replaced, skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerprobe.errors import EncoderError

FAMILIES: Mapping[str, str] = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "electra": "encoder.layer",
    "albert": "encoder.albert_layer_groups",
    "distilbert": "transformer.layer",
    "modernbert": "layers",
}
"""Where each family (`model_type`) keeps its blocks, below its body."""

Edit = Callable[[Tensor], Tensor]
"""From a layer's value, `(batch, tokens, width)`, to the value that goes on in its stead."""


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a classifier, in order; block i puts out layer i + 1 counted from zero.

    ALBERT's blocks share weights: there one module stands in the list many times.
    """
    body: Any = model.base_model
    stack = list(body.get_submodule(FAMILIES[body.config.model_type]))
    total = body.config.num_hidden_layers
    return [stack[i * len(stack) // total] for i in range(total)]


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
    """One pass: the L + 1 layers, each `(batch, tokens, width)`, and the logits `(batch, classes)`.

    The layers are read by hooks at the blocks, so that the last one is the last block's own output in every family.
    """
    layers: list[Tensor] = []

    def read(layer: int, value: Tensor) -> None:
        layers.append(value)

    with _hooked(model, read):
        logits = model(**inputs).logits
    return tuple(layers), logits


@contextlib.contextmanager
def edited(model: nn.Module, edits: Mapping[int, Edit]) -> Iterator[None]:
    """In every pass inside this context, what a layer puts out is replaced before it goes on.

    Args:
        model: a classifier.
        edits: layer (0 = embeddings ... L) -> function of its value.
    """

    def edit(layer: int, value: Tensor) -> Tensor | None:
        return edits[layer](value) if layer in edits else None

    with _hooked(model, edit):
        yield


@contextlib.contextmanager
def skipping(model: nn.Module, layers: Collection[int]) -> Iterator[None]:
    """In every pass inside this context, the blocks that put out these layers (1 ... L) pass on what they are given."""
    with _hooked(model, lambda layer, value: None, skipped=frozenset(layers)):
        yield


@contextlib.contextmanager
def resumed(model: nn.Module, layer: int, state: Callable[[], Tensor]) -> Iterator[None]:
    """In every pass inside this context, layer `layer` is given: the blocks below it are not computed.

    Args:
        model: a classifier. The embeddings are still looked up, and give the body its masks.
        layer: 0 ... L.
        state: its value for the batch that is being passed, `(batch, tokens, width)`.
    """

    def edit(at: int, value: Tensor) -> Tensor | None:
        return state() if at == layer else None

    with _hooked(model, edit, skipped=frozenset(range(1, layer + 1))):
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
    """Call `edit(layer, value)` at each layer of every pass; what it returns, unless None, goes on in its stead."""
    stack = list({id(block): block for block in blocks(model)}.values())
    body: Any = model.base_model
    at = 0

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal at
        at = 0

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if at:  # what goes into a later block is the layer before it
            return None
        value = edit(0, args[0] if args else kwargs["hidden_states"])
        if value is None:
            return None
        return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal at
        at += 1
        value = edit(at, output[0] if isinstance(output, tuple) else output)
        if value is None:
            return None
        return (value, *output[1:]) if isinstance(output, tuple) else value

    def passing(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if at + 1 in skipped:
                return args[0] if args else kwargs["hidden_states"]
            return original(*args, **kwargs)

        return call

    handles = [body.register_forward_pre_hook(begin, with_kwargs=True)]
    for block in stack:
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
        if skipped:
            setattr(block, "forward", passing(block.forward))  # noqa: B010
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if skipped:
            for block in stack:
                del block.forward


def same_layer(one: Tensor, other: Tensor) -> bool:
    """Whether two values of a layer are equal but for rounding."""
    return torch.allclose(one, other, atol=1e-5, rtol=1e-4)
