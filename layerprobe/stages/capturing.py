"""The stages that run models over texts and keep what every layer puts out."""

from __future__ import annotations

from pathlib import Path

from layerprobe.inputs import Inputs, Parents
from layerprobe.stages.files import Build, model_of


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
            model_of(inputs, done, adapt),
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
            model_of(inputs, done, None),
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

        model = model_of(inputs, done, adapt)
        base = ActivationStore.open(done["capture-sae: base"].folder / "rows") if adapt else None
        if base is not None and same_body(model, model_of(inputs, done, None), inputs.encoder):
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
