"""Data in memory, written as a Parquet file that is named by its content."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.data._cells import check_columns, missing_column
from layerprobe.data._sources import DataSource, rows_of_splits, split_by_column
from layerprobe.errors import DataError
from layerprobe.files import checksum

if TYPE_CHECKING:
    import pandas as pd

_NAME = "The data"


@dataclass(frozen=True)
class SavedData:
    """Data that was written to a file."""

    path: Path
    split_column: str | None
    """Column of the file that marks the test split, if the data has one."""


def save_data(data: Any, source: DataSource, folder: Path) -> SavedData:
    """Write the columns that a source names to `<folder>/<sha256>.parquet`; equal data gives the same file.

    Args:
        data: a pandas DataFrame, a `datasets.Dataset` or a `datasets.DatasetDict`. The test split of a DatasetDict (else its
            validation split, as for a Hub data set) becomes a column of the file; its rows without a label (-1) are left out.
        source: names the columns; `source.name` is not used.
        folder: where the file is written.

    Raises:
        DataError: if the data is of another type, is empty, lacks a column, or has cells of several types in one column.
    """
    import pandas as pd

    is_test = None
    if isinstance(data, pd.DataFrame):
        frame = data
    else:
        frame, is_test = _frame_of(data, source)
    if not len(frame):
        raise DataError(f"{_NAME} has no rows; it needs labelled examples.")
    texts = source.text if isinstance(source.text, tuple) else (source.text or "text",)
    label = source.label or "label"
    check_columns(frame, _NAME, texts, label, source.group, source.group_column)
    if source.split_column is not None and source.split_column not in frame.columns:
        raise missing_column(frame, _NAME, "split_column", source.split_column)
    named = [*texts, label, source.group, source.group_column, source.split_column]
    kept = frame[list(dict.fromkeys(name for name in named if name is not None))]
    if not kept.columns.is_unique:
        twice = kept.columns[kept.columns.duplicated()][0]
        raise DataError(f"{_NAME} has two columns named {twice!r}; rename one.")
    split_column = source.split_column
    if split_column is None and is_test is not None:
        split_column = "split" if "split" not in kept.columns else "split of the data set"
        kept = kept.assign(**{split_column: np.where(is_test, "test", "train")})
    return SavedData(_write(kept, folder), split_column)


def _frame_of(data: Any, source: DataSource) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Rows of a Dataset or DatasetDict that have a label, and which of them are in its test split."""
    # Who has such an object has imported the library; importing it takes seconds.
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(data, datasets.Dataset | datasets.DatasetDict):
        raise DataError(
            f"{_NAME} is a {type(data).__name__}; give a pandas DataFrame, a datasets.Dataset or a datasets.DatasetDict."
        )
    splits = data if isinstance(data, datasets.DatasetDict) else {"train": data}
    rows = rows_of_splits(splits, source, None)
    check_columns(rows.frame, _NAME, rows.texts, rows.label)
    if source.split_column is not None:
        split_by_column(rows, source.split_column, _NAME)
        return rows.frame, None
    labelled = np.array([not (isinstance(value, int) and value == -1) for value in rows.frame[rows.label]], bool)
    is_test = rows.is_test if rows.is_test is not None and rows.is_test.any() else None
    return rows.frame[labelled].reset_index(drop=True), None if is_test is None else is_test[labelled]


def _write(frame: pd.DataFrame, folder: Path) -> Path:
    """Write a table under the sha256 of its Parquet file, unless it is there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.Table.from_pandas(frame.astype(object), preserve_index=False).replace_schema_metadata(None)
    except pa.ArrowException as error:
        raise DataError(
            f"{_NAME} has a column with cells of several types ({' '.join(str(error).split())[:160]}); write all in one way."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}.partial"
    try:
        pq.write_table(table, temporary)
        path = folder / f"{checksum(temporary)}.parquet"
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
