"""Adapting a pretrained encoder to labelled texts by one method, and measuring what it gained."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerprobe.adaptation._cost import Cost, Meter, TrainingFlops
from layerprobe.adaptation._frozen import frozen_values
from layerprobe.adaptation._lora import merge_lora
from layerprobe.adaptation._methods import Method, cached_layers, check_method
from layerprobe.adaptation._quality import Quality, probabilities, quality
from layerprobe.adaptation._rates import method_rate
from layerprobe.adaptation._trained import precision as resolve_precision
from layerprobe.data import Examples
from layerprobe.encoder import Encoder, load_classifier, quiet, tokenize
from layerprobe.errors import StudyError
from layerprobe.pooled import Pooling

if TYPE_CHECKING:
    import pandas as pd

LOG_COLUMNS = ["step", "epoch", "loss", "learning_rate", "split"]


@dataclass(frozen=True)
class Adaptation:
    """An adapted model and what it gained."""

    checkpoint: Path
    """Folder with the weights, as `save_pretrained` writes it."""
    before: Quality
    """On the test texts, under a fresh head."""
    after: Quality
    """On the test texts, from the saved weights loaded afresh in float32."""
    log: pd.DataFrame
    """step, epoch, loss, learning_rate, split. A row of split `validation` is a candidate at its end. `epoch` of a head is
    passes over its cached inputs, `learning_rate` missing where L-BFGS trained it."""
    trainable_parameters: int
    total_parameters: int
    """Of the pretrained model under its fresh head."""
    seconds: float
    """Spent on training, choices and the pass over frozen blocks included; that pass counts also where its values were
    found in the cache, so that a method's cost does not depend on which came first."""
    cost: Cost | None
    """Memory and energy of training, as far as they could be measured; None where nothing was trained."""
    flops: TrainingFlops | None
    """Operations of training, the pass over frozen blocks included, a search's candidates too; None likewise."""
    label_order: tuple[int, ...]
    """For each class, its number in the adapted model: a user's checkpoint may number them otherwise."""
    steps: tuple[int, ...]
    """Training steps of which a checkpoint was kept beside the last one, in folders `step-...` beside it."""
    settings: dict[str, Any]
    """What was chosen or resolved: pooling, precision, learning rate, penalty, validation losses of a search, and the
    layers whose values were kept, with the seconds and bytes of keeping them."""
    predictions: np.ndarray
    """Class probabilities on the test texts, `(n, classes)`, in the order of the label names."""


