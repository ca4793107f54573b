"""Labelled texts from outside a corpus' domain, under the corpus' own labels or some of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np

from layerprobe.data._corpus import Corpus, stratified
from layerprobe.data._examples import Examples, read_examples
from layerprobe.data._sources import Columns
from layerprobe.errors import DataError


@dataclass(frozen=True)
class OodSet:
    """Texts of another domain that the corpus' classifiers can be tested on."""

    name: str
    examples: Examples
    """Labels are numbered as the corpus numbers them."""
    classes: tuple[int, ...]
    """The corpus' class numbers that these texts have, ascending: a classifier chooses among them alone."""
    fingerprint: str
    """sha256 over the ids and labels of the examples, in their order."""
    revision: str | None
    notes: tuple[str, ...]
    """What was left out, in words."""


def load_ood(
    name: str,
    source: str,
    corpus: Corpus,
    *,
    text: Columns = None,
    label: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    rows: int | None = None,
    seed: int = 0,
) -> OodSet:
    """Read labelled texts from outside a corpus' domain; those that it trains or tests on are left out.

    Args:
        name: what the set is called.
        source: as in `load_corpus`. Of a Hub data set with a labelled test split (else validation), that split is taken.
        corpus: the data set that classifiers are trained on; labels are matched by name.
        text: column of the text, or two columns where the corpus has pairs; by default as in `load_corpus`.
        label: column of the label; by default as in `load_corpus`.
        config: configuration of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        rows: texts to take, stratified by label; by default all.
        seed: decides which.

    Raises:
        DataError: naming the label that the corpus does not have or the one class there is, or what else does not fit.
    """
    found = read_examples(source, text, label, config, revision)
    examples, own = found.examples, corpus.train.pairs is not None
    if (examples.pairs is not None) != own:
        raise DataError(
            f"The out-of-domain set {name!r} ({source}) has {1 + (not own)} text column{'' if own else 's'} but "
            f"{corpus.name} has {1 + own}; name as many with its text."
        )
    strange = [label_name for label_name in found.label_names if label_name not in corpus.label_names]
    if strange:
        also = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise DataError(
            f"The out-of-domain set {name!r} ({source}) has the label {strange[0]!r}{also}, which {corpus.name} does not "
            f"have; its labels are {', '.join(corpus.label_names)}: rename or leave out these rows."
        )
    numbers = np.array([corpus.label_names.index(label_name) for label_name in found.label_names], dtype=np.int64)
    notes = list(found.notes)
    usable = examples.labels >= 0
    if found.is_test is not None:
        usable &= found.is_test
        notes.append(f"Of {source}, its own test split alone was taken.")
    known = {*corpus.train.ids, *corpus.test.ids}
    seen = np.array([example_id in known for example_id in examples.ids], dtype=bool) & usable
    if seen.any():
        notes.append(f"{seen.sum():,} texts that {corpus.name} trains or tests on were left out.")
    pool = np.flatnonzero(usable & ~seen)
    if rows is not None and not 1 <= rows <= len(pool):
        raise DataError(
            f"{rows:,} rows of the out-of-domain set {name!r} were asked for, but {source} has {len(pool):,} distinct "
            f"labelled texts that {corpus.name} does not train or test on; ask for 1 to {len(pool):,}."
        )
    if rows is not None:
        pool = np.sort(stratified(examples.labels, pool, rows, np.random.default_rng(seed), least=1))
    taken = examples.take(pool)
    taken = replace(taken, labels=numbers[taken.labels])
    classes = tuple(int(number) for number in np.unique(taken.labels))
    if len(classes) < 2:
        only = f" ({corpus.label_names[classes[0]]!r})" if classes else ""
        raise DataError(
            f"The out-of-domain set {name!r} ({source}) has {len(classes)} class{'' if classes else 'es'}{only} in the "
            f"{len(taken):,} texts taken of it; a comparison needs at least two."
        )
    content = json.dumps([list(taken.ids), taken.labels.tolist()])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    return OodSet(name, taken, classes, fingerprint, found.commit, tuple(notes))
