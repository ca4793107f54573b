"""The part of the training texts that choices are made on."""

from __future__ import annotations

import numpy as np

SHARE = 0.15


def validation_part(labels: np.ndarray, seed: int) -> np.ndarray:
    """A stratified part of the training texts, as a mask: at least one of each class that has two or more.

    Candidates are trained on the rest and compared here; the test texts have no part in it. What was chosen is then
    trained on all training texts.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        if len(own) > 1:
            mask[own[: max(1, round(SHARE * len(own)))]] = True
    return mask
