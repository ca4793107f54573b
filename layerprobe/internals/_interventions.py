"""Which layers the adapted model needs: how well it does with some of it taken back or left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm import tqdm

from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize
from layerprobe.errors import DataError, EncoderError
from layerprobe.internals._places import POOLER, places
from layerprobe.layers import FAMILIES, blocks, forward, resumed

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.data import Examples

UNTOUCHED = "untouched"
Case = tuple[str, int]
"""A kind of intervention, and the layer at which it is made."""


@torch.inference_mode()
def interventions(
    base: nn.Module,
    adapted: nn.Module,
    encoder: Encoder,
    examples: Examples,
    *,
    max_length: int,
    device: str = "cpu",
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the adapted model with single blocks' weights taken back, top blocks skipped, or base's layers given to it.

    The head is always the adapted model's. A pretrained pooler is body that stands above layer L: it is the adapted
    model's own too, except in `pooler`. Kinds:

    * `untouched`: the adapted model as it is; `layer` L.
    * `weights`: block `layer` has base's weights, the rest the adapted model's; 0 is the embeddings.
    * `pooler`: a pretrained pooler has base's weights; `layer` L. No such row where the pooler is new or there is none.
    * `skipped`: the blocks above `layer` are left out: what is layer `layer` goes to the pooler and head; L - 1 to 0.
    * `stitched`: base computes up to `layer`, the adapted model's blocks above it go on from there; at 0 this is `weights`
      at 0, at L all blocks are base's.

    Both models are put in eval mode on the device; their weights stay as they are. Each computes its layers once a
    batch, and each case goes on from there: for L blocks about L + 3 forward passes in all, fewer where base and
    adapted share layers.

    Args:
        base: the pretrained body under any head.
        adapted: the adapted classifier.
        encoder: what base was loaded by.
        examples: labelled texts that adaptation hasn't seen.
        max_length: longest input in word pieces.
        device: where to compute.
        batch_size: texts a pass.
        progress: whether to draw a bar on stderr.

    Returns:
        One row a case: `kind`, `layer`; `accuracy` with its 95% Wilson interval `accuracy_low`, `accuracy_high`; `loss`
        (cross-entropy in nats); `difference` in accuracy to the untouched model on the same texts, with its 95% interval
        `difference_low`, `difference_high` (Bonett and Price 2012; 0 to 0 where the outputs are equal, number for
        number); `n`, the number of texts. `attrs["left_out"]` lists (layer, kind, why): ALBERT's blocks share their
        weights, so that none can be taken back alone.

    Raises:
        DataError: if there is no text, or a label that the adapted model has no output for.
        EncoderError: if the two models are not of one architecture.
    """
    import pandas as pd

    _check(base, adapted, examples)
    for model in (base, adapted):
        model.to(device).eval()
    shared = _unchanged(base, adapted, encoder)
    cases, left_out = _cases(adapted, encoder)
    encodings = tokenize(encoder, examples, max_length)
    logits: dict[Case, np.ndarray] = {}
    batches = length_sorted_batches([len(e["input_ids"]) for e in encodings], batch_size)
    for indices in tqdm(batches, desc="interventions", unit="batch", leave=False, disable=not progress, delay=1):
        inputs = {key: value.to(device) for key, value in collate(encoder, encodings, indices).items()}
        for case, value in _logits(base, adapted, inputs, cases, shared).items():
            whole = logits.setdefault(case, np.zeros((len(encodings), value.shape[1])))
            whole[indices] = value.to("cpu", torch.float64).numpy()
    table = pd.DataFrame(
        {"kind": kind, "layer": layer, **_measured(logits[kind, layer], logits[cases[0]], examples.labels)}
        for kind, layer in cases
    )
    table.attrs["left_out"] = left_out
    return table


def _cases(model: nn.Module, encoder: Encoder) -> tuple[list[Case], list[tuple[int, str, str]]]:
    top = encoder.n_layers
    stack = [id(block) for block in blocks(model)]
    cases, left_out = [(UNTOUCHED, top), ("weights", 0)], []
    for layer in range(1, top + 1):
        if stack.count(stack[layer - 1]) == 1:
            cases.append(("weights", layer))
        else:
            left_out.append(
                (layer, "weights", "this block shares its weights with others, and can't be taken back alone")
            )
    if encoder.pooler == "pretrained":
        cases.append(("pooler", top))
    cases += [("skipped", layer) for layer in reversed(range(top))]
    cases += [("stitched", layer) for layer in range(top + 1)]
    return cases, left_out


