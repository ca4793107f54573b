"""Which layers and rows of two captures the comparing stages compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from layerprobe.activations import ActivationStore

OUTLIERS = 0.001
"""Share of a layer's rows, by norm on each side, that the robustness check leaves out."""


class Layers(Mapping[int, Any]):
    """Some rows of some layers of a store, read on access, so that memory holds one layer at a time."""

    def __init__(self, store: ActivationStore, unit: Any, layers: list[int], keep: Any = slice(None)) -> None:
        self.store, self.unit, self.layers, self.keep = store, unit, layers, keep

    def __getitem__(self, layer: int) -> Any:
        return self.store.unit(self.unit, layer)[self.keep]

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def row_sets(
    base: ActivationStore, adapted: ActivationStore, unit: Any, layers: list[int]
) -> Iterator[tuple[str, Any, list[int]]]:
    """Names of row sets, their rows, and the layers to compare on them: all rows, and tokens without a few extreme ones."""
    yield "all", slice(None), layers
    if unit != "token":
        return
    changed = [layer for layer in layers if not equal(base, adapted, unit, layer)]
    if not changed:
        return
    plain = np.flatnonzero(~base.rows["special"].to_numpy())
    if _examples(base, plain) >= 8:
        yield "no-special", plain, changed
    count = max(1, round(OUTLIERS * base.n_rows))
    for layer in changed:
        norms = [np.linalg.norm(store.unit(unit, layer), axis=1) for store in (base, adapted)]
        outliers = np.concatenate([np.argpartition(norm, -count)[-count:] for norm in norms])
        kept = np.setdiff1d(np.arange(base.n_rows), outliers)
        if _examples(base, kept) >= 8:
            yield "no-outliers", kept, [layer]


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
