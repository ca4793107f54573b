"""The description of each token row, written to disk in pieces while the rows are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_GROUP = 16_384
"""Rows that are held before they are written."""
SCHEMA = pa.schema(
    [("example", pa.int32()), ("token_index", pa.int32()), ("token", pa.string()), ("special", pa.bool_())]
)


class RowIndexWriter:
    """A Parquet file with one row per token, in memory that does not depend on the number of tokens.

    Args:
        path: the new file.
        tokenizer: gives the text of each token.
    """

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._file = pq.ParquetWriter(path, SCHEMA)
        self._empty()

    def add(self, example: int, encoding: Mapping[str, list[int]]) -> None:
        """Add the tokens of one example.

        Args:
            example: its position.
            encoding: its `input_ids` and `special_tokens_mask`.
        """
        n = len(encoding["input_ids"])
        self._examples += [example] * n
        self._token_indices += range(n)
        self._ids += encoding["input_ids"]
        self._special += encoding["special_tokens_mask"]
        if len(self._ids) >= ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left and complete the file."""
        if self._ids:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        columns = (
            self._examples,
            self._token_indices,
            self._tokenizer.convert_ids_to_tokens(self._ids),
            list(map(bool, self._special)),
        )
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), row_group_size=len(self._ids))
        self._empty()

    def _empty(self) -> None:
        self._examples: list[int] = []
        self._token_indices: list[int] = []
        self._ids: list[int] = []
        self._special: list[int] = []
