"""The methods of adaptation by name: how deep each one trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layerprobe.errors import StudyError

KNOWN = "head, top:k (k top blocks), full, checkpoint:PATH and the control shuffled-labels"


@dataclass(frozen=True)
class Method:
    """How a model is adapted.

    `head` trains what stands above the last block, less a pretrained pooler. `top` trains the top k blocks and all that
    stands above them. `full` trains everything, embeddings included. `shuffled-labels` is `full` on permuted labels: drift
    that appears there too is not about the task. `checkpoint` trains nothing: the user has done it.
    """

    name: str
    kind: Literal["head", "top", "full", "checkpoint", "shuffled-labels"]
    k: int | None = None
    path: str | None = None


def parse_method(text: str, n_layers: int | None = None) -> Method:
    """Read a method as a study writes it.

    Args:
        text: such as `head`, `top:2`, `full`, `checkpoint:PATH`.
        n_layers: number of blocks, where known; then `top:k` is checked against it.

    Raises:
        StudyError: naming what came and what is allowed.
    """
    kind, colon, rest = text.partition(":")
    if kind == "head" and not colon:
        return Method(text, "head")
    if kind == "full" and not colon:
        return Method(text, "full")
    if kind == "shuffled-labels" and not colon:
        return Method(text, "shuffled-labels")
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
    raise StudyError(f"The method {text!r} is unknown; the methods are {KNOWN}.")


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
