"""The loss of a classifier when one of its layers is replaced by a dictionary's reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from layerprobe.data import Examples
from layerprobe.device import MOST_EXAMPLES, batch_size, forward_bytes
from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize
from layerprobe.errors import ArgumentError, EncoderError, MeasureError
from layerprobe.layers import blocks, forward, refuse_autocast, resumed
from layerprobe.progress import track
from layerprobe.sae._dictionary import Dictionary, float64_device
from layerprobe.stats import Estimate, assign_folds, jackknife

if TYPE_CHECKING:
    import pandas as pd

CLEAN, ABLATED = "clean", "mean_ablated"
FOLDS = 20
BATCH_EXAMPLES = 32
SMALLEST_GAP = 1e-4
"""Nats, or share of examples, that mean ablation must cost for a recovered share to be defined."""


def task_loss(
    model: nn.Module,
    encoder: Encoder,
    examples: Examples,
    layer: int,
    dictionaries: Mapping[str, Dictionary],
    *,
    max_length: int = 128,
) -> pd.DataFrame:
    """Cross-entropy and accuracy of a classifier with one layer unchanged, mean-ablated, and reconstructed.

    Recovered loss of a variant = (CE_ablated - CE_variant) / (CE_ablated - CE_clean), and recovered accuracy likewise: 1
    for the clean layer, 0 for the ablated one; a bad dictionary may be below 0, and the two may differ.

    Args:
        model, encoder, examples, layer, dictionaries, max_length: as for `task_costs`.

    Returns:
        One row per variant (`clean`, `mean_ablated`, then the dictionaries), with columns `variant`; `loss` (mean
        cross-entropy in nats), `loss_low`, `loss_high`; `accuracy`, `accuracy_low`, `accuracy_high`; `n` (examples);
        `loss_recovered` and `accuracy_recovered`, each with `_low` and `_high`; `why`: the reason, in words, why some of
        them are undefined and so NaN (else empty). The ablated layer is its mean over the real tokens of all examples.
        Intervals are 95%: Wilson's for accuracy, else by a delete-group jackknife over 20 folds of examples with the
        mean vector held fixed. A recovered share is undefined where ablation costs less than 1e-4, and its interval
        where the interval of that cost includes 0.

    Raises:
        EncoderError, ArgumentError, MeasureError: as `task_costs`.
    """
    return task_loss_table(task_costs(model, encoder, examples, layer, dictionaries, max_length=max_length))


@dataclass(frozen=True)
class TaskCosts:
    """What a classifier costs on each example with one variant of a layer."""

    losses: Float[np.ndarray, " n"]
    """Cross-entropy in nats."""
    right: Float[np.ndarray, " n"]
    """1 where the predicted class is the label, else 0."""


def task_costs(
    model: nn.Module,
    encoder: Encoder,
    examples: Examples,
    layer: int,
    dictionaries: Mapping[str, Dictionary],
    *,
    max_length: int = 128,
    ablated: bool = True,
) -> dict[str, TaskCosts]:
    """The costs of each variant of a layer: `clean`, `mean_ablated`, and reconstructed by each dictionary.

    Only real tokens are replaced, special tokens among them; padding does not influence any logit. The layer is computed
    once per batch, and the blocks above it are run again for each variant. Memory holds one batch. The costs of a variant do
    not depend on which others are computed with it, so that those that are known need not be computed again.

    Args:
        model: a classifier on the encoder's architecture, in float32 and eval mode; it computes on its device.
        encoder: gives the tokenizer.
        examples: held-out examples, labelled by the model's class numbers.
        layer: 0 (embeddings) to L.
        dictionaries: name -> dictionary of this layer's rows, on the model's device.
        max_length: tokens kept of an example.
        ablated: whether to run the mean-ablated variant, which takes a second pass.

    Raises:
        EncoderError: if the model is in training mode or does not compute in float32.
        ArgumentError: if there is no such layer, or a dictionary is on another device.
        MeasureError: if labels, names or widths do not fit, there are fewer than two examples, or a loss is not finite.
    """
    _check(model, encoder, examples, layer, dictionaries)
    encodings = tokenize(encoder, examples, max_length)
    lengths = [len(e["input_ids"]) for e in encodings]
    runs = _Runs(model, layer, examples.labels, [*dictionaries.values()])
    config: Any = model.config
    widest = max((dictionary.d_sae for dictionary in dictionaries.values()), default=0)
    each = forward_bytes(config, max(lengths), kept=encoder.n_layers + 1) + 12 * max(lengths) * widest
    batches = length_sorted_batches(lengths, batch_size(runs.device, each, usual=BATCH_EXAMPLES, most=MOST_EXAMPLES))
    total = torch.zeros(encoder.width, dtype=torch.float64, device=float64_device(runs.device))
    n_tokens = 0
    with torch.inference_mode(), refuse_autocast(model, str(runs.device)):
        for indices in track(batches, f"mean of layer {layer}"):
            rows = runs.reconstructed(indices, runs.inputs(encoder, encodings, indices))
            total += rows.to(total.device).double().sum(0)
            n_tokens += len(rows)
        # A second pass, since the mean is known only now; it needs none of the layer's values, so none was kept.
        mean = (total / n_tokens).float().to(runs.device)
        for indices in track(batches if ablated else [], f"task loss at layer {layer}"):
            inputs = runs.inputs(encoder, encodings, indices)
            runs.resume(1, indices, inputs, inputs["attention_mask"].unsqueeze(-1) * mean)
    names = (CLEAN, ABLATED, *dictionaries)
    for name, losses in zip(names, runs.losses, strict=True):
        if not np.isfinite(losses).all():
            raise MeasureError(
                f"The loss of {name!r} at layer {layer} is not finite on {int((~np.isfinite(losses)).sum())} of "
                f"{len(losses)} examples; train that dictionary or model again."
            )
    costs = {name: TaskCosts(*pair) for name, *pair in zip(names, runs.losses, runs.right, strict=True)}
    return {name: cost for name, cost in costs.items() if ablated or name != ABLATED}


def task_loss_table(costs: Mapping[str, TaskCosts]) -> pd.DataFrame:
    """The table of `task_loss` from the costs of its variants.

    Args:
        costs: by `task_costs` on the same examples; `clean` and `mean_ablated` are among them.
    """
    import pandas as pd

    names = [CLEAN, ABLATED, *(name for name in costs if name not in (CLEAN, ABLATED))]
    losses, right = (np.stack([getattr(costs[name], part) for name in names]) for part in ("losses", "right"))
    folds = assign_folds(losses.shape[1], FOLDS, seed=0)
    return pd.DataFrame([{"variant": name, **_row(losses, right, i, folds)} for i, name in enumerate(names)])


class _Runs:
    """A model run from its input and from one layer up; losses and hits of each variant on each example."""

    def __init__(self, model: nn.Module, layer: int, labels: np.ndarray, dictionaries: list[Dictionary]) -> None:
        self.model, self.layer, self.dictionaries = model, layer, dictionaries
        self.device = next(model.parameters()).device
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64))
        self.losses, self.right = np.zeros((2, 2 + len(dictionaries), len(labels)))

    def inputs(self, encoder: Encoder, encodings: list[dict[str, list[int]]], indices: np.ndarray) -> dict[str, Tensor]:
        """A padded batch, on the model's device."""
        return {key: value.to(self.device) for key, value in collate(encoder, encodings, indices).items()}

    def reconstructed(self, indices: np.ndarray, inputs: dict[str, Tensor]) -> Float[Tensor, "tokens d"]:
        """Run the clean variant and those of the dictionaries; returns the layer's rows at real tokens."""
        layers, logits = forward(self.model, inputs)
        value, mask = layers[self.layer], inputs["attention_mask"].bool()
        self._keep(0, indices, logits)
        rows = value[mask]
        for variant, dictionary in enumerate(self.dictionaries, start=2):
            rebuilt = value.clone()
            rebuilt[mask] = dictionary.decode(dictionary.encode(rows), rows)
            self.resume(variant, indices, inputs, rebuilt)
        return rows

    def resume(self, variant: int, indices: np.ndarray, inputs: dict[str, Tensor], value: Tensor) -> None:
        """Run the blocks above the layer on this value of it."""
        with resumed(self.model, self.layer, lambda: value):
            self._keep(variant, indices, self.model(**inputs).logits)

    def _keep(self, variant: int, indices: np.ndarray, logits: Tensor) -> None:
        scores, classes = logits.cpu().double(), self.labels[indices]
        self.losses[variant, indices] = nn.functional.cross_entropy(scores, classes, reduction="none").numpy()
        self.right[variant, indices] = (scores.argmax(1) == classes).numpy()


