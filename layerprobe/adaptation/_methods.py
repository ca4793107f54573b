"""The methods of adaptation by name: what each one trains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from layerprobe.errors import StudyError

if TYPE_CHECKING:
    from layerprobe.encoder import Encoder

KNOWN = (
    "head, top:k (k top blocks), full, lp-ft, bitfit, lora:r, lora:r@layers, checkpoint:PATH "
    "and the control shuffled-labels"
)


@dataclass(frozen=True)
class Method:
    """How a model is adapted.

    `head` trains what stands above the last block, less a pretrained pooler. `top` trains the top k blocks and all that
    stands above them. `full` trains everything, embeddings included. `lp-ft` trains the head to convergence, then
    everything from there. `bitfit` trains every bias term, and the head. `lora` trains low-rank additions to the query
    and value matrices, and the head. `shuffled-labels` is `full` on permuted labels: drift that appears there too is not
    about the task. `checkpoint` trains nothing: the user has done it.
    """

    name: str
    kind: Literal["head", "top", "full", "lp-ft", "bitfit", "lora", "checkpoint", "shuffled-labels"]
    k: int | None = None
    """Of `top`: blocks trained."""
    path: str | None = None
    rank: int | None = None
    """Of `lora`."""
    layers: tuple[int, ...] | None = None
    """Of `lora`: the layers (1 ... L) whose blocks get additions; None is all."""


def parse_method(text: str, n_layers: int | None = None) -> Method:
    """Read a method as a study writes it.

    Args:
        text: such as `head`, `top:2`, `full`, `lora:8`, `lora:8@4-6`, `checkpoint:PATH`.
        n_layers: number of blocks, where known; then `top:k` and `@layers` are checked against it.

    Raises:
        StudyError: naming what came and what is allowed.
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        for plain in ("head", "full", "lp-ft", "bitfit", "shuffled-labels"):
            if kind == plain:
                return Method(text, plain)
    if kind == "checkpoint" and rest:
        return Method(text, "checkpoint", path=rest)
    if kind == "top":
        allowed = f"1 to {n_layers}" if n_layers else "1 up to the number of blocks"
        if not rest.isdecimal() or int(rest) < 1 or (n_layers is not None and int(rest) > n_layers):
            also = "; for none but the head, write head" if rest == "0" else ""
            raise StudyError(
                f"The method {text!r} trains no whole number of top blocks that there is; k is {allowed}{also}."
            )
        return Method(f"top:{int(rest)}", "top", k=int(rest))
    if kind == "lora":
        return _parse_lora(text, rest, n_layers)
    raise StudyError(f"The method {text!r} is unknown; the methods are {KNOWN}.")


def _parse_lora(text: str, rest: str, n_layers: int | None) -> Method:
    rank, at, where = rest.partition("@")
    if not rank.isdecimal() or int(rank) < 1:
        raise StudyError(f"The method {text!r} has no rank; write lora:r with a whole r of 1 or more, such as lora:8.")
    if not at:
        return Method(f"lora:{int(rank)}", "lora", rank=int(rank))
    layers: set[int] = set()
    for part in where.split(","):
        low, dash, high = part.strip().partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else True)) or (dash and int(high) < int(low)):
            raise StudyError(
                f"The method {text!r} names no layers after its @; write numbers or ranges, such as lora:8@4-6 or "
                "lora:8@1,3."
            )
        layers |= set(range(int(low), int(high if dash else low) + 1))
    wrong = next((layer for layer in sorted(layers) if layer < 1 or (n_layers is not None and layer > n_layers)), None)
    if wrong is not None:
        allowed = f"1 to {n_layers}" if n_layers else "1 up to the number of blocks"
        also = " (0 is the embeddings, which have no attention)" if wrong == 0 else ""
        raise StudyError(
            f"The method {text!r} names layer {wrong}, which no block puts out; layers are {allowed}{also}."
        )
    ordered = tuple(sorted(layers))
    return Method(f"lora:{int(rank)}@{_ranges(ordered)}", "lora", rank=int(rank), layers=ordered)


def _ranges(layers: Sequence[int]) -> str:
    """`4-6,8` for 4, 5, 6, 8: so that one set of layers has one name."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in parts)


def expand_methods(methods: Sequence[str] | Literal["depths"], n_layers: int) -> tuple[Method, ...]:
    """The methods of a study in order; "depths" is head, top:1 ... top:L, full.

    Raises:
        StudyError: if there is none, one is unknown, or one stands there twice.
    """
    if methods == "depths":
        methods = ["head", *(f"top:{k}" for k in range(1, n_layers + 1)), "full"]
    if not methods:
        raise StudyError(f"adaptation.methods is empty; name at least one of {KNOWN}.")
    parsed = tuple(parse_method(method, n_layers) for method in methods)
    names = [method.name for method in parsed]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise StudyError(f"adaptation.methods names {twice!r} twice; name each once (seeds repeat a method).")
    return parsed


def check_method(method: Method, encoder: Encoder) -> None:
    """Refuse a method that an encoder cannot be adapted by; `adapt` asks this itself, before it computes anything.

    Raises:
        StudyError: in one sentence.
    """
    if encoder.family == "albert" and (method.kind == "top" or method.layers is not None):
        raise StudyError(
            f"The method {method.name!r} trains some blocks and not others, but {encoder.name} is an ALBERT, whose blocks "
            "are one block run many times; use head, full, lp-ft, bitfit or lora:r."
        )
    parse_method(method.name, encoder.n_layers)
    if method.rank is not None and method.rank > encoder.width:
        raise StudyError(
            f"The method {method.name!r} has a higher rank than the matrices of {encoder.name} can have; "
            f"r is 1 to {encoder.width}."
        )


def frozen_layer(method: Method, n_layers: int) -> int | None:
    """The highest layer (0 ... L) that a method leaves as it was, with all below it; None if even layer 0 changes."""
    if method.kind in ("head", "checkpoint"):
        return n_layers
    if method.kind == "top":
        assert method.k is not None
        return n_layers - method.k
    if method.kind == "lora":
        return min(method.layers) - 1 if method.layers else 0
    return None


def cached_layers(methods: Collection[Method], n_layers: int) -> tuple[int, ...]:
    """Layers whose values are worth keeping for training by these methods: those with frozen blocks below them."""
    found = {frozen_layer(method, n_layers) for method in methods if method.kind != "checkpoint"}
    if any(method.kind == "lp-ft" for method in methods):
        found.add(n_layers)
    return tuple(sorted(layer for layer in found if layer))
