"""Which columns of a file are probably text, label and split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layerprobe import hub
from layerprobe.data._cells import complete_rows
from layerprobe.data._files import read_file
from layerprobe.data._sources import SPLITS
from layerprobe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2")),
    *(("text_a", "text_b"), ("sentence_a", "sentence_b"), ("question", "sentence"), ("question", "context")),
)
TEXTS = (
    "text",
    "sentence",
    "content",
    "review",
    "tweet",
    "message",
    "comment",
    "document",
    "body",
    "utterance",
    "title",
)
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "topic", "intent", "emotion", "y")
MOST_CLASSES = 200
"""Distinct values above which a column without a telling name is not taken for the label."""


@dataclass(frozen=True)
class ColumnGuess:
    """What a file seems to hold."""

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    """Column of the text, or two for pairs."""
    label: str
    split: str | None
    """Column whose values are names of splits, among them one to train on and one to test on."""
    n_rows: int
    n_missing: int
    """Rows without text or label."""
    classes: tuple[tuple[str, int], ...]
    """Names and numbers of rows of the classes, most frequent first."""


def guess_columns(path: Path, name: str) -> ColumnGuess:
    """Guess the columns of a file by their names, else by what they hold: the text is the longest column that hardly repeats,
    the label the one with the fewest of 2 to 200 distinct values.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        DataError: if it cannot be read, or no column can be the text or the label.
    """
    if not path.is_file():
        raise DataError(f"There is no data file {hub.described(name)}; check the path.")
    frame = read_file(path, name)
    columns = [column for column in map(str, frame.columns) if column]
    values = {
        column: [value for value in frame[column] if isinstance(value, str) and value.strip()] for column in columns
    }
    split = next((column for column in columns if _are_splits(frame[column].tolist())), None)
    texts = _texts([column for column in columns if column != split], values, len(frame))
    if not texts:
        raise DataError(
            f"No column of {name} looks like text (its columns are {', '.join(columns)}); write the study by hand, with {{text}} "
            "set to a column of words.",
            "text",
        )
    label = _label([column for column in columns if column not in (*texts, split)], frame)
    if label is None:
        raise DataError(
            f"No column of {name} looks like a label (its columns are {', '.join(columns)}): a label is a word or whole number "
            f"that repeats, with 2 to {MOST_CLASSES} classes; write the study by hand, with {{label}} set to the column.",
            "label",
        )
    complete = complete_rows(frame, texts, label, None)
    counts = Counter(_name(value) for value in frame[label][complete])
    return ColumnGuess(
        columns=tuple(columns),
        texts=texts,
        label=label,
        split=split,
        n_rows=len(frame),
        n_missing=int((~complete).sum()),
        classes=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    )


def _texts(columns: list[str], values: dict[str, list[str]], n: int) -> tuple[str, ...]:
    lower = {column.lower(): column for column in columns if values[column]}
    for pair in PAIRS:
        if all(name in lower for name in pair):
            return tuple(lower[name] for name in pair)
    for name in TEXTS:
        if name in lower:
            return (lower[name],)
    lengths = {
        column: float(np.mean([len(value) for value in values[column]]))
        for column in columns
        if len(values[column]) > n / 2 and len(set(values[column])) > len(values[column]) / 2
    }
    return (max(lengths, key=lambda column: lengths[column]),) if lengths else ()


def _label(columns: list[str], frame: pd.DataFrame) -> str | None:
    distinct = {}
    for column in columns:
        cells = [value for value in frame[column] if not isinstance(value, list | tuple | dict | np.ndarray)]
        names = {_name(value) for value in cells if value is not None and value == value}
        if len(names) >= 2 and len(cells) == len(frame):
            distinct[column] = len(names)
    lower = {column.lower(): column for column in distinct}
    named = next((lower[name] for name in LABELS if name in lower), None)
    few = {column: n for column, n in distinct.items() if n <= min(MOST_CLASSES, len(frame) / 2)}
    return named or (min(few, key=lambda column: few[column]) if few else None)


def _are_splits(values: list[object]) -> bool:
    found = {SPLITS.get(str(value).strip().lower()) for value in values}
    return None not in found and "train" in found and len(found) >= 2


def _name(value: object) -> str:
    """A label as a class is called."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
