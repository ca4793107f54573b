"""Cells of a table as texts and class numbers, or a sentence on the cell that is neither."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def check_columns(frame: pd.DataFrame, source: str, texts: tuple[str, ...], label: str) -> None:
    """Refuse a table that lacks a column that is asked for."""
    for role, column in (*(("text", t) for t in texts), ("label", label)):
        if column not in frame.columns:
            there = ", ".join(map(str, frame.columns))
            raise DataError(
                f"{source} has no column {column!r}; its columns are {there}; set data.{role} to one of them."
            )


def _rows(numbers: Any) -> str:
    numbers = [int(n) + 1 for n in numbers]
    return f"row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:5]))}" + (
        f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    )


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and bool(value != value))


def read_texts(column: pd.Series, source: str, name: str) -> list[str]:
    """A column's texts; refuses cells that are no text, or none that a tokenizer or a file could take."""
    values = list(column)
    bad = [i for i, value in enumerate(values) if not isinstance(value, str)]
    if bad:
        kind = "nothing" if _missing(values[bad[0]]) else type(values[bad[0]]).__name__
        raise DataError(
            f"Column {name!r} of {source} holds {kind} instead of text in {_rows(bad)}; correct these rows or leave them out."
        )
    texts = [str(value) for value in values]
    _check_characters(texts, source, name)
    return texts


def _check_characters(values: list[Any], source: str, name: str) -> None:
    for what, is_there in (("a NUL character", _has_nul), ("half a character (a lone surrogate)", _has_surrogate)):
        bad = [i for i, value in enumerate(values) if isinstance(value, str) and is_there(value)]
        if bad:
            raise DataError(
                f"Column {name!r} of {source} holds {what} in {_rows(bad)}; correct these rows or leave them out."
            )


def _has_nul(text: str) -> bool:
    return "\x00" in text


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None


def read_labels(column: pd.Series, source: str, name: str) -> tuple[np.ndarray, list[str]]:
    """Class numbers of a column (-1 where a Hub set tells none) and the classes' names.

    Words are numbered in sorted order, whole numbers in theirs; blanks around a word are no part of it.
    """
    values = [value.strip() if isinstance(value, str) else value for value in column]
    empty = [i for i, v in enumerate(values) if _missing(v) or (isinstance(v, str) and not v)]
    if empty:
        raise DataError(
            f"Column {name!r} of {source} has no label in {_rows(empty)}; label these rows or leave them out."
        )
    _check_characters(values, source, name)
    kinds_of = [_kind(value) for value in values]
    unknown = np.array([k == "whole numbers" and v == -1 for v, k in zip(values, kinds_of, strict=True)], dtype=bool)
    kinds = {kind for kind, skip in zip(kinds_of, unknown, strict=True) if not skip}
    if len(kinds) > 1:
        examples = {kind: values[kinds_of.index(kind)] for kind in sorted(kinds)}
        shown = " and ".join(f"{kind} ({value!r})" for kind, value in examples.items())
        raise DataError(f"Column {name!r} of {source} mixes {shown}; give all labels in one way.")
    kind = next(iter(kinds), "text")
    if kind not in ("text", "whole numbers", "true/false"):
        raise DataError(f"Column {name!r} of {source} holds {kind}; labels are words or whole numbers, one a class.")
    strings = [str(v) if kind != "whole numbers" else str(int(v)) for v in values]
    known = {s for s, skip in zip(strings, unknown, strict=True) if not skip}
    if known and all(re.fullmatch("-?[0-9]+", s) for s in known):
        names = sorted(known, key=lambda s: (int(s), s))
    else:
        names = sorted(known)
    numbers = {s: i for i, s in enumerate(names)}
    labels = [-1 if skip else numbers[s] for s, skip in zip(strings, unknown, strict=True)]
    return np.array(labels, dtype=np.int64), names


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "true/false"
    if isinstance(value, int | np.integer) or (isinstance(value, float) and value.is_integer()):
        return "whole numbers"
    if isinstance(value, float | np.floating):
        return "fractions"
    return type(value).__name__


def distinct(
    columns: list[list[str]], given_test: np.ndarray | None, labels: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Positions of the first of each text, a test split's own before all others; blank texts are left out."""
    order = np.arange(len(labels))
    if given_test is not None:
        order = np.concatenate([order[given_test], order[~given_test]])
    first: dict[tuple[str, ...], int] = {}
    blank = conflicting = duplicates = 0
    for i in order:
        key = tuple(column[i] for column in columns)
        if not any(part.strip() for part in key):
            blank += 1
        elif key in first:
            duplicates += 1
            conflicting += labels[first[key]] != labels[i] and labels[i] >= 0
        else:
            first[key] = int(i)
    notes = []
    if blank:
        notes.append(f"{blank:,} rows without text were left out.")
    if duplicates:
        also = f" ({conflicting:,} of them under another label)" if conflicting else ""
        notes.append(
            f"{duplicates:,} repetitions of an earlier text were left out{also}; the first one's label was kept."
        )
    return np.array(sorted(first.values()), dtype=np.int64), notes


def used(labels: np.ndarray, names: list[str], kept: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Labels numbered anew without the classes that no kept text has."""
    present = set(labels[kept].tolist())
    used = [number for number in range(len(names)) if number in present]
    new = {old: number for number, old in enumerate(used)}
    return np.array([new.get(int(label), -1) for label in labels], dtype=np.int64), [names[old] for old in used]
