"""Which layers, rows and measures of two captures the comparing stages compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from layerprobe.device import DeviceRows, has_float64
from layerprobe.study import Study

if TYPE_CHECKING:
    from layerprobe.activations import ActivationStore

OUTLIERS = 0.001
"""Share of a layer's rows, by norm on each side, that the robustness check leaves out."""
DIRECTIONS = 0.01
"""Directions of the largest variance, as a share of the width and for each side, that the robustness check removes (Mu and
Viswanath 2018, "All-but-the-Top")."""


MEASURES = ("cka", "paired_cosine")
"""Measures that the page discusses; costly checks and controls are limited to them."""
CHUNK = 16_384
"""Rows converted to float64 at a time."""


def measures_of(study: Study) -> list[str]:
    """The measures that drift is compared with controls by: CKA and the cosine, else the study's first."""
    measures = study.similarity.measures
    return [name for name in MEASURES if name in measures] or list(measures[:1])


def unit_of(study: Study) -> Any:
    """The unit that drift is compared with controls in: tokens, else the study's first."""
    units = study.similarity.units
    return "token" if "token" in units else units[0]


@dataclass(frozen=True)
class RowSet:
    """Rows that are compared, the same on both sides of a layer."""

    name: str
    """Value of the column `rows`."""
    layers: list[int]
    """Layers to compare."""
    kept: Mapping[int, Any] = field(default_factory=dict)
    """Numbers of the rows by layer; all rows of layers that are not in it."""
    removed: Mapping[int, Float[np.ndarray, "width directions"]] = field(default_factory=dict)
    """Orthonormal directions by layer that are projected out of the rows."""

    main_measures: bool = False
    """Whether only the measures that the page discusses are computed on them."""

    def of(self, values: Any, layer: int, device: str = "cpu") -> Any:
        """These rows of a matrix of all rows; for computation on a device, if it has float64."""
        values, directions = values[self.kept.get(layer, slice(None))], self.removed.get(layer)
        if has_float64(device):
            return DeviceRows(values, device, directions)
        return values if directions is None else values - (values @ directions) @ directions.T

    def directions(self, layer: int) -> int:
        """Number of directions that are removed."""
        return self.removed[layer].shape[1] if layer in self.removed else 0


class Layers(Mapping[int, Any]):
    """Some rows of some layers of a store, read on access, so that memory holds one layer at a time.

    On a device with float64, parts of them are copied there as they are read (`DeviceRows`).
    """

    def __init__(
        self, store: ActivationStore, unit: Any, layers: list[int], rows: RowSet | None = None, *, device: str = "cpu"
    ) -> None:
        self.store, self.unit, self.layers, self.device = store, unit, layers, device
        self.rows = RowSet("all", layers) if rows is None else rows

    def __getitem__(self, layer: int) -> Any:
        return self.rows.of(self.store.unit(self.unit, layer), layer, self.device)

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def row_sets(
    base: ActivationStore, adapted: ActivationStore, unit: Any, layers: list[int], device: str = "cpu"
) -> Iterator[RowSet]:
    """All rows; tokens without a few extreme ones; tokens without the directions of largest variance on either side."""
    yield RowSet("all", layers)
    if unit != "token":
        return
    changed = [layer for layer in layers if not equal(base, adapted, unit, layer)]
    if not changed:
        return
    plain = np.flatnonzero(~base.rows["special"].to_numpy())
    if _examples(base, plain) >= 8:
        yield RowSet("no-special", changed, kept=dict.fromkeys(changed, plain))
    count = max(1, round(OUTLIERS * base.n_rows))
    kept = {}
    for layer in changed:
        norms = [np.linalg.norm(store.unit(unit, layer), axis=1) for store in (base, adapted)]
        outliers = np.concatenate([np.argpartition(norm, -count)[-count:] for norm in norms])
        kept[layer] = np.setdiff1d(np.arange(base.n_rows), outliers)
    kept = {layer: rows for layer, rows in kept.items() if _examples(base, rows) >= 8}
    if kept:
        yield RowSet("no-outliers", list(kept), kept=kept)
    count = max(1, round(DIRECTIONS * base.width))
    sides = {
        layer: [leading_directions(store.unit(unit, layer), count, device) for store in (base, adapted)]
        for layer in changed
    }
    removed = {layer: np.linalg.qr(np.concatenate(both, axis=1))[0] for layer, both in sides.items()}
    yield RowSet("no-leading-directions", changed, removed=removed, main_measures=True)


def leading_directions(rows: Any, count: int, device: str = "cpu") -> Float[np.ndarray, "width count"]:
    """Orthonormal directions of the largest variance of rows, `(n, width)`: their leading principal components.

    Computed on the device, if it has float64.
    """
    if has_float64(device):
        return _leading_directions_there(DeviceRows(rows, device), count)
    mean = np.asarray(np.mean(rows, axis=0, dtype=np.float64))
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(rows), CHUNK):
        centred = np.asarray(rows[start : start + CHUNK], dtype=np.float64) - mean
        scatter += centred.T @ centred
    return np.linalg.eigh(scatter)[1][:, -count:]


def _leading_directions_there(rows: DeviceRows, count: int) -> Float[np.ndarray, "width count"]:
    import torch

    starts = range(0, len(rows), CHUNK)
    mean = sum(rows[start : start + CHUNK].double().sum(0) for start in starts) / len(rows)
    scatter = sum((z := rows[start : start + CHUNK].double() - mean).T @ z for start in starts)
    return torch.linalg.eigh(scatter)[1][:, -count:].cpu().numpy()


def equal(base: ActivationStore, adapted: ActivationStore, unit: Any, layer: int) -> bool:
    """Whether a layer is the same on both sides, bit by bit."""
    return bool(np.array_equal(base.unit(unit, layer), adapted.unit(unit, layer)))


def varying_layers(store: ActivationStore, unit: Any) -> list[int]:
    """Layers whose rows are not all one vector, as the embedding of the first token is."""
    return [layer for layer in store.layers if _varies(store.unit(unit, layer))]


def _examples(store: ActivationStore, rows: np.ndarray) -> int:
    return int(store.rows["example"].iloc[rows].nunique())


def _varies(rows: Any) -> bool:
    """Whether any two rows differ by more than rounding."""
    first = np.asarray(rows[0], dtype=np.float64)
    spread = max(float(np.abs(rows[start : start + 4096] - first).max()) for start in range(0, len(rows), 4096))
    return spread > 1e-5 * (1e-12 + float(np.abs(first).max()))
