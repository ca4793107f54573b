"""Parts of the training examples that are held out to choose a penalty or a learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SEARCH_FACTORS = (1 / 3, 1.0, 3.0)
"""A search tries these multiples of a default setting."""
SHARE = 0.15
"""Share of the training examples on which learning rates are compared, and with equal tuning all settings."""
FOLDS = 5
HELD_OUT = 500
"""Held-out examples to choose a head's penalty on, where there are as many: large data sets need fewer folds."""


@dataclass(frozen=True)
class HeldOut:
    """Quality of a chosen setting on training examples that its model was not trained on."""

    accuracy: float
    """Share of these examples whose most probable class is the true one."""
    loss: float
    """Mean cross-entropy, in nats."""
    n: int
    """Number of these examples."""
    candidates: int = 1
    """Number of settings that were compared on them."""


def validation_part(labels: np.ndarray, seed: int) -> np.ndarray:
    """A stratified part of the training examples, as a mask: at least one of each class that has two or more.

    Candidates are trained on the rest and compared here; the test examples have no part in it. The chosen candidate is then
    trained on all training examples.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            mask[members[: max(1, round(SHARE * len(members)))]] = True
    return mask


def validation_folds(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Stratified folds of the training examples, as masks of the held-out examples, for cross-validation.

    Each fold is a fifth of the examples, and as many of the five are returned as contain 500 examples together: a choice
    based on a dozen examples may be worse than none, and one based on thousands gains nothing from further folds. The only
    example of a class is never held out.
    """
    rng = np.random.default_rng(seed)
    fold_of = np.full(len(labels), -1)
    assigned = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            fold_of[members] = (assigned + np.arange(len(members))) % FOLDS
            assigned += len(members)
    folds: list[np.ndarray] = []
    for fold in range(FOLDS):
        held = fold_of == fold
        if held.any() and sum(int(mask.sum()) for mask in folds) < HELD_OUT:
            folds.append(held)
    return folds
