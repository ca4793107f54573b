"""The adaptation methods. To add one, write a subclass of `Method` in a module here and list it in `REGISTRY`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from layerprobe.adaptation.methods._method import Method
from layerprobe.adaptation.methods.equal_step import EqualStep
from layerprobe.adaptation.methods.lora import Lora
from layerprobe.adaptation.methods.standard import BitFit, Checkpoint, Full, Head, LpFt, ShuffledLabels, Top
from layerprobe.errors import ArgumentError

REGISTRY: tuple[type[Method], ...] = (
    Head,
    Top,
    Full,
    EqualStep,
    LpFt,
    BitFit,
    Lora,
    Checkpoint,
    ShuffledLabels,
)


def parse_method(text: str, n_layers: int | None = None) -> Method:
    """Read a method from its text.

    Args:
        text: such as `head`, `top:2`, `full`, `lora:8`, `lora:8@4-6`, `checkpoint:PATH`.
        n_layers: number of blocks, where known; then numbers of blocks and layers are checked against it.

    Raises:
        ArgumentError: if no method has this text, or its parameters are malformed or out of range.
    """
    for method in REGISTRY:
        if (parsed := method.parse(text, n_layers)) is not None:
            return parsed
    raise ArgumentError(f"The method {text!r} is unknown; the methods are {_known()}.", "method")


def expand_methods(methods: Sequence[str] | Literal["depths"], n_layers: int | None) -> tuple[Method, ...]:
    """The methods of a study, in order. "depths" is head, top:1 ... top:L, full; without `n_layers`, head and full.

    Raises:
        ArgumentError: if there is none, one is unknown, or one is named twice.
    """
    if methods == "depths":
        methods = ["head", *(f"top:{k}" for k in range(1, (n_layers or 0) + 1)), "full"]
    if not methods:
        raise ArgumentError(f"{{methods}} is empty; name at least one of {_known()}.", "methods")
    parsed = tuple(parse_method(method, n_layers) for method in methods)
    names = [method.name for method in parsed]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ArgumentError(f"{{methods}} contains {twice!r} twice; name each once (seeds repeat a method).", "methods")
    return parsed


def check_learning_rates(learning_rates: Collection[str], methods: Collection[Method]) -> None:
    """Check that learning rates by method are for methods that are used.

    Raises:
        ArgumentError: if an entry sets the rate of none of them.
    """
    names = {name for method in methods for name in method.rate_names}
    for name in learning_rates:
        if name not in names:
            raise ArgumentError(
                f"{{learning_rates}} contains {name!r}, which none of the methods trains blocks by; "
                f"rates can be set for {', '.join(sorted(names)) or 'none of them'}.",
                "learning_rates",
            )


def cached_layers(methods: Collection[Method], n_layers: int) -> tuple[int, ...]:
    """Layers (1 ... L) of the base model whose values training by any of these methods reads."""
    return tuple(sorted({layer for method in methods for layer in method.cached_layers(n_layers)}))


def _known() -> str:
    methods = [method.syntax for method in REGISTRY if not method.is_control]
    controls = [method.syntax for method in REGISTRY if method.is_control]
    return f"{', '.join(methods)} and the control{'s' * (len(controls) > 1)} {', '.join(controls)}"
