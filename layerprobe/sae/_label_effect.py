"""How strongly the latents of one basis are associated with labels: the mean squared label effect, minus its expectation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import ArgumentError
from layerprobe.sae._labels import active_examples, check_rows, length_strata
from layerprobe.sae._ranks import MINIMUM_ACTIVE, sparse_ranks
from layerprobe.stats import assign_folds, jackknife_error

if TYPE_CHECKING:
    from scipy.sparse import csc_array

FOLDS = 20
"""Groups of examples that the jackknife leaves out in turn."""
COLUMNS = 256
"""Latents whose sums are in memory at a time."""


@dataclass(frozen=True)
class LabelEffect:
    """Mean squared label effect of the judged latents of one basis, in excess of its expectation under permuted labels."""

    value: float
    """Mean over the judged latents; NaN if there are none."""
    replicates: Float[np.ndarray, " folds"]
    """The same without each fold of examples. Folds depend on the number of examples alone, so that differences between
    bases, sides and layers have replicates, too."""
    by_latent: Float[np.ndarray, " latents"]
    """Effect of each latent; NaN if it is not judged."""
    judged: int
    """Latents that are active in at least 10 examples."""
    n: int
    """Examples."""

    @property
    def latents(self) -> int:
        """Latents of the basis."""
        return len(self.by_latent)

    @property
    def error(self) -> float:
        """Standard error over examples."""
        return float(jackknife_error(self.replicates))

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval over examples, with Student's t."""
        from scipy.stats import t

        reach = float(t.ppf(0.975, len(self.replicates) - 1)) * self.error
        return self.value - reach, self.value + reach


def label_effect(
    codes: csc_array, example: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " examples"]
) -> LabelEffect:
    """Mean squared label effect of the latents that are active in at least 10 examples.

    An example's activation is the max over its tokens, ranked among all examples. A latent's squared label effect is the
    between-label share of the variance of these ranks within strata of length (eta squared; the strata are those of
    `associations`), minus its expectation under labels permuted within the strata. It is 0 on average for a latent that
    is not associated with the labels, whatever its density, the number of examples and the sizes of the classes, and
    about 1 for one that determines the label. Bases of equal densities can be compared by it.

    The interval is a delete-group jackknife over 20 folds of examples that holds latents, ranks and strata fixed, and
    with them the basis.

    Args:
        codes: activations of one basis on held-out tokens, rows x latents.
        example: example of each row.
        labels: label number of each example.

    Raises:
        MeasureError: if rows, examples and labels do not fit, or fewer than two labels occur.
    """
    lengths = check_rows(codes.shape[0], example, labels)
    strata, folds = length_strata(lengths), assign_folds(len(labels), FOLDS, seed=0)
    latent, number, pooled = active_examples(codes, example)
    judged = np.flatnonzero(np.bincount(latent, minlength=codes.shape[1]) >= MINIMUM_ACTIVE)
    by_latent, sums = np.full(codes.shape[1], np.nan), np.zeros(folds.max() + 2)
    for block in np.split(judged, range(COLUMNS, len(judged), COLUMNS)):
        kept = np.isin(latent, block)
        column = np.searchsorted(block, latent[kept])
        ranks = sparse_ranks(pooled[0][kept], column, np.full(len(block), len(labels)))
        scores = np.tile(ranks.zero, (len(labels), 1))
        scores[number[kept], column] = ranks.values
        effects = squared_label_effects(scores, labels, strata, folds)
        by_latent[block] = effects[0]
        sums += effects.sum(1)
    means = sums / len(judged) if len(judged) else np.full(len(sums), np.nan)
    return LabelEffect(float(means[0]), means[1:], by_latent, len(judged), len(labels))


def squared_label_effects(
    scores: Float[np.ndarray, "examples columns"],
    labels: Int[np.ndarray, " examples"],
    strata: Int[np.ndarray, " examples"],
    folds: Int[np.ndarray, " examples"],
) -> Float[np.ndarray, "estimates columns"]:
    """Between-label share of the variance within strata, minus its mean over all permutations of labels within strata.

    With y the scores minus the mean of their stratum, n_c the size of class c, and k of the m examples of stratum s in
    class c, the between-label sum of squares is B = sum_c (sum over the class of y)^2 / n_c. The sum of k values drawn
    from m without replacement has the variance k (m - k) / (m (m - 1)) Q_s, with Q_s the sum of y^2 in the stratum, so
    that the mean of B over permutations is sum_c sum_s k (m - k) / (m (m - 1)) Q_s / n_c: no permutation is drawn. Both
    are divided by the sum of all Q_s.

    Args:
        scores: one value per example and column.
        labels: label number of each example.
        strata: stratum of each example, within which labels are exchangeable if there is no effect.
        folds: fold of each example, from 0.

    Returns:
        Effects on all examples, then without each fold of them; 0 for a column that is constant within strata.

    Raises:
        ArgumentError: if the lengths differ.
    """
    from scipy.sparse import csr_array

    examples, columns = scores.shape
    for name, given in (("labels", labels), ("strata", strata), ("folds", folds)):
        if len(given) != examples:
            raise ArgumentError(
                f"{{scores}} has {examples} examples and {{{name}}} {len(given)}; give one per example."
            )
    shape = tuple(int(part.max()) + 1 for part in (folds, strata, labels))
    cell = np.ravel_multi_index((folds, strata, labels), shape)
    members = csr_array((np.ones(examples), (cell, np.arange(examples))), shape=(int(np.prod(shape)), examples))
    y = np.asarray(scores, dtype=np.float64)
    counts = _without_each(members.sum(1).reshape(shape))
    sums = _without_each((members @ y).reshape(*shape, columns))
    squares = _without_each((members @ y**2).reshape(*shape, columns).sum(2))
    sizes = counts.sum(2)
    means = sums.sum(2) / np.maximum(sizes, 1)[..., None]
    within = np.maximum(squares - sizes[..., None] * means**2, 0)
    by_class = (sums - counts[..., None] * means[:, :, None]).sum(1)
    of_class = np.maximum(counts.sum(1), 1)
    between = (by_class**2 / of_class[..., None]).sum(1)
    pairs = np.maximum(sizes * (sizes - 1), 1)[..., None]
    share = (counts * (sizes[..., None] - counts) / pairs / of_class[:, None]).sum(2)
    total = within.sum(1)
    # Rounding leaves a little variance where there is none.
    varies = total > 1e-12 * np.maximum(squares.sum(1), 1e-300)
    excess = between - (share[..., None] * within).sum(1)
    return np.where(varies, excess / np.where(varies, total, 1), 0.0)


def _without_each(parts: np.ndarray) -> np.ndarray:
    """Sums over all folds, then over all but each."""
    total = parts.sum(0)
    return np.concatenate([total[None], total - parts])
