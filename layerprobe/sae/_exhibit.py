"""What a reader is shown of a few latents: how strongly they fire, on which class, and in which texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from layerprobe.errors import MeasureError

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array


@dataclass(frozen=True)
class Exhibit:
    """A few latents, in three tables."""

    histograms: pd.DataFrame
    """`latent`, `on` (the reading), `low`, `high` (low < activation <= high; the same bins for every reading of a
    latent; a first bin with both ends 0 counts tokens on which it is silent), `tokens` (how many)."""
    classes: pd.DataFrame
    """`latent`, `on`, `label`, `mean` (of the mean activation over each text's tokens), `low`, `high` (95% t interval
    over texts; NaN for fewer than two), `active` (share of texts with an active token), `n` (texts)."""
    examples: pd.DataFrame
    """One row a token that is shown: `latent`, `choice` (top or quantile), `rank` (0 is the text with the highest peak),
    `level` (share of the active texts with a lower peak), `example`, `token_index`, `token`, `special`, and one column
    a reading with the activation."""


def exhibit(
    readings: Mapping[str, csc_array],
    latents: Sequence[int] | Int[np.ndarray, " shown"],
    tokens: pd.DataFrame,
    labels: Int[np.ndarray, " examples"],
    label_names: Sequence[str],
    *,
    bins: int = 20,
    top: int = 5,
    quantiles: int = 4,
    window: int = 40,
) -> Exhibit:
    """Show latents by their activations: a histogram, means by class, and the texts at the top and at even ranks.

    A reading is what the latents, or others in their places, do on the same tokens: a dictionary on its own side's rows,
    the same on the other side's, the matched latents on theirs. The first one chooses the texts. Of those with an active
    token, ordered by their highest activation, the first `top` are shown, and `quantiles` more at evenly spaced ranks
    (for 4: where 80, 60, 40 and 20% of the active texts lie lower), so that a reader also sees what weak activations
    go with. Ties keep the texts' order. Of a text longer than `window` tokens, so many around the peak are shown.

    Args:
        readings: by name, activations as rows x shown latents; a column each, in the order of `latents`.
        latents: their numbers.
        tokens: what each row is: example (number), token_index, token, special; rows of an example stand together and
            in order, as in an activation store.
        labels: label number of each example.
        label_names: names of the labels.
        bins: of each histogram, from 0 to the largest activation in any reading.
        top: texts with the highest peaks.
        quantiles: texts at evenly spaced ranks.
        window: tokens of a text that are shown at most.

    Raises:
        MeasureError: if the sizes of readings, tokens and labels do not fit.
    """
    import pandas as pd

    example = tokens["example"].to_numpy(dtype=np.int64)
    _check(readings, len(latents), example, labels)
    starts = np.flatnonzero(np.r_[True, example[1:] != example[:-1]])
    stops = np.r_[starts[1:], len(example)]
    first = next(iter(readings))
    histograms, classes = [], []
    examples: list[tuple[Any, ...]] = []
    activations: dict[str, list[np.ndarray]] = {name: [] for name in readings}
    for column, latent in enumerate(int(latent) for latent in latents):
        dense = {name: _column(codes, column) for name, codes in readings.items()}
        histograms += _histograms(latent, dense, bins)
        for name, values in dense.items():
            classes += _classes(latent, name, values, example, starts, stops, labels, label_names)
        peaks = np.maximum.reduceat(dense[first], starts)
        for choice, rank, level, text in _chosen(peaks, top, quantiles):
            low, high = _window(dense[first], int(starts[text]), int(stops[text]), window)
            examples.append((latent, choice, rank, level, low, high))
            for name, values in dense.items():
                activations[name].append(values[low:high])
    return Exhibit(
        pd.DataFrame(histograms, columns=["latent", "on", "low", "high", "tokens"]),
        pd.DataFrame(classes, columns=["latent", "on", "label", "mean", "low", "high", "active", "n"]),
        _examples(examples, activations, tokens),
    )


def _check(readings: Mapping[str, csc_array], shown: int, example: np.ndarray, labels: np.ndarray) -> None:
    if not readings or not len(example):
        raise MeasureError("exhibit was given no activations; give at least one reading of some tokens.")
    for name, codes in readings.items():
        if codes.shape != (len(example), shown):
            raise MeasureError(
                f"exhibit was given {len(example)} tokens and {shown} latents, and the reading {name!r} has shape "
                f"{codes.shape}; give a row a token and a column a latent."
            )
    if len(np.unique(example)) != 1 + np.count_nonzero(np.diff(example)):
        raise MeasureError("exhibit was given tokens of a text apart from each other; sort the rows by example.")
    if example.min() < 0 or example.max() >= len(labels):
        raise MeasureError(
            f"exhibit was given examples numbered up to {example.max()} and {len(labels)} labels; give a label each."
        )


def _column(codes: csc_array, column: int) -> np.ndarray:
    """One latent's activations on all rows."""
    span = slice(codes.indptr[column], codes.indptr[column + 1])
    dense = np.zeros(codes.shape[0], dtype=np.float32)
    dense[codes.indices[span]] = codes.data[span]
    return dense


