"""Which latents tell the task's labels apart by their mean activation over an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Num

from layerprobe.errors import MeasureError
from layerprobe.sae._dictionary import Dictionary
from layerprobe.sae._labels import compared_classes, null_of, stratified_ranks
from layerprobe.sae._ranks import MINIMUM_ACTIVE, adjusted, two_sided_p

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TaskLatents:
    """How many latents of a dictionary are associated with the task, beside what chance gives."""

    table: pd.DataFrame
    """One row a judged latent: latent, density (share of examples it is active in), label (the one it tells best from
    the others), auroc, effect (|2 auroc - 1|), p, q (false-discovery rate), task (q and effect pass)."""
    share: float
    """Share of judged latents that are associated with a label; NaN if none could be judged."""
    share_permuted: float
    """The same with labels permuted over examples: mean of the permutations."""
    share_permuted_high: float
    """95th percentile of the permutations."""
    live: int
    """Latents active in at least 10 examples: those that were judged."""
    n: int
    """Examples."""


def latent_means(
    dictionary: Dictionary,
    rows: Num[np.ndarray, "n d"],
    groups: Int[np.ndarray, " n"],
    n_examples: int,
    *,
    batch_size: int = 4096,
) -> Float[np.ndarray, "n_examples d_sae"]:
    """Mean activation of each latent over each example's rows."""
    totals = np.zeros((n_examples, dictionary.d_sae), dtype=np.float32)
    for start in range(0, len(rows), batch_size):
        here = groups[start : start + batch_size]
        codes = dictionary.encode(rows[start : start + batch_size])
        order = np.argsort(here, kind="stable")
        found, first = np.unique(here[order], return_index=True)
        totals[found] += np.add.reduceat(codes[order], first, axis=0)
    counts = np.bincount(groups, minlength=n_examples)
    if (counts == 0).any():
        raise MeasureError(f"Example {int(np.flatnonzero(counts == 0)[0])} has no row; number examples from 0 on.")
    return totals / counts[:, None].astype(np.float32)


def task_latents(
    means: Float[np.ndarray, "n d_sae"],
    labels: Int[np.ndarray, " m"],
    label_names: Sequence[str],
    *,
    seed: int = 0,
    permutations: int = 200,
    effect: float = 0.2,
    q: float = 0.05,
) -> TaskLatents:
    """Latents whose mean activation over an example predicts its label.

    `associations` without strata of length, of one pooling: each label is set against all others by the rank-sum test:
    AUROC = U / (n1 n2) with tied ranks averaged, and p corrected for ties and skewness. Over all latents and labels the
    false-discovery rate is controlled by Benjamini and Hochberg (1995); a floor on |2 AUROC - 1| keeps small effects
    out, which a large test set would make significant. Only latents active in at least 10 examples are judged.

    Args:
        means: mean activation of each latent over each example.
        labels: label number of each example.
        label_names: names of the labels.
        seed: of the permutations.
        permutations: how often the whole procedure is repeated with labels permuted over examples.
        effect: least |2 AUROC - 1|.
        q: false-discovery rate.

    Raises:
        MeasureError: if fewer than two labels occur, or the lengths differ.
    """
    import pandas as pd

    if len(means) != len(labels):
        raise MeasureError(f"task_latents was given {len(means)} examples and {len(labels)} labels; give one for each.")
    compared = compared_classes(labels)
    active = (means > 0).sum(0)
    judged = np.flatnonzero(active >= MINIMUM_ACTIVE)
    strata = np.zeros(len(means), dtype=np.int64)
    latent, example = np.nonzero(means.T > 0)
    pooled = means.T[latent, example].astype(np.float64)[None]
    ranks = stratified_ranks(latent, example, pooled, strata, judged)
    scores = ranks[0].scores(labels == compared[:, None], strata)
    p = np.where(np.isfinite(scores.z), two_sided_p(scores.z, scores.skew), 1)
    rate = adjusted(p.ravel()).reshape(p.shape)
    sizes = np.abs(2 * np.where(np.isfinite(scores.auroc), scores.auroc, 0.5) - 1)
    passed = (rate <= q) & (sizes >= effect)
    best = np.argmax(sizes + 2 * passed, axis=0)
    pick = (best, np.arange(len(judged)))
    table = pd.DataFrame(
        {
            "latent": judged,
            "density": active[judged] / len(means),
            "label": [label_names[compared[i]] for i in best],
            "auroc": scores.auroc[pick],
            "effect": sizes[pick],
            "p": p[pick],
            "q": rate[pick],
            "task": passed.any(0),
        }
    )
    null = null_of(ranks, labels, strata, permutations, seed, effect, q)
    share = float(table["task"].mean()) if len(judged) else float("nan")
    return TaskLatents(table, share, null.share, null.high, len(judged), len(means))
