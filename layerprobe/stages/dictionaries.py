"""The stages that train dictionaries on stored rows and measure how well each explains both sides."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.inputs import Inputs
from layerprobe.stages.files import Build, model_of, numbered, pair_of, save
from layerprobe.task import Parents

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.activations import ActivationStore
    from layerprobe.adaptation import Method
    from layerprobe.sae import Dictionary

CONTINUED_PASSES, CONTINUED_STEPS, BATCH = 2, 100, 1024
"""How long a dictionary that goes on from another is trained: passes over its rows, and at least so many batches."""


def train_sae(
    inputs: Inputs,
    rows: str,
    layer: int,
    *,
    start: str | None = None,
    other_seed: bool = False,
    other_order: bool = False,
    frozen: bool = False,
) -> Build:
    """A dictionary on one layer's rows, saved in sae-lens' own format; from the start, or going on from another."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe import sae

        asked, seed = inputs.study.sae, inputs.study.seeds[0]
        matrix = _rows(done, rows).tokens(layer)
        n = len(matrix)
        config = sae.SaeConfig(
            architecture=asked.architecture,
            expansion=asked.expansion,
            k=asked.k,
            samples=None if start is None else max(CONTINUED_PASSES * n, CONTINUED_STEPS * min(BATCH, n)),
            batch_size=BATCH,
            seed=seed + 1 if other_seed else seed,
            order_seed=seed + 2 if other_order else None,
            frozen_decoder=frozen,
        )
        begin = None if start is None else dictionary_of(inputs, done, start)
        target = folder / "dictionary"
        sae.train(matrix, target, config, start=begin, device=inputs.device, progress=inputs.progress)

    return build


