"""A data set, split once so that no test example is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from layerprobe.data._examples import Examples, Labelled, read_examples
from layerprobe.data._near_copies import Copies, CopyCount, Finder, NearCopies
from layerprobe.data._sources import DataSource
from layerprobe.errors import DataError, quoted
from layerprobe.files import digest

DEFAULT_TRAIN, DEFAULT_TEST = 2000, 500

NearDuplicates = Literal["remove", "keep"]
"""What becomes of near copies of the examples of another part."""


@dataclass(frozen=True)
class Corpus:
    """A data set, split. No text is in two of its parts."""

    name: str
    label_names: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    train: Examples
    test: Examples
    unseen: Examples
    """The rest of the source: examples that fine-tuning never sees. Their labels may be -1 (unknown). Near copies among
    them are not searched for, except of those that were drawn for training."""
    fingerprint: str
    """sha256 over the ids and labels of the whole source, in its order, with its test split and groups if it has them."""
    revision: str | None
    notes: tuple[str, ...]
    """What was left out, in words."""
    near_copies: CopyCount
    """Of test examples among the training examples as first drawn."""
    left_out: tuple[str, ...]
    """Ids of the examples that were not trained on because they are near copies of test examples, sorted."""


def load_corpus(
    source: str | DataSource | Labelled,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    near_duplicates: NearDuplicates = "remove",
    finder: Finder | None = None,
) -> Corpus:
    """Read labelled examples and split them by seed, stratified by label, without duplicates.

    The test part does not depend on `near_duplicates`. Training examples that are near copies of test examples are
    replaced by others of the source as far as it has them, first of the same class; the remaining ones are the same.

    With a `group_column`, no group has examples in two parts: whole groups are assigned to test, training or neither, as few
    as hold the examples, and what remains of them is in no part.

    Args:
        source: `bundled:tweets`, `bundled:bbc-news`, a CSV, TSV, JSONL or Parquet file, or a `datasets` Hub id; as a
            `DataSource` to choose its columns, splits, groups, configuration or revision. Labels that are words are numbered in sorted
            order, whole numbers in theirs. A test (else validation) split of a Hub data set with labels is kept as such.
            What `read_examples` returned is not read again.
        train: training examples; by default 2,000, or 80% of the examples if that is less.
        test: test examples; by default 500, or 20% of the examples if that is less.
        seed: seed of the split.
        near_duplicates: whether near copies of test examples are removed from training or counted only.
        finder: decides what a near copy is; by default `NearCopies()`, which compares texts.

    Raises:
        DataError: if something is missing, empty or mixed, or there are fewer examples than requested.
    """
    rows = rows_of(source)
    examples, names, known = rows.examples, rows.label_names, rows.examples.labels >= 0
    rng = np.random.default_rng(seed)
    groups = None if rows.split_groups is None else Groups.of(rows.split_groups)
    notes = list(rows.notes)
    if rows.is_test is None:
        pool = np.flatnonzero(known)
        n_train, n_test = _sizes(rows.source, len(pool), train, test)
        if groups is None:
            tested = stratified(examples.labels, pool, n_test, rng, spare=1)
        else:
            others = groups.outside_cover(examples.labels, pool, n_test, rng)
            tested = stratified(examples.labels, pool, n_test, rng, without=others)
        pool = np.setdiff1d(pool, tested)
    else:
        pool, test_pool = np.flatnonzero(known & ~rows.is_test), np.flatnonzero(known & rows.is_test)
        for name, requested, split in (("train", train, pool), ("test", test, test_pool)):
            if requested is not None and requested > len(split):
                raise DataError(
                    f"{{{name}}} = {requested:,}, but {rows.source} has {len(split):,} distinct labelled examples in "
                    "that split.",
                    name,
                )
        n_train, n_test = train or min(DEFAULT_TRAIN, len(pool)), test or min(DEFAULT_TEST, len(test_pool))
        tested = stratified(examples.labels, test_pool, n_test, rng)
    remove = near_duplicates == "remove"
    copies_of = (finder or NearCopies()).of(examples.take(tested))
    if groups is None:
        drawn = draw(examples, pool, n_train, rng, copies_of, remove=remove)
        rest = np.setdiff1d(np.arange(len(examples)), np.concatenate([tested, drawn.positions]))
    else:
        pool = groups.without(pool, tested)
        if len(pool) < n_train and train is None:
            n_train = len(pool)
        drawn = _draw_whole_groups(rows.source, groups, examples, pool, n_train, rng, copies_of, remove=remove)
        rest = groups.without(np.arange(len(examples)), np.concatenate([tested, drawn.positions]))
        n_out = len(examples) - len(rest) - len(tested) - len(drawn.positions)
        notes.append(
            f"{n_out:,} examples were left out because others of their group are in the training or test part."
        )
    trained = drawn.positions
    unseen = rng.permutation(rest)
    unseen = unseen[~drawn.left_out[unseen]]
    absent = [name for number, name in enumerate(names) if number not in examples.labels[trained]]
    if absent and drawn.left_out[examples.labels == names.index(absent[0])].any():
        raise DataError(
            f"All examples of the class {quoted(absent[0])} of {rows.source} that could be trained on are near copies of test "
            'examples; lower {test}, leave the class out, or set {near_duplicates} = "keep".',
            "test",
            "near_duplicates",
        )
    if absent and groups is not None and not (examples.labels[pool] == names.index(absent[0])).any():
        raise DataError(
            f"The groups of the test examples have all examples of the class {quoted(absent[0])} of {rows.source}, so that none can be "
            "trained on; lower {test}, leave the class out, or set {group_column} to a column of smaller groups.",
            "test",
            "group_column",
        )
    if absent:
        raise DataError(
            f"Of {n_train} training examples of {rows.source}, none is of the class {quoted(absent[0])} (one of {len(names)}); "
            "raise {train}, or leave the class out.",
            "train",
        )
    return Corpus(
        name=rows.source,
        label_names=names,
        train=examples.take(trained),
        test=examples.take(tested),
        unseen=examples.take(unseen),
        fingerprint=_fingerprint(rows),
        revision=rows.commit,
        notes=tuple(notes),
        near_copies=CopyCount.of_copies("train", [drawn.first], removed=remove, short=n_train - len(trained)),
        left_out=tuple(sorted(examples.ids[i] for i in np.flatnonzero(drawn.left_out))),
    )


def _fingerprint(rows: Labelled) -> str:
    given = None if rows.is_test is None else rows.is_test.tolist()
    groups = None if rows.split_groups is None else list(rows.split_groups)
    decides_split = [] if given is None and groups is None else [given, groups]
    return digest([list(rows.examples.ids), rows.examples.labels.tolist(), list(rows.label_names), *decides_split])


@dataclass(frozen=True)
class Groups:
    """Which examples stay in one part of the split: those with equal numbers."""

    numbers: np.ndarray
    """int64, one group number per example."""

    @classmethod
    def of(cls, names: Sequence[str]) -> Groups:
        return cls(np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64))

    def without(self, positions: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The positions whose group has none of the others."""
        return positions[~np.isin(self.numbers[positions], self.numbers[others])]

    def outside_cover(self, labels: np.ndarray, pool: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """Which examples are not in the groups that are chosen: whole ones, in seeded order, with each class's share of `size`.

        A group of which less than half is needed waits until the others were tried, so that a large group is not taken for
        a few examples.
        """
        classes, class_of = np.unique(labels[pool], return_inverse=True)
        needed = np.ceil(np.bincount(class_of) * (size / max(1, len(pool)))).astype(int)
        members: dict[int, list[int]] = {}
        for i, number in enumerate(self.numbers[pool].tolist()):
            members.setdefault(number, []).append(i)
        waiting, taken = [members[number] for number in rng.permutation(sorted(members)).tolist()], []
        for least in (0.5, 0.0):
            later = []
            for group in waiting:
                counts = np.bincount(class_of[group], minlength=len(classes))
                used = np.minimum(counts, needed).sum()
                if used and used >= least * len(group):
                    taken.extend(group)
                    needed = np.maximum(needed - counts, 0)
                else:
                    later.append(group)
            waiting = later
        outside = np.ones(len(labels), bool)
        outside[pool[taken]] = False
        return outside


def _draw_whole_groups(
    source: str,
    groups: Groups,
    examples: Examples,
    pool: np.ndarray,
    size: int,
    rng: np.random.Generator,
    copies_of: Callable[[Examples], Copies],
    *,
    remove: bool,
) -> Draw:
    """Draw from as few groups of a pool as give the training examples: the other groups stay unseen.

    Where near copies leave too few examples in these groups, twice as many are tried.
    """
    if len(pool) < size or not size:
        raise DataError(
            f"{source} has {len(pool):,} distinct labelled examples outside the groups of the test examples, too few for "
            f"{{train}} = {size:,}; lower {{train}} or {{test}}, or set {{group_column}} to a column of smaller groups.",
            "train",
            "test",
            "group_column",
        )
    state, wanted, left_out = deepcopy(rng), size, np.zeros(len(examples), bool)
    while True:
        attempt = deepcopy(state)
        others = groups.outside_cover(examples.labels, pool, wanted, attempt)
        drawn = draw(examples, pool, size, attempt, copies_of, remove=remove, without=others)
        left_out |= drawn.left_out
        if len(drawn.positions) == size or wanted >= len(pool):
            # Of all attempts, so that knowing these alone gives the same examples again.
            return replace(drawn, left_out=left_out)
        wanted = min(2 * wanted, len(pool))


def rows_of(source: str | DataSource | Labelled) -> Labelled:
    """The examples of a source, read unless they have been."""
    if isinstance(source, Labelled):
        return source
    return read_examples(DataSource(source) if isinstance(source, str) else source)


@dataclass(frozen=True)
class Draw:
    """Examples drawn from a pool, without near copies where they are removed."""

    positions: np.ndarray
    first: Copies
    """Near copies among the examples as first drawn."""
    left_out: np.ndarray
    """Which examples of the source were drawn at first, or to replace others, and removed as near copies."""


def draw(
    examples: Examples,
    pool: np.ndarray,
    size: int,
    rng: np.random.Generator,
    copies_of: Callable[[Examples], Copies],
    *,
    remove: bool,
    without: np.ndarray | None = None,
) -> Draw:
    """Draw from a pool, stratified, passing over those in `without`; then replace near copies by the next ones of the same
    seeded order.
    """
    start = deepcopy(rng)
    without = np.zeros(len(examples), bool) if without is None else without
    positions = stratified(examples.labels, pool, size, rng, least=1, without=without)
    copies = first = copies_of(examples.take(positions))
    examined, left_out = np.zeros(len(examples), bool), np.zeros(len(examples), bool)
    new = positions
    while remove and copies.mask.any():
        examined[new], left_out[new[copies.mask]] = True, True
        positions = stratified(examples.labels, pool, size, deepcopy(start), least=1, without=without | left_out)
        new = positions[~examined[positions]]
        copies = copies_of(examples.take(new))
    return Draw(positions, first, left_out)


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
    labels: np.ndarray,
    pool: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    least: int = 0,
    spare: int = 0,
    without: np.ndarray | None = None,
) -> np.ndarray:
    """`size` positions of the pool with its class shares (largest remainders), in seeded order.

    Where possible, a class gets at least `least` of them, and `spare` of its examples stay in the pool. Positions marked in
    `without` are passed over, for the next ones of their class in the same order; there are fewer than `size` if no others
    are left.
    """
    shuffled = rng.permutation(pool)
    classes, counts = np.unique(labels[shuffled], return_counts=True)
    kept = shuffled if without is None else shuffled[~without[shuffled]]
    available = np.array([(labels[kept] == c).sum() for c in classes], dtype=int)
    size = min(size, len(kept))
    exact = counts * (size / max(1, len(shuffled)))
    quota = np.floor(exact).astype(int)
    for i in np.argsort(-(exact - quota), kind="stable")[: size - quota.sum()]:
        quota[i] += 1
    free = available - spare
    while (quota > free).any() and (quota < free).any():
        quota[np.argmax(quota - free)] -= 1
        quota[np.argmax(free - quota)] += 1
    fewest = np.minimum(least, available)
    while (quota < fewest).any() and (quota > fewest).any():
        quota[np.argmax(fewest - quota)] += 1
        quota[np.argmax(quota - fewest)] -= 1
    parts = [kept[labels[kept] == c][:q] for c, q in zip(classes, quota, strict=True)]
    return rng.permutation(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
