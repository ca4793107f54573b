"""From a study to a resolved one: what only its data and model can tell, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe import hub
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
from layerprobe.errors import ArgumentError, Mistakes, StudyError
from layerprobe.files import checksum
from layerprobe.stage import OodFacts, ResolvedStudy, StudyShape
from layerprobe.study import STUDY_KEYS, Study

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.data import Corpus
    from layerprobe.encoder import Encoder

FEWEST_EXAMPLES = 8
"""Examples below which no interval over examples can be given."""


def resolve(study: Study, device: str = "auto", precision: str = "auto") -> Context:
    """Read the data and the model of a study and check that its parts fit each other.

    Raises:
        StudyError, DataError, EncoderError: in one sentence.
    """
    if study.few_shot is not None:
        return _resolve_few_shot(study, device)
    return _resolve(study, device, precision)


@contextmanager
def naming_study_keys() -> Iterator[None]:
    """Let errors of the libraries name the keys of the study."""
    try:
        yield
    except ArgumentError as error:
        names = {name: STUDY_KEYS[name] for name in error.arguments if name in STUDY_KEYS}
        if not names:
            raise
        raise StudyError(error.with_names(names)) from error


def _resolve(study: Study, device: str, precision: str) -> Context:
    from layerprobe import adaptation
    from layerprobe.data import KnownCopies, NearCopies

    mistakes = Mistakes()
    _check_names(study, mistakes)
    resolved_precision: Any = None
    with mistakes.collected(), naming_study_keys():
        device = resolve_device(device)
        resolved_precision = adaptation.precision(device, precision)
    corpus = encoder = None
    with mistakes.collected():
        # The data are checked before a model is loaded; near copies are found with its tokenizer.
        sources = read_study(study)
        corpus = load_study_corpus(study, KnownCopies(), sources)
        load_study_ood(study, corpus, {one.name: KnownCopies() for one in study.data.ood}, sources)
    if corpus is not None:
        _check_examples(study, corpus, mistakes)
    if hub.is_hub_id(study.model.name):  # a model is not downloaded in vain
        mistakes.report()
    with mistakes.collected(), naming_study_keys():
        encoder = load_study_encoder(study)
    if encoder is not None:
        _check_model(study, encoder, corpus, mistakes)
    mistakes.report()
    assert corpus is not None and encoder is not None
    shape = StudyShape(study, encoder.n_layers)
    folders = {method.name: method.checkpoint_folder for method in shape.methods}
    tokens = TokenIds(study, encoder)
    finder = NearCopies(tokens)
    corpus = load_study_corpus(study, finder, sources)
    ood = load_study_ood(study, corpus, {one.name: finder for one in study.data.ood}, sources)
    train_tokens = sum(tokens.counts(corpus.train))
    unseen = unseen_candidates(study, corpus, tokens, finder)
    enough = unseen.n_tokens >= min(study.sae.rows, train_tokens)
    if shape.sae_layers:
        with naming_study_keys():
            _check_sizes(study, encoder, tokens.counts(unseen.examples if enough else corpus.train))
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


def _check_names(study: Study, mistakes: Mistakes) -> None:
    """Check what needs neither data nor model."""
    from layerprobe.sae.architectures import find_architecture
    from layerprobe.similarity import MEASURES

    with mistakes.collected(), naming_study_keys():
        StudyShape(study, None).methods  # noqa: B018
    with mistakes.collected(), naming_study_keys():
        find_architecture(study.sae.architecture)
    known = [measure.name for measure in MEASURES]
    for name in study.similarity.measures:
        if name not in known:
            mistakes.add(f"similarity.measures contains {name!r}; the measures are {', '.join(known)}.")


def _check_examples(study: Study, corpus: Corpus, mistakes: Mistakes) -> None:
    """Check that there are as many examples as the analyses need."""
    for key, number in (("data.test", len(corpus.test)), ("activations.examples", study.activations.examples)):
        if number < FEWEST_EXAMPLES:
            mistakes.add(
                f"{key} is {number}, but an interval over examples needs at least {FEWEST_EXAMPLES}; raise {key} or give "
                "more data."
            )
    if "probes" in study.internals.parts:
        labels = corpus.train.labels.tolist()
        single = [name for number, name in enumerate(corpus.label_names) if labels.count(number) == 1]
        if single:
            names = ", ".join(map(repr, single[:5])) + (f" and {len(single) - 5} more" if len(single) > 5 else "")
            mistakes.add(
                f"{'The class' if len(single) == 1 else 'The classes'} {names} of {corpus.name} "
                f"{'has' if len(single) == 1 else 'have'} one training example, but the cross-validation of probes needs two; "
                'raise data.train, leave the class out, or leave "probes" out of internals.parts.'
            )


def _check_model(study: Study, encoder: Encoder, corpus: Corpus | None, mistakes: Mistakes) -> None:
    """Check what the study asks of its model, and that the checkpoints fit it and the labels of the data."""
    from layerprobe import adaptation
    from layerprobe.stages.frozen_blocks import checkpoint_config

    _check_length(study, encoder, mistakes)
    methods: tuple[Method, ...] = ()
    with mistakes.collected(), naming_study_keys():
        methods = StudyShape(study, encoder.n_layers).methods
    for method in methods:
        with mistakes.collected(), naming_study_keys():
            method.check(encoder)
            if method.checkpoint_folder is not None and corpus is not None:
                config = method.configured(checkpoint_config(study))
                adaptation.load_checkpoint(method.checkpoint_folder, encoder, corpus.label_names, config)
    with mistakes.collected(), naming_study_keys():
        if methods:
            adaptation.check_learning_rates(study.adaptation.learning_rates, methods)
    for layer in study.sae.layers or ():
        if not 0 <= layer <= encoder.n_layers:
            mistakes.add(
                f"sae.layers contains layer {layer}, but {encoder.name} has layers 0 (embeddings) to {encoder.n_layers}."
            )


def _check_length(study: Study, encoder: Encoder, mistakes: Mistakes) -> None:
    """Check that the model reads texts of the study's length."""
    if study.data.max_length > encoder.max_positions:
        mistakes.add(
            f"data.max_length is {study.data.max_length}, but {encoder.name} reads at most {encoder.max_positions} "
            "tokens; lower it to that."
        )


