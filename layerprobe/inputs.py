"""What all stages of a study share: its texts, its encoder, its device, and how large their work will be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layerprobe.errors import StudyError
from layerprobe.identities import Identities
from layerprobe.study import Study
from layerprobe.tasks import seeds_of

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.adaptation import Method
    from layerprobe.data import Corpus, Examples, OodSet
    from layerprobe.encoder import Encoder


LEAST_TEXTS = 8
"""Texts below which no interval over texts can be given."""


def load_inputs(study: Study, device: str, home: Path, *, progress: bool, precision: str = "auto") -> Inputs:
    """Read the data and the model of a study, and check that what it asks for fits them.

    Raises:
        StudyError, DataError, EncoderError: in one sentence.
    """
    from layerprobe.adaptation import (
        check_learning_rates,
        check_method,
        expand_methods,
        parse_method,
    )
    from layerprobe.adaptation import precision as resolve_precision
    from layerprobe.data import load_corpus, load_ood
    from layerprobe.encoder import load_encoder
    from layerprobe.similarity import MEASURES

    if study.adaptation.methods != "depths":
        for method in study.adaptation.methods:  # what needs no model is said before one is loaded
            parse_method(method)
    known = [measure.name for measure in MEASURES]
    for name in study.similarity.measures:
        if name not in known:
            raise StudyError(f"similarity.measures names {name!r}; the measures are {', '.join(known)}.")
    device = resolve_device(device)
    resolved = resolve_precision(device, precision)
    asked = study.data
    corpus = load_corpus(
        asked.source,
        text=asked.text,
        label=asked.label,
        config=asked.config,
        revision=asked.revision,
        train=asked.train,
        test=asked.test,
        seed=asked.seed,
    )
    few = {"data.test": len(corpus.test), "activations.examples": study.activations.examples}
    for key, number in few.items():
        if number < LEAST_TEXTS:
            raise StudyError(
                f"{key} comes to {number} text{'s' * (number != 1)}, but an interval over texts needs at least "
                f"{LEAST_TEXTS}; raise {key} or give more data."
            )
    ood = [
        load_ood(
            one.name,
            one.source,
            corpus,
            text=one.text or asked.text,
            label=one.label or asked.label,
            config=one.config,
            revision=one.revision,
            rows=one.rows,
            seed=asked.seed,
        )
        for one in asked.ood
    ]
    encoder = load_encoder(
        study.model.name, revision=study.model.revision, trust_remote_code=study.model.trust_remote_code
    )
    if asked.max_length > encoder.max_positions:
        raise StudyError(
            f"data.max_length = {asked.max_length}, but {encoder.name} reads at most {encoder.max_positions} "
            "word pieces; lower it to that."
        )
    methods = expand_methods(study.adaptation.methods, encoder.n_layers)
    for one in methods:
        check_method(one, encoder)
    check_learning_rates(study.adaptation.learning_rates, methods)
    for layer in study.sae.layers or ():
        if not 0 <= layer <= encoder.n_layers:
            raise StudyError(
                f"sae.layers names layer {layer}, but {encoder.name} has layers 0 (embeddings) to {encoder.n_layers}."
            )
    return Inputs(study, corpus, encoder, methods, device, resolved, progress, tuple(ood), home)


def resolve_device(device: str) -> str:
    """`auto` becomes the fastest device there is; a named one must exist."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if device not in there:
        raise StudyError(f"--device {device} is unknown; the devices are auto, cpu, cuda and mps.")
    if not there[device]:
        raise StudyError(f"--device {device} is not available to torch here; use --device cpu.")
    return device


