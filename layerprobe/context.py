"""What a stage may use while it runs: the study, and its examples and models, loaded when first used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import DataError, EncoderError
from layerprobe.stage import ResolvedStudy
from layerprobe.store import Artifact

if TYPE_CHECKING:
    import numpy as np

    from layerprobe.data import Copies, CopyCount, Corpus, Examples, Finder, Labelled, OodSet
    from layerprobe.encoder import Encoder
    from layerprobe.few_shot import FewShotData
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
        self.shared: dict[tuple[Any, ...], Any] = {}
        """Small results that several tasks need, by what they follow from; a task computes what is not there."""

    def borrow(self, other: Context) -> None:
        """Use what another context has loaded, as far as it is the same for this study."""
        mine, theirs = self.resolved, other.resolved
        same = (mine.study.data, mine.corpus, mine.left_out) == (theirs.study.data, theirs.corpus, theirs.left_out)
        equal = {
            "corpus": same,
            "ood": same and mine.ood == theirs.ood,
            "encoder": (mine.study.model, mine.encoder) == (theirs.study.model, theirs.encoder),
        }
        for name, may in equal.items():
            if may and name in vars(other):
                vars(self).setdefault(name, vars(other)[name])

    @property
    def study(self) -> Study:
        return self.resolved.study

    @property
    def device(self) -> str:
        return self.resolved.device

    @cached_property
    def few_shot(self) -> FewShotData:
        """Classes and episodes of a few-shot study."""
        from layerprobe.few_shot import load_few_shot

        return load_few_shot(self.study, read_study(self.study)[None])

    @cached_property
    def corpus(self) -> Corpus:
        from layerprobe.data import KnownCopies

        if self.study.few_shot is not None:
            return self._unchanged(self.few_shot.corpus())

        return self._unchanged(load_study_corpus(self.study, KnownCopies(self.resolved.left_out)))

    def _unchanged(self, corpus: Corpus) -> Corpus:
        if corpus.fingerprint != self.resolved.corpus:
            raise DataError(f"{self.study.data.source} changed while the study ran; run the study again.")
        return corpus

    @cached_property
    def encoder(self) -> Encoder:
        encoder = load_study_encoder(self.study)
        if encoder.fingerprint != self.resolved.encoder:
            raise EncoderError(f"{self.study.model.name} changed while the study ran; run the study again.")
        return encoder

    @cached_property
    def ood(self) -> tuple[OodSet, ...]:
        from layerprobe.data import KnownCopies

        finders = {one.name: KnownCopies(one.left_out) for one in self.resolved.ood}
        return load_study_ood(self.study, self.corpus, finders)

    @cached_property
    def sae_examples(self) -> Examples:
        """Examples that give the rows for dictionaries."""
        if self.resolved.sae_source == "train":
            return self.corpus.train
        from layerprobe.data import KnownCopies

        tokens, finder = TokenIds(self.study, self.encoder), KnownCopies(self.resolved.sae_left_out)
        return unseen_candidates(self.study, self.corpus, tokens, finder).examples

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


MOST_SHARED = 2
"""Contexts that are kept, where tasks of several studies alternate."""
_shared: list[Context] = []


def share_context(context: Context) -> Context:
    """Let later tasks of this process use what a context has loaded."""
    _shared[:] = [context, *(one for one in _shared if one is not context)][:MOST_SHARED]
    return context


def shared_context(resolved: ResolvedStudy) -> Context:
    """The context that was shared for a study, or a new one with what others have loaded."""
    for context in _shared:
        if context.resolved == resolved:
            return share_context(context)
    context = Context(resolved)
    for other in _shared:
        context.borrow(other)
    return share_context(context)


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


def read_study(study: Study) -> dict[str | None, Labelled]:
    """The examples of the study's sources: the corpus under None, the out-of-domain sets under their names.

    Raises:
        DataError: naming study keys.
    """
    from layerprobe.data import DataSource, read_examples

    data = study.data
    sources: dict[str | None, Labelled] = {}
    with naming_keys("data"):
        source = DataSource(
            name=data.source,
            text=data.text,
            label=data.label,
            config=data.config,
            revision=data.revision,
            group=data.group,
            test_source=data.test_source,
            split_column=data.split_column,
            group_column=data.group_column,
            on_missing=data.on_missing,
        )
        sources[None] = read_examples(source)
    for ood in data.ood:
        with naming_keys("data.ood"):
            source = DataSource(
                name=ood.source,
                text=ood.text or data.text,
                label=ood.label or data.label,
                config=ood.config,
                revision=ood.revision,
                on_missing=data.on_missing,
            )
            sources[ood.name] = read_examples(source)
    return sources


def load_study_corpus(study: Study, finder: Finder, sources: Mapping[str | None, Labelled] | None = None) -> Corpus:
    """The study's labelled examples, split.

    Args:
        study: the study.
        finder: decides what a near copy is.
        sources: what `read_study` returned; by default they are read.

    Raises:
        DataError: naming study keys.
    """
    from layerprobe.data import load_corpus

    data = study.data
    with naming_keys("data"):
        return load_corpus(
            (sources or read_study(study))[None],
            train=data.train,
            test=data.test,
            seed=data.seed,
            near_duplicates=data.near_duplicates,
            finder=finder,
        )


def load_study_ood(
    study: Study,
    corpus: Corpus,
    finders: Mapping[str, Finder],
    sources: Mapping[str | None, Labelled] | None = None,
) -> tuple[OodSet, ...]:
    """The study's out-of-domain sets.

    Args:
        study: the study.
        corpus: its examples.
        finders: decide what a near copy is, by the name of the set.
        sources: what `read_study` returned; by default they are read.

    Raises:
        DataError: naming study keys.
    """
    from layerprobe.data import load_ood

    data, sets = study.data, []
    if data.ood and sources is None:
        sources = read_study(study)
    for ood in data.ood:
        assert sources is not None
        with naming_keys("data.ood"):
            sets.append(
                load_ood(
                    ood.name,
                    sources[ood.name],
                    corpus,
                    rows=ood.rows,
                    seed=data.seed,
                    near_duplicates=data.near_duplicates,
                    finder=finders[ood.name],
                )
            )
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
        keys = ("text", "label", "group", "train", "test", "rows", "source", "near_duplicates")
        names = {name: f"{section}.{name}" for name in keys}
        corpus_keys = ("test_source", "split_column", "group_column", "on_missing")
        names |= {name: f"data.{name}" for name in corpus_keys}
        raise DataError(error.with_names(names)) from error


@dataclass(frozen=True)
class Unseen:
    """Examples that fine-tuning does not see, to train dictionaries on."""

    examples: Examples
    n_tokens: int
    """Tokens of these examples, special ones included, after truncation."""
    near_copies: CopyCount
    """Of training and test examples among the unseen examples that were looked at."""
    left_out: tuple[str, ...]
    """Ids of the near copies that were left out, sorted."""


def unseen_candidates(study: Study, corpus: Corpus, tokens: TokenIds, finder: Finder) -> Unseen:
    """As many of the unseen examples as give the rows that the study's dictionaries are trained on."""
    import numpy as np

    from layerprobe.data import CopyCount

    unseen, n_tokens, count = corpus.unseen, 0, 0
    remove, copies_of = study.data.near_duplicates == "remove", finder.of(corpus.train, corpus.test)
    found: list[Copies] = []
    kept: list[int] = []
    while n_tokens < study.sae.rows and count < len(unseen):
        block = range(count, min(count + 1000, len(unseen)))
        found.append(copies_of(unseen.take(block)))
        new = block.start + np.flatnonzero(~found[-1].mask if remove else np.ones(len(block), bool))
        n_tokens += sum(tokens.counts(unseen.take(new)))
        kept.extend(new.tolist())
        count = block.stop
    counted = CopyCount.of_copies("unseen", found, removed=remove, short=None)
    left_out = sorted({*unseen.ids[:count]} - {unseen.ids[i] for i in kept})
    return Unseen(unseen.take(kept), n_tokens, counted, tuple(left_out))


class TokenIds:
    """Token ids of examples, special ones included, after truncation; computed once per example."""

    def __init__(self, study: Study, encoder: Encoder) -> None:
        self.max_length, self.encoder = study.data.max_length, encoder
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, examples: Examples) -> list[np.ndarray]:
        import numpy as np

        from layerprobe.encoder import tokenize

        new = examples.take([i for i, one in enumerate(examples.ids) if one not in self._known])
        for one, encoding in zip(new.ids, tokenize(self.encoder, new, self.max_length), strict=True):
            self._known[one] = np.array(encoding["input_ids"], dtype=np.int32)
        return [self._known[one] for one in examples.ids]

    def counts(self, examples: Examples) -> list[int]:
        """Number of tokens of each example."""
        return [len(ids) for ids in self(examples)]
