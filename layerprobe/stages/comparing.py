"""The stages that compare stored activations: drift by layer, its nulls, other seeds, and each side's geometry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import MeasureError
from layerprobe.inputs import Inputs
from layerprobe.stages.files import Build, pair_of, save
from layerprobe.task import Parents

if TYPE_CHECKING:
    import numpy as np

    from layerprobe.activations import ActivationStore
    from layerprobe.adaptation import Method

OUTLIERS = 0.001
"""Share of a layer's rows, by norm on each side, that a robustness check leaves out."""
GEOMETRY = "geometry.parquet"
GEOMETRY_ROWS = 1000
"""Rows of whole texts that the intrinsic dimension is taken of."""


def similarity(inputs: Inputs, method: Method, seed: int, capture: str) -> Build:
    """How alike base and adapted are, layer by layer, of which rows, and layer against layer."""

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        from layerprobe.similarity import LINEAR, compare, grid

        base, adapted = pair_of(done, capture)
        asked = inputs.study.similarity
        drift, grids, left_out = [], [], []
        for unit in asked.units:
            layers = _varying(base, unit)
            for rows, keep, compared in _row_sets(base, adapted, unit, layers):
                groups = base.groups(unit)[keep]
                table = compare(
                    _Layers(base, unit, compared, keep),
                    _Layers(adapted, unit, compared, keep),
                    groups,
                    measures=asked.measures,
                    seed=seed,
                    leave_out_undefined=True,
                    progress=inputs.progress,
                )
                about: dict[str, Any] = {"method": method.name, "seed": seed, "unit": unit, "rows": rows}
                drift.append(table.assign(**about))
                left_out += [
                    {**about, "layer": n, "measure": name, "why": why} for n, name, why in table.attrs["left_out"]
                ]
            sides = {
                side: {layer: store.unit(unit, layer) for layer in layers}
                for side, store in (("base", base), ("adapted", adapted))
            }
            linear = [name for name in asked.measures if name in LINEAR]
            if linear:
                crossed = grid(sides, base.groups(unit), measures=linear, progress=inputs.progress)
                grids.append(crossed.assign(method=method.name, seed=seed, unit=unit))
        save(folder, "similarity", pd.concat(drift, ignore_index=True))
        if grids:
            save(folder, "similarity_grid", pd.concat(grids, ignore_index=True))
        if left_out:
            save(folder, "similarity_left_out", pd.DataFrame(left_out))

    return build


def nulls(inputs: Inputs, method: Method, seed: int, capture: str) -> Build:
    """What each measure gives in each changed layer when whole texts are shuffled among texts of equal length."""

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        from layerprobe.similarity import shuffled

        base, adapted = pair_of(done, capture)
        asked = inputs.study.similarity
        found = []
        for unit in asked.units:
            layers = [layer for layer in _varying(base, unit) if not _same(base, adapted, unit, layer)]
            if not layers:
                continue
            try:
                table = shuffled(
                    _Layers(base, unit, layers),
                    _Layers(adapted, unit, layers),
                    base.groups(unit),
                    measures=asked.measures,
                    draws=asked.shuffles,
                    seed=seed,
                    progress=inputs.progress,
                )
            except MeasureError:
                continue  # too few texts of equal length: this unit has no such null
            found.append(
                table.assign(
                    method=method.name, seed=seed, unit=unit, null="shuffled-texts", null_kind="shuffled-texts"
                )
            )
        columns = [
            "layer",
            "measure",
            "value",
            "low",
            "high",
            "draws",
            "n",
            "method",
            "seed",
            "unit",
            "null",
            "null_kind",
        ]
        save(
            folder, "similarity_nulls", pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
        )

    return build


def seeds(inputs: Inputs, method: Method, pairs: list[tuple[int, str, int, str]]) -> Build:
    """How alike two encoders are that were adapted alike but for the seed: what drift must exceed to be of the task."""

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        from layerprobe.similarity import compare

        asked = inputs.study.similarity
        found = []
        for seed, one, other_seed, other in pairs:
            first, second = pair_of(done, other, base=one)
            for unit in asked.units:
                layers = _varying(first, unit)
                table = compare(
                    _Layers(first, unit, layers),
                    _Layers(second, unit, layers),
                    first.groups(unit),
                    measures=asked.measures,
                    seed=seed,
                    leave_out_undefined=True,
                    progress=inputs.progress,
                )
                table = table.rename(columns={"ci_low": "low", "ci_high": "high"}).drop(columns="n_rows")
                about: dict[str, Any] = {"method": method.name, "seed": seed, "unit": unit, "draws": 1}
                about |= {"null": f"seed-{other_seed}", "null_kind": "seed"}
                found.append(table.assign(**about))
        save(folder, "similarity_nulls", pd.concat(found, ignore_index=True))

    return build


