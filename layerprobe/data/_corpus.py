"""A data set, split once so that no test example is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerprobe.data._examples import Examples, read_examples
from layerprobe.data._sources import DataSource
from layerprobe.errors import DataError
from layerprobe.files import digest

DEFAULT_TRAIN, DEFAULT_TEST = 2000, 500


@dataclass(frozen=True)
class Corpus:
    """A data set, split. No text is in two of its parts."""

    name: str
    label_names: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    train: Examples
    test: Examples
    unseen: Examples
    """The rest of the source: examples that fine-tuning never sees. Their labels may be -1 (unknown)."""
    fingerprint: str
    """sha256 over the ids and labels of the whole source, in its order."""
    revision: str | None
    notes: tuple[str, ...]
    """What was left out, in words."""


def load_corpus(
    source: str | DataSource, *, train: int | None = None, test: int | None = None, seed: int = 0
) -> Corpus:
    """Read labelled examples and split them by seed, stratified by label, without duplicates.

    Args:
        source: `bundled:tweets`, `bundled:bbc-news`, a CSV, TSV, JSONL or Parquet file, or a `datasets` Hub id; as a
            `DataSource` to choose its columns, configuration or revision. Labels that are words are numbered in sorted
            order, whole numbers in theirs. A test (else validation) split of a Hub data set with labels is kept as such.
        train: training examples; by default 2,000, or 80% of the examples if that is less.
        test: test examples; by default 500, or 20% of the examples if that is less.
        seed: seed of the split.

    Raises:
        DataError: if something is missing, empty or mixed, or there are fewer examples than requested.
    """
    source = DataSource(source) if isinstance(source, str) else source
    rows = read_examples(source)
    examples, names, known = rows.examples, rows.label_names, rows.examples.labels >= 0
    rng = np.random.default_rng(seed)
    if rows.is_test is None:
        pool = np.flatnonzero(known)
        n_train, n_test = _sizes(source.name, len(pool), train, test)
        tested = stratified(examples.labels, pool, n_test, rng, spare=1)
        pool = np.setdiff1d(pool, tested)
    else:
        pool, test_pool = np.flatnonzero(known & ~rows.is_test), np.flatnonzero(known & rows.is_test)
        for name, requested, split in (("train", train, pool), ("test", test, test_pool)):
            if requested is not None and requested > len(split):
                raise DataError(
                    f"{{{name}}} = {requested:,}, but {source.name} has {len(split):,} distinct labelled examples in "
                    "that split.",
                    name,
                )
        n_train, n_test = train or min(DEFAULT_TRAIN, len(pool)), test or min(DEFAULT_TEST, len(test_pool))
        tested = stratified(examples.labels, test_pool, n_test, rng)
    trained = stratified(examples.labels, pool, n_train, rng, least=1)
    unseen = rng.permutation(np.setdiff1d(np.arange(len(examples)), np.concatenate([tested, trained])))
    absent = [name for number, name in enumerate(names) if number not in examples.labels[trained]]
    if absent:
        raise DataError(
            f"Of {n_train} training examples of {source.name}, none is of the class {absent[0]!r} (one of {len(names)}); "
            "raise {train}, or leave the class out.",
            "train",
        )
    return Corpus(
        name=source.name,
        label_names=names,
        train=examples.take(trained),
        test=examples.take(tested),
        unseen=examples.take(unseen),
        fingerprint=digest([list(examples.ids), examples.labels.tolist(), list(names)]),
        revision=rows.commit,
        notes=rows.notes,
    )


def _sizes(source: str, n: int, train: int | None, test: int | None) -> tuple[int, int]:
    """How many of `n` examples to train and test on."""
    n_test = test or min(DEFAULT_TEST, max(1, n // 5), *([n - train] if train and n > train else []))
    n_train = train or min(DEFAULT_TRAIN, n - n_test)
    if n_train + n_test > n or n_train < 1:
        requested = {name: size for name, size in (("train", train), ("test", test)) if size}
        sizes = " and ".join(f"{{{name}}} = {size:,}" for name, size in requested.items()) or "a split"
        raise DataError(
            f"{source} has {n:,} distinct labelled examples, too few for {sizes} (train and test share no example).",
            *requested,
        )
    return n_train, n_test


def stratified(
    labels: np.ndarray, pool: np.ndarray, size: int, rng: np.random.Generator, *, least: int = 0, spare: int = 0
) -> np.ndarray:
    """`size` positions of the pool with its class shares (largest remainders), in seeded order.

    Where possible, a class gets at least `least` of them, and `spare` of its examples stay in the pool.
    """
    shuffled = rng.permutation(pool)
    classes, counts = np.unique(labels[shuffled], return_counts=True)
    exact = counts * (size / max(1, len(shuffled)))
    quota = np.floor(exact).astype(int)
    for i in np.argsort(-(exact - quota), kind="stable")[: size - quota.sum()]:
        quota[i] += 1
    free = counts - spare
    while (quota > free).any() and (quota < free).any():
        quota[np.argmax(quota - free)] -= 1
        quota[np.argmax(free - quota)] += 1
    while (quota < least).any() and (quota > least).any():
        quota[np.argmin(quota)] += 1
        quota[np.argmax(quota)] -= 1
    parts = [shuffled[labels[shuffled] == c][:q] for c, q in zip(classes, quota, strict=True)]
    return rng.permutation(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
