"""From a study to a resolved one: what only its data and model can tell, checked before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layerprobe.context import (
    Context,
    TokenIds,
    load_study_corpus,
    load_study_encoder,
    load_study_ood,
    read_study,
    share_context,
    unseen_candidates,
)
from layerprobe.errors import ArgumentError, StudyError
from layerprobe.files import checksum
from layerprobe.stage import OodFacts, ResolvedStudy, StudyShape
from layerprobe.study import STUDY_KEYS, Study

if TYPE_CHECKING:
    from layerprobe.encoder import Encoder

FEWEST_EXAMPLES = 8
"""Examples below which no interval over examples can be given."""


def resolve(study: Study, device: str = "auto", precision: str = "auto") -> Context:
    """Read the data and the model of a study and check that its parts fit each other.

    Raises:
        StudyError, DataError, EncoderError: in one sentence.
    """
    try:
        return _resolve(study, device, precision)
    except ArgumentError as error:
        names = {name: STUDY_KEYS[name] for name in error.arguments if name in STUDY_KEYS}
        if not names:
            raise
        raise StudyError(error.with_names(names)) from error


def _resolve(study: Study, device: str, precision: str) -> Context:
    if study.few_shot is not None:
        return _resolve_few_shot(study, device)
    from layerprobe import adaptation
    from layerprobe.data import KnownCopies, NearCopies
    from layerprobe.sae.architectures import find_architecture
    from layerprobe.similarity import MEASURES

    StudyShape(study, None).methods  # noqa: B018  what needs no model is checked before one is loaded
    find_architecture(study.sae.architecture)
    known = [measure.name for measure in MEASURES]
    for name in study.similarity.measures:
        if name not in known:
            raise StudyError(f"similarity.measures contains {name!r}; the measures are {', '.join(known)}.")
    device = resolve_device(device)
    resolved_precision = adaptation.precision(device, precision)
    # The data are checked before a model is loaded; near copies are found with its tokenizer.
    sources = read_study(study)
    corpus = load_study_corpus(study, KnownCopies(), sources)
    for key, number in (("data.test", len(corpus.test)), ("activations.examples", study.activations.examples)):
        if number < FEWEST_EXAMPLES:
            raise StudyError(
                f"{key} is {number}, but an interval over examples needs at least {FEWEST_EXAMPLES}; raise {key} or give "
                "more data."
            )
    load_study_ood(study, corpus, {one.name: KnownCopies() for one in study.data.ood}, sources)
    encoder = load_study_encoder(study)
    if study.data.max_length > encoder.max_positions:
        raise StudyError(
            f"data.max_length is {study.data.max_length}, but {encoder.name} reads at most {encoder.max_positions} tokens; "
            "lower it to that."
        )
    shape = StudyShape(study, encoder.n_layers)
    for method in shape.methods:
        method.check(encoder)
    adaptation.check_learning_rates(study.adaptation.learning_rates, shape.methods)
    for layer in study.sae.layers or ():
        if not 0 <= layer <= encoder.n_layers:
            raise StudyError(
                f"sae.layers contains layer {layer}, but {encoder.name} has layers 0 (embeddings) to {encoder.n_layers}."
            )
    folders = {method.name: method.checkpoint_folder for method in shape.methods}
    tokens = TokenIds(study, encoder)
    finder = NearCopies(tokens)
    corpus = load_study_corpus(study, finder, sources)
    ood = load_study_ood(study, corpus, {one.name: finder for one in study.data.ood}, sources)
    train_tokens = sum(tokens.counts(corpus.train))
    unseen = unseen_candidates(study, corpus, tokens, finder)
    enough = unseen.n_tokens >= min(study.sae.rows, train_tokens)
    for_dictionaries = [unseen.near_copies] if enough and shape.sae_layers else []
    resolved = ResolvedStudy(
        study=study,
        n_layers=encoder.n_layers,
        width=encoder.width,
        device=device,
        precision=resolved_precision,
        corpus=corpus.fingerprint,
        encoder=encoder.fingerprint,
        ood=tuple(OodFacts(one.name, one.fingerprint, tuple(one.classes), one.left_out) for one in ood),
        checkpoints={name: _checksums(folder) for name, folder in folders.items() if folder is not None},
        sae_source="unseen" if enough else "train",
        n_train=len(corpus.train),
        n_test=len(corpus.test),
        train_tokens=train_tokens,
        captured_tokens=sum(tokens.counts(corpus.test)[: study.activations.examples]),
        model_bytes=_model_bytes(encoder),
        left_out=corpus.left_out,
        sae_left_out=unseen.left_out if enough else (),
        near_copies=(corpus.near_copies, *for_dictionaries, *(one.near_copies for one in ood)),
    )
    return share_context(Context(resolved, corpus=corpus, encoder=encoder, ood=ood))


def _resolve_few_shot(study: Study, device: str) -> Context:
    """Check the classes, the episodes and the depths of a few-shot study."""
    from layerprobe.energy_study import check_energy
    from layerprobe.few_shot import check_few_shot, load_few_shot

    check_few_shot(study, None)
    check_energy(study, None)
    device = resolve_device(device)
    rows = read_study(study)[None]
    data = load_few_shot(study, rows)
    check_energy(study, data)
    encoder = load_study_encoder(study)
    if study.data.max_length > encoder.max_positions:
        raise StudyError(
            f"data.max_length is {study.data.max_length}, but {encoder.name} reads at most {encoder.max_positions} tokens; "
            "lower it to that."
        )
    check_few_shot(study, encoder.n_layers)
    resolved = ResolvedStudy(
        study=study,
        n_layers=encoder.n_layers,
        width=encoder.width,
        device=device,
        precision="fp32",
        corpus=data.fingerprint,
        encoder=encoder.fingerprint,
        ood=(),
        checkpoints={},
        sae_source="train",
        n_train=sum(map(len, data.parts.train.rows)),
        n_test=len(data.probes),
        train_tokens=0,
        captured_tokens=0,
        model_bytes=_model_bytes(encoder),
    )
    context = Context(resolved, encoder=encoder, ood=())
    vars(context)["few_shot"] = data
    return share_context(context)


DEVICES = ("auto", "cpu", "cuda", "mps")


def check_device(device: str) -> None:
    """Refuse the name of an unknown device; reads nothing and loads no library.

    Raises:
        StudyError: if it is unknown.
    """
    if device not in DEVICES:
        raise StudyError(f"--device {device} is unknown; the devices are auto, cpu, cuda and mps.")


def resolve_device(device: str) -> str:
    """The fastest device for `auto`; any other must be available.

    Raises:
        StudyError: if it is unknown or not available.
    """
    check_device(device)
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise StudyError(f"--device {device} is not available to torch here; use --device cpu.")
    return device


def is_resolved_here(resolved: ResolvedStudy, device: str, precision: str) -> bool:
    """Whether this device and this precision stand for the same here and now as when a study was resolved.

    Raises:
        StudyError: if the device is not available.
    """
    from layerprobe import adaptation

    found = resolve_device(device)
    return (found, adaptation.precision(found, precision)) == (resolved.device, resolved.precision)


def _checksums(folder: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted(folder.glob("*")) if path.is_file()}


def _model_bytes(encoder: Encoder) -> int:
    folder = Path(encoder.folder)
    if folder.is_dir():
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        encoder.folder, revision=encoder.revision, trust_remote_code=encoder.trust_remote_code
    )
    # Embeddings, and the four square and two feed-forward matrices of each block.
    width, inner = encoder.width, getattr(config, "intermediate_size", 4 * encoder.width)
    return 4 * (config.vocab_size * width + encoder.n_layers * (4 * width**2 + 2 * width * inner))
