"""What became of each matched latent: its kind in base and in adapted, compared with two dictionaries of base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.errors import ArgumentError
from layerprobe.stats import paired_proportions

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("both", "general", "task", "unexplained")
LABEL = "task or both"
"""Kind of the latents that are associated with a label."""


def transitions(
    base: Sequence[str | None],
    adapted: Sequence[str | None],
    null: Sequence[str | None],
    *,
    layers: int = 1,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Rates at which matched latents change their kind, in excess of the rates by chance alone.

    A latent's kind can differ between two dictionaries of the same rows, since training and tests near their threshold
    vary. So the share of base latents of one kind that have a certain kind in adapted is compared with the share that have
    it in a second dictionary of base (`null`), over the same latents: those with a kind in all three.

    The interval is that of Bonett and Price (2012) for a difference of paired proportions, over latents, as if they were
    independent: it holds for these dictionaries and these examples. A jackknife over examples would repeat the tests, and
    that of a share thresholded by a false-discovery rate is about twice as wide as it should be.

    Args:
        base: kind of each judged latent of base (`task`, `general`, `both` or `unexplained`); None if it is not judged.
        adapted: kind of its match in adapted; None if it has none, or one that is not judged.
        null: kind of its match in the second dictionary of base, likewise.
        layers: number of layers at which intervals hold at once (Sidak 1967), for `all_low` and `all_high`.
        confidence: of the intervals.

    Returns:
        One row per pair of kinds that occurs in base and can occur in adapted, and `task or both` as a further kind in
        adapted: kind_base, kind_adapted, latents (number of kind_base, n), count and null_count (of these, with
        kind_adapted in adapted and in the null), rate, null_rate, excess (rate - null_rate), low, high (interval), all_low,
        all_high (simultaneous over layers).

    Raises:
        ArgumentError: if the lengths differ, or a kind is unknown.
    """
    import pandas as pd

    sides = {"base": base, "adapted": adapted, "null": null}
    arrays = {name: np.array([kind or "" for kind in side], dtype=object) for name, side in sides.items()}
    if len({len(array) for array in arrays.values()}) > 1:
        raise ArgumentError(
            f"{{base}}, {{adapted}} and {{null}} have {', '.join(str(len(array)) for array in arrays.values())} kinds; give "
            "one per latent of base.",
            *sides,
        )
    for name, array in arrays.items():
        if unknown := sorted(set(array) - {*KINDS, ""}):
            raise ArgumentError(f"{{{name}}} has the kind {unknown[0]!r}; kinds are {', '.join(KINDS)}.", name)
    kept = np.all([array != "" for array in arrays.values()], axis=0)
    before, after, chance = (np.searchsorted(KINDS, array[kept].astype(str)) for array in arrays.values())
    kinds = len(KINDS)
    cells = np.bincount((before * kinds + after) * kinds + chance, minlength=kinds**3).reshape([kinds] * 3)
    levels = confidence, confidence ** (1 / layers)
    targets = {kind: [i] for i, kind in enumerate(KINDS)} | {LABEL: [KINDS.index("task"), KINDS.index("both")]}
    rows = []
    for kind, pairs in zip(KINDS, cells, strict=True):
        n = int(pairs.sum())
        for target, numbers in targets.items() if n else ():
            count, null_count = int(pairs[numbers].sum()), int(pairs[:, numbers].sum())
            both = int(pairs[np.ix_(numbers, numbers)].sum())
            ends = [paired_proportions(count - both, null_count - both, n, level) for level in levels]
            row = [kind, target, n, count, null_count, count / n, null_count / n, (count - null_count) / n]
            rows.append([*row, *ends[0], *ends[1]])
    columns = ["kind_base", "kind_adapted", "latents", "count", "null_count", "rate", "null_rate", "excess"]
    return pd.DataFrame(rows, columns=[*columns, "low", "high", "all_low", "all_high"])


def comparable_kinds(tables: Sequence[pd.DataFrame], *, effect: float = 0.2) -> list[list[str | None]]:
    """Kinds of the latents of several dictionaries of one layer, by one threshold on p for all of them.

    The threshold of a false-discovery rate depends on the number of discoveries, so that in a dictionary with many of them
    more latents near the threshold count as discoveries, all together: a latent's kind could change because others did, and
    an interval over latents would be too narrow. So all dictionaries are judged by the most lenient of their thresholds,
    for labels and for general properties alike.

    Args:
        tables: from `associations`, of each dictionary.
        effect: least effect of a discovery, as in `associations`.

    Returns:
        For each dictionary, the kind of each latent; None if it is not judged.
    """
    found = {}
    for name, p, size in (("task", "p", "effect"), ("general", "property_p", "property_effect")):
        threshold = max((float(table.loc[table[name], p].max()) for table in tables if table[name].any()), default=-1.0)
        found[name] = [((table[p] <= threshold) & (table[size] >= effect)).to_numpy() for table in tables]
    kinds = []
    for table, task, general in zip(tables, found["task"], found["general"], strict=True):
        names = np.select([task & general, task, general], ["both", "task", "general"], "unexplained")
        kinds.append([str(name) if judged else None for name, judged in zip(names, table["judged"], strict=True)])
    return kinds


def matched_kinds(partner: Any, kinds: Sequence[str | None]) -> list[str | None]:
    """Kind of each latent's match.

    Args:
        partner: number of the latent of the other dictionary that each latent is matched with, `(latents,)`; missing if
            there is none.
        kinds: kind of each latent of the other dictionary; None if it is not judged.

    Returns:
        For each latent, the kind of its match; None without a match, or with one that is not judged.
    """
    import pandas as pd

    return [None if pd.isna(other) else kinds[other] for other in pd.array(partner, dtype="Int64")]
