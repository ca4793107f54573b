"""What a classifier loses when one of its layers is replaced by what a dictionary keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from layerprobe.data import Examples
from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize
from layerprobe.errors import EncoderError, MeasureError, StudyError
from layerprobe.layers import blocks, forward, resumed
from layerprobe.sae._dictionary import Dictionary

if TYPE_CHECKING:
    import pandas as pd

CLEAN, ABLATED = "clean", "mean_ablated"
GROUPS = 20
SMALLEST_GAP = 1e-4
"""Nats, or share of examples, that mean ablation must cost for a recovered share to be defined."""


def task_loss(
    model: nn.Module,
    encoder: Encoder,
    examples: Examples,
    labels: Int[np.ndarray, " n"],
    layer: int,
    dictionaries: Mapping[str, Dictionary],
    *,
    max_length: int = 128,
    mean: Float[np.ndarray, " d"] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Cross-entropy and accuracy of a classifier with one layer's output as it is, ablated, and rebuilt by dictionaries.

    Replaced are real tokens only, special tokens among them; what stands at padding has no bearing on any logit. A pass
    is made once for the layer's value, and the blocks above it are run again for each variant. Memory holds one batch.

    Recovered of a variant's loss = (CE_ablated - CE_variant) / (CE_ablated - CE_clean), and of its accuracy alike: 1 for
    the clean layer, 0 for the ablated one; a bad dictionary may be below 0, and the two can part.

    Args:
        model: a classifier on the encoder's architecture, in float32 and eval mode.
        encoder: gives the tokenizer.
        examples: texts, none of which anything was trained on.
        labels: class number of each example.
        layer: 0 (embeddings) to L.
        dictionaries: name -> dictionary, which takes this layer's rows as they are.
        max_length: word pieces kept of a text.
        mean: what the ablated layer puts out at every real token; by default the layer's mean over these texts' real
            tokens, each counted once.
        batch_size: texts in a batch.
        seed: of the jackknife's groups.
        progress: whether to draw a progress bar on stderr.

    Returns:
        One row a variant (`clean`, `mean_ablated`, then the dictionaries), with columns `variant`; `loss` (mean
        cross-entropy in nats), `loss_low`, `loss_high`; `accuracy`, `accuracy_low`, `accuracy_high`; `n` (examples);
        `loss_recovered` and `accuracy_recovered`, each with `_low` and `_high`; `why`, in words, what of them is
        undefined and so NaN (else empty). Intervals are 95%: Wilson's for accuracy, else by a delete-group jackknife over
        20 groups of examples with the mean vector held fixed. A recovered share is undefined where ablation costs less
        than 1e-4, and its interval where the interval of that cost reaches 0, since then no bound holds.

    Raises:
        EncoderError: if the model is in training mode or does not compute in float32.
        StudyError: if there is no such layer.
        MeasureError: if labels, names or widths do not fit, there are fewer than two examples, or a loss is not finite.
    """
    import pandas as pd

    _check(model, encoder, examples, labels, layer, dictionaries, mean)
    encodings = tokenize(encoder, examples, max_length)
    batches = length_sorted_batches([len(e["input_ids"]) for e in encodings], batch_size)
    runs = _Runs(model, layer, labels, variants=2 + len(dictionaries))
    device = next(model.parameters()).device

    def drawn(bar: tqdm) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        for indices in batches:
            yield indices, {key: value.to(device) for key, value in collate(encoder, encodings, indices).items()}
            bar.update()

    title = f"task loss at layer {layer}"
    with (
        torch.inference_mode(),
        tqdm(total=2 * len(batches), desc=title, leave=False, disable=not progress, delay=1) as bar,
    ):
        total, tokens = np.zeros(encoder.width), 0
        for indices, inputs in drawn(bar):
            rows = runs.whole(indices, inputs, list(dictionaries.values()))
            total += rows.sum(0, dtype=np.float64)
            tokens += len(rows)
        # A second round, since the mean is known only now; it needs none of the layer's values, so none was kept.
        vector = torch.from_numpy(total / tokens if mean is None else mean).to(device, torch.float32)
        for indices, inputs in drawn(bar):
            runs.resume(1, indices, inputs, inputs["attention_mask"].unsqueeze(-1) * vector)
    names = (CLEAN, ABLATED, *dictionaries)
    for name, losses in zip(names, runs.losses, strict=True):
        if not np.isfinite(losses).all():
            raise MeasureError(
                f"The loss of {name!r} at layer {layer} is not finite on {int((~np.isfinite(losses)).sum())} of "
                f"{len(losses)} examples; train that dictionary or model again."
            )
    groups = np.random.default_rng(seed).permutation(np.arange(len(labels)) % min(GROUPS, len(labels)))
    return pd.DataFrame([{"variant": name, **_row(runs.losses, runs.right, i, groups)} for i, name in enumerate(names)])


