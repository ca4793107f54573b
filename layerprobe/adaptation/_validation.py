"""The parts of the training examples that choices are made on."""

from __future__ import annotations

import numpy as np

SHARE = 0.15
"""Share of the training examples on which learning rates are compared."""
FOLDS = 5
JUDGED = 500
"""Held-out examples that a head's penalty is judged on, as far as there are so many: fewer folds of more examples."""


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

    Each fold holds a fifth of the examples. Of the five folds, as many are returned as hold 500 examples together: a choice
    made on a dozen examples may be worse than none, and one made on thousands gains nothing from further folds. The only
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
        if held.any() and sum(int(mask.sum()) for mask in folds) < JUDGED:
            folds.append(held)
    return folds