def _histograms(latent: int, dense: Mapping[str, np.ndarray], bins: int) -> list[dict[str, object]]:
    largest = float(max(values.max() for values in dense.values()))
    edges = np.linspace(0, largest, bins + 1)
    rows: list[dict[str, object]] = []
    for name, values in dense.items():
        on = values[values > 0]
        rows.append({"latent": latent, "on": name, "low": 0.0, "high": 0.0, "tokens": len(values) - len(on)})
        if not largest:
            continue
        # The largest value may lie a rounding error above its edge.
        at = np.minimum(np.searchsorted(edges[1:], on, side="left"), bins - 1)
        for low, high, count in zip(edges, edges[1:], np.bincount(at, minlength=bins), strict=False):
            rows.append({"latent": latent, "on": name, "low": low, "high": high, "tokens": int(count)})
    return rows


def _classes(
    latent: int,
    name: str,
    values: np.ndarray,
    example: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
) -> list[dict[str, object]]:
    from scipy.special import stdtrit  # the t quantile, without the cost of a distribution object

    means = np.add.reduceat(values.astype(np.float64), starts) / (stops - starts)
    active = np.maximum.reduceat(values, starts) > 0
    of = labels[example[starts]]
    rows: list[dict[str, object]] = []
    for number in np.unique(of):
        part = means[of == number]
        n, mean = len(part), part.mean()
        reach = stdtrit(n - 1, 0.975) * part.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        about = {"latent": latent, "on": name, "label": label_names[number]}
        spread = {"mean": mean, "low": mean - reach, "high": mean + reach}
        rows.append({**about, **spread, "active": active[of == number].mean(), "n": n})
    return rows


def _chosen(peaks: np.ndarray, top: int, quantiles: int) -> list[tuple[str, int, float, int]]:
    """Texts to show: choice, rank, share of active texts below, and number."""
    order = np.argsort(-peaks, kind="stable")
    order = order[peaks[order] > 0]
    n = len(order)
    # Ordered upwards, so that the share of texts below is found by bisection.
    upwards = peaks[order][::-1]
    ranks = dict.fromkeys(range(min(top, n)), "top")
    for step in range(1, quantiles + 1):
        rank = round((n - 1) * step / (quantiles + 1)) if n else 0
        if rank < n:
            ranks.setdefault(rank, "quantile")
    return [
        (choice, rank, float(np.searchsorted(upwards, peaks[order[rank]], side="left") / n), int(order[rank]))
        for rank, choice in sorted(ranks.items())
    ]


def _window(values: np.ndarray, start: int, stop: int, window: int) -> tuple[int, int]:
    """Rows of a text that are shown: all, or so many around its peak."""
    if stop - start <= window:
        return start, stop
    peak = start + int(values[start:stop].argmax())
    low = min(max(start, peak - window // 2), stop - window)
    return low, low + window


def _examples(
    examples: list[tuple[Any, ...]], activations: Mapping[str, list[np.ndarray]], tokens: pd.DataFrame
) -> pd.DataFrame:
    """A row a token from the spans that are shown."""
    import pandas as pd

    spans = [np.arange(low, high) for *_, low, high in examples]
    at = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
    lengths = [len(span) for span in spans]
    table = pd.DataFrame(
        {
            name: np.repeat([about[place] for about in examples], lengths)
            for place, name in enumerate(("latent", "choice", "rank", "level"))
        }
    )
    for name in ("example", "token_index", "token", "special"):
        table[name] = tokens[name].to_numpy()[at]
    for name, parts in activations.items():
        table[name] = np.concatenate([np.zeros(0, dtype=np.float32), *parts])
    return table


def foremost(table: pd.DataFrame, count: int) -> list[int]:
    """The latents of one dictionary that are most worth showing: by task effect, by being unmatched, by activity.

    Half the places go to the largest task effects among task latents, a quarter to the most active of the unmatched,
    and the rest to the most active of the others.

    Args:
        table: a row a latent: latent, task, effect, active_examples, unmatched.
        count: how many at most.

    Raises:
        MeasureError: if a column is missing.
    """
    missing = [name for name in ("latent", "task", "effect", "active_examples", "unmatched") if name not in table]
    if missing:
        raise MeasureError(
            f"foremost was given a table without `{missing[0]}`; give one of `associations` and matches."
        )
    live = table[table["active_examples"] > 0].sort_values(["active_examples", "latent"], ascending=[False, True])
    task = live[live["task"]].sort_values(["effect", "latent"], ascending=[False, True])["latent"].tolist()
    lost = live[live["unmatched"]]["latent"].tolist()
    chosen = dict.fromkeys(task[: count // 2])
    room = len(chosen) + count // 4
    for queue, limit in ((lost, room), (live["latent"].tolist(), count)):
        for latent in queue:
            if len(chosen) >= limit:
                break
            chosen.setdefault(latent)
    return [int(latent) for latent in chosen]