def _logits(
    base: nn.Module, adapted: nn.Module, inputs: Mapping[str, Tensor], cases: list[Case], shared: frozenset[int]
) -> dict[Case, Tensor]:
    """Each case's logits of one batch."""
    own, untouched = forward(adapted, inputs)
    top = len(own) - 1
    given = own if shared >= set(range(top + 1)) else forward(base, inputs)[0]

    def above(layer: int, value: Tensor) -> Tensor:
        with resumed(adapted, layer, lambda: value):
            return adapted(**inputs).logits

    result: dict[Case, Tensor] = {}
    for kind, layer in cases:
        if kind == UNTOUCHED or (kind == "weights" and layer in shared) or (kind == "pooler" and POOLER in shared):
            value = untouched
        elif kind == "skipped":
            value = above(top, own[layer])
        elif kind == "pooler":
            with _swapped(adapted, base, POOLER):
                value = above(top, own[top])
        elif kind == "weights" and layer > 0:
            with _swapped(adapted, base, layer):
                value = above(layer - 1, own[layer - 1])
        elif shared >= set(range(layer + 1)):
            value = untouched
        elif (kind, layer) == ("stitched", 0):
            value = result["weights", 0]  # the embeddings are all that stands below layer 0
        else:
            value = above(layer, given[layer])
        result[kind, layer] = value
    return result


@contextlib.contextmanager
def _swapped(adapted: nn.Module, base: nn.Module, place: int) -> Iterator[None]:
    """Inside this context the adapted model runs base's own block, or pooler; no weight is written."""
    body, other = _body(adapted), _body(base)
    if place == POOLER:
        home, name, replacement = body, "pooler", other.pooler
    else:
        path = FAMILIES[body.config.model_type]
        home, name = body.get_submodule(path), str(place - 1)
        replacement = other.get_submodule(path)[place - 1]
    original = getattr(home, name)
    setattr(home, name, replacement)
    try:
        yield
    finally:
        setattr(home, name, original)


def _body(model: nn.Module) -> Any:
    return model.base_model


def _unchanged(base: nn.Module, adapted: nn.Module, encoder: Encoder) -> frozenset[int]:
    """The layers whose own weights are base's, number for number, and POOLER if a pretrained one's are."""
    before, after = dict(base.named_parameters()), dict(adapted.named_parameters())
    changed: set[int] = set()
    for name, layers in places(adapted, encoder).items():
        if not torch.equal(before[name], after[name]):
            changed.update(layers)
    return frozenset({*range(encoder.n_layers + 1), POOLER} - changed)


def _measured(
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
    """95% interval of the difference of two paired proportions (Bonett and Price 2012).

    One text is added to each of the two kinds that tell the sides apart. A bootstrap of the texts agrees where many do;
    where none or few do it gives no width at all, as if the next thousand texts couldn't differ either.
    """
    from scipy.stats import norm

    n = len(one)
    gained, lost = (int((one & ~other).sum()) + 1) / (n + 2), (int((other & ~one).sum()) + 1) / (n + 2)
    reach = float(norm.ppf(0.975)) * np.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    return max(-1.0, float(gained - lost - reach)), min(1.0, float(gained - lost + reach))


def _check(base: nn.Module, adapted: nn.Module, examples: Examples) -> None:
    one, other = (_body(model).config for model in (base, adapted))
    shapes = [f"{c.model_type} of {c.num_hidden_layers} blocks, width {c.hidden_size}" for c in (one, other)]
    if shapes[0] != shapes[1]:
        raise EncoderError(
            f"Base is a {shapes[0]} but the adapted model a {shapes[1]}; give the model that it was fine-tuned from."
        )
    if not len(examples):
        raise DataError("Interventions got no text to measure them on; give labelled texts, better hundreds.")
    unknown = examples.labels[(examples.labels < 0) | (examples.labels >= other.num_labels)]
    if len(unknown):
        raise DataError(
            f"The texts have label {unknown[0]} but the adapted model's outputs are 0 to {other.num_labels - 1}; "
            "give texts labelled as in its training."
        )