@dataclass(frozen=True)
class Inputs(Identities):
    """A study with its corpus, encoder and methods in hand."""

    study: Study
    corpus: Corpus
    encoder: Encoder
    methods: tuple[Method, ...]
    device: str
    precision: Literal["bf16", "fp32"]
    progress: bool
    ood: tuple[OodSet, ...]
    home: Path
    """Root of the artifact store."""

    def seeds(self, method: Method) -> tuple[int, ...]:
        """Seeds to run a method with."""
        return seeds_of(self.study, method)

    # What is captured -------------------------------------------------------------------------------------------------

    @cached_property
    def sae_layers(self) -> tuple[int, ...]:
        """Layers that get dictionaries: as asked, else an early, a middle and the last one."""
        if self.study.sae.layers is not None:
            return tuple(sorted(set(self.study.sae.layers)))
        last = self.encoder.n_layers
        return tuple(sorted({max(1, last // 4), max(1, last // 2), last}))

    @property
    def train_layers(self) -> tuple[int, ...]:
        """Layers whose pooled vectors of the training texts are kept: all for probes, else the last."""
        last = self.encoder.n_layers
        return tuple(range(last + 1)) if "probes" in self.study.internals.parts else (last,)

    @cached_property
    def sae_texts(self) -> str:
        """Where dictionary rows come from: `unseen` texts if the source has enough of them, else the `train` texts.

        Activations of an adapted model on its own training texts are partly memorised, so unseen texts come first.
        """
        needed = min(self.study.sae.rows, self._token_count(self.corpus.train))
        return "unseen" if self._token_count(self._sae_candidates) >= needed else "train"

    @cached_property
    def sae_examples(self) -> Examples:
        return self._sae_candidates if self.sae_texts == "unseen" else self.corpus.train

    @cached_property
    def _sae_candidates(self) -> Examples:
        """As many of the unseen texts as give the rows that are asked for."""
        unseen, tokens, count = self.corpus.unseen, 0, 0
        while tokens < self.study.sae.rows and count < len(unseen):
            part = range(count, min(count + 1000, len(unseen)))
            tokens += self._token_count(unseen.take(part))
            count = part.stop
        return unseen.take(range(count))

    def _token_count(self, examples: Examples) -> int:
        return sum(self._lengths(examples))

    def _lengths(self, examples: Examples) -> list[int]:
        from layerprobe.encoder import tokenize

        if not len(examples):
            return []
        return [len(e["input_ids"]) for e in tokenize(self.encoder, examples, self.study.data.max_length)]

    # How large it is --------------------------------------------------------------------------------------------------

    @cached_property
    def capture_bytes(self) -> int:
        from layerprobe.activations import estimate_bytes

        rows = sum(self._lengths(self.corpus.test)[: self.study.activations.examples])
        layers = self.encoder.n_layers + 1
        return estimate_bytes(rows, len(self.corpus.test), layers, self.encoder.width, self.study.activations.dtype)

    @cached_property
    def train_bytes(self) -> int:
        from layerprobe.activations import estimate_bytes

        return estimate_bytes(0, len(self.corpus.train), len(self.train_layers), self.encoder.width, "float32")

    @cached_property
    def sae_bytes(self) -> int:
        from layerprobe.activations import estimate_bytes

        rows, layers = self.study.sae.rows, len(self.sae_layers)
        return estimate_bytes(rows, 0, layers, self.encoder.width, self.study.activations.dtype)

    @property
    def frozen_cache(self) -> Path:
        """Where the values of frozen blocks are kept, for all methods and seeds."""
        return self.home / "frozen"

    def adapt_bytes(self, method: Method, seed: int) -> int:
        """Bytes of an adapted model and its checkpoints; with those of the frozen blocks' values, which methods share."""
        from layerprobe.adaptation import cache_bytes

        own = self.model_bytes(method) * (1 + (self.study.adaptation.checkpoints or 0))
        if (method, seed) != (self.methods[0], self.seeds(self.methods[0])[0]):
            return own
        tokens = self._token_count(self.corpus.train)
        return own + cache_bytes(self.methods, self.encoder, tokens=tokens, texts=len(self.corpus.train))

    @cached_property
    def dictionary_bytes(self) -> int:
        latents = int((self.study.sae.expansion or 4) * self.encoder.width)
        return 4 * (2 * latents * self.encoder.width + latents + self.encoder.width)

    def model_bytes(self, method: Method) -> int:
        if method.kind == "checkpoint":
            return 0
        from transformers import AutoConfig

        folder = Path(self.encoder.folder)
        if folder.is_dir():
            return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        config = AutoConfig.from_pretrained(
            self.encoder.folder, revision=self.encoder.revision, trust_remote_code=self.encoder.trust_remote_code
        )
        # Embeddings and the four square and two feed-forward matrices of each block.
        width, inner = self.encoder.width, getattr(config, "intermediate_size", 4 * self.encoder.width)
        return 4 * (config.vocab_size * width + self.encoder.n_layers * (4 * width**2 + 2 * width * inner))

    # What the run's record says of them -------------------------------------------------------------------------------

    def notes(self) -> list[str]:
        """What a reader must know of how the texts were used."""
        found = [note for ood in self.ood for note in ood.notes]
        if self.sae_layers and self.sae_texts == "train":
            found.append(
                "The source has too few texts that fine-tuning did not see, so dictionaries were trained on training "
                "texts, which an adapted model has partly memorised."
            )
        if "cls" in self.study.similarity.units:
            found.append(
                "The embedding (layer 0) of the first token is one vector for all texts unless the model has no fixed "
                "positions or adds segments; where it is, similarity of first tokens is undefined there and left out."
            )
        return found

    def describe_data(self) -> dict[str, Any]:
        corpus = self.corpus
        return {
            "name": corpus.name,
            "label_names": list(corpus.label_names),
            "n_train": len(corpus.train),
            "n_test": len(corpus.test),
            "n_unseen": len(corpus.unseen),
            "notes": list(corpus.notes),
            "fingerprint": corpus.fingerprint,
            "revision": corpus.revision,
        }

    def describe_encoder(self) -> dict[str, Any]:
        keys = ("name", "family", "n_layers", "width", "fingerprint", "pooler", "revision")
        return {key: getattr(self.encoder, key) for key in keys}

    @cached_property
    def rerun(self) -> Examples:
        """Test texts that a classifier is run on again and again: the first of them, which are in random order."""
        test = self.corpus.test
        return test.take(range(min(len(test), self.study.internals.examples)))

    def examples_table(self) -> pd.DataFrame:
        """The test texts, as columns `example_id, text, label, split`."""
        import pandas as pd

        test = self.corpus.test
        texts = (
            test.texts if test.pairs is None else [f"{a} ⏐ {b}" for a, b in zip(test.texts, test.pairs, strict=True)]
        )
        labels = [self.corpus.label_names[label] for label in test.labels]
        return pd.DataFrame({"example_id": test.ids, "text": texts, "label": labels, "split": "test"})