def _check_sizes(study: Study, encoder: Encoder, counts: Sequence[int]) -> None:
    """Check that dictionaries of the study's sizes can be trained on the rows there are.

    Args:
        counts: tokens of each example that gives rows, of which only whole examples are taken.

    Raises:
        ArgumentError: if not.
    """
    from layerprobe.sae import SaeConfig, plan

    settings, rows = study.sae, 0
    for count in counts:
        if rows + count > settings.rows:
            break
        rows += count
    if rows < 2:
        raise StudyError(
            f"sae.rows is {settings.rows}, less than the tokens of the first example; raise it to some thousand."
        )
    try:
        plan(SaeConfig(settings.architecture, settings.expansion, settings.k), (rows, encoder.width))
    except ArgumentError as error:
        raise StudyError(error.with_names({**STUDY_KEYS, "rows": "sae.rows"})) from error


def _resolve_few_shot(study: Study, device: str) -> Context:
    """Check the classes, the episodes and the depths of a few-shot study."""
    from layerprobe.energy_study import check_energy
    from layerprobe.few_shot import check_few_shot, load_few_shot

    mistakes, data, encoder = Mistakes(), None, None
    for check in (check_few_shot, check_energy):
        with mistakes.collected(), naming_study_keys():
            check(study, None)
    with mistakes.collected():
        device = resolve_device(device)
    with mistakes.collected(), naming_study_keys():
        data = load_few_shot(study, read_study(study)[None])
        check_energy(study, data)
    if hub.is_hub_id(study.model.name):  # a model is not downloaded in vain
        mistakes.report()
    with mistakes.collected(), naming_study_keys():
        encoder = load_study_encoder(study)
    if encoder is not None:
        _check_length(study, encoder, mistakes)
        with mistakes.collected(), naming_study_keys():
            check_few_shot(study, encoder.n_layers)
    mistakes.report()
    assert data is not None and encoder is not None
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
        # An estimate from above: token rows are stored for dictionaries alone.
        captured_tokens=min(len(data.probes), study.activations.examples) * study.data.max_length,
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
