"""What stands beside a drift curve: its nulls, its rows, other measures, and the geometry of each side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from layerprobe.report._figures import COLOURS, NAMES, styled
from layerprobe.report._findings import drift_of, moved, top, unit_of

if TYPE_CHECKING:
    import pandas as pd

ROW_SETS = {
    "all": "all rows",
    "no-special": "without special tokens",
    "no-outliers": "without the top 0.1% by norm",
}
GEOMETRY = {
    "anisotropy": "anisotropy",
    "effective_rank": "effective rank",
    "intrinsic_dimension": "intrinsic dimension",
}
BLIND = {
    "paired_cosine": "sees any turn of the space, even one that a linear reader undoes",
    "cka": "ignores turns and scale, and weighs directions by their variance",
    "cka_angle": "ignores turns and scale, and weighs directions by their variance squared",
    "procrustes": "ignores turns and scale, and gives small directions more weight than CKA",
    "procrustes_angle": "ignores turns and scale, and gives small directions more weight than CKA",
    "shape_distance": "ignores turns and scale, and gives small directions more weight than CKA",
    "mean_cca": "ignores any invertible linear map, so the smallest directions count as much as the largest",
    "mean_squared_cca": "ignores any invertible linear map, so the smallest directions count as much as the largest",
    "svcca": "as CCA, on the directions that hold 99% of the variance",
    "pwcca": "as CCA, weighted by what of the base each direction holds",
    "rsa": "sees the order of distances between texts, near and far alike",
    "mutual_knn": "sees only who is near whom",
    "jaccard_knn": "sees only who is near whom",
    "linear_predictivity": "asks what a linear map can rebuild of the adapted layer from the base's",
}


def main_measure(similarity: pd.DataFrame) -> str:
    """The measure that the page argues with: CKA where it was taken."""
    there = list(dict.fromkeys(similarity.measure))
    return next((name for name in ("cka", "paired_cosine") if name in there), there[0])


def row_sets(similarity: pd.DataFrame, method: str) -> go.Figure | None:
    """The main measure by layer for one method, a line a set of rows; None where only all rows were taken."""
    measure = main_measure(similarity)
    rows = similarity[(similarity.method == method) & (similarity.measure == measure) & (similarity.unit == "token")]
    rows = rows[rows.seed == rows.seed.min()]
    if rows["rows"].nunique() < 2:
        return None
    figure = go.Figure()
    for number, (name, words) in enumerate(ROW_SETS.items()):
        part = rows[rows["rows"] == name].sort_values("layer")
        figure.add_scatter(
            x=part.layer,
            y=part.value,
            mode="lines+markers",
            name=words,
            line={"color": COLOURS[number], "dash": "solid" if name == "all" else "dot"},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": part.ci_high - part.value,
                "arrayminus": part.value - part.ci_low,
            },
        )
    figure.update_xaxes(title="layer (0 = embeddings)", dtick=1)
    figure.update_yaxes(title=NAMES.get(measure, measure), rangemode="tozero")
    return styled(figure, height=340)


def geometry(table: pd.DataFrame, method: str) -> go.Figure:
    """Anisotropy, effective rank and intrinsic dimension by layer, base against adapted."""
    from plotly.subplots import make_subplots

    unit = unit_of(table)
    rows = table[(table.method == method) & (table.unit == unit)]
    rows = rows[rows.seed == rows.seed.min()]
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(GEOMETRY.values()), horizontal_spacing=0.08)
    for column, measure in enumerate(GEOMETRY, 1):
        for number, side in enumerate(("base", "adapted")):
            part = rows[(rows.measure == measure) & (rows.side == side)].sort_values("layer")
            figure.add_scatter(
                x=part.layer,
                y=part.value,
                mode="lines+markers",
                name=side,
                legendgroup=side,
                showlegend=column == 1,
                line={"color": COLOURS[number]},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": part.ci_high - part.value,
                    "arrayminus": part.value - part.ci_low,
                },
                row=1,
                col=column,
            )
        figure.update_xaxes(title="layer", dtick=1, row=1, col=column)
        figure.update_yaxes(rangemode="tozero", row=1, col=column)
    return styled(figure, height=330)


def agreement(similarity: pd.DataFrame, method: str) -> dict[str, Any] | None:
    """Which layer each measure says changed most, and what it means where they disagree; None for a single measure."""
    unit = unit_of(similarity)
    rows = []
    for measure in dict.fromkeys(similarity.measure):
        if measure == "paired_cosine_baseline":
            continue
        table = drift_of(similarity, method, measure, unit)
        if table.empty:
            continue
        change = (table.value - top(measure)).abs().to_numpy()
        low_end = (table.ci_high if top(measure) else table.ci_low).to_numpy()
        most = int(change.argmax())
        # Layers whose interval reaches the most changed one's cannot be told from it.
        bound = float(table.ci_high.iloc[most] if top(measure) else table.ci_low.iloc[most])
        other_end = (table.ci_low if top(measure) else table.ci_high).to_numpy()
        reached = (other_end <= bound) if top(measure) else (other_end >= bound)
        tied = [int(n) for n, same in zip(table.layer, reached, strict=True) if same]
        rows.append(
            {
                "measure": measure,
                "layer": int(table.layer.iloc[most]),
                "tied": tied,
                "value": float(table.value.iloc[most]),
                "first": _first_change(table, low_end, measure),
                "blind": BLIND.get(measure, ""),
            }
        )
    if len(rows) < 2:
        return None
    named: dict[int, list[str]] = {}
    for row in rows:
        named.setdefault(row["layer"], []).append(row["measure"])
    if len(named) == 1:
        text = f"All {len(rows)} measures name layer {next(iter(named))} as the one that changed most."
    else:
        said = "; ".join(f"layer {layer}: {', '.join(names)}" for layer, names in sorted(named.items(), reverse=True))
        text = (
            f"The measures do not agree on which layer changed most ({said}). What each is blind to tells why: a layer that "
            "cosine or Procrustes calls changed and CKA or CCA does not was turned or rescaled, which a linear reader above it can "
            "undo; one that neighbourhoods or RSA call changed was rearranged."
        )
    return {"rows": rows, "text": text}


def _first_change(table: pd.DataFrame, end: Any, measure: str) -> int | None:
    """The first layer whose whole interval is more than .05 from unchanged."""
    beyond = (end < top(measure) - 0.05) if top(measure) else (end > 0.05)
    return int(table.layer.to_numpy()[beyond.argmax()]) if beyond.any() else None


def beyond(tables: Mapping[str, pd.DataFrame], method: str) -> dict[str, Any] | None:
    """For each layer, the main measure beside each null: shuffled texts, another seed, shuffled labels."""
    similarity, nulls = tables["similarity"], tables.get("similarity_nulls")
    measure, unit = main_measure(similarity), unit_of(similarity)
    drift = drift_of(similarity, method, measure, unit)
    if drift.empty or nulls is None or nulls.empty:
        return None
    nulls = nulls[(nulls.measure == measure) & (nulls.unit == unit)]
    own = nulls[nulls.method == method]
    by_null = {
        "texts": own[(own.null == "shuffled-texts") & (own.seed == drift.seed.iloc[0])].set_index("layer"),
        "seeds": own[own.null.str.startswith("seed-")]
        .groupby("layer")
        .agg({"value": "mean", "low": "min", "high": "max"}),
    }
    control = drift_of(similarity, "shuffled-labels", measure, unit).set_index("layer")
    distance = top(measure) == 0
    rows = []
    row: Any
    for row in drift.itertuples():
        found: dict[str, Any] = {"layer": int(row.layer), "value": row.value, "low": row.ci_low, "high": row.ci_high}
        for name, table in by_null.items():
            found[name] = _range(table, row.layer, "low", "high")
        found["labels"] = _range(control, row.layer, "ci_low", "ci_high") if method != "shuffled-labels" else None
        if found["texts"]:
            low, high = found["texts"][1:]
            found["kept"] = row.ci_high < low if distance else row.ci_low > high
        for name in ("seeds", "labels"):
            if found[name]:
                low, high = found[name][1:]
                found[f"beyond_{name}"] = row.ci_low > high if distance else row.ci_high < low
        rows.append(found)
    return {
        "measure": measure,
        "rows": rows,
        "seeds": any(row["seeds"] for row in rows),
        "labels": any(row["labels"] for row in rows),
        "draws": int(own[own.null == "shuffled-texts"].draws.max()) if (own.null == "shuffled-texts").any() else 0,
    }


def _range(table: pd.DataFrame, layer: int, low: str, high: str) -> tuple[float, float, float] | None:
    if layer not in table.index:
        return None
    row: Any = table.loc[layer]
    return float(row["value"]), float(row[low]), float(row[high])


def panels(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """For each method that moved a layer: nulls, agreement, rows and geometry, as far as the tables allow."""
    similarity = tables.get("similarity")
    if similarity is None or similarity.empty:
        return []
    found = []
    for method in moved(tables):
        sets = row_sets(similarity, method)
        shape = geometry(tables["geometry"], method) if "geometry" in tables else None
        found.append(
            {
                "method": method,
                "beyond": beyond(tables, method),
                "agreement": agreement(similarity, method),
                "rows": None if sets is None else sets.to_plotly_json(),
                "geometry": None if shape is None else shape.to_plotly_json(),
            }
        )
    return found
