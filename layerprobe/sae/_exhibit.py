"""What a report shows of a few latents: the strength of their activations, by class, and the examples they occur in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from layerprobe.errors import MeasureError

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array

BINS = 20
"""Bins of a histogram, from 0 to the largest activation in any reading."""
TOP, QUANTILES = 5, 4
"""Examples shown of a latent: with the highest peaks, and at evenly spaced ranks."""
WINDOW = 40
"""Tokens of an example that are shown at most."""


@dataclass(frozen=True)
class Exhibit:
    """A few latents, in three tables."""

    histograms: pd.DataFrame
    """`latent`, `on` (the reading), `low`, `high` (low < activation <= high; the same bins for every reading of a
    latent; a first bin with both ends 0 counts tokens on which it is inactive), `tokens` (count)."""
    classes: pd.DataFrame
    """`latent`, `on`, `label`, `mean` (of the mean activation over each example's tokens), `low`, `high` (95% t interval
    over examples; NaN for fewer than two), `active` (share of examples with an active token), `n` (examples)."""
    examples: pd.DataFrame
    """One row per token that is shown: `latent`, `choice` (top or quantile), `rank` (0 is the example with the highest
    peak), `level` (share of the active examples with a lower peak), `example`, `token_index`, `token`, `special`, and
    one column per reading with the activation."""


@dataclass(frozen=True)
class _Spans:
    """The rows of each example, and its label."""

    starts: Int[np.ndarray, " examples"]
    stops: Int[np.ndarray, " examples"]
    labels: Int[np.ndarray, " examples"]


def exhibit(
    readings: Mapping[str, csc_array],
    latents: Sequence[int] | Int[np.ndarray, " shown"],
    tokens: pd.DataFrame,
    labels: Int[np.ndarray, " examples"],
    label_names: Sequence[str],
) -> Exhibit:
    """Show latents by their activations: a histogram, means by class, and the examples at the top and at even ranks.

    A reading is the activations of the latents, or of their matches, on the same tokens: of a dictionary on its side's
    rows or on the other side's, or of the matched latents on theirs. The first reading selects the examples. Of those
    with an active token, in the order of their highest activation, the first 5 are shown, and 4 more at evenly spaced
    ranks (where 80, 60, 40 and 20% of the active examples are lower), to show weak activations too. Ties keep the
    order of the examples. Of an example longer than 40 tokens, 40 around the peak are shown.

    Args:
        readings: by name, activations as rows x shown latents, in the order of `latents`.
        latents: their numbers.
        tokens: one row per row of the readings: example (number), token_index, token, special; the rows of an example
            are consecutive and in order, as in an activation store.
        labels: label number of each example.
        label_names: names of the labels.

    Raises:
        MeasureError: if the sizes of readings, tokens and labels do not fit.
    """
    import pandas as pd

    example = tokens["example"].to_numpy(dtype=np.int64)
    _check(readings, len(latents), example, labels)
    starts = np.flatnonzero(np.r_[True, example[1:] != example[:-1]])
    spans = _Spans(starts, np.r_[starts[1:], len(example)], labels[example[starts]])
    first = next(iter(readings))
    histograms, classes = [], []
    chosen: list[tuple[int, str, int, float, int, int]] = []
    activations: dict[str, list[np.ndarray]] = {name: [np.zeros(0, dtype=np.float32)] for name in readings}
    for column, latent in enumerate(int(latent) for latent in latents):
        dense = {name: _column(codes, column) for name, codes in readings.items()}
        histograms += _histograms(latent, dense)
        for name, values in dense.items():
            classes += _classes(latent, name, values, spans, label_names)
        for choice, rank, level, number in _choose(np.maximum.reduceat(dense[first], starts)):
            low, high = _window(dense[first], int(spans.starts[number]), int(spans.stops[number]))
            chosen.append((latent, choice, rank, level, low, high))
            for name, values in dense.items():
                activations[name].append(values[low:high])
    shown = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(low, high) for *_, low, high in chosen)])
    lengths = [high - low for *_, low, high in chosen]
    examples = {
        name: np.repeat([row[place] for row in chosen], lengths)
        for place, name in enumerate(("latent", "choice", "rank", "level"))
    }
    examples |= {name: tokens[name].to_numpy()[shown] for name in ("example", "token_index", "token", "special")}
    examples |= {name: np.concatenate(parts) for name, parts in activations.items()}
    return Exhibit(
        pd.DataFrame(histograms, columns=["latent", "on", "low", "high", "tokens"]),
        pd.DataFrame(classes, columns=["latent", "on", "label", "mean", "low", "high", "active", "n"]),
        pd.DataFrame(examples),
    )


def _check(readings: Mapping[str, csc_array], shown: int, example: np.ndarray, labels: np.ndarray) -> None:
    if not readings or not len(example):
        raise MeasureError("exhibit was given no activations; give at least one reading of some tokens.")
    for name, codes in readings.items():
        if codes.shape != (len(example), shown):
            raise MeasureError(
                f"exhibit was given {len(example)} tokens and {shown} latents, but the reading {name!r} has shape "
                f"{codes.shape}; give one row per token and one column per latent."
            )
    if len(np.unique(example)) != 1 + np.count_nonzero(np.diff(example)):
        raise MeasureError("The tokens of an example are not consecutive; sort the rows by example.")
    if example.min() < 0 or example.max() >= len(labels):
        raise MeasureError(
            f"exhibit was given examples numbered up to {example.max()} and {len(labels)} labels; give one label per "
            "example."
        )


def _column(codes: csc_array, column: int) -> np.ndarray:
    """One latent's activations on all rows."""
    span = slice(codes.indptr[column], codes.indptr[column + 1])
    dense = np.zeros(codes.shape[0], dtype=np.float32)
    dense[codes.indices[span]] = codes.data[span]
    return dense


