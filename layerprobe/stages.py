"""The stages: the only bridge from a study and its artifacts to the packages that compute."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.artifacts import Artifact, write_json
from layerprobe.inputs import Inputs, Parents, load_inputs

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.activations import ActivationStore
    from layerprobe.adaptation import Method, Quality

Build = Callable[[Path, Parents], None]

VERSIONS: Mapping[str, int] = {
    "adapt": 1,
    "capture": 1,
    "capture-train": 1,
    "capture-sae": 1,
    "reference": 2,
    "similarity": 2,
    "nulls": 1,
    "seeds": 1,
    "geometry": 1,
    "sentences": 1,
    "sae": 1,
    "features": 1,
}
"""Raised when a stage's result changes for the same input, so that older artifacts are not taken for it."""

SENTENCES = 40
"""Test texts shown token by token in a report."""
LONGEST_SENTENCE = 64
"""Tokens above which a text is too long to show."""
TOP_LATENTS = 12
"""Latents of each layer and side whose activations are shown on those texts."""


def adapt(inputs: Inputs, method: Method, seed: int) -> Build:
    """Fine-tune (or take a checkpoint), and measure its quality before and after."""

    def build(folder: Path, done: Parents) -> None:
        import pandas as pd

        from layerprobe import adaptation

        study, corpus = inputs.study, inputs.corpus
        result = adaptation.adapt(
            inputs.encoder,
            corpus.train,
            corpus.test,
            corpus.label_names,
            folder / "checkpoint",
            method=method,
            seed=seed,
            epochs=study.adaptation.epochs,
            batch_size=study.adaptation.batch_size,
            learning_rate=study.adaptation.learning_rate,
            head_learning_rate=study.adaptation.head_learning_rate,
            max_length=study.data.max_length,
            device=inputs.device,
            progress=inputs.progress,
        )
        named: dict[str, Any] = {"method": method.name, "seed": seed}
        cost = {
            "trainable_parameters": result.trainable_parameters,
            "total_parameters": result.total_parameters,
            "seconds": result.seconds,
        }
        quality = [
            {**named, "when": when, "split": "test", **_quality(measured), **cost}
            for when, measured in (("before", result.before), ("after", result.after))
        ]
        save(folder, "adaptation", pd.DataFrame(quality))
        save(folder, "training_log", result.log.assign(**named))
        save(folder, "predictions", _predictions(inputs, result.predictions, **named))
        write_json(folder / "settings.json", {"checkpoint": method.path, **result.settings})

    return build


def capture_base(inputs: Inputs) -> Build:
    """Activations of the pretrained encoder on the test texts."""
    return _capture_test(inputs, None)


def capture_adapted(inputs: Inputs, adapt: str) -> Build:
    """Activations of an adapted encoder on the same texts in the same batches, loaded afresh from its saved weights."""
    return _capture_test(inputs, adapt)


def _capture_test(inputs: Inputs, adapt: str | None) -> Build:
    def build(folder: Path, done: Parents) -> None:
        from layerprobe.activations import ActivationStore, capture

        asked = inputs.study.activations
        capture(
            _model(inputs, done, adapt),
            inputs.encoder,
            inputs.corpus.test,
            folder / "rows",
            max_length=inputs.study.data.max_length,
            token_examples=asked.examples,
            dtype=asked.dtype,
            device=inputs.device,
            reference=ActivationStore.open(done["capture: base"].folder / "rows") if adapt else None,
            progress=inputs.progress,
        )

    return build


def capture_train(inputs: Inputs) -> Build:
    """The pretrained encoder's pooled last layer on the training texts, for the reference classifier."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe.activations import capture

        capture(
            _model(inputs, done, None),
            inputs.encoder,
            inputs.corpus.train,
            folder / "rows",
            max_length=inputs.study.data.max_length,
            layers=[inputs.encoder.n_layers],
            token_examples=0,
            device=inputs.device,
            progress=inputs.progress,
        )

    return build


def capture_sae(inputs: Inputs, adapt: str | None) -> Build:
    """Token rows of the chosen layers to train dictionaries on."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe.activations import ActivationStore, capture, twin
        from layerprobe.encoder import same_body

        model = _model(inputs, done, adapt)
        base = ActivationStore.open(done["capture-sae: base"].folder / "rows") if adapt else None
        if base is not None and same_body(model, _model(inputs, done, None), inputs.encoder):
            # Equal weights give equal rows: that base and adapted agree bit by bit is seen on the test texts.
            twin(base, folder / "rows")
            return
        capture(
            model,
            inputs.encoder,
            inputs.sae_examples,
            folder / "rows",
            max_length=inputs.study.data.max_length,
            layers=inputs.sae_layers,
            token_rows=inputs.study.sae.rows,
            pooled=False,
            dtype=inputs.study.activations.dtype,
            device=inputs.device,
            reference=base,
            progress=inputs.progress,
        )

    return build


def reference(inputs: Inputs) -> Build:
    """What logistic regression on the pretrained encoder's own vectors reaches, and the majority class."""

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import adaptation
        from layerprobe.activations import ActivationStore

        corpus, last, seed = inputs.corpus, inputs.encoder.n_layers, inputs.study.seeds[0]
        train = ActivationStore.open(done["capture-train: base"].folder / "rows")
        test = ActivationStore.open(done["capture: base"].folder / "rows")
        rows, predictions = [], []
        for pooling in ("mean", "cls"):
            quality, probabilities = adaptation.reference(
                train.unit(pooling, last), corpus.train.labels, test.unit(pooling, last), corpus.test.labels, seed=seed
            )
            named: dict[str, Any] = {"method": f"reference:logistic-{pooling}", "seed": seed}
            rows.append({**named, "when": "after", "split": "test", **_quality(quality)})
            predictions.append(_predictions(inputs, probabilities, **named))
        counts = np.bincount(corpus.train.labels, minlength=len(corpus.label_names))
        # The class frequencies with every text sent to the commonest class: what knowing no text at all gives.
        always = np.tile(np.maximum(counts, 1e-12) / counts.sum(), (len(corpus.test), 1))
        majority = adaptation.quality(always, corpus.test.labels)
        named = {"method": "reference:majority", "seed": seed}
        rows.append({**named, "when": "after", "split": "test", **_quality(majority)})
        save(folder, "adaptation", pd.DataFrame(rows))
        save(folder, "predictions", pd.concat(predictions, ignore_index=True))

    return build