class _Runs:
    """A model run whole and from a layer up; each variant's loss and hit on each example."""

    def __init__(self, model: nn.Module, layer: int, labels: np.ndarray, variants: int) -> None:
        self.model, self.layer, self.labels = model, layer, torch.from_numpy(np.array(labels, dtype=np.int64))
        self.losses, self.right = np.zeros((2, variants, len(labels)))

    def whole(
        self, indices: np.ndarray, inputs: dict[str, Tensor], dictionaries: Sequence[Dictionary]
    ) -> Float[np.ndarray, "tokens d"]:
        """Run the clean variant and the dictionaries' (the third and on); the layer's rows at real tokens."""
        value, logits = _pass(self.model, self.layer, inputs)
        self._keep(0, indices, logits)
        mask = inputs["attention_mask"].bool()
        rows = value[mask].cpu().numpy()
        for number, dictionary in enumerate(dictionaries, start=2):
            rebuilt = value.clone()
            rebuilt[mask] = torch.from_numpy(dictionary.decode(dictionary.encode(rows))).to(value)
            self.resume(number, indices, inputs, rebuilt)
        return rows

    def resume(self, variant: int, indices: np.ndarray, inputs: dict[str, Tensor], value: Tensor) -> None:
        """Run the blocks above the layer on this value of it."""
        with resumed(self.model, self.layer, lambda: value):
            self._keep(variant, indices, self.model(**inputs).logits)

    def _keep(self, variant: int, indices: np.ndarray, logits: Tensor) -> None:
        scores, true = logits.cpu().double(), self.labels[indices]
        self.losses[variant, indices] = nn.functional.cross_entropy(scores, true, reduction="none").numpy()
        self.right[variant, indices] = (scores.argmax(1) == true).numpy()


