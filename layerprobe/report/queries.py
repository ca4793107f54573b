"""Reads of tables that several sections share: methods in order, which changed the model, seeds, units, measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.onsets import Onset, Verdict, extreme, onset, verdicts
from layerprobe.record import MeasureRecord, MethodRecord, RunRecord

if TYPE_CHECKING:
    import pandas as pd

Tables = Mapping[str, "pd.DataFrame"]

BEGINS = 0.95
"""The similarity below which a layer counts as changed. It is a convention: `THRESHOLDS` shows what depends on it."""
THRESHOLDS = (0.9, 0.95, 0.99)
"""Similarities at which the onset of change is reported."""
UNCHANGED = 1e-6
"""A similarity this close to its value of no change is that of an untouched layer."""
BASELINES = {
    "reference:majority": "majority",
    "reference:logistic-mean": "logistic-mean",
    "reference:logistic-cls": "logistic-cls",
}
"""Values of the column `method` for classifiers that train no encoder, with their names on axes."""
UNITS = {"token": "each token", "mean": "mean of each example", "cls": "first token of each example"}
"""Units of a row in words."""


# Tables ---------------------------------------------------------------------------------------------------------------


def having(tables: Tables, name: str, *columns: str) -> pd.DataFrame | None:
    """A table if it is there with these columns and at least one row, else None."""
    table = tables.get(name)
    return None if table is None or table.empty or not set(columns) <= set(table.columns) else table


def accuracy_after(tables: Tables) -> pd.DataFrame | None:
    """Rows of the table `adaptation` after adaptation on the test examples, baselines included; None without the table."""
    table = having(tables, "adaptation")
    return None if table is None else table[(table["when"] == "after") & (table["split"] == "test")]


def of_first_seed(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """A method's rows of its first training seed."""
    rows = table[table.method == method]
    return rows[rows.seed == rows.seed.min()]


def seeds_of(table: pd.DataFrame, method: str) -> list[int]:
    """Seeds that a method was run with, sorted."""
    return sorted(int(seed) for seed in table[table.method == method].seed.unique())


