"""How the classes of a checkpoint are matched with those of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from layerprobe.errors import ArgumentError


@dataclass(frozen=True)
class FittedOrder:
    """The order of a checkpoint's classes that agrees best with labelled examples."""

    order: tuple[int, ...]
    """For each class of the data, its number in the checkpoint."""
    fitted_accuracy: float
    """With this order, on the examples that it was fitted on."""
    accuracy: float
    """With the order that was taken, on the same examples."""
    n: int
    """Number of examples."""


@dataclass(frozen=True)
class LabelMatch:
    """Which class of a checkpoint is which class of the data."""

    labels: tuple[str, ...]
    """The checkpoint's labels."""
    order: tuple[int, ...]
    """For each class of the data, its number in the checkpoint."""
    matched: Literal["name", "given", "order"]
    """By equal names, by a given mapping, or by number because the checkpoint does not name its labels."""
    fitted: FittedOrder | None = None
    """Of a checkpoint that does not name its labels."""


def match_labels(
    labels: Sequence[str], label_names: Sequence[str], given: Mapping[str, str], checkpoint: str
) -> LabelMatch:
    """Match the labels of a checkpoint with those of the data.

    Args:
        labels: of the checkpoint, in the order of its classes.
        label_names: of the data.
        given: the checkpoint's label -> the data's; it is used for a checkpoint whose labels it contains.
        checkpoint: its folder, for messages.

    Raises:
        ArgumentError: if the numbers of labels differ, or labels cannot be matched one to one.
    """
    names = ", ".join(labels)
    if len(labels) != len(label_names):
        raise ArgumentError(
            f"The checkpoint {checkpoint} has {len(labels)} labels ({names}), but the data has {len(label_names)} "
            f"({', '.join(label_names)}); use the data that it was fine-tuned on.",
            "method",
        )
    if set(labels) & set(given):
        return LabelMatch(tuple(labels), _by_mapping(labels, label_names, given, checkpoint), "given")
    if sorted(labels) == sorted(label_names):
        return LabelMatch(tuple(labels), tuple(labels.index(name) for name in label_names), "name")
    if list(labels) == [f"LABEL_{i}" for i in range(len(labels))]:
        return LabelMatch(tuple(labels), tuple(range(len(labels))), "order")
    raise ArgumentError(
        f"The checkpoint {checkpoint} has the labels {names}, but the data has {', '.join(label_names)}; map each of the "
        f"checkpoint's labels to one of the data's with {{labels}}, such as {labels[0]} = \"{label_names[0]}\".",
        "labels",
    )


def _by_mapping(
    labels: Sequence[str], label_names: Sequence[str], given: Mapping[str, str], checkpoint: str
) -> tuple[int, ...]:
    missing = [label for label in labels if label not in given]
    if missing:
        raise ArgumentError(
            f"{{labels}} does not map {', '.join(missing)} of the checkpoint {checkpoint}; map each of {', '.join(labels)} to "
            f"one of the data's labels ({', '.join(label_names)}).",
            "labels",
        )
    mapped = [given[label] for label in labels]
    if sorted(mapped) != sorted(label_names):
        raise ArgumentError(
            f"{{labels}} maps the labels of the checkpoint {checkpoint} to {', '.join(mapped)}; each of the data's labels "
            f"({', '.join(label_names)}) must occur once.",
            "labels",
        )
    return tuple(mapped.index(name) for name in label_names)


def fit_order(predicted: np.ndarray, labels: np.ndarray, order: Sequence[int]) -> FittedOrder:
    """The one-to-one order of a checkpoint's classes under which most examples are right; the taken one if it is as good.

    Args:
        predicted: class numbers of the checkpoint, `(n,)`.
        labels: class numbers of the data, `(n,)`.
        order: the order that was taken, for each class of the data.
    """
    from scipy.optimize import linear_sum_assignment

    classes = len(order)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    # Counts are integers, so that less than 1 in all decides between equal ones only.
    weights = confusion * (classes + 1)
    weights[np.arange(classes), list(order)] += 1
    fitted = linear_sum_assignment(weights, maximize=True)[1]
    right = {
        name: float(confusion[np.arange(classes), list(chosen)].sum() / len(labels))
        for name, chosen in (("taken", order), ("fitted", fitted))
    }
    return FittedOrder(tuple(int(number) for number in fitted), right["fitted"], right["taken"], len(labels))
