"""Labelled texts in a fixed order, as a source gives them: numbered, named, each once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerprobe.data._cells import check_columns, distinct, read_labels, read_texts, used
from layerprobe.data._sources import Columns, read_rows
from layerprobe.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Labelled texts in a fixed order."""

    ids: tuple[str, ...]
    """Stable ids: the first 16 hex digits of the sha256 of the text, or of both texts of a pair."""
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """Second text of each example, where the task is about pairs."""
    labels: np.ndarray
    """int64, one class number an example."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | range | np.ndarray) -> Examples:
        """The examples at these positions, in this order."""
        chosen = [int(i) for i in indices]
        return Examples(
            tuple(self.ids[i] for i in chosen),
            tuple(self.texts[i] for i in chosen),
            None if self.pairs is None else tuple(self.pairs[i] for i in chosen),
            self.labels[chosen] if chosen else np.zeros(0, dtype=np.int64),
        )


@dataclass(frozen=True)
class Labelled:
    """All of a source's distinct texts."""

    examples: Examples
    """Their labels may be -1 (unknown)."""
    label_names: tuple[str, ...]
    """Names of the classes that some text has, in the order of their numbers."""
    is_test: np.ndarray | None
    """Which examples are of the source's own test split, where it has one."""
    commit: str | None
    notes: tuple[str, ...]
    """What was left out, in words."""


def read_examples(source: str, text: Columns, label: str | None, config: str | None, revision: str | None) -> Labelled:
    """Read a source's texts and labels.

    Raises:
        DataError: naming what is missing, empty or mixed, or the one class that there is.
    """
    rows = read_rows(source, text, label, config, revision)
    check_columns(rows.frame, source, rows.texts, rows.label)
    labels, names = read_labels(rows.frame[rows.label], source, rows.label)
    columns = [read_texts(rows.frame[column], source, column) for column in rows.texts]
    kept, dropped = distinct(columns, rows.is_test, labels)
    if not len(kept):
        raise DataError(f"{source} has no text: all {len(labels):,} rows of {rows.texts[0]!r} are blank.")
    labels, names = used(labels, names, kept)
    columns = [[column[i] for i in kept] for column in columns]
    if len(names) < 2:
        only = f" ({names[0]!r})" if names else ""
        raise DataError(
            f"{source} has {len(names)} class{'' if names else 'es'}{only} in column {rows.label!r}; "
            "a classifier needs at least two."
        )
    examples = Examples(
        ids=tuple(_example_id([column[i] for column in columns]) for i in range(len(kept))),
        texts=tuple(columns[0]),
        pairs=tuple(columns[1]) if len(columns) == 2 else None,
        labels=labels[kept],
    )
    is_test = None if rows.is_test is None else rows.is_test[kept]
    return Labelled(examples, tuple(names), is_test, rows.commit, (*rows.notes, *dropped))


def _example_id(texts: Sequence[str]) -> str:
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
