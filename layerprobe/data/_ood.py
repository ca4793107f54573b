"""Labelled examples from outside the domain of a corpus, with all or some of its labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from layerprobe.data._corpus import Corpus, stratified
from layerprobe.data._examples import Examples, read_examples
from layerprobe.data._sources import DataSource
from layerprobe.errors import DataError
from layerprobe.files import digest


@dataclass(frozen=True)
class OodSet:
    """Examples of another domain on which the classifiers of a corpus can be tested."""

    name: str
    examples: Examples
    """Their labels are numbered as in the corpus."""
    classes: tuple[int, ...]
    """Class numbers that occur, ascending: a classifier chooses among these only."""
    fingerprint: str
    """sha256 over the ids and labels of the examples, in their order."""
    revision: str | None
    notes: tuple[str, ...]
    """What was left out, in words."""


def load_ood(name: str, source: str | DataSource, corpus: Corpus, *, rows: int | None = None, seed: int = 0) -> OodSet:
    """Read labelled examples from outside the domain of a corpus, without those that it trains or tests on.

    Args:
        name: name of the set.
        source: as in `load_corpus`. If a Hub data set has a test split with labels (else validation), that split is used.
        corpus: the data set that classifiers are trained on; labels are matched by name.
        rows: number of examples to draw, stratified by label; by default all.
        seed: seed of the draw.

    Raises:
        DataError: if a label is not one of the corpus, there is only one class, or the source cannot be used otherwise.
    """
    source = DataSource(source) if isinstance(source, str) else source
    table = read_examples(source)
    examples, title = table.examples, f"The out-of-domain set {name!r} ({source.name})"
    n_columns, expected = (1 + (part.pairs is not None) for part in (examples, corpus.train))
    if n_columns != expected:
        raise DataError(
            f"{title} has {n_columns} text column{'s' * (n_columns > 1)} but {corpus.name} has {expected}; "
            "set {text} to as many columns.",
            "text",
        )
    unknown = [label for label in table.label_names if label not in corpus.label_names]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise DataError(
            f"{title} has the label {unknown[0]!r}{more}, but the labels of {corpus.name} are "
            f"{', '.join(corpus.label_names)}; rename or leave out these rows."
        )
    numbers = np.array([corpus.label_names.index(label) for label in table.label_names], dtype=np.int64)
    notes = list(table.notes)
    usable = examples.labels >= 0
    if table.is_test is not None:
        usable &= table.is_test
        notes.append(f"Only the test split of {source.name} was used.")
    in_corpus = usable & np.isin(examples.ids, [*corpus.train.ids, *corpus.test.ids])
    if in_corpus.any():
        notes.append(f"{in_corpus.sum():,} examples that {corpus.name} trains or tests on were left out.")
    pool = np.flatnonzero(usable & ~in_corpus)
    if rows is not None and not 1 <= rows <= len(pool):
        raise DataError(
            f"{{rows}} = {rows:,} for the out-of-domain set {name!r}, but {source.name} has {len(pool):,} distinct "
            f"labelled examples that {corpus.name} does not train or test on; use 1 to {len(pool):,}.",
            "rows",
        )
    if rows is not None:
        pool = np.sort(stratified(examples.labels, pool, rows, np.random.default_rng(seed), least=1))
    sample = examples.take(pool)
    sample = replace(sample, labels=numbers[sample.labels])
    classes = tuple(int(number) for number in np.unique(sample.labels))
    if len(classes) < 2:
        only = f" ({corpus.label_names[classes[0]]!r})" if classes else ""
        raise DataError(
            f"{title} has {len(classes)} class{'' if classes else 'es'}{only} in its {len(sample):,} examples; "
            "a comparison needs at least two."
        )
    fingerprint = digest([list(sample.ids), sample.labels.tolist()])
    return OodSet(name, sample, classes, fingerprint, table.commit, tuple(notes))