def train_crosscoder(inputs: Inputs, rows: str, layer: int) -> Build:
    """A joint dictionary on one layer's rows of base and adapted; none where they are one and the same."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe import sae

        base, adapted = pair_of(done, rows, base="capture-sae: base")
        if base.content(layer) == adapted.content(layer):
            return
        asked, (n, width) = inputs.study.sae, base.tokens(layer).shape
        d_sae = sae.default_width(n, width, asked.expansion)
        config = sae.CrosscoderConfig(d_sae=d_sae, k=asked.k or sae.default_k(width, d_sae), seed=inputs.study.seeds[0])
        sae.crosscoder.train(
            base.tokens(layer), adapted.tokens(layer), config, device=inputs.device, progress=inputs.progress
        ).save(folder / "crosscoder")

    return build


def transfer(
    inputs: Inputs,
    method: Method,
    seed: int,
    layer: int,
    capture: str,
    rows: str,
    tasks: Mapping[str, str],
    classifiers: Mapping[str, str],
) -> Build:
    """What each side's dictionary, and its controls, keep of both sides: of the rows, and of the task.

    Args:
        tasks: dictionaries by role: base, adapted, and where there are `base:second-seed`, `base:frozen-decoder`, ...
        classifiers: the adapted model of each side, for what of the task is kept; base's is the `head` method's.
    """

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import sae

        stores = dict(zip(("base", "adapted"), pair_of(done, capture), strict=True))
        tokens = {side: store.tokens(layer) for side, store in stores.items()}
        groups = stores["base"].groups("token")
        dictionaries = {role: dictionary_of(inputs, done, task) for role, task in tasks.items()}
        keys = {role: done[task].key for role, task in tasks.items()}
        if "untrained" in inputs.study.sae.controls:
            for side, made_from in (("base", "capture-sae: base"), ("adapted", rows)):
                dictionaries[f"{side}:untrained"] = sae.untrained(
                    dictionaries[side],
                    _rows(done, made_from).tokens(layer),
                    sae.SaeConfig(inputs.study.sae.architecture, k=inputs.study.sae.k, seed=inputs.study.seeds[0]),
                )
                keys[f"{side}:untrained"] = f"untrained beside {keys[side]}"
        # Of an untouched layer both sides are one and the same, so each thing is worked out once.
        untouched = np.array_equal(tokens["base"], tokens["adapted"])
        named: dict[str, Any] = {"method": method.name, "seed": seed, "layer": layer}
        by_key = {keys[role]: dictionary for role, dictionary in dictionaries.items()}

        @cache
        def measured(key: str, on: str) -> Any:
            codes = sae.encode(by_key[key], tokens[on], progress=inputs.progress)
            return sae.evaluate(by_key[key], tokens[on], codes, groups, progress=inputs.progress)

        @cache
        def lost(classifier: str) -> pd.DataFrame:
            chosen = numbered(done[classifier], inputs.rerun)
            told = {key: by_key[key] for role, key in keys.items() if role in TASK_LOSS_ROLES}
            return sae.task_loss(
                model_of(inputs, done, classifier).to(inputs.device),
                inputs.encoder,
                chosen,
                layer,
                told,
                max_length=inputs.study.data.max_length,
                progress=inputs.progress,
            ).set_index("variant")

        quality, densities = [], []
        for role in dictionaries:
            side, _, kind = role.partition(":")
            trained_on = {"base": "capture-sae: base", "adapted": rows}[side]
            about: dict[str, Any] = {
                **named,
                "trained_on": side,
                "kind": kind or "trained",
                "architecture": inputs.study.sae.architecture,
                "d_sae": dictionaries[role].d_sae,
                "k": inputs.study.sae.k or sae.default_k(dictionaries[role].d_in, dictionaries[role].d_sae),
                "trained_rows": len(_rows(done, trained_on).tokens(layer)),
                "texts": inputs.sae_texts,
            }
            for on in [side] if kind else stores:  # controls stand beside what their own side's dictionary does
                found = measured(keys[role], "base" if untouched else on)
                told = on in classifiers and role in TASK_LOSS_ROLES
                kept = _task_columns(lost(classifiers[on]), keys[role]) if told else {}
                quality.append({**about, "evaluated_on": on, **_quality(found), **kept})
                densities.append(
                    found.densities.assign(**named, trained_on=side, kind=kind or "trained", evaluated_on=on)
                )
        save(folder, "sae", pd.DataFrame(quality))
        save(folder, "sae_densities", pd.concat(densities, ignore_index=True))
        logs = []
        for role, source in tasks.items():
            side, _, kind = role.partition(":")
            history = pd.read_parquet(done[source].folder / "dictionary" / "history.parquet")
            logs.append(history.assign(**named, side=side, kind=kind or "trained"))
        save(folder, "sae_log", pd.concat(logs, ignore_index=True))

    return build


TASK_LOSS_ROLES = ("base", "adapted", "base:untrained", "base:frozen-decoder")
"""Dictionaries that the classifier is run with."""


def dictionary_of(inputs: Inputs, done: Parents, task: str) -> Dictionary:
    """A trained dictionary, on the device of the run."""
    from layerprobe import sae

    return sae.load(done[task].folder / "dictionary", device=inputs.device)


def _rows(done: Parents, task: str) -> ActivationStore:
    from layerprobe.activations import ActivationStore

    return ActivationStore.open(done[task].folder / "rows")


def _quality(measured: Any) -> dict[str, Any]:
    return {
        "explained_variance": measured.explained_variance,
        "ev_low": measured.ev_low,
        "ev_high": measured.ev_high,
        "l0": measured.l0,
        "dead_share": measured.dead_share,
        "reconstruction_bias": measured.reconstruction_bias,
        "rows": measured.n,
        "examples": measured.examples,
    }


def _task_columns(lost: pd.DataFrame, key: str) -> dict[str, Any]:
    """What of the task is kept with a dictionary's reconstruction in the layer's place."""
    row, clean, ablated = lost.loc[key], lost.loc["clean"], lost.loc["mean_ablated"]
    recovered = ("loss_recovered", "loss_recovered_low", "loss_recovered_high")
    accuracy = ("accuracy_recovered", "accuracy_recovered_low", "accuracy_recovered_high")
    return {
        **{name: row[name] for name in (*recovered, *accuracy, "why")},
        "task_loss": row["loss"],
        "task_loss_clean": clean["loss"],
        "task_loss_ablated": ablated["loss"],
        "task_accuracy": row["accuracy"],
        "task_accuracy_clean": clean["accuracy"],
        "task_accuracy_ablated": ablated["accuracy"],
        "task_texts": row["n"],
    }
