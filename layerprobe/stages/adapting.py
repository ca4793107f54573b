"""The stages that train and measure classifiers: adaptation by a method, and the references beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.artifacts import write_json
from layerprobe.inputs import Inputs, Parents
from layerprobe.stages.files import Build, save

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.adaptation import Method, Quality


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
