"""The stages that train sparse autoencoders and read their latents."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.inputs import Inputs, Parents
from layerprobe.stages.files import Build, pair_of, save
from layerprobe.stages.showing import shown_rows, token_frame

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.activations import ActivationStore
    from layerprobe.adaptation import Method

TOP_LATENTS = 12
"""Latents of each layer and side whose activations are shown on those texts."""


def train_sae(inputs: Inputs, rows: str, layer: int) -> Build:
    """A sparse autoencoder on one layer's rows, saved in sae-lens' own format."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe import sae
        from layerprobe.activations import ActivationStore

        asked = inputs.study.sae
        sae.train(
            ActivationStore.open(done[rows].folder / "rows").tokens(layer),
            folder / "dictionary",
            architecture=asked.architecture,
            expansion=asked.expansion,
            k=asked.k,
            seed=inputs.study.seeds[0],
            progress=inputs.progress,
        )

    return build


def features(
    inputs: Inputs, method: Method, seed: int, layer: int, capture: str, rows: str, base_sae: str, adapted_sae: str
) -> Build:
    """How well each side's dictionary explains both sides, and which of its latents tell the task's labels apart."""

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import sae
        from layerprobe.activations import ActivationStore

        stores = dict(zip(("base", "adapted"), pair_of(done, capture), strict=True))
        training = {"base": "capture-sae: base", "adapted": rows}
        trained = {
            side: sae.load(done[task].folder / "dictionary")
            for side, task in (("base", base_sae), ("adapted", adapted_sae))
        }
        groups = stores["base"].groups("token")
        n_examples = int(groups.max()) + 1
        labels = inputs.corpus.test.labels[:n_examples]
        named: dict[str, Any] = {"method": method.name, "seed": seed, "layer": layer}
        quality, latents, shares, shown, logs = [], [], [], [], []
        chosen = shown_rows(inputs, stores["base"])
        tokens = {side: store.tokens(layer) for side, store in stores.items()}
        untouched = done[base_sae].key == done[adapted_sae].key and np.array_equal(tokens["base"], tokens["adapted"])
        # Of an untouched layer both sides are one and the same, so each thing is worked out once.
        same = {"base": "base", "adapted": "base" if untouched else "adapted"}

        @cache
        def measured(side: str, kind: str, on: str) -> Any:
            return sae.evaluate(candidates(side)[kind], tokens[on], groups, progress=inputs.progress)

        @cache
        def candidates(side: str) -> dict[str, sae.Dictionary]:
            own = ActivationStore.open(done[training[side]].folder / "rows").tokens(layer)
            architecture, k, first_seed = inputs.study.sae.architecture, inputs.study.sae.k, inputs.study.seeds[0]
            control = sae.untrained(trained[side], own, architecture=architecture, k=k, seed=first_seed)
            return {"trained": trained[side], "untrained": control}

        @cache
        def associated(side: str) -> sae.TaskLatents:
            means = sae.latent_means(trained[side], tokens[side], groups, n_examples)
            return sae.task_latents(means, labels, inputs.corpus.label_names, seed=inputs.study.seeds[0])

        for side, dictionary in trained.items():
            about = {
                "architecture": inputs.study.sae.architecture,
                "d_sae": dictionary.d_sae,
                "k": inputs.study.sae.k,
                "trained_rows": len(ActivationStore.open(done[training[side]].folder / "rows").tokens(layer)),
                "texts": inputs.sae_texts,
            }
            for kind in ("trained", "untrained"):
                for other in stores:
                    between = {"trained_on": side, "evaluated_on": other, "kind": kind}
                    quality.append(
                        {**named, **between, **_sae_quality(measured(same[side], kind, same[other])), **about}
                    )
            found = associated(same[side])
            latents.append(found.table.assign(**named, side=side))
            shares.append(
                {
                    **named,
                    "side": side,
                    "share": found.share,
                    "share_permuted": found.share_permuted,
                    "share_permuted_high": found.share_permuted_high,
                    "live": found.live,
                    "n": found.n,
                }
            )
            history = done[base_sae if side == "base" else adapted_sae].folder / "dictionary" / "history.parquet"
            logs.append(pd.read_parquet(history).assign(**named, side=side))
            top = found.table.sort_values(["task", "effect"], ascending=False)["latent"].to_numpy()[:TOP_LATENTS]
            for on, store in stores.items():
                codes = dictionary.encode(store.tokens(layer)[chosen])[:, top]
                shown.append(_activations(store, chosen, codes, top).assign(**named, side=side, on=on))
        save(folder, "sae", pd.DataFrame(quality))
        save(folder, "latents", pd.concat(latents, ignore_index=True))
        save(folder, "latent_shares", pd.DataFrame(shares))
        save(folder, "sae_log", pd.concat(logs, ignore_index=True))
        save(folder, "sentence_latents", pd.concat(shown, ignore_index=True))

    return build


def _activations(store: ActivationStore, chosen: Any, codes: Any, top: Any) -> pd.DataFrame:
    """Non-zero activations of the chosen latents on the shown rows."""
    import numpy as np
    import pandas as pd

    codes = np.asarray(codes)
    row, column = np.nonzero(codes)
    about = token_frame(store, store.rows.iloc[chosen])[["example_id", "token_index"]].iloc[row]
    values = {"latent": top[column], "activation": codes[row, column]}
    return pd.concat([about.reset_index(drop=True), pd.DataFrame(values)], axis=1)


def _sae_quality(measured: Any) -> dict[str, Any]:
    return {
        "explained_variance": measured.explained_variance,
        "ev_low": measured.ev_low,
        "ev_high": measured.ev_high,
        "l0": measured.l0,
        "dead_share": measured.dead_share,
        "rows": measured.n,
        "examples": measured.examples,
    }
