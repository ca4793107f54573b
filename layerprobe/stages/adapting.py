"""The stages that train and measure classifiers: adaptation by a method, and the references beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.artifacts import write_json
from layerprobe.inputs import Inputs
from layerprobe.stages.files import Build, label_order, model_of, save
from layerprobe.task import Parents

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.adaptation import Method, Quality
    from layerprobe.data import Corpus, Examples


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
            learning_rates=study.adaptation.learning_rates,
            search=study.adaptation.search,
            pooling=study.adaptation.pooling,
            cache=inputs.frozen_cache,
            cache_for=inputs.methods,
            checkpoints=study.adaptation.checkpoints,
            max_length=study.data.max_length,
            precision=inputs.precision,
            device=inputs.device,
            progress=inputs.progress,
        )
        named: dict[str, Any] = {"method": method.name, "seed": seed}
        cost = {
            "trainable_parameters": result.trainable_parameters,
            "total_parameters": result.total_parameters,
            "seconds": result.seconds,
            "learning_rate": result.settings.get("learning_rate"),
        }
        if result.cost is not None and result.flops is not None:
            cost |= {
                "flops": float(result.flops.total),
                "flops_frozen": float(result.flops.frozen),
                "peak_bytes": result.cost.peak_bytes,
                "memory_kind": result.cost.memory_kind,
                "energy_wh": result.cost.energy_wh,
                "energy_kind": result.cost.energy_kind,
                "energy_note": result.cost.energy_note,
                # What a task adds to the base that all tasks share, in float32.
                "bytes_stored": 4 * result.trainable_parameters,
                "frozen_bytes": result.settings["frozen_bytes"],
            }
        quality = [
            {**named, "when": when, "split": "test", **quality_row(measured), **cost}
            for when, measured in (("before", result.before), ("after", result.after))
        ]
        save(folder, "adaptation", pd.DataFrame(quality))
        save(folder, "training_log", result.log.assign(**named))
        save(folder, "predictions", predictions_table(corpus, corpus.test, result.predictions, **named, split="test"))
        about = {"checkpoint": method.path, "label_order": list(result.label_order), "steps": list(result.steps)}
        write_json(folder / "settings.json", {**about, **result.settings})

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
            rows.append({**named, "when": "after", "split": "test", **quality_row(quality)})
            predictions.append(predictions_table(corpus, corpus.test, probabilities, **named, split="test"))
        counts = np.bincount(corpus.train.labels, minlength=len(corpus.label_names))
        # The class frequencies with every text sent to the commonest class: what knowing no text at all gives.
        always = np.tile(np.maximum(counts, 1e-12) / counts.sum(), (len(corpus.test), 1))
        majority = adaptation.quality(always, corpus.test.labels)
        named = {"method": "reference:majority", "seed": seed}
        rows.append({**named, "when": "after", "split": "test", **quality_row(majority)})
        save(folder, "adaptation", pd.DataFrame(rows))
        save(folder, "predictions", pd.concat(predictions, ignore_index=True))

    return build


def quality_row(measured: Quality) -> dict[str, Any]:
    """Accuracy with its 95% Wilson interval over test texts, and the other scores, as columns."""
    from scipy.stats import binomtest

    right = round(measured.accuracy * measured.n)
    interval = binomtest(right, measured.n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": measured.accuracy,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "macro_f1": measured.macro_f1,
        "loss": measured.loss,
        "brier": measured.brier,
        "calibration_error": measured.calibration_error,
        "n": measured.n,
    }


def predictions_table(
    corpus: Corpus, examples: Examples, probabilities: Any, *, method: str, seed: int, split: str
) -> pd.DataFrame:
    """What a classifier says of each text."""
    import pandas as pd

    names = corpus.label_names
    best = probabilities.argmax(axis=1)
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "split": split,
            "example_id": examples.ids,
            "label": [names[label] for label in examples.labels],
            "predicted": [names[label] for label in best],
            "probability": probabilities.max(axis=1),
        }
    )


def outside(inputs: Inputs, method: Method, seed: int, adapt: str) -> Build:
    """Quality of an adapted model on the out-of-domain sets; of a set with some of the labels, among those alone."""

    def build(folder: Path, done: Parents) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import adaptation

        model = model_of(inputs, done, adapt)
        order = label_order(done[adapt])
        rows, predictions = [], []
        for ood in inputs.ood:
            found = adaptation.probabilities(
                model,
                inputs.encoder,
                ood.examples,
                max_length=inputs.study.data.max_length,
                device=inputs.device,
                progress=inputs.progress,
            )[:, order]
            # A set with some of the labels asks for a choice among those. (What is added keeps a row from being empty.)
            allowed = np.isin(np.arange(found.shape[1]), ood.classes)
            found = np.where(allowed, found + np.finfo(np.float64).tiny, 0)
            found /= found.sum(1, keepdims=True)
            named: dict[str, Any] = {"method": method.name, "seed": seed, "split": ood.name}
            rows.append(
                {
                    **named,
                    "when": "after",
                    **quality_row(adaptation.quality(found, ood.examples.labels, classes=ood.classes)),
                }
            )
            predictions.append(predictions_table(inputs.corpus, ood.examples, found, **named))
        save(folder, "adaptation", pd.DataFrame(rows))
        save(folder, "predictions", pd.concat(predictions, ignore_index=True))

    return build
