"""The stages that run models over texts and keep what every layer puts out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.inputs import Inputs
from layerprobe.stages.files import Build, model_of
from layerprobe.task import Parents

if TYPE_CHECKING:
    from layerprobe.activations import ActivationStore


def capture_base(inputs: Inputs) -> Build:
    """Activations of the pretrained encoder on the test texts."""
    return _capture_test(inputs, None)


def capture_adapted(inputs: Inputs, adapt: str) -> Build:
    """Activations of an adapted encoder on the same texts in the same batches, loaded afresh from its saved weights."""
    return _capture_test(inputs, adapt)


def _capture_test(inputs: Inputs, adapt: str | None) -> Build:
    def build(folder: Path, done: Parents) -> None:
        from layerprobe.activations import ActivationStore, CaptureConfig, capture

        asked = inputs.study.activations
        store = capture(
            model_of(inputs, done, adapt),
            inputs.encoder,
            inputs.corpus.test,
            folder / "rows",
            CaptureConfig(max_length=inputs.study.data.max_length, token_examples=asked.examples, dtype=asked.dtype),
            device=inputs.device,
            progress=inputs.progress,
        )
        if adapt:
            store.share_files(ActivationStore.open(done["capture: base"].folder / "rows"))

    return build


def capture_train(inputs: Inputs, adapt: str | None) -> Build:
    """Pooled vectors of the training texts: the last layer's for the reference classifier, all of them for probes."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe.activations import ActivationStore, CaptureConfig, capture

        model = model_of(inputs, done, adapt)
        base = ActivationStore.open(done["capture-train: base"].folder / "rows") if adapt else None
        if _is_base(inputs, done, model, base, folder):
            return
        store = capture(
            model,
            inputs.encoder,
            inputs.corpus.train,
            folder / "rows",
            CaptureConfig(inputs.study.data.max_length, inputs.train_layers, token_examples=0),
            device=inputs.device,
            progress=inputs.progress,
        )
        if base:
            store.share_files(base)

    return build


def capture_sae(inputs: Inputs, adapt: str | None) -> Build:
    """Token rows of the chosen layers to train dictionaries on."""

    def build(folder: Path, done: Parents) -> None:
        from layerprobe.activations import ActivationStore, CaptureConfig, capture

        model = model_of(inputs, done, adapt)
        base = ActivationStore.open(done["capture-sae: base"].folder / "rows") if adapt else None
        if _is_base(inputs, done, model, base, folder):
            return
        store = capture(
            model,
            inputs.encoder,
            inputs.sae_examples,
            folder / "rows",
            CaptureConfig(
                max_length=inputs.study.data.max_length,
                layers=inputs.sae_layers,
                token_rows=inputs.study.sae.rows,
                pooled=False,
                dtype=inputs.study.activations.dtype,
            ),
            device=inputs.device,
            progress=inputs.progress,
        )
        if base:
            store.share_files(base)

    return build


def _is_base(inputs: Inputs, done: Parents, model: Any, base: ActivationStore | None, folder: Path) -> bool:
    """Whether a model's body is the base's own; then its rows are the base's, and are shared instead of computed.

    Equal weights give equal rows: that base and adapted agree bit by bit is seen on the test texts.
    """
    from layerprobe.encoder import same_body

    if base is None or not same_body(model, model_of(inputs, done, None), inputs.encoder):
        return False
    base.copy_to(folder / "rows")
    return True
