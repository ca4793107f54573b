"""Which layers the adapted model needs: its quality with parts of it reset to base weights or skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from layerprobe.device import MOST_EXAMPLES, batch_size, forward_bytes
from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize
from layerprobe.errors import ArgumentError, EncoderError
from layerprobe.families import FAMILIES
from layerprobe.internals._weights import POOLER, parameter_layers
from layerprobe.layers import blocks, forward, resumed
from layerprobe.progress import track
from layerprobe.stats import paired_proportions

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.data import Examples

BATCH_SIZE = 32

Case = tuple[str, int]
"""A kind of intervention, and its layer."""


def interventions(
    base: nn.Module,
    adapted: nn.Module,
    encoder: Encoder,
    examples: Examples,
    *,
    max_length: int,
    device: str = "cpu",
) -> pd.DataFrame:
    """Measure the adapted model with single blocks reset to base, top blocks skipped, or base's layers as its input.

    The head is always that of the adapted model, and so is a pretrained pooler, except in `pooler`. Kinds:

    * `untouched`: the adapted model as it is; `layer` is L.
    * `weights`: block `layer` has base weights, everything else adapted ones; 0 stands for the embeddings.
    * `pooler`: a pretrained pooler has base weights; `layer` is L. Only if there is a pretrained pooler.
    * `skipped`: the blocks above `layer` are left out: `layer` is the input of the pooler and head; L - 1 to 0.
    * `stitched`: base computes up to `layer`, and the adapted model's blocks continue from there; at 0 this equals
      `weights` at 0, at L all blocks are base's.

    Both models are put in eval mode on the device; their weights are not changed. For L blocks this takes about L + 3
    forward passes in all, since each case resumes from a layer that was computed once per batch.

    Args:
        base: the pretrained body with any head.
        adapted: the adapted classifier.
        encoder: the encoder that base was loaded from.
        examples: labelled examples that adaptation has not seen.
        max_length: longest input, in tokens.
        device: where to compute.

    Returns:
        One row per case: `kind`, `layer`; `accuracy` with its 95% Wilson interval `accuracy_low`, `accuracy_high`; `loss`
        (cross-entropy in nats); `difference` in accuracy to the untouched model on the same examples, with its 95% interval
        `difference_low`, `difference_high` (Bonett and Price 2012; 0 to 0 if the logits are equal); `n`, the number of
        examples. `attrs["left_out"]` lists (layer, kind, reason): blocks that share their weights cannot be reset alone.

    Raises:
        ArgumentError: if there is no example, or a label that the adapted model has no output for.
        EncoderError: if the two models are not of one architecture.
    """
    import pandas as pd

    _check(base, adapted, examples)
    for model in (base, adapted):
        model.to(device).eval()
    unchanged = _unchanged(base, adapted, encoder)
    cases, left_out = _cases(adapted, encoder)
    encodings = tokenize(encoder, examples, max_length)
    logits: dict[Case, np.ndarray] = {}
    lengths = [len(e["input_ids"]) for e in encodings]
    config: Any = adapted.config
    each = forward_bytes(config, max(lengths), kept=2 * encoder.n_layers + 2)
    batches = length_sorted_batches(lengths, batch_size(device, each, usual=BATCH_SIZE, most=MOST_EXAMPLES))
    with torch.inference_mode():
        for indices in track(batches, "interventions"):
            inputs = {key: value.to(device) for key, value in collate(encoder, encodings, indices).items()}
            for case, value in _logits(base, adapted, inputs, cases, unchanged).items():
                rows = logits.setdefault(case, np.zeros((len(encodings), value.shape[1])))
                rows[indices] = value.cpu().double().numpy()
    table = pd.DataFrame(
        {"kind": kind, "layer": layer, **_quality(logits[kind, layer], logits[cases[0]], examples.labels)}
        for kind, layer in cases
    )
    table.attrs["left_out"] = left_out
    return table


def _cases(model: nn.Module, encoder: Encoder) -> tuple[list[Case], list[tuple[int, str, str]]]:
    top, stack = encoder.n_layers, [id(block) for block in blocks(model)]
    shared = [layer for layer, block in enumerate(stack, 1) if stack.count(block) > 1]
    cases = [("untouched", top), *(("weights", layer) for layer in range(top + 1) if layer not in shared)]
    cases += [("pooler", top)] if encoder.pooler == "pretrained" else []
    cases += [("skipped", layer) for layer in reversed(range(top))]
    cases += [("stitched", layer) for layer in range(top + 1)]
    reason = "this block shares its weights with others, and cannot be reset alone"
    return cases, [(layer, "weights", reason) for layer in shared]


def _logits(
    base: nn.Module, adapted: nn.Module, inputs: Mapping[str, Tensor], cases: list[Case], unchanged: frozenset[int]
) -> dict[Case, Tensor]:
    """The logits of one batch in each case."""
    layers, untouched = forward(adapted, inputs)
    top = len(layers) - 1
    base_layers = layers if unchanged >= set(range(top + 1)) else forward(base, inputs)[0]

    def resume(layer: int, value: Tensor) -> Tensor:
        with resumed(adapted, layer, lambda: value):
            return adapted(**inputs).logits

    logits: dict[Case, Tensor] = {}
    for kind, layer in cases:
        if kind == "untouched" or {"weights": layer, "pooler": POOLER}.get(kind) in unchanged:
            value = untouched
        elif kind == "skipped":
            value = resume(top, layers[layer])
        elif kind == "pooler":
            with _swapped(adapted, base, POOLER):
                value = resume(top, layers[top])
        elif kind == "weights" and layer > 0:
            with _swapped(adapted, base, layer):
                value = resume(layer - 1, layers[layer - 1])
        elif unchanged >= set(range(layer + 1)):
            value = untouched
        elif (kind, layer) == ("stitched", 0):
            value = logits["weights", 0]  # below layer 0 there are only the embeddings
        else:
            value = resume(layer, base_layers[layer])
        logits[kind, layer] = value
    return logits


@contextlib.contextmanager
def _swapped(adapted: nn.Module, base: nn.Module, layer: int) -> Iterator[None]:
    """Within this context, the adapted model runs the block (or pooler) of base; no weight is written."""
    parents: list[Any] = [model.base_model for model in (adapted, base)]
    name = "pooler"
    if layer != POOLER:
        parents = [body.get_submodule(FAMILIES[body.config.model_type].blocks) for body in parents]
        name = str(layer - 1)
    original = getattr(parents[0], name)
    setattr(parents[0], name, getattr(parents[1], name))
    try:
        yield
    finally:
        setattr(parents[0], name, original)


def _unchanged(base: nn.Module, adapted: nn.Module, encoder: Encoder) -> frozenset[int]:
    """The layers (and POOLER, for a pretrained one) whose weights are equal to those of base."""
    before, after = dict(base.named_parameters()), dict(adapted.named_parameters())
    layers = parameter_layers(adapted, encoder)
    changed = {layer for name in layers if not torch.equal(before[name], after[name]) for layer in layers[name]}
    return frozenset({*range(encoder.n_layers + 1), POOLER} - changed)


def _quality(
    logits: Float[np.ndarray, "n classes"], untouched: Float[np.ndarray, "n classes"], labels: np.ndarray
) -> dict[str, Any]:
    from scipy.special import log_softmax
    from scipy.stats import binomtest

    n = len(labels)
    right, before = logits.argmax(axis=1) == labels, untouched.argmax(axis=1) == labels
    interval = binomtest(int(right.sum()), n).proportion_ci(0.95, method="wilson")
    low, high = (0.0, 0.0) if np.array_equal(logits, untouched) else _difference_interval(right, before)
    return {
        "accuracy": float(right.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "loss": float(-log_softmax(logits, axis=1)[np.arange(n), labels].mean()),
        "difference": (int(right.sum()) - int(before.sum())) / n,
        "difference_low": low,
        "difference_high": high,
        "n": n,
    }


def _difference_interval(one: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """95% interval of the difference of two paired proportions.

    A bootstrap agrees where many examples disagree; where few or none do, its interval is far too narrow.
    """
    return paired_proportions(int((one & ~other).sum()), int((other & ~one).sum()), len(one))


def _check(base: nn.Module, adapted: nn.Module, examples: Examples) -> None:
    bodies: list[Any] = [base.base_model, adapted.base_model]
    configs = [body.config for body in bodies]
    shapes = [f"{c.model_type} of {c.num_hidden_layers} blocks, width {c.hidden_size}" for c in configs]
    if shapes[0] != shapes[1]:
        raise EncoderError(
            f"{{base}} is a {shapes[0]} but {{adapted}} a {shapes[1]}; give the model that it was fine-tuned from.",
            "base",
            "adapted",
        )
    if not len(examples):
        raise ArgumentError("{examples} is empty; give labelled examples, preferably hundreds.", "examples")
    classes = configs[1].num_labels
    unknown = examples.labels[(examples.labels < 0) | (examples.labels >= classes)]
    if len(unknown):
        raise ArgumentError(
            f"{{examples}} have the label {unknown[0]} but the outputs of the adapted model are 0 to {classes - 1}; "
            "label them as in its training.",
            "examples",
        )