def geometry_base(inputs: Inputs) -> Build:
    """Anisotropy, effective rank, participation ratio and intrinsic dimension of each of the base's layers."""

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        from layerprobe.activations import ActivationStore

        base = ActivationStore.open(done["capture: base"].folder / "rows")
        rows = [
            _described(inputs, base, unit, n) for unit in inputs.study.similarity.units for n in _varying(base, unit)
        ]
        pd.concat(rows, ignore_index=True).to_parquet(folder / GEOMETRY, index=False)

    return build


def geometry(inputs: Inputs, method: Method, seed: int, capture: str) -> Build:
    """The same of the adapted model's layers, beside the base's; a layer that is the base's own has the base's numbers."""

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        own, adapted = pair_of(done, capture)
        base = pd.read_parquet(done["geometry: base"].folder / GEOMETRY)
        rows = [base.assign(side="base")]
        for unit in inputs.study.similarity.units:
            for layer in _varying(own, unit):
                part = base[(base.unit == unit) & (base.layer == layer)]
                same = _same(own, adapted, unit, layer)
                rows.append((part if same else _described(inputs, adapted, unit, layer)).assign(side="adapted"))
        save(folder, "geometry", pd.concat(rows, ignore_index=True).assign(method=method.name, seed=seed))

    return build


def _described(inputs: Inputs, store: ActivationStore, unit: Any, layer: int) -> Any:
    from layerprobe.similarity import geometry as shape

    seed = inputs.study.seeds[
        0
    ]  # one sample and one set of folds for all sides, so that equal layers have equal numbers
    table = shape.describe(store.unit(unit, layer), store.groups(unit), most=GEOMETRY_ROWS, seed=seed)
    return table.assign(layer=layer, unit=unit)


class _Layers(Mapping[int, Any]):
    """Some rows of some layers of a store, read when asked for, so that memory holds one layer at a time."""

    def __init__(self, store: ActivationStore, unit: Any, layers: list[int], keep: Any = slice(None)) -> None:
        self.store, self.unit, self.layers, self.keep = store, unit, layers, keep

    def __getitem__(self, layer: int) -> Any:
        return self.store.unit(self.unit, layer)[self.keep]

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def _row_sets(
    base: ActivationStore, adapted: ActivationStore, unit: Any, layers: list[int]
) -> Iterator[tuple[str, Any, list[int]]]:
    """Names of row sets, the rows in each, and the layers to compare on them: all; and tokens less a few that may rule."""
    import numpy as np

    yield "all", slice(None), layers
    if unit != "token":
        return
    changed = [layer for layer in layers if not _same(base, adapted, unit, layer)]
    if not changed:
        return
    plain = np.flatnonzero(~base.rows["special"].to_numpy())
    if _texts(base, plain) >= 8:
        yield "no-special", plain, changed
    count = max(1, round(OUTLIERS * base.n_rows))
    for layer in changed:
        norms = [np.linalg.norm(store.unit(unit, layer), axis=1) for store in (base, adapted)]
        far = np.concatenate([np.argpartition(of, -count)[-count:] for of in norms])
        kept = np.setdiff1d(np.arange(base.n_rows), far)
        if _texts(base, kept) >= 8:
            yield "no-outliers", kept, [layer]


def _texts(store: ActivationStore, rows: np.ndarray) -> int:
    return int(store.rows["example"].iloc[rows].nunique())


def _same(base: ActivationStore, adapted: ActivationStore, unit: Any, layer: int) -> bool:
    import numpy as np

    return bool(np.array_equal(base.unit(unit, layer), adapted.unit(unit, layer)))


def _varying(store: ActivationStore, unit: Any) -> list[int]:
    """Layers whose rows are not all one vector, as the first token's embedding is."""
    return [layer for layer in store.layers if _varies(store.unit(unit, layer))]


def _varies(rows: Any) -> bool:
    """Whether any two rows differ by more than rounding."""
    import numpy as np

    first = np.asarray(rows[0], dtype=np.float64)
    spread = max(float(np.abs(rows[start : start + 4096] - first).max()) for start in range(0, len(rows), 4096))
    return spread > 1e-5 * (1e-12 + float(np.abs(first).max()))
