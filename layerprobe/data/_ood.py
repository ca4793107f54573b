"""Labelled examples from outside the domain of a corpus, with all or some of its labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from layerprobe.data._corpus import Corpus, NearDuplicates, draw, rows_of
from layerprobe.data._examples import Examples, Labelled
from layerprobe.data._near_copies import CopyCount, Finder, NearCopies
from layerprobe.data._sources import DataSource
from layerprobe.errors import DataError, quoted
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
    near_copies: CopyCount
    """Of training and test examples of the corpus among the examples as first drawn."""
    left_out: tuple[str, ...]
    """Ids of the examples that were left out because they are near copies of those, sorted."""


def load_ood(
    name: str,
    source: str | DataSource | Labelled,
    corpus: Corpus,
    *,
    rows: int | None = None,
    seed: int = 0,
    near_duplicates: NearDuplicates = "remove",
    finder: Finder | None = None,
) -> OodSet:
    """Read labelled examples from outside the domain of a corpus, without those that it trains or tests on.

    Near copies are removed from this set and not from the corpus, so that models do not depend on what they are tested on.

    Args:
        name: name of the set.
        source: as in `load_corpus`. If a Hub data set has a test split with labels (else validation), that split is used.
        corpus: the data set that classifiers are trained on; labels are matched by name.
        rows: number of examples to draw, stratified by label; by default all.
        seed: seed of the draw.
        near_duplicates: whether near copies of training and test examples of the corpus are removed or counted only; where
            the source has others, `rows` is kept.
        finder: decides what a near copy is; by default `NearCopies()`, which compares texts.

    Raises:
        DataError: if a label is not one of the corpus, there is only one class, or the source cannot be used otherwise.
    """
    table = rows_of(source)
    examples, title = table.examples, f"The out-of-domain set {name!r} ({table.source})"
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
            f"{title} has the label {quoted(unknown[0])}{more}, but the labels of {corpus.name} are "
            f"{', '.join(corpus.label_names)}; rename or leave out these rows."
        )
    numbers = np.array([corpus.label_names.index(label) for label in table.label_names], dtype=np.int64)
    examples = replace(examples, labels=np.where(examples.labels >= 0, numbers[examples.labels], -1))
    notes = list(table.notes)
    usable = examples.labels >= 0
    if table.is_test is not None:
        usable &= table.is_test
        notes.append(f"Only the test split of {table.source} was used.")
    in_corpus = usable & np.isin(examples.ids, [*corpus.train.ids, *corpus.test.ids])
    if in_corpus.any():
        notes.append(f"{in_corpus.sum():,} examples that {corpus.name} trains or tests on were left out.")
    pool = np.flatnonzero(usable & ~in_corpus)
    if rows is not None and not 1 <= rows <= len(pool):
        raise DataError(
            f"{{rows}} = {rows:,} for the out-of-domain set {name!r}, but {table.source} has {len(pool):,} distinct "
            f"labelled examples that {corpus.name} does not train or test on; use 1 to {len(pool):,}.",
            "rows",
        )
    remove, size = near_duplicates == "remove", len(pool) if rows is None else rows
    copies_of = (finder or NearCopies()).of(corpus.train, corpus.test)
    drawn = draw(examples, pool, size, np.random.default_rng(seed), copies_of, remove=remove)
    sample = examples.take(np.sort(drawn.positions))
    classes = tuple(int(number) for number in np.unique(sample.labels))
    if len(classes) < 2:
        n_out = int(drawn.left_out.sum())
        without = f" that are not near copies of examples of {corpus.name} ({n_out:,} are)" if n_out else ""
        only = f" ({quoted(corpus.label_names[classes[0]])})" if classes else ""
        raise DataError(
            f"{title} has {len(classes)} class{'' if classes else 'es'}{only} in its {len(sample):,} examples"
            f"{without}; a comparison needs at least two."
        )
    fingerprint = digest([list(sample.ids), sample.labels.tolist()])
    counted = CopyCount.of_copies("out-of-domain", [drawn.first], removed=remove, short=size - len(sample), name=name)
    left_out = tuple(sorted(examples.ids[i] for i in np.flatnonzero(drawn.left_out)))
    return OodSet(name, sample, classes, fingerprint, table.commit, tuple(notes), counted, left_out)
