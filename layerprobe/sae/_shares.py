"""Shares of latents by kind, and the layer where the adapted model's share of task latents exceeds the base's."""

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
NOTES = {
    (True, True): "only one seed",
    (True, False): "only one training seed",
    (False, True): "only one dictionary seed",
    (False, False): "",
}


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


def crossing(table: pd.DataFrame) -> pd.DataFrame:
    """The first layer where the adapted model's share of task latents, or of their mass, exceeds the base's interval.

    Each pair of training seed and dictionary seed is one run, read along the layers by itself; over runs the range is
    given, never an interval from a handful of them.

    Args:
        table: rows of `latent_shares` with method, seed, layer, side (base or adapted) and, where dictionaries were
            trained with several seeds, sae_seed.

    Returns:
        One row per method and quantity: method, quantity (`share_task`, whose interval treats base's latents as a
        sample, or `mass_task`, whose interval is over examples), layer (the median over runs that cross, the lower of
        two; missing if none does), layer_low and layer_high (their range), crossed and runs (how many runs cross, of how
        many), verdict (`flat`: adapted equals base exactly in every layer of every run; `never`; `crosses`; `undefined`:
        no layer has both sides' numbers), note (`only one seed`, `only one training seed`, `only one dictionary seed` or
        nothing).

    Raises:
        MeasureError: if a column is missing, or a side of a layer is missing or occurs twice.
    """
    import pandas as pd

    needed = ["method", "seed", "layer", "side", "share_task", "share_high", "mass_task", "mass_high"]
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise MeasureError(
            f"crossing was given a table without `{missing[0]}`; give rows of latent_shares with {', '.join(needed[:4])}."
        )
    if "sae_seed" not in table.columns:
        table = table.assign(sae_seed=0)
    rows = []
    for method, part in table.groupby("method", sort=False):
        runs = [run for _, run in part.groupby(["seed", "sae_seed"], dropna=False)]
        for quantity, high in (("share_task", "share_high"), ("mass_task", "mass_high")):
            crossings = [_crosses(run, quantity, high, str(method)) for run in runs]
            layers = sorted(layer for layer, _, _ in crossings if layer is not None)
            if layers:
                verdict = "crosses"
            elif all(defined == 0 for _, _, defined in crossings):
                verdict = "undefined"
            else:
                verdict = "flat" if all(equal for _, equal, _ in crossings) else "never"
            rows.append(
                {
                    "method": method,
                    "quantity": quantity,
                    "layer": layers[(len(layers) - 1) // 2] if layers else None,
                    "layer_low": layers[0] if layers else None,
                    "layer_high": layers[-1] if layers else None,
                    "crossed": len(layers),
                    "runs": len(runs),
                    "verdict": verdict,
                    "note": NOTES[part["seed"].nunique(dropna=False) == 1, part["sae_seed"].nunique(dropna=False) == 1],
                }
            )
    columns = ["method", "quantity", "layer", "layer_low", "layer_high", "crossed", "runs", "verdict", "note"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:5], "Int64"))


def _crosses(run: pd.DataFrame, quantity: str, high: str, method: str) -> tuple[int | None, bool, int]:
    """First crossing of one run, whether the sides are equal throughout, and how many layers could be compared."""
    base, adapted = (run[run["side"] == side].set_index("layer").sort_index() for side in ("base", "adapted"))
    if not base.index.is_unique or not base.index.equals(adapted.index):
        raise MeasureError(
            f"crossing needs one row of base and one of adapted in each layer of each run; method {method} has layers "
            f"{list(base.index)} and {list(adapted.index)}."
        )
    beyond = base.index[adapted[quantity] > base[high]]
    defined = int((adapted[quantity].notna() & base[quantity].notna()).sum())
    return (int(beyond[0]) if len(beyond) else None), bool(base[quantity].equals(adapted[quantity])), defined