def _histograms(latent: int, dense: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
    largest = float(max(values.max() for values in dense.values()))
    edges = np.linspace(0, largest, BINS + 1)
    rows: list[dict[str, object]] = []
    for name, values in dense.items():
        active = values[values > 0]
        rows.append({"latent": latent, "on": name, "low": 0.0, "high": 0.0, "tokens": len(values) - len(active)})
        if not largest:
            continue
        # The largest value may be a rounding error above its edge.
        bins = np.minimum(np.searchsorted(edges[1:], active, side="left"), BINS - 1)
        for low, high, count in zip(edges, edges[1:], np.bincount(bins, minlength=BINS), strict=False):
            rows.append({"latent": latent, "on": name, "low": low, "high": high, "tokens": int(count)})
    return rows


def _classes(
    latent: int, name: str, values: np.ndarray, spans: _Spans, label_names: Sequence[str]
) -> list[dict[str, object]]:
    from scipy.special import stdtrit  # the t quantile, without the cost of a distribution object

    means = np.add.reduceat(values.astype(np.float64), spans.starts) / (spans.stops - spans.starts)
    active = np.maximum.reduceat(values, spans.starts) > 0
    rows: list[dict[str, object]] = []
    for number in np.unique(spans.labels):
        members = spans.labels == number
        part = means[members]
        n, mean = len(part), part.mean()
        reach = stdtrit(n - 1, 0.975) * part.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        row = {"latent": latent, "on": name, "label": label_names[number]}
        interval = {"mean": mean, "low": mean - reach, "high": mean + reach}
        rows.append({**row, **interval, "active": active[members].mean(), "n": n})
    return rows


def _choose(peaks: np.ndarray) -> list[tuple[str, int, float, int]]:
    """Examples to show: choice, rank, share of active examples below, and number."""
    order = np.argsort(-peaks, kind="stable")
    order = order[peaks[order] > 0]
    n = len(order)
    # Ascending, so that the share of examples below is found by bisection.
    ascending = peaks[order][::-1]
    ranks = dict.fromkeys(range(min(TOP, n)), "top")
    for step in range(1, QUANTILES + 1):
        rank = round((n - 1) * step / (QUANTILES + 1)) if n else 0
        if rank < n:
            ranks.setdefault(rank, "quantile")
    return [
        (choice, rank, float(np.searchsorted(ascending, peaks[order[rank]], side="left") / n), int(order[rank]))
        for rank, choice in sorted(ranks.items())
    ]


def _window(values: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Rows of an example that are shown: all, or those around its peak."""
    if stop - start <= WINDOW:
        return start, stop
    peak = start + int(values[start:stop].argmax())
    low = min(max(start, peak - WINDOW // 2), stop - WINDOW)
    return low, low + WINDOW


def top_latents(table: pd.DataFrame, count: int) -> list[int]:
    """The latents of one dictionary to show first: by task effect, by being unmatched, by activity.

    Half the places go to the largest task effects among task latents, a quarter to the most active of the unmatched,
    and the rest to the most active of the others.

    Args:
        table: one row per latent: latent, task, effect, active_examples, unmatched.
        count: how many at most.

    Raises:
        MeasureError: if a column is missing.
    """
    missing = [name for name in ("latent", "task", "effect", "active_examples", "unmatched") if name not in table]
    if missing:
        raise MeasureError(
            f"top_latents was given a table without `{missing[0]}`; give one of `associations` and matches."
        )
    live = table[table["active_examples"] > 0].sort_values(["active_examples", "latent"], ascending=[False, True])
    ranked = live[live["task"]].sort_values(["effect", "latent"], ascending=[False, True])["latent"]
    task = ranked.tolist()[: count // 2]
    unmatched = live[live["unmatched"] & ~live["latent"].isin(task)]["latent"].tolist()[: count // 4]
    return list(dict.fromkeys([*task, *unmatched, *live["latent"].tolist()]))[:count]
