"""Adapting a pretrained encoder to labelled examples by one method, and measuring the gain."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerprobe.adaptation._config import AdaptConfig
from layerprobe.adaptation._cost import Cost, Meter, TrainingFlops
from layerprobe.adaptation._frozen import FrozenValues, compute_frozen, open_frozen
from layerprobe.adaptation._labels import LabelMatch, fit_order, match_labels
from layerprobe.adaptation._quality import Quality, probabilities, quality
from layerprobe.adaptation._ranks import Ranks
from layerprobe.adaptation._validation import HeldOut
from layerprobe.adaptation.methods import Method
from layerprobe.data import Corpus
from layerprobe.encoder import Encoder, load_classifier, quiet, tokenize
from layerprobe.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd

LOG_COLUMNS = ["step", "epoch", "loss", "learning_rate", "split"]


@dataclass(frozen=True)
class Adaptation:
    """An adapted model, its quality before and after, and its cost."""

    checkpoint: Path
    """Folder with the weights, as `save_pretrained` writes it."""
    before: Quality
    """On the test examples, under a fresh head."""
    after: Quality
    """On the test examples, from the saved weights loaded again in float32."""
    predictions: np.ndarray
    """Class probabilities on the test examples, `(n, classes)`, in the order of the label names."""
    total_parameters: int
    """Of the pretrained model under its fresh head."""
    settings: dict[str, Any]
    """What was chosen or resolved: pooling, precision, learning rate, penalty, and the layers
    whose frozen values were read, with the seconds and bytes of computing and storing them."""
    log: pd.DataFrame
    """step, epoch, loss, learning_rate, split. A row of split `validation` is a candidate at its end. `epoch` of a head is
    passes over its frozen inputs; `learning_rate` is missing where L-BFGS trained it."""
    label_order: tuple[int, ...]
    """For each class, its number in the adapted model, which differs only for checkpoints from elsewhere."""
    label_match: LabelMatch | None = None
    """Of a checkpoint: how its labels were matched."""
    trainable_parameters: int = 0
    seconds: float = 0.0
    """Of training, with choices and the pass over frozen blocks. The pass counts for every method that reads its values,
    although methods may share it, so that the cost of a method does not depend on which came first."""
    cost: Cost | None = None
    """Memory and energy of training, as far as they could be measured; None where nothing was trained."""
    flops: TrainingFlops | None = None
    """Operations of training, with the pass over frozen blocks and the candidates of a search; None likewise."""
    held_out: HeldOut | None = None
    """Of the chosen setting, on training examples that its candidate was not trained on; None where nothing was chosen."""
    steps: tuple[int, ...] = ()
    """Training steps of the intermediate checkpoints, which are in folders `step-...` next to the last one."""


def adapt(
    encoder: Encoder,
    corpus: Corpus,
    folder: str | Path,
    *,
    method: Method,
    seed: int,
    config: AdaptConfig | None = None,
    frozen: FrozenValues | None = None,
) -> Adaptation:
    """Adapt an encoder by one method, save it, and measure it on the test examples before and after.

    Training, validation and test examples are disjoint: whatever is chosen (the penalty of the head; with
    `config.search` or equal tuning, the learning rate) is chosen on a part of the training examples that the candidates are not trained
    on, and the final model is trained on all training examples. The test examples are only used to measure.

    Blocks below the lowest trained one are in eval mode, and computed once over the training examples, in float32
    whatever the precision of training; training reads their output from disk.

    In a script that `accelerate launch` or `torchrun` started in several processes, they train one model together: the
    batches are those of one process, and each computes its part of them (docs/scaling.md). All of them return; only the
    first writes.

    Args:
        encoder: the pretrained encoder.
        corpus: training and test examples, and the names of their classes.
        folder: where the adapted model is saved, as a plain checkpoint (`lora`: with the additions merged into the
            weights); not used by methods that train nothing.
        method: how to adapt.
        seed: decides the head's initial weights, the validation part, the order of batches and dropout; equal seeds give
            equal results on one machine.
        config: the configuration; by default `AdaptConfig()`.
        frozen: values of the base model over the training examples (`open_frozen`), of at least the layers
            `method.cached_layers`, computed under `method.configured(config)`; by default they are computed into a
            temporary folder.

    Raises:
        EncoderError: if a checkpoint does not fit the encoder.
        ArgumentError: if the method does not fit the encoder, a checkpoint has other labels or another pooling, frozen
            values do not fit, the batch size cannot be shared by the processes, or training diverged.
        StorageError: if the disk has no room for the frozen values.
    """
    import pandas as pd

    method.check(encoder)
    config = method.configured(config or AdaptConfig())
    train, test = corpus.train, corpus.test
    ranks = Ranks.join(config.device)
    if method.trains_blocks:
        ranks.check_batch(config.batch_size)
    model: Any = encoder.classifier(corpus.label_names, seed=seed, pooling=config.pooling)
    before = quality(probabilities(model, encoder, test, config), test.labels)
    total = sum(parameter.numel() for parameter in model.parameters())
    if (checkpoint := method.checkpoint_folder) is not None:
        model, match = load_checkpoint(checkpoint, encoder, corpus.label_names, config)
        if match.matched == "order":
            predicted = probabilities(model, encoder, train, config).argmax(axis=1)
            match = replace(match, fitted=fit_order(predicted, train.labels, match.order))
        predictions = probabilities(model, encoder, test, config)[:, list(match.order)]
        return Adaptation(
            checkpoint=checkpoint,
            before=before,
            after=quality(predictions, test.labels),
            predictions=predictions,
            total_parameters=total,
            settings={"labels": match.matched, "pooling": config.pooling},
            log=pd.DataFrame(columns=LOG_COLUMNS),
            label_order=match.order,
            label_match=match,
        )

    from layerprobe.adaptation._fit import RateSearch, Training, fit, fit_flops, new_model, search_rate

    folder = Path(folder)
    needed = method.cached_layers(encoder.n_layers)
    steps: list[int] = []
    search: RateSearch | None = None
    with tempfile.TemporaryDirectory() as scratch:
        if frozen is None and needed:
            if ranks.several_machines:
                raise ArgumentError(
                    "{frozen} is not set, but the processes run on several machines, which share no temporary folder; write "
                    "the values by compute_frozen to a shared folder first, and pass open_frozen of it.",
                    "frozen",
                )
            written = ranks.agreed(scratch)
            ranks.once(lambda: compute_frozen(encoder, train, needed, written, config))
            frozen = open_frozen(written)
        training = Training(
            encoder=encoder,
            corpus=corpus,
            encodings=tokenize(encoder, train, config.max_length),
            labels=train.labels,
            method=method,
            seed=seed,
            config=config,
            frozen=frozen or {},
        )
        read = [_checked(training, layer) for layer in needed]
        model = new_model(training)

        def keep(step: int) -> None:
            steps.append(step)
            if ranks.index:
                return
            snapshot = copy.deepcopy(model)
            method.finish(snapshot)
            _save(snapshot, encoder, folder.with_name(f"step-{step:06d}"))

        with Meter() as meter:
            rate = method.learning_rate(config)
            if config.searches_rates and method.trains_blocks:
                search = ranks.agreed(search_rate(training, rate))
                rate = search.rate
            # A control is trained at the rate that a search gives on the true labels.
            training = replace(training, labels=method.training_labels(train.labels, seed))
            result = fit(training, model, np.arange(len(train)), rate, keep)
        tried = [] if search is None else search.log
        flops = fit_flops(training, model, result, candidates=len(tried))
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise ArgumentError(
            f"Training by {method.name} diverged (its weights are not finite); lower {{learning_rate}}.",
            "learning_rate",
        )
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    method.finish(model)

    def saved() -> np.ndarray:
        _save(model, encoder, folder)
        return probabilities(load_classifier(folder, encoder), encoder, test, config)

    predictions = ranks.once(saved)
    frozen_seconds = sum(values.seconds for values in read)
    return Adaptation(
        checkpoint=folder,
        before=before,
        after=quality(predictions, test.labels),
        predictions=predictions,
        total_parameters=total,
        settings={
            "pooling": config.pooling,
            **result.settings,
            "frozen_layers": list(needed),
            "frozen_seconds": frozen_seconds,
            "frozen_bytes": sum(values.rows.nbytes for values in read),
        },
        log=pd.DataFrame(tried + result.log, columns=LOG_COLUMNS),
        label_order=tuple(range(len(corpus.label_names))),
        trainable_parameters=trainable,
        seconds=meter.cost.seconds + frozen_seconds,
        cost=meter.cost,
        flops=flops,
        held_out=result.held_out if search is None else search.held_out,
        steps=tuple(steps),
    )


def load_checkpoint(
    folder: Path, encoder: Encoder, label_names: Sequence[str], config: AdaptConfig
) -> tuple[Any, LabelMatch]:
    """A finished classifier, and how its labels match those of the data.

    Args:
        folder: the checkpoint.
        encoder: the encoder that it was fine-tuned from.
        label_names: of the data.
        config: its `pooling` and `labels` are used.

    Raises:
        EncoderError: if it cannot be loaded, or does not fit the encoder.
        ArgumentError: if it has other labels or another pooling.
    """
    model: Any = load_classifier(folder, encoder)
    _check_pooling(model, folder, config)
    names = model.config.id2label
    labels = [str(names.get(i, f"LABEL_{i}")) for i in range(model.config.num_labels)]
    return model, match_labels(labels, label_names, config.labels, str(folder))


def _checked(training: Any, layer: int) -> Any:
    """The frozen values of a layer, if they are of the training examples."""
    values, encodings = training.frozen.get(layer), training.encodings
    lengths = [len(encoding["input_ids"]) for encoding in encodings]
    if layer == training.encoder.n_layers:
        lengths = [1] * len(encodings)
    if values is None or not np.array_equal(values.lengths, lengths):
        raise ArgumentError(
            f"{{frozen}} does not hold the values of layer {layer} over the {len(encodings)} training examples; compute "
            "them by compute_frozen from the same examples and configuration.",
            "frozen",
        )
    return values


def _save(model: Any, encoder: Encoder, folder: Path) -> None:
    model.to("cpu")
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        model.save_pretrained(folder, safe_serialization=True)
        encoder.tokenizer.save_pretrained(folder)


def _check_pooling(model: Any, folder: Path, config: AdaptConfig) -> None:
    pooling = getattr(model, "pooling", "model")
    if pooling != config.pooling:
        raise ArgumentError(
            f"The checkpoint {folder} has the pooling {pooling!r}, but {{pooling}} is {config.pooling!r}; set it to "
            f"{pooling!r}, so that methods and not poolings are compared.",
            "pooling",
        )