def records_of(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows as dicts with None for missing values; none for a missing table."""
    if table is None:
        return []
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


# Methods --------------------------------------------------------------------------------------------------------------


def method(name: str, record: RunRecord) -> MethodRecord | None:
    """A method's record, None for a baseline that trains no model."""
    return next((method for method in record.methods if method.name == name), None)


def methods(tables: Tables, record: RunRecord) -> list[str]:
    """Methods of a run by depth, then those without a depth, then controls."""
    found = (having(tables, name, "method") for name in ("adaptation", "similarity"))
    present = {name for table in found if table is not None for name in table["method"].unique()}
    return [method.name for method in sorted(record.methods, key=_order) if method.name in present]


def _order(method: MethodRecord) -> tuple[bool, bool, int, bool, str]:
    return method.is_control, method.depth is None, method.depth or 0, method.trains_embeddings, method.name


def has_depth(name: str, record: RunRecord) -> bool:
    """Whether a method is one of the depths, from the head alone to all blocks and embeddings."""
    found = method(name, record)
    return found is not None and found.depth is not None


def controls(record: RunRecord) -> list[str]:
    """Methods that learn no task."""
    return [method.name for method in record.methods if method.is_control]


def full(record: RunRecord) -> str | None:
    """Name of full fine-tuning, None if the study has none."""
    return next((method.name for method in record.methods if method.is_full), None)


def reference(tables: Tables, record: RunRecord) -> str | None:
    """The method that others are compared with: that of the paired differences, else the deepest one of several."""
    differences = having(tables, "differences")
    if differences is not None:
        return str(differences.reference.iloc[0])
    deep = [name for name in methods(tables, record) if has_depth(name, record)]
    return deep[-1] if len(deep) > 1 else None


def main_method(names: Sequence[str], record: RunRecord) -> str | None:
    """The method that the page discusses first: full fine-tuning, else the last; a control only if there is no other."""
    others = [name for name in names if name not in controls(record)] or list(names)
    return next((name for name in others if name == full(record)), others[-1] if others else None)


def label(name: str, record: RunRecord) -> str:
    """Name of a method on an axis."""
    found = method(name, record)
    return (found.label or name) if found else BASELINES.get(name, name)


def changed(tables: Tables, record: RunRecord) -> list[str]:
    """Methods under which a layer changed at all; all of them if nothing was compared or nothing changed."""
    names, table = methods(tables, record), having(tables, "similarity")
    if table is None or not names:
        return names
    unchanged = {one.name: one.unchanged for one in record.measures if one.exact and one.baseline_of is None}
    rows = table[table.measure.isin(list(unchanged))]
    change = (rows.value - rows.measure.map(unchanged)).abs().groupby(rows.method).max()
    return [name for name in names if change.get(name, 1.0) > UNCHANGED] or names


def unchanged(tables: Tables, record: RunRecord) -> list[str]:
    """Methods under which every layer is the base's."""
    return [name for name in methods(tables, record) if name not in changed(tables, record)]


# Similarity -----------------------------------------------------------------------------------------------------------


def measure(name: str, record: RunRecord) -> MeasureRecord:
    """A measure's record.

    Raises:
        KeyError: if the run did not compute it; the message lists those it did.
    """
    known = {measure.name: measure for measure in record.measures}
    if name not in known:
        raise KeyError(f"this run has no measure {name!r}; it has {', '.join(known) or 'none'}")
    return known[name]


def baseline_of(name: str, record: RunRecord) -> str | None:
    """The measure of unrelated rows that belongs to a measure, if there is one."""
    return next((measure.name for measure in record.measures if measure.baseline_of == name), None)


def measures(similarity: pd.DataFrame, record: RunRecord) -> list[str]:
    """Measures that were computed, CKA first; baselines are shown with their measure."""
    names = [name for name in dict.fromkeys(similarity.measure) if measure(name, record).baseline_of is None]
    return sorted(names, key=lambda name: name != "cka")


def main_measure(similarity: pd.DataFrame) -> str:
    """The measure that the page discusses: CKA if it was computed, else the cosine, else the first."""
    names = list(dict.fromkeys(similarity.measure))
    return next((name for name in ("cka", "paired_cosine") if name in names), names[0])


def unit_of(table: pd.DataFrame) -> str:
    """The unit that the page opens with: tokens if they were compared."""
    units = list(table["unit"].unique())
    return "token" if "token" in units else units[0]


def _over_all_rows(similarity: pd.DataFrame, method: str, measure: str, unit: str) -> pd.DataFrame:
    """One measure under one method over all rows of one unit, of every seed and layer."""
    return similarity[
        (similarity.method == method)
        & (similarity.measure == measure)
        & (similarity.unit == unit)
        & (similarity["rows"] == "all")
    ]


def drift_of(
    similarity: pd.DataFrame, method: str, measure: str, unit: str = "token", seed: int | None = None
) -> pd.DataFrame:
    """One measure by layer, over all rows of one unit, for the given seed or else the first one."""
    rows = _over_all_rows(similarity, method, measure, unit)
    if rows.empty:
        return rows
    return rows[rows.seed == (rows.seed.min() if seed is None else seed)].sort_values("layer")


@dataclass(frozen=True)
class Drift:
    """One similarity by layer under a method, over its training seeds: what sentences and the layer strip decide on."""

    seeds: tuple[int, ...]
    layers: tuple[int, ...]
    value: np.ndarray
    """Mean over seeds, `(layers,)`."""
    least: np.ndarray
    """Lowest value of a seed, `(layers,)`."""
    most: np.ndarray
    """Highest value of a seed, `(layers,)`."""
    low: np.ndarray
    """Lowest end over seeds of the 95% intervals over examples, `(layers,)`."""
    high: np.ndarray
    """Highest end over seeds, `(layers,)`."""
    band_low: np.ndarray
    """Lowest end over seeds of the bands that hold for all layers at once: what is above a threshold is so under every seed,
    `(layers,)`. NaN where the table has no bands."""
    band_high: np.ndarray
    """Highest end over seeds, `(layers,)`."""

    @property
    def verdicts(self) -> list[Verdict]:
        """Of each layer at the threshold `BEGINS`, under every seed."""
        return verdicts(self.band_low, self.band_high, BEGINS)

    def onset(self, threshold: float) -> Onset:
        """Between which layers change begins, under every seed."""
        return onset(self.layers, self.band_low, self.band_high, threshold)

    @property
    def most_changed(self) -> int | None:
        """The layer that changed more than every other, under every seed."""
        return extreme(self.layers, self.band_low, self.band_high)


def drift_over_seeds(similarity: pd.DataFrame, method: str, measure: str, unit: str = "token") -> Drift | None:
    """A similarity by layer over all rows of one unit and all seeds of a method; None if it was not computed."""
    rows = _over_all_rows(similarity, method, measure, unit)
    if rows.empty:
        return None
    if "band_low" not in rows.columns:
        rows = rows.assign(band_low=np.nan, band_high=np.nan)
    # A layer without a band under one seed has none.
    parts = {int(layer): rows[rows.layer == layer] for layer in sorted(rows.layer.unique())}

    def by_layer(column: str, reduce: Any) -> np.ndarray:
        return np.array([reduce(part[column].to_numpy(dtype=np.float64)) for part in parts.values()])

    return Drift(
        seeds=tuple(seeds_of(rows, method)),
        layers=tuple(parts),
        value=by_layer("value", np.mean),
        least=by_layer("value", np.min),
        most=by_layer("value", np.max),
        low=by_layer("ci_low", np.min),
        high=by_layer("ci_high", np.max),
        band_low=by_layer("band_low", np.min),
        band_high=by_layer("band_high", np.max),
    )


NORM_MATCHED = "norm-matched"
"""Value of the column `control` for random changes of the weights."""


@dataclass(frozen=True)
class Control:
    """The drift of a method compared with that of one control, by layer."""

    name: str
    layers: tuple[int, ...]
    similarity: np.ndarray
    """Of base and the control, mean over its models, `(layers,)`."""
    low: np.ndarray
    """Lower ends of bands, which hold for all layers at once, of the drift beyond the control's, `(layers,)`."""
    models: int
    """Seeds of the control, or random changes."""
    covers_training: bool
    """Whether the bands cover further trainings."""

    @property
    def decides(self) -> bool:
        """Whether an onset may be named: a trained control differs by chance, which one seed does not show."""
        return self.covers_training or self.name == NORM_MATCHED


def controls_of(tables: Tables, method: str, measure: str) -> list[Control]:
    """The controls that a method's drift is compared with, random changes first."""
    table = having(tables, "drift_controls", "control")
    if table is None:
        return []
    rows = table[(table.method == method) & (table.measure == measure)].sort_values("layer")
    names = sorted(rows.control.unique(), key=lambda name: name != NORM_MATCHED)
    parts = [rows[rows.control == name] for name in names]
    return [
        Control(
            name,
            tuple(int(layer) for layer in part.layer),
            part.control_similarity.to_numpy(dtype=np.float64),
            part.band_low.to_numpy(dtype=np.float64),
            int(part.control_models.iloc[0]),
            bool(part.covers_training.iloc[0]),
        )
        for name, part in zip(names, parts, strict=True)
    ]


@dataclass(frozen=True)
class RowsCompared:
    """What the similarities of a run were computed on, for captions."""

    unit: str
    words: str
    """The unit in words."""
    n: int
    """Number of test examples."""
    seeds: tuple[int, ...]
    """Training seeds of the last method."""


def rows_compared(tables: Tables, names: Sequence[str]) -> RowsCompared | None:
    """Unit, number of examples and seeds of the similarities; None if nothing was compared.

    Args:
        names: methods of the run in order.
    """
    similarity = having(tables, "similarity")
    if similarity is None or not names:
        return None
    unit = unit_of(similarity)
    n = int(similarity[similarity["unit"] == unit]["n"].max())
    return RowsCompared(unit, UNITS[unit], n, tuple(seeds_of(similarity, names[-1])))
