"""The stages that look inside an adapted model: probes by layer, change of weights, which layers it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.inputs import Inputs
from layerprobe.stages.files import Build, model_of, numbered, pair_of, save
from layerprobe.task import Parents

if TYPE_CHECKING:
    from layerprobe.adaptation import Method

PROBED = "probes.parquet"


def probe_base(inputs: Inputs) -> Build:
    """Linear probes of the task on each of the base's layers."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe.activations import ActivationStore

        train, test = (
            ActivationStore.open(done[name].folder / "rows") for name in ("capture-train: base", "capture: base")
        )
        _probe(inputs, train, test, list(train.layers)).to_parquet(folder / PROBED, index=False)

    return build


def probes(inputs: Inputs, method: Method, seed: int, capture: str, capture_train: str) -> Build:
    """The same probes on the adapted model's layers; a layer that is the base's own has the base's numbers."""

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        trains, tests = pair_of(done, capture_train, base="capture-train: base"), pair_of(done, capture)
        changed = [
            layer
            for layer in trains[0].layers
            if not all(np.array_equal(one.mean(layer), other.mean(layer)) for one, other in (trains, tests))
        ]
        base = pd.read_parquet(done["probes: base"].folder / PROBED)
        adapted = [base[~base.layer.isin(changed)]]
        if changed:
            adapted.append(_probe(inputs, trains[1], tests[1], changed))
        both = {"base": base, "adapted": pd.concat(adapted).sort_values("layer")}
        table = pd.concat([rows.assign(side=side) for side, rows in both.items()], ignore_index=True)
        save(folder, "probes", table.assign(method=method.name, seed=seed))

    return build


def _probe(inputs: Inputs, train: Any, test: Any, layers: list[int]) -> Any:
    from layerprobe.internals import probe_layers

    corpus = inputs.corpus
    return probe_layers(
        {layer: train.mean(layer) for layer in layers},
        corpus.train.labels,
        {layer: test.mean(layer) for layer in layers},
        corpus.test.labels,
        seed=inputs.study.seeds[0],
        progress=inputs.progress,
    )


def weights(inputs: Inputs, method: Method, seed: int, adapt: str) -> Build:
    """How much each weight matrix of the body changed, and in which directions."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe.internals import compare_weights

        base, adapted = model_of(inputs, done, None), model_of(inputs, done, adapt)
        table = compare_weights(base, adapted, inputs.encoder, device=inputs.device, progress=inputs.progress)
        save(folder, "weights", table.assign(method=method.name, seed=seed))
        _save_left_out(folder, "weights", table, ["parameter", "why"], method, seed)

    return build


def interventions(inputs: Inputs, method: Method, seed: int, adapt: str) -> Build:
    """Quality of the adapted model with single blocks taken back, top blocks left out, or base's layers given to it."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe import internals

        table = internals.interventions(
            model_of(inputs, done, None),
            model_of(inputs, done, adapt),
            inputs.encoder,
            numbered(done[adapt], inputs.rerun),
            max_length=inputs.study.data.max_length,
            device=inputs.device,
            progress=inputs.progress,
        )
        save(folder, "interventions", table.assign(method=method.name, seed=seed))
        _save_left_out(folder, "interventions", table, ["layer", "kind", "why"], method, seed)

    return build


def _save_left_out(folder: Path, name: str, table: Any, columns: list[str], method: Method, seed: int) -> None:
    """What could not be measured, and why, as a table of its own."""
    import pandas as pd

    if left := table.attrs.get("left_out"):
        save(folder, f"{name}_left_out", pd.DataFrame(left, columns=columns).assign(method=method.name, seed=seed))
