"""A data set, split once so that nothing in the test set was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from layerprobe.data._examples import Examples, read_examples
from layerprobe.data._sources import Columns
from layerprobe.errors import DataError

DEFAULT_TRAIN, DEFAULT_TEST = 2000, 500


@dataclass(frozen=True)
class Corpus:
    """A data set, split. No text stands in two of its parts."""

    name: str
    label_names: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    train: Examples
    test: Examples
    unseen: Examples
    """What is left of the source: texts that fine-tuning never sees. Their labels may be -1 (unknown)."""
    fingerprint: str
    """sha256 over the ids and labels of the whole source, in its order."""
    revision: str | None
    notes: tuple[str, ...]
    """What was left out, in words."""


def load_corpus(
    source: str,
    *,
    text: Columns = None,
    label: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Read labelled texts and split them by seed, stratified by label, without duplicates.

    Args:
        source: `bundled:tweets`, `bundled:bbc-news`, a CSV, TSV, JSONL or Parquet file, or a `datasets` Hub id.
        text: column of the text, or two columns for pairs; by default the bundled set's own, else `text`.
        label: column of the label; by default the bundled set's own, else `label`. String labels are numbered in
            sorted order, whole numbers in theirs.
        config: configuration of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        train: training texts; by default 2,000, or 80% of what there is if less.
        test: test texts; by default 500, or 20% of what there is if less.
        seed: decides the split.

    Raises:
        DataError: naming what is missing, empty, mixed, or fewer than asked for.
    """
    source_has = read_examples(source, text, label, config, revision)
    examples, names = source_has.examples, source_has.label_names
    known, is_test = examples.labels >= 0, source_has.is_test
    rng = np.random.default_rng(seed)
    if is_test is None:
        pool = np.flatnonzero(known)
        n_train, n_test = _sizes(source, len(pool), len(pool), train, test, split=False)
        part = stratified(examples.labels, pool, n_test, rng, spare=1)
        chosen = stratified(examples.labels, np.setdiff1d(pool, part), n_train, rng, least=1)
    else:
        pool, test_pool = np.flatnonzero(known & ~is_test), np.flatnonzero(known & is_test)
        n_train, n_test = _sizes(source, len(pool), len(test_pool), train, test, split=True)
        part = stratified(examples.labels, test_pool, n_test, rng)
        chosen = stratified(examples.labels, pool, n_train, rng, least=1)
    left = rng.permutation(np.setdiff1d(np.arange(len(examples)), np.concatenate([part, chosen])))
    missing = [name for number, name in enumerate(names) if number not in examples.labels[chosen]]
    if missing:
        raise DataError(
            f"With {n_train} training texts of {source}, the class {missing[0]!r} of {len(names)} has none; "
            "ask for more with data.train, or leave it out."
        )
    content = json.dumps([list(examples.ids), examples.labels.tolist(), list(names)])
    return Corpus(
        name=source,
        label_names=names,
        train=examples.take(chosen),
        test=examples.take(part),
        unseen=examples.take(left),
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        revision=source_has.commit,
        notes=source_has.notes,
    )


def _sizes(
    source: str, n_train_pool: int, n_test_pool: int, train: int | None, test: int | None, *, split: bool
) -> tuple[int, int]:
    """How many texts to train and test on; `split` tells that the source has a test split of its own."""
    if split:
        for key, asked, there in (("train", train, n_train_pool), ("test", test, n_test_pool)):
            if asked is not None and asked > there:
                raise DataError(
                    f"data.{key} = {asked:,}, but {source} has {there:,} distinct labelled texts in that split."
                )
        return train or min(DEFAULT_TRAIN, n_train_pool), test or min(DEFAULT_TEST, n_test_pool)
    there = n_train_pool
    n_test = test or min(DEFAULT_TEST, max(1, there // 5), *([there - train] if train and there > train else []))
    n_train = train or min(DEFAULT_TRAIN, there - n_test)
    if n_train + n_test > there or n_train < 1:
        wanted = ", ".join(f"data.{k} = {v:,}" for k, v in (("train", train), ("test", test)) if v) or "a split"
        raise DataError(
            f"{wanted} was asked for, but {source} has {there:,} distinct labelled texts in all; "
            "ask for fewer (train and test share no text)."
        )
    return n_train, n_test


def stratified(
    labels: np.ndarray, pool: np.ndarray, size: int, rng: np.random.Generator, *, least: int = 0, spare: int = 0
) -> np.ndarray:
    """`size` positions of the pool with its class shares (largest remainders), in seeded order.

    Where it can be had, a class gets at least `least` of them, and `spare` of its texts stay in the pool.
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