def _pass(model: nn.Module, layer: int, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The layer's value and the logits, of a pass in float32."""
    mixed: set[bool] = set()
    # Under autocast the norms still give float32, so the outputs' type alone would not tell.
    handle = blocks(model)[0].register_forward_pre_hook(
        lambda module, args: mixed.add(True) if torch.is_autocast_enabled(inputs["input_ids"].device.type) else None
    )
    try:
        layers, logits = forward(model, inputs)
    finally:
        handle.remove()
    if layers[-1].dtype != torch.float32 or mixed:
        raise EncoderError(
            f"The model computes in {'mixed precision' if mixed else layers[-1].dtype}, not float32, as one does that has "
            "been through mixed-precision training; save it and load it afresh."
        )
    return layers[layer], logits


def _check(
    model: nn.Module,
    encoder: Encoder,
    examples: Examples,
    labels: np.ndarray,
    layer: int,
    dictionaries: Mapping[str, Dictionary],
    mean: np.ndarray | None,
) -> None:
    if any(module.training for module in model.modules()):
        raise EncoderError("The model is in training mode, so dropout would be in its loss; call model.eval() first.")
    n_layers = len(blocks(model))
    if not 0 <= layer <= n_layers:
        raise StudyError(f"Layer {layer} was asked for; {encoder.name} has 0 (embeddings) to {n_layers}.")
    if len(examples) != len(labels) or len(labels) < 2:
        raise MeasureError(
            f"task_loss was given {len(examples)} examples and {len(labels)} labels; give one for each of at least 2."
        )
    config: Any = model.config
    classes = config.num_labels
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise MeasureError(
            f"task_loss was given labels from {labels.min()} to {labels.max()} for a model of {classes} "
            f"{'class' if classes == 1 else 'classes'}; give class numbers from 0 to {max(1, classes - 1)}."
        )
    for name, dictionary in dictionaries.items():
        if name in (CLEAN, ABLATED):
            raise MeasureError(f"A dictionary is named {name!r}, as a variant of task_loss is; name it otherwise.")
        if dictionary.d_in != encoder.width:
            raise MeasureError(
                f"The dictionary {name!r} takes rows {dictionary.d_in} wide, but a layer of {encoder.name} is "
                f"{encoder.width} wide; give one that was trained on it."
            )
    if mean is not None and mean.shape != (encoder.width,):
        raise MeasureError(f"task_loss was given a mean of shape {mean.shape}; a layer is {encoder.width} wide.")


def _row(
    losses: Float[np.ndarray, "variants n"],
    right: Float[np.ndarray, "variants n"],
    variant: int,
    groups: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    from scipy.stats import binomtest

    n = len(groups)
    low, high = _jackknife(lambda keep: losses[variant, keep].mean(), groups)
    hits = binomtest(int(right[variant].sum()), n).proportion_ci(0.95, method="wilson")
    row: dict[str, Any] = {"loss": losses[variant].mean(), "loss_low": max(0.0, low), "loss_high": high}
    row |= {"accuracy": right[variant].mean(), "accuracy_low": hits.low, "accuracy_high": hits.high, "n": n}
    reasons = []
    # As a cost, like the loss: mean ablation raises the share of misses.
    for name, costs, unit in (("loss", losses, "nats"), ("accuracy", 1 - right, "of the examples")):
        share, share_low, share_high, why = _recovered(costs, variant, groups, name, unit)
        row |= {f"{name}_recovered": share, f"{name}_recovered_low": share_low, f"{name}_recovered_high": share_high}
        reasons += [why] if why else []
    return row | {"why": " ".join(reasons)}


def _recovered(
    costs: Float[np.ndarray, "variants n"], variant: int, groups: Int[np.ndarray, " n"], name: str, unit: str
) -> tuple[float, float, float, str]:
    """Share of what ablation costs that a variant does not, its interval, and in words what of it is undefined."""
    nan = float("nan")

    def gap(keep: Bool[np.ndarray, " n"]) -> float:
        return float(costs[1, keep].mean() - costs[0, keep].mean())

    def share(keep: Bool[np.ndarray, " n"]) -> float:
        return float((costs[1, keep].mean() - costs[variant, keep].mean()) / gap(keep))

    everything = np.ones(len(groups), dtype=bool)
    cost = gap(everything)
    if cost < SMALLEST_GAP:
        return (
            nan,
            nan,
            nan,
            f"No {name} to recover: mean ablation costs {cost:.2g} {unit}, less than {SMALLEST_GAP:g}.",
        )
    value = share(everything)
    if variant in (0, 1):
        return value, value, value, ""
    if _jackknife(gap, groups)[0] <= 0:
        why = f"The interval of {name} recovered has no bounds: mean ablation costs {cost:.2g} {unit}, which may be 0."
        return value, nan, nan, why
    return value, *_jackknife(share, groups), ""


def _jackknife(
    function: Callable[[Bool[np.ndarray, " n"]], float], groups: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """95% interval by a delete-group jackknife with Student's t; `function` takes a mask of the examples kept."""
    from scipy.stats import t

    n = int(groups.max()) + 1
    value = function(np.ones(len(groups), dtype=bool))
    left = np.array([function(groups != group) for group in range(n)])
    reach = t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())
    return float(value - reach), float(value + reach)
