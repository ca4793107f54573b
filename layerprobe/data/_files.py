"""Rows of a CSV, TSV, JSONL or Parquet file, every cell as it was written."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def read_file(path: Path, source: str) -> pd.DataFrame:
    """Rows of a file.

    Raises:
        DataError: if it is empty, damaged, of an unknown type or not readable.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{source} ends in {path.suffix or 'nothing'!r}; supported are {', '.join(READERS)}.")
    try:
        frame = reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except PermissionError:
        raise DataError(f"{source} cannot be read: permission denied.") from None
    except DataError:
        raise
    except Exception as error:  # libraries have many for damaged files
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{source} cannot be read as {path.suffix[1:].upper()} ({reason}).") from None
    if not len(frame):
        raise DataError(f"{source} has no rows; it needs labelled examples.")
    return frame


def _read_csv(path: Path, separator: str | None = None) -> pd.DataFrame:
    import pandas as pd

    content = path.read_bytes().decode("utf-8-sig")
    if separator is None:  # in many countries, spreadsheets write semicolons
        first = re.split("[\r\n]", content, maxsplit=1)[0]
        separator = ";" if ";" in first and "," not in first else ","
    # Strictly, and not with pandas: there a single quotation mark at the start of a cell makes one cell of all rows up to
    # the next one, and the words "NA", "null" and "None" become missing values.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    limit = csv.field_size_limit(len(content) + 1)
    rows: list[list[str | None]] = []
    try:
        header = next(reader, [])
        for row in reader:
            if len(row) > len(header):
                raise DataError(
                    f"Line {reader.line_num} of {path} has {len(row)} cells but the header has {len(header)}; "
                    "put texts that contain the separator in quotation marks."
                )
            if row:
                rows.append([*row, *[None] * (len(header) - len(row))])
    except csv.Error:
        raise DataError(
            f"A quotation mark in {path} is out of place (line {reader.line_num}): a cell that begins with one "
            'must end with one, and those within it must be doubled ("").'
        ) from None
    finally:
        csv.field_size_limit(limit)
    if not header:
        raise DataError(f"{path} is empty; it needs a header and rows.")
    _check_names([name for name in header if name], path)
    return pd.DataFrame(rows, columns=header, dtype=object)


def _read_tsv(path: Path) -> pd.DataFrame:
    return _read_csv(path, "\t")


def _read_jsonl(path: Path) -> pd.DataFrame:
    import pandas as pd

    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"Line {number} of {path} cannot be read as JSON ({error}); write one object per line."
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"Line {number} of {path} is not a JSON object; write one object per line.")
            rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    _check_names(pq.read_schema(path).names, path)
    # pandas' own metadata would make an index of some columns.
    return pq.read_table(path).replace_schema_metadata(None).to_pandas().astype(object)


READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
"""Supported files by their ending."""


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _check_names(names: Sequence[str], path: Path) -> None:
    name = _repeated(names)
    if name is not None:
        raise DataError(f"{path} has two columns named {name!r}; rename one.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    name = _repeated([name for name, _ in pairs])
    if name is not None:
        raise ValueError(f"it names {name!r} twice")
    return dict(pairs)
