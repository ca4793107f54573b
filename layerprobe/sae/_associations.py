"""What each latent of a dictionary is about: the task, general properties of the text, both or neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from layerprobe.errors import MeasureError
from layerprobe.sae._codes import sparse_codes
from layerprobe.sae._dictionary import Dictionary
from layerprobe.sae._general import GeneralTests, general_tests
from layerprobe.sae._labels import (
    POOLINGS,
    active_examples,
    check_examples,
    compared_classes,
    length_strata,
    stratified_ranks,
)
from layerprobe.sae._properties import token_properties
from layerprobe.sae._ranks import MINIMUM_ACTIVE, adjusted, two_sided_p

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array

KINDS = ("task", "general", "both", "unexplained", "dead")


def associations(
    dictionary: Dictionary,
    rows: Num[np.ndarray, "n d"],
    tokens: pd.DataFrame,
    labels: Int[np.ndarray, " examples"],
    label_names: Sequence[str],
    *,
    codes: csc_array | None = None,
    effect: float = 0.2,
    q: float = 0.05,
    batch_size: int = 4096,
    progress: bool = True,
) -> pd.DataFrame:
    """Say of each latent which label and which general property it goes with, on texts it was not trained on.

    **Task.** An example's activation is the max or the mean over its tokens, special ones included, since an adapted
    classifier may read nothing but the first. Each label is set against the rest by a rank sum *within strata of
    length* (at least 20 examples of neighbouring lengths each), so that a latent that only tells long texts from short
    ones is not called a task latent where labels differ in length. Strata are weighted by 1 / (n + 1) (van Elteren
    1960), and AUROC is the mean of the strata's, weighted by n1 n0 / (n + 1); with one stratum it is the ordinary one,
    and p that of the tie-corrected Mann-Whitney test without continuity correction, or a larger one where the sum is
    skewed (a small class, a rarely active latent). A latent is judged if active in at least 10 examples. All
    comparisons of one call, latents x labels x poolings, are one family for the false-discovery rate (Benjamini and
    Hochberg 1995); of two labels one comparison is made, since the other is its mirror.

    **General.** Activations on tokens against token identity, continuation, punctuation, capitals, digits, function
    and content words, special tokens, position, length and frequency (`token_properties`), by Spearman's correlation,
    in tests for tokens that depend on each other within examples (`general_tests`); one family again. They do not look
    at the labels: where a label goes with length or with a word, its latents can go with these too, and are `both`; so
    is one that tells labels apart on the first token alone, which is a token and a position.

    Mutual information is between whether a latent is active in an example and the example's label, in bits, with Miller
    and Madow's correction (each entropy plus (non-empty cells - 1) / 2n nats); it is not stratified, and may come out a
    little below 0 where there is none.

    Args:
        dictionary: gives the latents.
        rows: activations on test texts, a row a token; may be memory-mapped.
        tokens: what each row is: example (number), token_index, token, special, as an activation store's `rows`.
        labels: label number of each example, in the order of the examples' numbers.
        label_names: names of the labels.
        codes: the dictionary's activations on these rows, if they are at hand (of `sparse_codes`).
        effect: least |2 AUROC - 1|, and least size of a correlation, to be a discovery.
        q: false-discovery rate.
        batch_size: rows encoded at a time.
        progress: whether to draw a progress bar on stderr.

    Returns:
        One row a latent of the dictionary: latent, density (share of rows it is active on), active_examples,
        max_activation, judged (active in 10 examples); label, pooling, auroc, effect (|2 auroc - 1|), p, q of its best
        comparison: the largest effect among discoveries, or among all if there is none (of two labels, the one that it
        is more active for; of more, an auroc below .5 says that it is less active for this label); mutual_information;
        task (whether any comparison is a discovery); property, property_value (where it is more active: the token; yes or
        no; high, low, highest tenth or lowest tenth; or `not` one of these), property_effect (size of the correlation),
        property_auroc (of the activation there against elsewhere; NaN for high and low), property_p, property_q,
        general, likewise;
        kind: dead if it is active on no row, else task, general, both or unexplained. What cannot be judged is
        missing or NaN, and its kind unexplained.

    Raises:
        MeasureError: if the sizes of rows, tokens and labels do not fit, or fewer than two labels occur.
    """
    import pandas as pd

    properties = token_properties(tokens)
    example = tokens["example"].to_numpy(dtype=np.int64)
    check_examples(len(rows), example, labels)
    compared = compared_classes(labels)
    if labels.min() < 0 or labels.max() >= len(label_names):
        raise MeasureError(
            f"Labels run from {labels.min()} to {labels.max()} and there are {len(label_names)} label names; "
            "number labels from 0 on and name each."
        )
    if codes is None:
        codes = sparse_codes(dictionary, rows, batch_size=batch_size, progress=progress)
    if codes.shape != (len(rows), dictionary.d_sae):
        raise MeasureError(
            f"codes has shape {codes.shape}; {len(rows)} rows and {dictionary.d_sae} latents need as many."
        )
    latent, number, pooled = active_examples(codes, example)
    active = np.bincount(latent, minlength=codes.shape[1])
    on = np.diff(codes.indptr)
    table = pd.DataFrame(
        {
            "latent": np.arange(codes.shape[1]),
            "density": on / len(rows),
            "active_examples": active,
            "max_activation": _largest(codes),
            "judged": active >= MINIMUM_ACTIVE,
            "mutual_information": _mutual_information(latent, number, labels, codes.shape[1]),
        }
    )
    judged = np.flatnonzero(table["judged"])
    task = _task(latent, number, pooled, labels, compared, label_names, np.bincount(example), judged, effect, q)
    general = _general(general_tests(codes, example, properties, judged), judged, effect, q)
    table = table.join(task).join(general)
    for column in ("task", "general"):
        table[column] = table[column].eq(True)
    table["kind"] = np.select(
        [on == 0, table["task"] & table["general"], table["task"], table["general"]],
        ["dead", "both", "task", "general"],
        "unexplained",
    )
    first = ["latent", "kind", "density", "active_examples", "max_activation", "judged"]
    return table[first + [column for column in table.columns if column not in first]]


def _largest(codes: csc_array) -> Float[np.ndarray, " latents"]:
    out = np.zeros(codes.shape[1])
    filled = np.flatnonzero(np.diff(codes.indptr))
    if len(filled):
        out[filled] = np.maximum.reduceat(codes.data, codes.indptr[filled])
    return out


def _task(
    latent: np.ndarray,
    number: np.ndarray,
    pooled: np.ndarray,
    labels: np.ndarray,
    compared: np.ndarray,
    label_names: Sequence[str],
    lengths: np.ndarray,
    judged: np.ndarray,
    effect: float,
    q: float,
) -> pd.DataFrame:
    """Best comparison of each judged latent with a label."""
    import pandas as pd

    strata = length_strata(lengths)
    members = labels == compared[:, None]
    scores = [ranks.scores(members, strata) for ranks in stratified_ranks(latent, number, pooled, strata, judged)]
    auroc = np.concatenate([s.auroc for s in scores])
    p = two_sided_p(np.concatenate([s.z for s in scores]), np.concatenate([s.skew for s in scores]))
    best, rate, passed = _best(2 * auroc - 1, p, effect, q)
    pick = (best, np.arange(len(judged)))
    pooling, compared_at = np.divmod(best, len(compared))
    label, value = compared[compared_at], auroc[pick]
    if len(compared) == 1:
        other = np.setdiff1d(labels, compared)[0]
        label, value = np.where(value < 0.5, other, label), np.where(value < 0.5, 1 - value, value)
    able = np.isfinite(p[pick])
    return pd.DataFrame(
        {
            "label": _names([label_names[i] for i in label], able),
            "pooling": _names([POOLINGS[i] for i in pooling], able),
            "auroc": value,
            "effect": np.abs(2 * value - 1),
            "p": p[pick],
            "q": rate[pick],
            "task": passed,
        },
        index=judged,
    )


def _general(tests: GeneralTests, judged: np.ndarray, effect: float, q: float) -> pd.DataFrame:
    """Best association of each judged latent with a property."""
    import pandas as pd

    if not len(tests.names):
        tests = GeneralTests((("", "", ""),), *[np.full((1, len(judged)), np.nan)] * 3)
    best, rate, passed = _best(tests.effect, tests.p, effect, q)
    pick = (best, np.arange(len(judged)))
    able = np.isfinite(tests.p[pick]) & np.isfinite(tests.effect[pick])
    positive = tests.effect[pick] >= 0
    return pd.DataFrame(
        {
            "property": _names([tests.names[i][0] for i in best], able),
            "property_value": _names(
                [tests.names[i][1 if up else 2] for i, up in zip(best, positive, strict=True)], able
            ),
            "property_effect": np.abs(tests.effect[pick]),
            "property_auroc": 0.5 + np.abs(tests.auroc[pick] - 0.5),
            "property_p": tests.p[pick],
            "property_q": rate[pick],
            "general": passed,
        },
        index=judged,
    )


def _best(
    effects: Float[np.ndarray, "tests latents"], p: Float[np.ndarray, "tests latents"], effect: float, q: float
) -> tuple[Int[np.ndarray, " latents"], Float[np.ndarray, "tests latents"], Bool[np.ndarray, " latents"]]:
    """Each latent's best test, the false-discovery rates of all, and whether any is a discovery."""
    rate = np.full(p.shape, np.nan)
    able = np.isfinite(p)
    rate[able] = adjusted(p[able])
    size = np.where(able & np.isfinite(effects), np.abs(effects), -1)
    passed = (rate <= q) & (size >= effect)
    # Discoveries stand above everything else.
    return np.argmax(size + 2 * passed, axis=0), rate, np.any(passed, axis=0)


def _names(names: list[str], able: np.ndarray) -> np.ndarray:
    return np.array([name if known else None for name, known in zip(names, able, strict=True)], dtype=object)


def _mutual_information(
    latent: np.ndarray, number: np.ndarray, labels: np.ndarray, n_latents: int
) -> Float[np.ndarray, " latents"]:
    """Bits between an example's label and whether a latent is active in it, corrected after Miller and Madow."""
    from scipy.special import xlogy

    n, n_labels = len(labels), int(labels.max()) + 1
    on = np.bincount(latent * n_labels + labels[number], minlength=n_latents * n_labels).reshape(n_latents, n_labels)
    classes = np.bincount(labels, minlength=n_labels)
    cells = np.stack([on, classes - on], axis=1)

    def entropy(counts: np.ndarray) -> np.ndarray:
        return np.log(n) - xlogy(counts, counts).sum(-1) / n + ((counts > 0).sum(-1) - 1) / (2 * n)

    state, joint = cells.sum(-1), cells.reshape(n_latents, -1)
    return (entropy(state) + entropy(classes[None]) - entropy(joint)) / np.log(2)
