"""The stage that follows transfer along training: how well dictionaries read the checkpoints that were kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.inputs import Inputs
from layerprobe.stages.dictionaries import dictionary_of
from layerprobe.stages.files import Build, pair_of, save
from layerprobe.task import Parents

if TYPE_CHECKING:
    from layerprobe.adaptation import Method


def transfer_steps(
    inputs: Inputs, method: Method, seed: int, adapt: str, capture: str, tasks: Mapping[int, Mapping[str, str]]
) -> Build:
    """Explained variance, sparsity and task loss of base's and the adapted dictionary on each kept checkpoint.

    Step 0 is base, and the last one the adapted model; base has no classifier, so no task loss stands there.

    Args:
        tasks: for each layer, the dictionaries of both sides.
    """

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        from layerprobe import sae
        from layerprobe.activations import ActivationStore
        from layerprobe.activations import capture as run_over
        from layerprobe.encoder import load_classifier

        base, adapted = pair_of(done, capture)
        artifact = done[adapt].folder
        log = pd.read_parquet(artifact / "tables" / "training_log.parquet")
        kept = {int(path.name.removeprefix("step-")): path for path in sorted(artifact.glob("step-*"))}
        total = int(log[log["split"] == "train"].step.max())
        chosen = inputs.rerun
        rows: list[dict[str, Any]] = []

        def measure(step: int, store: ActivationStore, model: Any) -> None:
            for layer, sides in tasks.items():
                dictionaries = {side: dictionary_of(inputs, done, task) for side, task in sides.items()}
                lost = None
                if model is not None:
                    lost = sae.task_loss(
                        model.to(inputs.device),
                        inputs.encoder,
                        chosen,
                        layer,
                        dictionaries,
                        max_length=inputs.study.data.max_length,
                        progress=inputs.progress,
                    ).set_index("variant")
                for side, dictionary in dictionaries.items():
                    tokens = store.tokens(layer)
                    codes = sae.encode(dictionary, tokens, progress=inputs.progress)
                    found = sae.evaluate(dictionary, tokens, codes, store.groups("token"), progress=inputs.progress)
                    row: dict[str, Any] = {"step": step, "layer": layer, "trained_on": side, "l0": found.l0}
                    row |= {"explained_variance": found.explained_variance}
                    row |= {"ev_low": found.ev_low, "ev_high": found.ev_high, "n": found.examples}
                    if lost is not None:
                        names = ["loss_recovered", "loss_recovered_low", "loss_recovered_high", "why"]
                        row |= lost.loc[side, names].to_dict() | {"accuracy": lost.loc["clean", "accuracy"]}
                    rows.append(row)

        measure(0, base, None)
        for step, path in kept.items():
            model = load_classifier(path, inputs.encoder)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                store = run_over(
                    model,
                    inputs.encoder,
                    inputs.corpus.test,
                    Path(scratch) / "rows",
                    max_length=inputs.study.data.max_length,
                    layers=list(tasks),
                    token_examples=inputs.study.activations.examples,
                    pooled=False,
                    device=inputs.device,
                    progress=inputs.progress,
                )
                measure(step, store, model)
        measure(total, adapted, load_classifier(artifact / "checkpoint", inputs.encoder))
        save(folder, "transfer_steps", pd.DataFrame(rows).assign(method=method.name, seed=seed))

    return build
