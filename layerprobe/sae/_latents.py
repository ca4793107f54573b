"""Which latents tell the task's labels apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Num

from layerprobe.errors import MeasureError
from layerprobe.sae._dictionary import Dictionary

if TYPE_CHECKING:
    import pandas as pd

MINIMUM_ACTIVE = 10
"""Examples that a latent must be active in to be judged."""


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

    Each label is set against all others by the rank-sum test: AUROC = U / (n1 n2) with tied ranks averaged, and p from
    the normal approximation with corrections for ties and continuity. Over all latents and labels the false-discovery
    rate is controlled by Benjamini and Hochberg (1995); a floor on |2 AUROC - 1| keeps small effects out, which a large
    test set would make significant. Only latents active in at least 10 examples are judged.

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
    from scipy.stats import rankdata

    if len(means) != len(labels):
        raise MeasureError(f"task_latents was given {len(means)} examples and {len(labels)} labels; give one for each.")
    present = np.unique(labels)
    if len(present) < 2:
        raise MeasureError(f"task_latents was given {len(present)} label; give examples of at least two.")
    # With two labels the second comparison would be the mirror of the first.
    compared = present[1:] if len(present) == 2 else present
    active = (means > 0).sum(0)
    judged = np.flatnonzero(active >= MINIMUM_ACTIVE)
    columns = ["latent", "density", "label", "auroc", "effect", "p", "q", "task"]
    if not len(judged):
        nan = float("nan")
        return TaskLatents(pd.DataFrame(columns=columns), nan, nan, nan, 0, len(means))
    values = means[:, judged]
    ranks = rankdata(values, axis=0)
    ties = _tie_term(values)
    auroc, p = _rank_sums(ranks, ties, labels[None], compared)
    passed, adjusted = _task(auroc, p, effect, q)
    rng = np.random.default_rng(seed)
    shares = []
    for start in range(0, permutations, 20):
        shuffled = np.stack([rng.permutation(labels) for _ in range(min(20, permutations - start))])
        shares.append(_task(*_rank_sums(ranks, ties, shuffled, compared), effect, q)[0].any(1).mean(-1))
    null = np.concatenate(shares) if shares else np.full(1, np.nan)
    sizes = np.abs(2 * auroc[0] - 1)
    best = np.where(passed[0].any(0), np.where(passed[0], sizes, -1).argmax(0), sizes.argmax(0))
    pick = (best, np.arange(len(judged)))
    table = pd.DataFrame(
        {
            "latent": judged,
            "density": active[judged] / len(means),
            "label": [label_names[compared[i]] for i in best],
            "auroc": auroc[0][pick],
            "effect": sizes[pick],
            "p": p[0][pick],
            "q": adjusted[0][pick],
            "task": passed[0].any(0),
        }
    )
    high = float(np.quantile(null, 0.95))
    return TaskLatents(table, float(table["task"].mean()), float(null.mean()), high, len(judged), len(means))


def _tie_term(values: Float[np.ndarray, "n live"]) -> Float[np.ndarray, " live"]:
    """Sum of t^3 - t over groups of t tied values, for each latent."""
    return np.array(
        [((t := np.unique(column, return_counts=True)[1].astype(float)) ** 3 - t).sum() for column in values.T]
    )


def _rank_sums(
    ranks: Float[np.ndarray, "n live"],
    ties: Float[np.ndarray, " live"],
    labels: Int[np.ndarray, "draws n"],
    compared: Int[np.ndarray, " c"],
) -> tuple[Float[np.ndarray, "draws c live"], Float[np.ndarray, "draws c live"]]:
    """AUROC and two-sided p of each compared label against the rest, for several labellings at once."""
    from scipy.special import erfc

    n = len(ranks)
    member = (labels[:, None, :] == compared[None, :, None]).astype(np.float64)
    ones = member.sum(-1)[..., None]
    u = member @ ranks - ones * (ones + 1) / 2
    product = ones * (n - ones)
    spread = np.sqrt(product / 12 * (n + 1 - ties / (n * (n - 1))))
    distance = np.maximum(np.abs(u - product / 2) - 0.5, 0)
    # A latent with one value everywhere has no spread, and tells nothing apart.
    z = np.divide(distance, spread, out=np.zeros_like(distance), where=spread > 0)
    return u / product, erfc(z / np.sqrt(2))


def _task(
    auroc: Float[np.ndarray, "draws c live"], p: Float[np.ndarray, "draws c live"], effect: float, q: float
) -> tuple[np.ndarray, Float[np.ndarray, "draws c live"]]:
    """Which comparisons pass, and their adjusted p, within each draw over all labels and latents."""
    flat = p.reshape(len(p), -1)
    order = np.argsort(flat, axis=1)
    m = flat.shape[1]
    scaled = np.take_along_axis(flat, order, 1) * m / np.arange(1, m + 1)
    lowest = np.minimum(np.minimum.accumulate(scaled[:, ::-1], axis=1)[:, ::-1], 1)
    adjusted = np.empty_like(flat)
    np.put_along_axis(adjusted, order, lowest, 1)
    adjusted = adjusted.reshape(p.shape)
    return (adjusted <= q) & (np.abs(2 * auroc - 1) >= effect), adjusted
