"""What the page lets a reader look up: latents with their activations, and texts token by token, as compact lists."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from layerprobe.report.queries import having

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS, MOST_PAGES, MOST_COLOURS = 60_000, 3_000, 600
"""Latents in the page's tables, those that can be opened, and those that texts can be coloured by: over all methods,
seeds, layers and sides."""
KEYS = ["method", "seed", "layer", "side"]
NUMBERS = ("density", "auroc", "property_effect", "delta", "cosine", "nearest_cosine", "correlation")
WHOLE = ("latent", "partner", "nearest", "active_examples")
NAMES = ("kind", "label", "property", "joint_kind")


def run_name(method: Any, seed: Any) -> str:
    return f"{method} · seed {seed}"


def explorer(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
    """Tables of latents in columns, and for the foremost of them histograms, classes and texts; None for runs without.

    Returns:
        `names` (strings that columns refer to by number), `groups` (method and seed, layer and side each, with its
        `columns` and `pages`), `texts` (spans of tokens that pages refer to by number).
    """
    latents = having(tables, "latents", *KEYS, "latent", "kind", "density")
    if latents is None:
        return None
    names: dict[str, int] = {}
    keyed = {_key(key): rows for key, rows in latents.groupby(KEYS, sort=False)}
    same = {key for key in keyed if key[3] == "adapted" and _coincide(keyed.get((*key[:3], "base")), keyed[key])}
    shown = {key: rows for key, rows in keyed.items() if key not in same}
    most = max(1, MOST_ROWS // len(shown))
    spans = _Spans(tables)
    opened = _pages(tables, set(shown), spans, names)
    groups = []
    for key, rows in shown.items():
        method, seed, layer, side = key
        pages = opened.get(key, {})
        live = rows[rows.kind != "dead"]
        kept = _ordered(live, pages)[:most]
        groups.append(
            {
                "run": run_name(method, seed),
                "layer": layer,
                "side": side,
                "same": (*key[:3], "adapted") in same,
                "latents": len(rows),
                "dead": len(rows) - len(live),
                "left_out": len(live) - len(kept),
                "columns": _columns(kept, names),
                "pages": pages,
            }
        )
    return {
        "names": list(names),
        "groups": groups,
        "texts": spans.texts,
        "classes": [names[str(label)] for label in _labels(tables) if str(label) in names],
    }


def _key(key: Any) -> tuple[str, int, int, str]:
    method, seed, layer, side = key
    return str(method), int(seed), int(layer), str(side)


def _coincide(base: pd.DataFrame | None, adapted: pd.DataFrame) -> bool:
    """Whether two sides are one and the same dictionary on the same rows, as where nothing was trained."""
    if base is None or len(base) != len(adapted):
        return False
    columns = [name for name in ("kind", "density", "max_activation", "auroc") if name in base]
    one, other = (table.sort_values("latent")[["latent", *columns]].reset_index(drop=True) for table in (base, adapted))
    return one.equals(other)


def _ordered(rows: pd.DataFrame, pages: Mapping[str, Any]) -> pd.DataFrame:
    """Latents in the order in which they are worth keeping: those with a page, then by task effect, loss and activity."""
    task = rows.kind.isin(["task", "both"])
    by = {
        "page": rows.latent.astype(str).isin(list(pages)),
        "strength": rows.effect.where(task, 0).fillna(0) if "effect" in rows else task,
        "gone": rows.unmatched if "unmatched" in rows else False,
    }
    return rows.assign(**by).sort_values(["page", "strength", "gone", "density"], ascending=False, kind="stable")


def _columns(rows: pd.DataFrame, names: dict[str, int]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name in WHOLE:
        if name in rows:
            found[name] = [
                None if missing else int(v) for v, missing in zip(rows[name], rows[name].isna(), strict=True)
            ]
    for name in NUMBERS:
        if name in rows:
            found[name] = _rounded(rows[name])
    for name in NAMES:
        if name in rows:
            found[name] = _numbered(rows[name], names)
    if "property_value" in rows:
        found["property_value"] = _numbered(rows.property_value, names)
    if "unmatched" in rows:
        found["unmatched"] = [int(value) for value in rows.unmatched]
    return found


def _rounded(values: Any) -> list[Any]:
    """Four significant digits, as short in JSON as may be; missing ones are null."""
    return [None if value != value else float(f"{value:.4g}") for value in (float(v) for v in values)]


def _numbered(values: pd.Series, names: dict[str, int]) -> list[Any]:
    return [
        None if missing else names.setdefault(str(value), len(names))
        for value, missing in zip(values, values.isna(), strict=True)
    ]


def _labels(tables: Mapping[str, pd.DataFrame]) -> list[Any]:
    examples = tables.get("examples")
    return [] if examples is None else sorted(dict.fromkeys(examples.label))


class _Spans:
    """Pieces of text, each kept once however many latents show it."""

    def __init__(self, tables: Mapping[str, pd.DataFrame]) -> None:
        examples = tables.get("examples")
        self.labels = {} if examples is None else dict(zip(examples.example_id, examples.label, strict=True))
        self.texts: list[dict[str, Any]] = []
        self.numbers: dict[tuple[str, int, int], int] = {}

    def number(self, example: str, indices: list[int], tokens: list[str]) -> int:
        place = (example, indices[0], len(indices))
        if place not in self.numbers:
            self.numbers[place] = len(self.texts)
            about = {"label": str(self.labels.get(example, "")), "start": indices[0], "tokens": tokens}
            self.texts.append(about)
        return self.numbers[place]


def _pages(
    tables: Mapping[str, pd.DataFrame], wanted: set[tuple[str, int, int, str]], spans: _Spans, names: dict[str, int]
) -> dict[Any, dict[str, Any]]:
    """What a reader sees on opening a latent, by group and number."""
    examples = having(tables, "latent_examples", *KEYS, "latent", "rank")
    histograms, classes = having(tables, "latent_histograms", *KEYS), having(tables, "latent_classes", *KEYS)
    if examples is None or histograms is None or classes is None:
        return {}
    groups = [key for key in dict.fromkeys(map(_key, histograms[KEYS].itertuples(index=False))) if key in wanted]
    each = max(1, MOST_PAGES // max(1, len(groups)))
    found: dict[Any, dict[str, Any]] = {}
    parts = [{_key(key): rows for key, rows in table.groupby(KEYS, sort=False)} for table in (histograms, classes)]
    texts = {_key(key): rows for key, rows in examples.groupby(KEYS, sort=False)}
    for key in groups:
        bars, means = parts[0][key], parts[1].get(key)
        chosen = list(dict.fromkeys(bars.latent))[:each]
        pages: dict[str, Any] = {str(latent): {"bars": {}, "classes": {}, "texts": []} for latent in chosen}
        for (latent, on), rows in bars.groupby(["latent", "on"], sort=False):
            if str(latent) in pages:
                page = pages[str(latent)]
                page["top"] = max(page.get("top", 0.0), float(f"{rows.high.max():.4g}"))
                page["bars"][on] = [int(count) for count in rows.tokens]
        for (latent, on), rows in () if means is None else means.groupby(["latent", "on"], sort=False):
            if str(latent) in pages:
                numbers = (_rounded(rows[name]) for name in ("mean", "low", "high", "active"))
                pages[str(latent)]["classes"][on] = [
                    list(row) for row in zip(_numbered(rows.label, names), *numbers, map(int, rows.n), strict=True)
                ]
        _add_texts(pages, texts.get(key), spans)
        found[key] = pages
    return found


def _add_texts(pages: dict[str, Any], examples: pd.DataFrame | None, spans: _Spans) -> None:
    import numpy as np

    if examples is None:
        return
    readings = [name for name in ("base", "adapted", "match") if name in examples and examples[name].notna().any()]
    # One pass over plain columns: a frame for each of thousands of texts would take most of the page's time.
    ordered = examples.sort_values(["latent", "rank"], kind="stable")
    keys = ordered[["latent", "rank"]].to_numpy()
    starts = [0, *(np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1).tolist(), len(keys)]
    ids, places, tokens = (ordered[name].tolist() for name in ("example_id", "token_index", "token"))
    choices, levels = ordered["choice"].tolist(), ordered["level"].to_numpy()
    columns = {name: ordered[name].to_numpy(dtype=np.float64) for name in readings}
    for start, stop in pairwise(starts):
        latent, rank = (int(key) for key in keys[start])
        if str(latent) not in pages:
            continue
        number = spans.number(ids[start], places[start:stop], tokens[start:stop])
        values = {}
        for name, column in columns.items():
            part = column[start:stop]
            values[name] = [[i, float(f"{part[i]:.3g}")] for i in (part > 0).nonzero()[0].tolist()]
        about = [choices[start], rank, float(f"{levels[start]:.3g}"), number]
        pages[str(latent)]["texts"].append([*about, values])


def texts(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
    """Texts with the change of each token by layer and the activations of a few latents; None for runs without."""
    sentences = having(tables, "sentences")
    if sentences is None:
        return None
    shown: dict[str, Any] = {}
    change: dict[str, Any] = {}
    runs = list(dict.fromkeys(zip(sentences.method, sentences.seed, strict=True)))
    labels = tables["examples"].set_index("example_id")["label"]
    first = sentences[(sentences.method == runs[0][0]) & (sentences.seed == runs[0][1])]
    one = first[first.layer == first.layer.min()]
    for key, rows in one.groupby("example_id", sort=False):
        shown[str(key)] = {"tokens": rows.token.tolist(), "label": str(labels[key])}
    for (method, seed), rows in sentences.groupby(["method", "seed"], sort=False):
        by: dict[str, Any] = {}
        for (key, layer), part in rows.groupby(["example_id", "layer"], sort=False):
            by.setdefault(str(key), {})[str(layer)] = [round(float(value), 3) + 0.0 for value in part.change]
        change[run_name(method, seed)] = by
    layers = sorted(int(layer) for layer in sentences.layer.unique())
    return {"texts": shown, "change": change, "layers": layers, "latents": _latents(tables)}


def _latents(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    shown, about = having(tables, "sentence_latents"), having(tables, "latents", *KEYS)
    if shown is None or about is None:
        return []
    keys = [*KEYS, "latent"]
    each = max(1, MOST_COLOURS // len(shown[KEYS].drop_duplicates()))
    wanted = about.merge(shown[keys].drop_duplicates(), on=keys)
    strength = [name for name in ("task", "effect") if name in wanted]
    if strength:
        wanted = wanted.sort_values(strength, ascending=False, kind="stable")
    by_key = dict(iter(shown.groupby(keys, sort=False)))
    places = shown.groupby(["method", "seed", "layer"])[["side", "on"]].nunique().max(axis=1)
    found = []
    for row in wanted.groupby(KEYS, sort=False).head(each).to_dict("records"):
        rows = by_key[tuple(row[key] for key in keys)]
        auroc = row.get("auroc", float("nan"))
        tells = f", {row['label']} (AUROC {auroc:.2f})" if auroc == auroc else ""
        values: dict[str, Any] = {}
        for (on, example), part in rows.groupby(["on", "example_id"], sort=False):
            values.setdefault(str(example), {})[str(on)] = [
                [int(i), float(f"{v:.3g}")] for i, v in zip(part.token_index, part.activation, strict=True)
            ]
        found.append(
            {
                "run": run_name(row["method"], row["seed"]),
                "layer": int(row["layer"]),
                "name": f"{row['side']} latent {row['latent']}{tells}",
                "same": int(places[row["method"], row["seed"], row["layer"]]) == 1,
                "top": float(rows.activation.max()),
                "values": values,
            }
        )
    return found