def _check(
    model: nn.Module, encoder: Encoder, examples: Examples, layer: int, dictionaries: Mapping[str, Dictionary]
) -> None:
    if any(module.training for module in model.modules()):
        raise EncoderError("The model is in training mode, so dropout would be in its loss; call model.eval() first.")
    n_layers, labels = len(blocks(model)), examples.labels
    if not 0 <= layer <= n_layers:
        raise ArgumentError(
            f"{{layer}} is {layer}, but {encoder.name} has layers 0 (embeddings) to {n_layers}.", "layer"
        )
    if len(examples) < 2:
        raise MeasureError(f"task_loss was given {len(examples)} examples; it needs at least 2.")
    config: Any = model.config
    classes = config.num_labels
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise MeasureError(
            f"task_loss was given labels from {labels.min()} to {labels.max()} for a model of {classes} "
            f"{'class' if classes == 1 else 'classes'}; give class numbers from 0 to {max(1, classes - 1)}."
        )
    device = next(model.parameters()).device
    for name, dictionary in dictionaries.items():
        if name in (CLEAN, ABLATED):
            raise MeasureError(f"A dictionary is named {name!r}, as a variant of task_loss is; give it another name.")
        if dictionary.d_in != encoder.width:
            raise MeasureError(
                f"The dictionary {name!r} takes rows of {dictionary.d_in} features, but a layer of {encoder.name} has "
                f"{encoder.width}; give one that was trained on it."
            )
        if dictionary.device != device:
            raise ArgumentError(
                f"The dictionary {name!r} is on {dictionary.device}, but the model is on {device}; load it on the same "
                "{device}.",
                "device",
            )


