"""Dictionaries that were not trained, to stand beside those that were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Num

from layerprobe.errors import StudyError
from layerprobe.sae._dictionary import Dictionary, load
from layerprobe.sae._recipe import Recipe, default_k
from layerprobe.sae._rows import measure
from layerprobe.sae._trainer import finish, started


def untrained(
    like: Dictionary, rows: Num[np.ndarray, "n d"], *, architecture: str, k: int | None = None, seed: int
) -> Dictionary:
    """The same kind of dictionary as training starts from: random directions about the rows' mean. A control.

    Two more controls are trained: `train(..., frozen_decoder=True)` and `train(..., seed=another)`.

    Args:
        like: the trained dictionary that it stands beside; gives the sizes.
        rows: those that `like` was trained on; give the mean, the scale and the threshold.
        architecture: of `like` as it was trained.
        k: of `like` as it was trained; by default `train`'s default.
        seed: of the directions.

    Raises:
        StudyError: if the rows are of another width.
    """
    if rows.ndim != 2 or rows.shape[1] != like.d_in:
        raise StudyError(f"untrained was given rows of shape {rows.shape}; this dictionary takes {like.d_in} wide.")
    k = default_k(like.d_in, like.d_sae) if k is None else k
    made = Recipe(architecture, like.d_in, like.d_sae, k, batch_size=1, steps=1, learning_rate=1e-3)
    scale = measure(rows)
    with tempfile.TemporaryDirectory() as folder:
        finish(started(made, scale, seed=seed), made, rows, scale.factor, Path(folder))
        return load(folder)