def adapt(
    encoder: Encoder,
    train: Examples,
    test: Examples,
    label_names: Sequence[str],
    folder: str | Path,
    *,
    method: Method,
    seed: int,
    epochs: int = 2,
    batch_size: int = 16,
    learning_rate: float = 5e-5,
    head_learning_rate: float | None = None,
    learning_rates: Mapping[str, float] | None = None,
    search: bool = False,
    pooling: Pooling = "model",
    cache: str | Path | None = None,
    cache_for: Sequence[Method] = (),
    checkpoints: int | None = None,
    max_length: int = 128,
    precision: str = "auto",
    device: str = "cpu",
    progress: bool = True,
) -> Adaptation:
    """Adapt an encoder by one method, save it, and measure it on the test texts before and after.

    Training, validation and test texts are disjoint: where something is chosen (the head's penalty; with `search`, the
    learning rate), 15% of the training texts, stratified by class and drawn by the seed, are set aside, candidates are
    trained on the rest and compared on them, and the chosen one is then trained on all training texts. The test texts only
    measure what came of it.

    Blocks below the lowest trained one are in eval mode, and computed once over the training texts; training reads what
    they put out from disk. That pass is in float32 whatever the precision of training.

    Args:
        encoder: the pretrained encoder.
        train: training texts.
        test: test texts; looked at only to measure.
        label_names: one name a class.
        folder: where the adapted model is saved, as a plain checkpoint (`lora`: with the additions folded into the
            weights); not used by `checkpoint`.
        method: how to adapt.
        seed: decides the head's initial weights, the validation part, the order of batches and dropout; equal seeds give
            equal results on one machine.
        epochs, batch_size: of all methods but `head`, which is trained to convergence.
        learning_rate: peak rate of `top:k`, `full`, `lp-ft` and `shuffled-labels`; `bitfit` and `lora` have their own.
        head_learning_rate: trains the head (of `head` and `lp-ft`) by Adam at this rate; by default it is trained by
            L-BFGS, which needs none.
        learning_rates: rates in their stead, by method (`lora:8@4-6`) or kind (`lora`).
        search: choose the learning rate among a third of it, itself, and three times it.
        pooling: what the classifier reads: by the family's own head (`model`), or one linear layer under the mean of the
            real tokens (`mean`) or the first one (`cls`).
        cache: folder where the values of frozen blocks are kept for other methods and seeds; by default they are kept in a
            temporary one.
        cache_for: methods that will use the same `cache`: what they need is kept in the same pass.
        checkpoints: how many checkpoints to keep of the blocks' training, evenly spaced before its end, in folders
            `step-...` beside `folder`.
        max_length: word pieces kept of a text.
        precision: of the blocks' training; `auto` chooses what the processor is fast at.
        device: where to compute.
        progress: whether to draw progress bars on stderr.

    Raises:
        EncoderError: if a checkpoint does not fit the encoder.
        StudyError: if the method does not fit the encoder, a checkpoint's labels or pooling are not the study's, or
            training diverged.
        StorageError: if the disk has no room for the frozen blocks' values.
    """
    import pandas as pd

    check_method(method, encoder)
    folder = Path(folder)
    measure: dict[str, Any] = {"max_length": max_length, "device": device, "progress": progress}
    model = encoder.classifier(label_names, seed=seed, pooling=pooling)
    before = quality(probabilities(model, encoder, test, **measure), test.labels)
    total = sum(parameter.numel() for parameter in model.parameters())
    if method.kind == "checkpoint":
        assert method.path is not None
        path = Path(method.path).expanduser()
        tuned = load_classifier(path, encoder)
        order, note = _label_order(tuned.config, label_names, str(path))
        if (own := getattr(tuned, "pooling", "model")) != pooling:
            raise StudyError(
                f"The checkpoint {path} has the pooling {own!r} but the study {pooling!r}; set adaptation.pooling to "
                f"{own!r}, so that methods are compared and not poolings."
            )
        found = probabilities(tuned, encoder, test, **measure)[:, order]
        empty = pd.DataFrame(columns=LOG_COLUMNS)
        settings: dict[str, Any] = {"labels": note, "pooling": pooling}
        return Adaptation(
            checkpoint=path,
            before=before,
            after=quality(found, test.labels),
            log=empty,
            trainable_parameters=0,
            total_parameters=total,
            seconds=0.0,
            cost=None,
            flops=None,
            label_order=tuple(order),
            steps=(),
            settings=settings,
            predictions=found,
        )

    from layerprobe.adaptation._fit import Recipe, begin, fit, fit_flops, search_rate

    rate = method_rate(method, learning_rate, learning_rates or {})
    encodings = tokenize(encoder, train, max_length)
    needed = cached_layers([method], encoder.n_layers)
    with tempfile.TemporaryDirectory() as scratch:
        layers = sorted({*needed, *cached_layers(cache_for, encoder.n_layers)}) if needed else []
        kept = frozen_values(
            model.to(device),  # type: ignore[arg-type]
            encoder,
            train,
            encodings,
            layers,
            Path(cache).expanduser() if cache is not None else Path(scratch),
            max_length=max_length,
            device=device,
            progress=progress,
        )
        recipe = Recipe(
            encoder=encoder,
            label_names=tuple(label_names),
            method=method,
            pooling=pooling,
            encodings=encodings,
            labels=train.labels,
            frozen={layer: kept[layer] for layer in needed},
            seed=seed,
            epochs=epochs,
            batch_size=batch_size,
            head_learning_rate=head_learning_rate,
            precision=resolve_precision(device, precision),
            device=device,
            progress=progress,
        )
        model = begin(recipe)
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        tried: list[dict[str, Any]] = []
        searched: dict[str, Any] = {}
        steps: list[int] = []

        def keep(step: int) -> None:
            steps.append(step)
            _save(_plain(copy.deepcopy(model), method), encoder, folder.with_name(f"step-{step:06d}"))

        with Meter() as meter:
            if search and method.kind != "head":
                rate, tried, searched = search_rate(recipe, rate)
            done = fit(recipe, model, np.arange(len(train)), rate, checkpoints=checkpoints or 0, keep=keep)
        seconds = meter.cost.seconds + sum(kept[layer].seconds for layer in needed)
        flops = fit_flops(recipe, done, candidates=len(tried))
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise StudyError(
            f"Training by {method.name} diverged (its weights are not finite); lower adaptation.learning_rate."
        )
    _save(_plain(model, method), encoder, folder)
    found = probabilities(load_classifier(folder, encoder), encoder, test, **measure)
    settings = {
        "pooling": pooling,
        **done.settings,
        **searched,
        "frozen_layers": list(needed),
        "frozen_seconds": sum(kept[layer].seconds for layer in needed),
        "frozen_bytes": sum(kept[layer].rows.nbytes for layer in needed),
    }
    table = pd.DataFrame(tried + done.log, columns=LOG_COLUMNS)
    return Adaptation(
        checkpoint=folder,
        before=before,
        after=quality(found, test.labels),
        log=table,
        trainable_parameters=count,
        total_parameters=total,
        seconds=seconds,
        cost=meter.cost,
        flops=flops,
        label_order=tuple(range(len(label_names))),
        steps=tuple(steps),
        settings=settings,
        predictions=found,
    )


def _plain(model: Any, method: Method) -> Any:
    """The model as it is saved: of `lora`, with its additions folded into the weights."""
    if method.kind == "lora":
        merge_lora(model)
    return model


def _save(model: Any, encoder: Encoder, folder: Path) -> None:
    model.to("cpu")
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        model.save_pretrained(folder, safe_serialization=True)
        encoder.tokenizer.save_pretrained(folder)


def _label_order(config: Any, label_names: Sequence[str], path: str) -> tuple[list[int], str]:
    """For each of our classes, its number in a checkpoint; and how the two were matched."""
    theirs = [str(config.id2label[i]) for i in range(config.num_labels)]
    if len(theirs) != len(label_names):
        raise StudyError(
            f"The checkpoint {path} has {len(theirs)} labels ({', '.join(theirs)}) but the data has {len(label_names)} "
            f"({', '.join(label_names)}); give the data it was fine-tuned for."
        )
    if sorted(theirs) == sorted(label_names):
        return [theirs.index(name) for name in label_names], "matched by name"
    if theirs == [f"LABEL_{i}" for i in range(len(theirs))]:
        return list(range(len(theirs))), "the checkpoint does not name its labels; taken in the data's sorted order"
    raise StudyError(
        f"The checkpoint {path} has the labels {', '.join(theirs)} but the data has {', '.join(label_names)}; "
        "rename the data's labels, or the checkpoint's id2label, so that they agree."
    )