def _row(
    losses: Float[np.ndarray, "variants n"],
    right: Float[np.ndarray, "variants n"],
    variant: int,
    folds: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    from scipy.stats import binomtest

    n = len(folds)
    loss = _jackknife(lambda keep: losses[variant, keep].mean(), folds, low=0.0)
    hits = binomtest(int(right[variant].sum()), n).proportion_ci(0.95, method="wilson")
    row: dict[str, Any] = {"loss": loss.value, "loss_low": loss.low, "loss_high": loss.high}
    row |= {"accuracy": right[variant].mean(), "accuracy_low": hits.low, "accuracy_high": hits.high, "n": n}
    reasons = []
    # As a cost, like the loss: mean ablation raises the share of errors.
    for name, costs, unit in (("loss", losses, "nats"), ("accuracy", 1 - right, "of the examples")):
        share, share_low, share_high, why = _recovered(costs, variant, folds, name, unit)
        row |= {f"{name}_recovered": share, f"{name}_recovered_low": share_low, f"{name}_recovered_high": share_high}
        reasons += [why] if why else []
    return row | {"why": " ".join(reasons)}


def _recovered(
    costs: Float[np.ndarray, "variants n"], variant: int, folds: Int[np.ndarray, " n"], name: str, unit: str
) -> tuple[float, float, float, str]:
    """Share of the cost of ablation that a variant avoids, its interval, and in words what of it is undefined."""
    nan = float("nan")

    def gap(keep: Bool[np.ndarray, " n"]) -> float:
        return float(costs[1, keep].mean() - costs[0, keep].mean())

    def share(keep: Bool[np.ndarray, " n"]) -> float:
        return float((costs[1, keep].mean() - costs[variant, keep].mean()) / gap(keep))

    cost = _jackknife(gap, folds)
    if cost.value < SMALLEST_GAP:
        why = f"No {name} to recover: mean ablation costs {cost.value:.2g} {unit}, less than {SMALLEST_GAP:g}."
        return nan, nan, nan, why
    if variant in (0, 1):
        return (1.0 - variant,) * 3 + ("",)
    if cost.low <= 0:
        why = f"The interval of {name} recovered has no bounds: mean ablation costs {cost.value:.2g} {unit}, which may be 0."
        return share(np.ones(len(folds), dtype=bool)), nan, nan, why
    recovered = _jackknife(share, folds)
    return recovered.value, recovered.low, recovered.high, ""


def _jackknife(
    statistic: Callable[[Bool[np.ndarray, " n"]], float], folds: Int[np.ndarray, " n"], low: float = -np.inf
) -> Estimate:
    """`stats.jackknife` of a statistic that takes a mask of the examples kept."""
    return jackknife(
        lambda fold: statistic(folds != (-1 if fold is None else fold)), int(folds.max()) + 1, len(folds), low
    )
