"""Labelled examples in a fixed order: identified by their texts, each listed once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from layerprobe.data._cells import (
    check_columns,
    complete_rows,
    drop_unused_classes,
    first_occurrences,
    read_groups,
    read_labels,
    read_texts,
)
from layerprobe.data._sources import DataSource, Rows, read_rows
from layerprobe.errors import DataError, quoted

SEPARATOR = " ⏐ "
"""Between the two texts of a pair, where they are shown as one."""


@dataclass(frozen=True)
class Examples:
    """Labelled texts, or pairs of texts, in a fixed order."""

    ids: tuple[str, ...]
    """Stable ids: the first 16 hex digits of the sha256 of the text, or of both texts of a pair."""
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """Second text of each example, if the task is about pairs."""
    labels: np.ndarray
    """int64, one class number per example."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def joined(self) -> tuple[str, ...]:
        """The text of each example, or both texts of a pair as one."""
        if self.pairs is None:
            return self.texts
        return tuple(SEPARATOR.join(pair) for pair in zip(self.texts, self.pairs, strict=True))

    def take(self, indices: Sequence[int] | range | np.ndarray) -> Examples:
        """The examples at these positions, in this order."""
        positions = [int(i) for i in indices]
        return Examples(
            tuple(self.ids[i] for i in positions),
            tuple(self.texts[i] for i in positions),
            None if self.pairs is None else tuple(self.pairs[i] for i in positions),
            self.labels[positions] if positions else np.zeros(0, dtype=np.int64),
        )


@dataclass(frozen=True)
class Labelled:
    """The distinct examples of a source."""

    source: str
    """Its name."""
    examples: Examples
    """Their labels may be -1 (unknown)."""
    label_names: tuple[str, ...]
    """Names of the classes that occur, in the order of their numbers."""
    is_test: np.ndarray | None
    """Which examples are in the test split of the source, if it has one."""
    commit: str | None
    notes: tuple[str, ...]
    """What was left out, in words."""
    groups: tuple[str, ...] | None = None
    """Coarser label of each example (`DataSource.group`), if the source has groups."""
    split_groups: tuple[str, ...] | None = None
    """What each example shares with those of its part of the split (`DataSource.group_column`), if anything."""


def read_examples(source: DataSource) -> Labelled:
    """Read the texts and labels of a source.

    Raises:
        DataError: if something is missing, empty or mixed, or there is only one class.
    """
    rows = read_rows(source)
    check_columns(rows.frame, source.name, rows.texts, rows.label, rows.group, source.group_column)
    if source.on_missing == "drop":
        rows = _without_missing(rows, source)
    labels, names = read_labels(rows.frame[rows.label], source.name, rows.label)
    columns = [read_texts(rows.frame[column], source.name, column) for column in rows.texts]
    kept, notes = first_occurrences(columns, rows.is_test, labels)
    if not len(kept):
        raise DataError(f"{source.name} has no text: all {len(labels):,} rows of {rows.texts[0]!r} are blank.")
    labels, names = drop_unused_classes(labels[kept], names)
    if len(names) < 2:
        only = f" ({quoted(names[0])})" if names else ""
        raise DataError(
            f"{source.name} has {len(names)} class{'' if names else 'es'}{only} in column {rows.label!r}; "
            "a classifier needs at least two."
        )
    columns = [[column[i] for i in kept] for column in columns]
    examples = Examples(
        ids=tuple(_example_id(texts) for texts in zip(*columns, strict=True)),
        texts=tuple(columns[0]),
        pairs=tuple(columns[1]) if len(columns) == 2 else None,
        labels=labels,
    )
    is_test = None if rows.is_test is None else rows.is_test[kept]
    groups = None if rows.group is None else tuple(str(rows.frame[rows.group].iloc[i]) for i in kept)
    split_groups = None
    if source.group_column is not None:
        column = read_groups(rows.frame[source.group_column], source.name, source.group_column)
        split_groups = tuple(column[i] for i in kept)
    return Labelled(
        source=source.name,
        examples=examples,
        label_names=tuple(names),
        is_test=is_test,
        commit=rows.commit,
        notes=(*rows.notes, *notes),
        groups=groups,
        split_groups=split_groups,
    )


def _without_missing(rows: Rows, source: DataSource) -> Rows:
    """The rows that have text, label and group, and a note on how many others there are."""
    complete = complete_rows(rows.frame, rows.texts, rows.label, source.group_column)
    if complete.all():
        return rows
    if not complete.any():
        raise DataError(f"{source.name} has no row with text and label; all {len(complete):,} lack one of them.")
    note = f"{(~complete).sum():,} rows without text, label or group were left out."
    is_test = None if rows.is_test is None else rows.is_test[complete]
    return replace(rows, frame=rows.frame[complete].reset_index(drop=True), is_test=is_test, notes=(*rows.notes, note))


def _example_id(texts: Sequence[str]) -> str:
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