def sentences(inputs: Inputs, method: Method, seed: int, capture: str) -> Build:
    """How far each token of a few test texts moved in each layer: one less the cosine of base and adapted."""

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        base, adapted = pair_of(done, capture)
        chosen = _shown_rows(inputs, base)
        about = base.rows.iloc[chosen]
        frames = []
        for layer in base.layers:
            x, y = (np.asarray(store.tokens(layer)[chosen], dtype=np.float64) for store in (base, adapted))
            cosine = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
            frames.append(_token_frame(base, about).assign(layer=layer, change=1 - np.clip(cosine, -1, 1)))
        save(folder, "sentences", pd.concat(frames, ignore_index=True).assign(method=method.name, seed=seed))

    return build


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
        chosen = _shown_rows(inputs, stores["base"])
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


def _model(inputs: Inputs, done: Parents, adapt: str | None) -> Any:
    """A model loaded afresh from saved weights, in float32 and eval mode: the pretrained one, or an adapted one."""
    from layerprobe.encoder import load_classifier

    if adapt is None:
        return inputs.encoder.classifier(inputs.corpus.label_names, seed=0)
    return load_classifier(checkpoint_folder(done[adapt]), inputs.encoder)


def checkpoint_folder(artifact: Artifact) -> Path:
    """Where an adapted model's weights are: in the artifact, or where the user keeps them."""
    settings = json.loads((artifact.folder / "settings.json").read_text(encoding="utf-8"))
    return Path(settings["checkpoint"]).expanduser() if settings["checkpoint"] else artifact.folder / "checkpoint"


def pair_of(done: Parents, capture: str, base: str = "capture: base") -> tuple[ActivationStore, ActivationStore]:
    """Two captures of the same texts, checked to be of the same rows."""
    from layerprobe.activations import ActivationStore, paired

    one, other = (ActivationStore.open(done[name].folder / "rows") for name in (base, capture))
    paired(one, other)
    return one, other


def _shown_rows(inputs: Inputs, store: ActivationStore) -> Any:
    """Row numbers of the texts to show: short ones, taken from each label in turn."""
    import numpy as np

    example = store.rows["example"].to_numpy()
    lengths = np.bincount(example)
    labels = inputs.corpus.test.labels
    queues = [
        [i for i in range(len(lengths)) if labels[i] == label and 3 < lengths[i] <= LONGEST_SENTENCE]
        for label in range(len(inputs.corpus.label_names))
    ]
    turns = max(len(queue) for queue in queues)
    shown = [queue[i] for i in range(turns) for queue in queues if i < len(queue)][:SENTENCES]
    rows = np.flatnonzero(np.isin(example, shown))
    order = np.lexsort((store.rows["token_index"].to_numpy()[rows], example[rows]))
    return rows[order]


def _token_frame(store: ActivationStore, about: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "example_id": store.example_ids[about["example"].to_numpy()],
            "token_index": about["token_index"].to_numpy(),
            "token": about["token"].to_numpy(),
            "special": about["special"].to_numpy(),
        }
    )


def _activations(store: ActivationStore, chosen: Any, codes: Any, top: Any) -> pd.DataFrame:
    """Non-zero activations of the chosen latents on the shown rows."""
    import numpy as np
    import pandas as pd

    codes = np.asarray(codes)
    row, column = np.nonzero(codes)
    about = _token_frame(store, store.rows.iloc[chosen])[["example_id", "token_index"]].iloc[row]
    values = {"latent": top[column], "activation": codes[row, column]}
    return pd.concat([about.reset_index(drop=True), pd.DataFrame(values)], axis=1)


def _quality(measured: Quality) -> dict[str, Any]:
    """Accuracy with its 95% Wilson interval over test texts, macro-F1 and cross-entropy."""
    from scipy.stats import binomtest

    right = round(measured.accuracy * measured.n)
    interval = binomtest(right, measured.n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": measured.accuracy,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "macro_f1": measured.macro_f1,
        "loss": measured.loss,
        "n": measured.n,
    }


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


def _predictions(inputs: Inputs, probabilities: Any, *, method: str, seed: int) -> pd.DataFrame:
    import pandas as pd

    test, names = inputs.corpus.test, inputs.corpus.label_names
    best = probabilities.argmax(axis=1)
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "example_id": test.ids,
            "label": [names[label] for label in test.labels],
            "predicted": [names[label] for label in best],
            "probability": probabilities.max(axis=1),
        }
    )


def save(folder: Path, name: str, table: pd.DataFrame) -> None:
    (folder / "tables").mkdir(exist_ok=True)
    table.to_parquet(folder / "tables" / f"{name}.parquet", index=False)


__all__ = [
    "VERSIONS",
    "Inputs",
    "adapt",
    "capture_adapted",
    "capture_base",
    "capture_sae",
    "capture_train",
    "features",
    "load_inputs",
    "pair_of",
    "reference",
    "save",
    "sentences",
    "train_sae",
]
