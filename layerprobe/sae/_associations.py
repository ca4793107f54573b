"""What each latent of a dictionary is associated with: labels, general properties of tokens, both or neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import MeasureError
from layerprobe.sae._general import GeneralTests, general_tests
from layerprobe.sae._labels import POOLINGS, RankedExamples, compared_classes, rank_examples
from layerprobe.sae._properties import token_properties
from layerprobe.sae._ranks import MINIMUM_ACTIVE, two_sided_p

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array


def associations(
    codes: csc_array,
    tokens: pd.DataFrame,
    labels: Int[np.ndarray, " examples"],
    label_names: Sequence[str],
    *,
    effect: float = 0.2,
    q: float = 0.05,
) -> pd.DataFrame:
    """Test each latent for association with labels and with general properties of tokens, on held-out examples.

    **Task.** An example's activation is the max or the mean over its tokens, special ones included, since a classifier
    may read nothing but the first. Each label is compared with the rest by a rank sum *within strata of length* (at
    least 20 examples of neighbouring lengths each), so that a latent that only distinguishes long from short examples is
    not called a task latent where labels differ in length. Strata are weighted by 1 / (n + 1) (van Elteren 1960), and
    AUROC is the mean over strata, weighted by n1 n0 / (n + 1); with one stratum it is the ordinary one, and p that of the
    tie-corrected Mann-Whitney test without continuity correction, or a larger one where the sum is skewed (a small
    class, a rarely active latent). Latents are judged if active in at least 10 examples. All comparisons of one call,
    latents x labels x poolings, are one family for the false-discovery rate (Benjamini and Hochberg 1995); of two
    labels, one comparison is made, since the other mirrors it.

    **General.** Activations on tokens are compared with token identity, continuation, punctuation, capitals, digits,
    function and content words, special tokens, position, length and frequency (`token_properties`) by Spearman's
    correlation, with tests for tokens that are dependent within examples (`general_tests`); again one family. These
    tests do not use the labels: where a label is associated with length or with a word, its latents can be too, and are
    `both`; so is a latent that distinguishes labels on the first token alone, which is a token and a position.

    Mutual information is between whether a latent is active in an example and the example's label, in bits, with Miller
    and Madow's correction (each entropy plus (non-empty cells - 1) / 2n nats); it is not stratified, and may be slightly
    negative where there is none.

    Args:
        codes: a dictionary's activations on held-out tokens, by `encode`.
        tokens: one row per row of `codes`: example (number), token_index, token, special, as `ActivationStore.rows`.
        labels: label number of each example, in the order of the examples' numbers.
        label_names: names of the labels.
        effect: least |2 AUROC - 1|, and least absolute correlation, of a discovery.
        q: false-discovery rate.

    Returns:
        One row per latent: latent, density (share of rows it is active on), active_examples, max_activation, judged
        (active in 10 examples); label, pooling, auroc, effect (|2 auroc - 1|), p, q of its best comparison: the largest
        effect among discoveries, or among all if there is none (of two labels, the one that it is more active for; of
        more, an auroc below .5 means that it is less active for this label); mutual_information; task (whether any
        comparison is a discovery); property, property_value (where it is more active: the token; yes or no; high, low,
        highest tenth or lowest tenth; or `not` one of these), property_effect (absolute correlation), property_auroc (of
        the activation there against elsewhere; NaN for high and low), property_p, property_q, general, likewise; kind:
        dead if it is active on no row, else task, general, both or unexplained. What cannot be tested is missing or
        NaN, and its kind unexplained.

    Raises:
        MeasureError: if the sizes of codes, tokens and labels do not fit, or fewer than two labels occur.
    """
    import pandas as pd

    properties = token_properties(tokens)
    example = tokens["example"].to_numpy(dtype=np.int64)
    ranked = rank_examples(codes, example, labels)
    if labels.min() < 0 or labels.max() >= len(label_names):
        raise MeasureError(
            f"Labels range from {labels.min()} to {labels.max()}, but there are {len(label_names)} label names; "
            "number labels from 0 and name each."
        )
    firing, judged = np.diff(codes.indptr), ranked.judged
    table = pd.DataFrame(
        {
            "latent": np.arange(codes.shape[1]),
            "density": firing / codes.shape[0],
            "active_examples": ranked.active,
            "max_activation": _largest(codes),
            "judged": ranked.active >= MINIMUM_ACTIVE,
            "mutual_information": _mutual_information(ranked.latent, ranked.example, labels, codes.shape[1]),
        }
    )
    general = general_tests(codes, example, properties, judged)
    table = table.join(_task(ranked, labels, label_names, effect, q)).join(_general(general, judged, effect, q))
    for column in ("task", "general"):
        table[column] = table[column].eq(True)
    table["kind"] = np.select(
        [firing == 0, table["task"] & table["general"], table["task"], table["general"]],
        ["dead", "both", "task", "general"],
        "unexplained",
    )
    first = ["latent", "kind", "density", "active_examples", "max_activation", "judged"]
    return table[first + [column for column in table.columns if column not in first]]


def share_task(
    codes: csc_array,
    example: Int[np.ndarray, " rows"],
    labels: Int[np.ndarray, " examples"],
    *,
    effect: float = 0.2,
    q: float = 0.05,
) -> float:
    """Share of the judged latents that `associations` would find to be associated with a label; NaN without any.

    Args:
        codes: activations on held-out tokens, by `encode`.
        example: example of each row.
        labels: label number of each example.
        effect: least |2 AUROC - 1| of a discovery.
        q: false-discovery rate.

    Raises:
        MeasureError: if rows, examples and labels do not fit, or fewer than two labels occur.
    """
    ranked = rank_examples(codes, example, labels)
    if not len(ranked.judged):
        return np.nan
    names = [str(label) for label in range(int(labels.max()) + 1)]
    return float(_task(ranked, labels, names, effect, q)["task"].mean())


def _largest(codes: csc_array) -> Float[np.ndarray, " latents"]:
    largest = np.zeros(codes.shape[1])
    active = np.flatnonzero(np.diff(codes.indptr))
    if len(active):
        largest[active] = np.maximum.reduceat(codes.data, codes.indptr[active])
    return largest


def _task(
    ranked: RankedExamples, labels: np.ndarray, label_names: Sequence[str], effect: float, q: float
) -> pd.DataFrame:
    """Best comparison of each judged latent with a label."""
    import pandas as pd

    compared = compared_classes(labels)
    scores = [ranks.scores(labels == compared[:, None], ranked.strata) for ranks in ranked.poolings]
    auroc = np.concatenate([s.auroc for s in scores])
    p = two_sided_p(np.concatenate([s.z for s in scores]), np.concatenate([s.skew for s in scores]))
    best, rate, discovered = _best(2 * auroc - 1, p, effect, q)
    pick = (best, np.arange(len(ranked.judged)))
    pooling, class_number = np.divmod(best, len(compared))
    label, value = compared[class_number], auroc[pick]
    if len(compared) == 1:
        other = np.setdiff1d(labels, compared)[0]
        label, value = np.where(value < 0.5, other, label), np.where(value < 0.5, 1 - value, value)
    defined = np.isfinite(p[pick])
    return pd.DataFrame(
        {
            "label": _known(np.array(label_names, dtype=object)[label], defined),
            "pooling": _known(np.array(POOLINGS, dtype=object)[pooling], defined),
            "auroc": value,
            "effect": np.abs(2 * value - 1),
            "p": p[pick],
            "q": rate[pick],
            "task": discovered,
        },
        index=ranked.judged,
    )


def _general(tests: GeneralTests, judged: np.ndarray, effect: float, q: float) -> pd.DataFrame:
    """Best association of each judged latent with a property."""
    import pandas as pd

    if not len(tests.names):
        tests = GeneralTests((("", "", ""),), *[np.full((1, len(judged)), np.nan)] * 3)
    best, rate, discovered = _best(tests.effect, tests.p, effect, q)
    pick = (best, np.arange(len(judged)))
    defined = np.isfinite(tests.p[pick]) & np.isfinite(tests.effect[pick])
    names = np.array(tests.names, dtype=object)
    return pd.DataFrame(
        {
            "property": _known(names[best, 0], defined),
            "property_value": _known(names[best, np.where(tests.effect[pick] >= 0, 1, 2)], defined),
            "property_effect": np.abs(tests.effect[pick]),
            "property_auroc": 0.5 + np.abs(tests.auroc[pick] - 0.5),
            "property_p": tests.p[pick],
            "property_q": rate[pick],
            "general": discovered,
        },
        index=judged,
    )


def _best(
    effects: Float[np.ndarray, "tests latents"], p: Float[np.ndarray, "tests latents"], effect: float, q: float
) -> tuple[Int[np.ndarray, " latents"], Float[np.ndarray, "tests latents"], Bool[np.ndarray, " latents"]]:
    """Each latent's best test, the false-discovery rates of all, and whether any is a discovery."""
    from scipy.stats import false_discovery_control

    rate = np.full(p.shape, np.nan)
    defined = np.isfinite(p)
    rate[defined] = false_discovery_control(p[defined])
    size = np.where(defined & np.isfinite(effects), np.abs(effects), -1)
    discovered = (rate <= q) & (size >= effect)
    # Discoveries come before everything else.
    return np.argmax(size + 2 * discovered, axis=0), rate, np.any(discovered, axis=0)


def _known(names: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return np.where(defined, names, np.array(None))


def _mutual_information(
    latent: np.ndarray, example: np.ndarray, labels: np.ndarray, n_latents: int
) -> Float[np.ndarray, " latents"]:
    """Bits between an example's label and whether a latent is active in it, with Miller and Madow's correction."""
    from scipy.special import xlogy

    n, n_labels = len(labels), int(labels.max()) + 1
    active = np.bincount(latent * n_labels + labels[example], minlength=n_latents * n_labels)
    active = active.reshape(n_latents, n_labels)
    classes = np.bincount(labels, minlength=n_labels)
    cells = np.stack([active, classes - active], axis=1)

    def entropy(counts: np.ndarray) -> np.ndarray:
        return np.log(n) - xlogy(counts, counts).sum(-1) / n + ((counts > 0).sum(-1) - 1) / (2 * n)

    state, joint = cells.sum(-1), cells.reshape(n_latents, -1)
    return (entropy(state) + entropy(classes[None]) - entropy(joint)) / np.log(2)
