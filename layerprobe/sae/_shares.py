"""Shares of latents by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from layerprobe.errors import MeasureError
from layerprobe.sae._labels import LabelNull
from layerprobe.stats import assign_folds, jackknife

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array

FOLDS = 20
KINDS = ("task", "general", "both", "unexplained")


def latent_shares(
    table: pd.DataFrame, codes: csc_array, example: Int[np.ndarray, " rows"], null: LabelNull | None = None
) -> pd.DataFrame:
    """Count the latents of each kind in one dictionary, and the share of activation mass in task latents.

    Shares are of the judged latents (active in at least 10 examples). The activation mass is the sum of activations
    over all tokens of the test examples; its interval is a delete-group jackknife over 20 folds of examples with a t
    quantile, for the given set of task latents.

    Args:
        table: from `associations`.
        codes: the dictionary's activations, by `encode`.
        example: example of each row.
        null: from `label_null`, to compare the share of task latents with.

    Returns:
        One row: latents (all), task, general, both, unexplained (judged ones), rare (active in fewer than 10 examples),
        dead: counts; live (judged), share_task (task or both), share_low, share_high (95% Wilson interval, as if latents
        were a sample), share_general (general or both), share_both, share_unexplained, share_permuted,
        share_permuted_high (95th percentile), mass_task, mass_low, mass_high, n (examples).

    Raises:
        MeasureError: if table, codes and examples do not fit.
    """
    import pandas as pd
    from scipy.stats import binomtest

    if codes.shape != (len(example), len(table)):
        raise MeasureError(
            f"latent_shares was given {len(table)} latents and {len(example)} tokens, and codes of shape {codes.shape}; "
            "give those of one dictionary on one set of rows."
        )
    judged = table[table["judged"]]
    counts = {kind: int((judged["kind"] == kind).sum()) for kind in KINDS}
    dead = int((table["kind"] == "dead").sum())
    live = len(judged)
    task = counts["task"] + counts["both"]
    interval = binomtest(task, live).proportion_ci(0.95, method="wilson") if live else None

    def share(number: int) -> float:
        return number / live if live else np.nan

    mass, low, high = _mass(codes, table["kind"].isin(["task", "both"]).to_numpy(), example)
    return pd.DataFrame(
        [
            {
                "latents": len(table),
                **counts,
                "rare": len(table) - live - dead,
                "dead": dead,
                "live": live,
                "share_task": share(task),
                "share_low": interval.low if interval else np.nan,
                "share_high": interval.high if interval else np.nan,
                "share_general": share(counts["general"] + counts["both"]),
                "share_both": share(counts["both"]),
                "share_unexplained": share(counts["unexplained"]),
                "share_permuted": null.share if null else np.nan,
                "share_permuted_high": null.high if null else np.nan,
                "mass_task": mass,
                "mass_low": low,
                "mass_high": high,
                "n": int(example.max()) + 1,
            }
        ]
    )


def _mass(codes: csc_array, task: np.ndarray, example: np.ndarray) -> tuple[float, float, float]:
    """Share of activation mass in task latents with its interval; NaN where it is undefined."""
    n_examples = int(example.max()) + 1
    n_folds = min(FOLDS, n_examples)
    folds = assign_folds(n_examples, FOLDS, seed=0)[example]
    of_task = np.bincount(folds, codes @ task.astype(np.float64), minlength=n_folds)
    of_all = np.bincount(folds, codes @ np.ones(len(task)), minlength=n_folds)
    if not of_all.sum() > 0:
        return np.nan, np.nan, np.nan
    if n_folds < 2 or not (of_all.sum() - of_all > 0).all():
        return float(of_task.sum() / of_all.sum()), np.nan, np.nan

    def share(without: int | None) -> float:
        left_out = (0, 0) if without is None else (of_task[without], of_all[without])
        return float((of_task.sum() - left_out[0]) / (of_all.sum() - left_out[1]))

    mass = jackknife(share, n_folds, n_examples, low=0.0, high=1.0)
    return mass.value, mass.low, mass.high
