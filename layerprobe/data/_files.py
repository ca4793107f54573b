"""Rows of a CSV, TSV, JSONL or Parquet file, every cell as it was written."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def _csv(path: Path, separator: str | None = None) -> pd.DataFrame:
    import pandas as pd

    content = path.read_bytes().decode("utf-8-sig")
    if separator is None:  # spreadsheets of many countries write semicolons
        first = re.split("[\r\n]", content, maxsplit=1)[0]
        separator = ";" if ";" in first and "," not in first else ","
    # Strict, and not by pandas: there a lone quotation mark at the start of a cell swallows the rows up to the next one
    # without a word, and the words "NA", "null" and "None" are no words.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    limit = csv.field_size_limit(len(content) + 1)
    try:
        header = next(reader, [])
        rows = [_cells(row, header, path, reader.line_num) for row in reader if row]
    except csv.Error:
        raise DataError(
            f"A quotation mark in {path} is out of place (noticed at line {reader.line_num}): a cell that begins with one "
            'must end with one, and each within it be doubled ("").'
        ) from None
    finally:
        csv.field_size_limit(limit)
    if not header:
        raise pd.errors.EmptyDataError
    _check_names([name for name in header if name], path)
    return pd.DataFrame(rows, columns=header, dtype=object)


def _cells(row: list[str], header: list[str], path: Path, line: int) -> list[str | None]:
    if len(row) > len(header):
        raise DataError(
            f"Line {line} of {path} has {len(row)} cells but the header has {len(header)}; "
            "put a text that holds the separator in quotation marks."
        )
    return [*row, *[None] * (len(header) - len(row))]


def _check_names(names: list[str], path: Path) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named {twice!r}; rename one.")


def _tsv(path: Path) -> pd.DataFrame:
    return _csv(path, "\t")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return row


def _jsonl(path: Path) -> pd.DataFrame:
    import pandas as pd

    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_once)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"Line {number} of {path} cannot be read as JSON ({error}); write one object a line."
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"Line {number} of {path} is not a JSON object; write one object a line.")
            rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    _check_names(pq.read_schema(path).names, path)
    # Without the notes of pandas in it, which would make an index of some columns.
    table = pq.read_table(path).replace_schema_metadata(None)
    return table.to_pandas().astype(object)


READERS: dict[str, Any] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def read_file(path: Path, source: str) -> pd.DataFrame:
    """Rows of a file.

    Raises:
        DataError: if it is empty, damaged, of an unknown kind or not to be read.
    """
    import pandas as pd
    import pyarrow as pa

    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{source} ends in {path.suffix or 'nothing'!r}; the files read are {', '.join(READERS)}.")
    try:
        frame = reader(path)
    except pd.errors.EmptyDataError:
        raise DataError(f"{source} is empty; it needs a header and rows.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except PermissionError:
        raise DataError(f"{source} cannot be read: permission denied.") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{source} cannot be read as {path.suffix[1:].upper()} ({' '.join(str(error).split())[:160]})."
        ) from None
    if not len(frame):
        raise DataError(f"{source} has no rows; it needs labelled texts.")
    return frame
