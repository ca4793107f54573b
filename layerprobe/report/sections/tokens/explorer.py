"""Latents to look up: tables of them in columns, and pages of the top ones, as compact lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from layerprobe.report.queries import having
from layerprobe.report.section import Tables
from layerprobe.report.sections.tokens.listings import Listings
from layerprobe.report.sections.tokens.texts import Texts

MAX_ROWS, MAX_PAGES = 60_000, 3_000
"""Latents in the tables of the page, and those with a page, over all methods, seeds, layers and sides."""
KEYS = ["method", "seed", "layer", "side"]
READINGS = ("base", "adapted", "match")
"""Columns of `latent_examples` with an activation."""


def run_name(method: Any, seed: Any) -> str:
    """One training run in the controls of the page and in addresses of latents."""
    return f"{method} · seed {seed}"


def rounded(value: float, digits: int = 4) -> float:
    """A number with few significant digits, which is short in JSON."""
    return float(f"{value:.{digits}g}")


def explorer(tables: Tables, texts: Texts) -> dict[str, Any] | None:
    """Latents and their pages as JSON values; None without dictionaries.

    Returns:
        `names` (strings that columns and listings refer to by number), `groups` (one per training run, layer and side, with
        its `columns`, its `pages` and the number of its listing), and `listings`, as `Listings.content`.
    """
    latents = having(tables, "latents")
    if latents is None:
        return None
    numbers: dict[str, int] = {}

    def number(name: Any) -> int:
        return numbers.setdefault(str(name), len(numbers))

    keyed = _by_group(latents)
    same = {(*key[:3], "adapted") for key, rows in keyed.items() if _equal(rows, keyed.get((*key[:3], "adapted")))}
    shown = {key: rows for key, rows in keyed.items() if key not in same}
    pages = _pages(tables, shown, number, texts)
    listings = Listings(tables, KEYS, len(shown), number, texts)
    groups = []
    for key, rows in shown.items():
        method, seed, layer, side = key
        live = rows[rows.kind != "dead"]
        kept = _ordered(live, pages.get(key, {}))[: max(1, MAX_ROWS // len(shown))]
        groups.append(
            {
                "run": run_name(method, seed),
                "layer": int(layer),
                "side": side,
                "same": (*key[:3], "adapted") in same,
                "latents": len(rows),
                "dead": len(rows) - len(live),
                "left_out": len(live) - len(kept),
                "columns": _columns(kept, number),
                "pages": pages.get(key, {}),
                "listing": listings.add(key, kept),
            }
        )
    return {"names": list(numbers), "groups": groups, "listings": listings.content}


def _by_group(table: pd.DataFrame) -> dict[Any, pd.DataFrame]:
    return dict(iter(table.groupby(KEYS, sort=False)))


def _equal(base: pd.DataFrame, adapted: pd.DataFrame | None) -> bool:
    """Whether two sides are the same dictionary on the same rows, as where nothing was trained."""
    if adapted is None or base is adapted:
        return False
    columns = ["latent", "kind", "density", "max_activation", "auroc"]
    one, other = (rows.sort_values("latent")[columns].reset_index(drop=True) for rows in (base, adapted))
    return one.equals(other)


def _ordered(rows: pd.DataFrame, pages: Mapping[str, Any]) -> pd.DataFrame:
    """Latents in the order in which they are kept: those with a page, then by task effect, missing match and activity."""
    order = {
        "page": rows.latent.astype(str).isin(list(pages)),
        "strength": rows.effect.where(rows.kind.isin(["task", "both"]), 0).fillna(0),
    }
    by = [*order, "unmatched", "density"]
    return rows.assign(**order).sort_values(by, ascending=False, kind="stable")


def _columns(rows: pd.DataFrame, number: Callable[[Any], int]) -> dict[str, list[Any]]:
    """Values of each column, with None for missing ones."""
    forms: dict[str, Callable[[Any], Any]] = dict.fromkeys(("latent", "partner", "nearest", "unmatched"), int)
    forms |= dict.fromkeys(
        ("density", "max_activation", "auroc", "property_effect", "delta", "cosine", "nearest_cosine"), rounded
    )
    forms |= dict.fromkeys(("kind", "label", "property", "property_value", "joint_kind"), number)
    return {
        name: [None if missing else form(value) for value, missing in zip(rows[name], rows[name].isna(), strict=True)]
        for name, form in forms.items()
        if name in rows
    }


def _pages(tables: Tables, shown: Mapping[Any, Any], number: Callable[[Any], int], texts: Texts) -> dict[Any, Any]:
    """What a reader sees on opening a latent, by group and latent."""
    histograms, classes, examples = (having(tables, f"latent_{name}") for name in ("histograms", "classes", "examples"))
    if histograms is None or classes is None or examples is None:
        return {}
    groups = {key: rows for key, rows in _by_group(histograms).items() if key in shown}
    means, tokens = _by_group(classes), _by_group(examples)
    pages: dict[Any, dict[str, Any]] = {}
    for key, bars in groups.items():
        chosen = bars.latent.unique()[: max(1, MAX_PAGES // len(groups))]
        page: dict[Any, Any] = {latent: {"top": 0.0, "bars": {}, "classes": {}, "examples": []} for latent in chosen}
        for (latent, on), rows in bars[bars.latent.isin(chosen)].groupby(["latent", "on"], sort=False):
            page[latent]["top"] = max(page[latent]["top"], rounded(rows.high.max()))
            page[latent]["bars"][on] = rows.tokens.tolist()
        row: Any
        for row in means[key][means[key].latent.isin(chosen)].itertuples() if key in means else ():
            values = [None if v != v else rounded(v) for v in (row.mean, row.low, row.high, row.active)]
            page[row.latent]["classes"].setdefault(row.on, []).append([number(row.label), *values, row.n])
        if key in tokens:
            _add_examples(page, tokens[key][tokens[key].latent.isin(chosen)], texts)
        pages[key] = {str(latent): content for latent, content in page.items()}
    return pages


def _add_examples(pages: dict[Any, Any], examples: pd.DataFrame, texts: Texts) -> None:
    """Add the examples that are shown of each latent: rank, level, text, first token, tokens, and activations by reading.

    Activations are a flat list of pairs: index of the token, activation.
    """
    # One pass over plain columns: a data frame for each of thousands of windows would take most of the page's time.
    rows = examples.sort_values(["latent", "rank"], kind="stable")
    keys = rows[["latent", "rank"]].to_numpy()
    starts = [0, *(np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1).tolist(), len(keys)]
    ids, choices, indices, levels = (rows[name].tolist() for name in ("example_id", "choice", "token_index", "level"))
    readings = {name: rows[name].to_numpy(dtype=np.float64) for name in READINGS if name in rows}
    readings = {name: values for name, values in readings.items() if not np.isnan(values).all()}
    for start, stop in pairwise(starts):
        latent, rank = keys[start].tolist()
        if (text := texts.number(ids[start])) is None:
            continue
        values = {
            name: [
                number
                for i in (start + np.flatnonzero(column[start:stop] > 0)).tolist()
                for number in (indices[i], rounded(column[i], 3))
            ]
            for name, column in readings.items()
        }
        level = None if choices[start] == "top" else rounded(levels[start], 3)
        pages[latent]["examples"].append([rank, level, text, indices[start], stop - start, values])
