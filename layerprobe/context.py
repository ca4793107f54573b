"""What a stage may use while it runs: the study, and its examples and models, loaded when first used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import DataError
from layerprobe.stage import ResolvedStudy
from layerprobe.store import Artifact

if TYPE_CHECKING:
    from layerprobe.data import Corpus, Examples, OodSet
    from layerprobe.encoder import Encoder
    from layerprobe.study import Study


class Context:
    """The resolved study with its corpus and encoder, which are loaded on first use and kept."""

    def __init__(
        self,
        resolved: ResolvedStudy,
        *,
        corpus: Corpus | None = None,
        encoder: Encoder | None = None,
        ood: tuple[OodSet, ...] | None = None,
    ) -> None:
        self.resolved = resolved
        loaded = {"corpus": corpus, "encoder": encoder, "ood": ood}
        vars(self).update({name: value for name, value in loaded.items() if value is not None})

    @property
    def study(self) -> Study:
        return self.resolved.study

    @property
    def device(self) -> str:
        return self.resolved.device

    @cached_property
    def corpus(self) -> Corpus:
        corpus = load_study_corpus(self.study)
        if corpus.fingerprint != self.resolved.corpus:
            raise DataError(f"{self.study.data.source} changed while the study ran; run the study again.")
        return corpus

    @cached_property
    def encoder(self) -> Encoder:
        return load_study_encoder(self.study)

    @cached_property
    def ood(self) -> tuple[OodSet, ...]:
        return load_study_ood(self.study, self.corpus)

    @cached_property
    def sae_examples(self) -> Examples:
        """Examples that give the rows for dictionaries."""
        if self.resolved.sae_source == "train":
            return self.corpus.train
        return unseen_candidates(self.study, self.corpus, self.encoder)

    @cached_property
    def rerun_examples(self) -> Examples:
        """Test examples for analyses that run the classifier many times: the first ones, which are in random order."""
        test = self.corpus.test
        return test.take(range(min(len(test), self.study.internals.examples)))

    def base_model(self) -> Any:
        """The pretrained body under a fresh head, in float32 and eval mode."""
        return self.encoder.classifier(self.corpus.label_names, seed=0, pooling=self.study.adaptation.pooling)

    def adapted_model(self, adapt: Artifact) -> Any:
        """An adapted classifier, loaded from its saved weights in float32 and eval mode."""
        from layerprobe.encoder import load_classifier

        return load_classifier(checkpoint_folder(adapt), self.encoder)

    @property
    def seed(self) -> int:
        """Seed of analyses that all methods share, so that equal layers have equal numbers."""
        return self.study.seeds[0]

    def model(self, adapt: Artifact | None) -> Any:
        """The model of an adaptation; of None the base."""
        return self.base_model() if adapt is None else self.adapted_model(adapt)


_shared: list[Context] = []


def share_context(context: Context) -> Context:
    """Let later tasks of this process use what a context has loaded."""
    _shared[:] = [context]
    return context


def shared_context(resolved: ResolvedStudy) -> Context:
    """The context that was shared for a study, or a new one."""
    return _shared[0] if _shared and _shared[0].resolved == resolved else share_context(Context(resolved))


def checkpoint_folder(adapt: Artifact) -> Path:
    """Where an adapted model's weights are: in the artifact, or where the user keeps the checkpoint."""
    settings = json.loads((adapt.folder / "settings.json").read_text(encoding="utf-8"))
    return Path(settings["checkpoint"]).expanduser() if settings["checkpoint"] else adapt.folder / "checkpoint"


def label_order(adapt: Artifact) -> list[int]:
    """For each class of the data, its index in an adapted model: a checkpoint may number the classes in another order."""
    return json.loads((adapt.folder / "settings.json").read_text(encoding="utf-8"))["label_order"]


def relabelled(adapt: Artifact, examples: Examples) -> Examples:
    """The same examples with labels numbered as an adapted model numbers its classes."""
    import numpy as np

    return replace(examples, labels=np.asarray(label_order(adapt), dtype=np.int64)[examples.labels])


# Loading ---------------------------------------------------------------------------------------------------------------


def load_study_corpus(study: Study) -> Corpus:
    """The study's labelled examples, split.

    Raises:
        DataError: naming study keys.
    """
    from layerprobe.data import DataSource, load_corpus

    data = study.data
    with naming_keys("data"):
        source = DataSource(data.source, data.text, data.label, data.config, data.revision)
        return load_corpus(source, train=data.train, test=data.test, seed=data.seed)


def load_study_ood(study: Study, corpus: Corpus) -> tuple[OodSet, ...]:
    """The study's out-of-domain sets.

    Raises:
        DataError: naming study keys.
    """
    from layerprobe.data import DataSource, load_ood

    data, sets = study.data, []
    for ood in data.ood:
        with naming_keys("data.ood"):
            source = DataSource(ood.source, ood.text or data.text, ood.label or data.label, ood.config, ood.revision)
            sets.append(load_ood(ood.name, source, corpus, rows=ood.rows, seed=data.seed))
    return tuple(sets)


def load_study_encoder(study: Study) -> Encoder:
    """The study's pretrained encoder.

    Raises:
        EncoderError: in one sentence.
    """
    from layerprobe.encoder import load_encoder

    model = study.model
    return load_encoder(model.name, revision=model.revision, trust_remote_code=model.trust_remote_code)


@contextmanager
def naming_keys(section: str) -> Iterator[None]:
    """Let errors about data name the keys of this section of the study."""
    try:
        yield
    except DataError as error:
        keys = ("text", "label", "train", "test", "rows", "source")
        raise DataError(error.with_names({name: f"{section}.{name}" for name in keys})) from error


def unseen_candidates(study: Study, corpus: Corpus, encoder: Encoder) -> Examples:
    """As many of the unseen examples as give the rows that the study's dictionaries are trained on."""
    unseen, tokens, count = corpus.unseen, 0, 0
    while tokens < study.sae.rows and count < len(unseen):
        block = range(count, min(count + 1000, len(unseen)))
        tokens += sum(token_counts(study, encoder, unseen.take(block)))
        count = block.stop
    return unseen.take(range(count))


def token_counts(study: Study, encoder: Encoder, examples: Examples) -> list[int]:
    """Tokens of each example, special ones included, after truncation."""
    from layerprobe.encoder import tokenize

    if not len(examples):
        return []
    return [len(encoding["input_ids"]) for encoding in tokenize(encoder, examples, study.data.max_length)]
