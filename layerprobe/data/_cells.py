"""Cells of a table as texts and class numbers, with errors that name the rows that are neither."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.errors import DataError, quoted

if TYPE_CHECKING:
    import pandas as pd


def check_columns(
    frame: pd.DataFrame,
    source: str,
    texts: tuple[str, ...],
    label: str,
    group: str | None = None,
    group_column: str | None = None,
) -> None:
    """Refuse a table that lacks a column of the text, label or group."""
    roles = [*(("text", text) for text in texts), ("label", label), ("group", group), ("group_column", group_column)]
    for role, column in roles:
        if column is not None and column not in frame.columns:
            raise missing_column(frame, source, role, column)


def missing_column(frame: pd.DataFrame, source: str, role: str, column: str) -> DataError:
    """The error for a column that a table does not have."""
    columns = ", ".join(map(str, frame.columns))
    return DataError(
        f"{source} has no column {column!r}; its columns are {columns}; set {{{role}}} to one of them.", role
    )


def complete_rows(frame: pd.DataFrame, texts: tuple[str, ...], label: str, group_column: str | None) -> np.ndarray:
    """Which rows have all of text, label and group; a label or group of blanks is missing, a text of blanks is not."""
    complete = np.ones(len(frame), bool)
    for column in texts:
        complete &= [not _is_missing(value) for value in frame[column]]
    for column in (label, *([group_column] if group_column else [])):
        complete &= [not (_is_missing(value) or _is_blank(value)) for value in frame[column]]
    return complete


def read_groups(column: pd.Series, source: str, name: str) -> list[str]:
    """Values of a column that groups examples, as text; refuses rows without one."""
    values = list(column)
    if empty := [i for i, value in enumerate(values) if _is_missing(value) or _is_blank(value)]:
        _refuse(f"Column {name!r} of {source} has no group", empty, on_missing=True)
    return [str(value).strip() for value in values]


def read_texts(column: pd.Series, source: str, name: str) -> list[str]:
    """A column's texts; refuses cells that are not text, and characters that tokenizers or files cannot represent."""
    values = list(column)
    invalid = [i for i, value in enumerate(values) if not isinstance(value, str)]
    if invalid:
        value = values[invalid[0]]
        if _is_missing(value):
            _refuse(f"Column {name!r} of {source} has nothing instead of text", invalid, on_missing=True)
        if _is_list(value):
            _refuse_lists(f"Column {name!r} of {source} has lists instead of text")
        _refuse(f"Column {name!r} of {source} has {type(value).__name__} instead of text", invalid)
    texts = [str(value) for value in values]
    _check_characters(texts, source, name)
    return texts


def read_labels(column: pd.Series, source: str, name: str) -> tuple[np.ndarray, list[str]]:
    """Class numbers of a column (-1 where a Hub data set gives no label) and the names of the classes.

    Words are numbered in sorted order, whole numbers in theirs; surrounding blanks are stripped.
    """
    values = [value.strip() if isinstance(value, str) else value for value in column]
    if empty := [i for i, value in enumerate(values) if _is_missing(value) or _is_blank(value)]:
        _refuse(f"Column {name!r} of {source} has no label", empty, on_missing=True)
    if any(_is_list(value) for value in values):
        _refuse_lists(f"Column {name!r} of {source} has lists instead of labels")
    _check_characters(values, source, name)
    kinds = [_kind(value) for value in values]
    if set(kinds) == {"text"} and _are_decimals(values):
        kinds = ["fractions"] * len(values)
    known = [not (kind == "whole numbers" and value == -1) for value, kind in zip(values, kinds, strict=True)]
    if "fractions" in kinds:  # 0.0 and 1.0 among them are fractions as well
        kinds = ["fractions" if isinstance(value, float) else kind for value, kind in zip(values, kinds, strict=True)]
    mixed = sorted({kind for kind, is_known in zip(kinds, known, strict=True) if is_known})
    if len(mixed) > 1:
        shown = " and ".join(f"{kind} ({quoted(values[kinds.index(kind)])})" for kind in mixed)
        raise DataError(f"Column {name!r} of {source} mixes {shown}; write all labels in one way.")
    kind = mixed[0] if mixed else "text"
    if kind == "fractions":
        raise DataError(
            f"Column {name!r} of {source} has fractions ({quoted(values[kinds.index(kind)])}): regression is not supported; labels "
            "are words or whole numbers, one for each class (numbers with a fraction that are classes: write them as words)."
        )
    if kind not in ("text", "whole numbers", "true/false"):
        raise DataError(
            f"Column {name!r} of {source} has {kind}; labels are words or whole numbers, one for each class."
        )
    strings = [str(int(value)) if kind == "whole numbers" else str(value) for value in values]
    names = sorted({string for string, is_known in zip(strings, known, strict=True) if is_known})
    if all(re.fullmatch("-?[0-9]+", string) for string in names):
        names.sort(key=int)
    numbers = {string: i for i, string in enumerate(names)}
    labels = [numbers[string] if is_known else -1 for string, is_known in zip(strings, known, strict=True)]
    return np.array(labels, dtype=np.int64), names


def first_occurrences(
    columns: Sequence[list[str]], is_test: np.ndarray | None, labels: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Positions of the first row of each text, those of a test split first, without blank texts; and notes on the rest."""
    order: Iterable[int] = range(len(labels))
    if is_test is not None:
        order = np.concatenate([np.flatnonzero(is_test), np.flatnonzero(~is_test)])
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
        also = f" ({conflicting:,} of them with another label)" if conflicting else ""
        notes.append(f"{duplicates:,} duplicates of earlier examples were left out{also}; the first label was kept.")
    return np.array(sorted(first.values()), dtype=np.int64), notes


def drop_unused_classes(labels: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels and names of the classes that occur, renumbered; unknown labels stay -1."""
    used = np.unique(labels[labels >= 0])
    return np.where(labels >= 0, np.searchsorted(used, labels), -1), [names[number] for number in used]


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


def _are_decimals(values: list[str]) -> bool:
    """Whether all of these are written as numbers, and some with a fraction other than zero."""
    decimal = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?").fullmatch
    return all(decimal(value) for value in values) and any(not float(value).is_integer() for value in values)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _refuse_lists(problem: str) -> None:
    raise DataError(
        f"{problem}: token classification and multi-label classification are not supported; give one text and one label per "
        "row."
    )


def _check_characters(values: list[Any], source: str, name: str) -> None:
    for character, pattern in (("a NUL character", "\x00"), ("half a character (a lone surrogate)", "[\ud800-\udfff]")):
        search = re.compile(pattern).search
        invalid = [i for i, value in enumerate(values) if isinstance(value, str) and search(value)]
        if invalid:
            _refuse(f"Column {name!r} of {source} has {character}", invalid)


def _refuse(problem: str, rows: list[int], *, on_missing: bool = False) -> None:
    numbers = ", ".join(str(i + 1) for i in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    also = ', or set {on_missing} = "drop"' if on_missing else ""
    raise DataError(
        f"{problem} in row{'s' * (len(rows) > 1)} {numbers}{more}; correct these rows or leave them out{also}.",
        *(["on_missing"] if on_missing else []),
    )
