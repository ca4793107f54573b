"""Stored activations: memory-mapped matrices of rows, and what each row is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import ArgumentError, StorageError
from layerprobe.files import checksum, write_json

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Unit = Literal["token", "mean", "cls"]

SCHEMA = 1
RECORD = "store.json"
ROWS = "rows.parquet"


def matrix_file(unit: str, layer: int) -> str:
    """Name of the file with the rows of one unit at one layer."""
    return f"{unit}-layer-{layer:02d}.npy"


class ActivationStore:
    """A folder of activations: for each layer the rows of all stored tokens, and pooled vectors of all examples.

    Token rows are in the order of capture (longest examples first); `rows` describes each of them. Pooled vectors are in
    the order of `example_ids`.

    Attributes:
        folder: its folder.
        layers: layers that are stored, 0 = output of the embeddings ... L = output of the last block.
        width: length of a row.
        n_rows: token rows per layer.
        batch_size: examples per forward pass of the capture.
        example_ids: ids of the examples, in the order in which they were passed to `capture`.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, Any]] = record["files"]
        self.layers: tuple[int, ...] = tuple(record["layers"])
        self.width: int = record["width"]
        self.n_rows: int = record["n_rows"]
        self.batch_size: int | None = record.get("batch_size")
        self.example_ids: np.ndarray = np.array(record["example_ids"], dtype=np.str_)

    @classmethod
    def open(cls, folder: str | Path) -> ActivationStore:
        """Open a folder that `capture` wrote. The sizes of its files are checked, not their `checksums`.

        Raises:
            StorageError: if it is missing or incomplete.
        """
        store = cls(Path(folder), _read_record(Path(folder)))
        for name, file in store._files.items():
            path = store.folder / name
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise StorageError(f"{path} is missing or truncated; capture the activations again.")
        return store

    @classmethod
    def seal(cls, folder: Path, record: Mapping[str, Any], checksums: Mapping[str, str]) -> ActivationStore:
        """Complete a folder of matrices by writing its record.

        Args:
            folder: holds the matrices and `rows.parquet`.
            record: what `ActivationStore` reads, without `files`.
            checksums: sha256 of files that were hashed while they were written; the others are read once.
        """
        files = {
            path.name: {"sha256": checksums.get(path.name) or checksum(path), "bytes": path.stat().st_size}
            for path in sorted(folder.iterdir())
        }
        complete = {"schema": SCHEMA, **record, "files": files}
        write_json(folder / RECORD, complete)
        return cls(folder, complete)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Description of each token row: `example` (position in `example_ids`), `token_index`, `token`, `special`."""
        import pandas as pd

        return pd.read_parquet(self.folder / ROWS)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of `rows`, read alone: all of `rows` takes about 70 bytes per row."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / ROWS, columns=[name]).column(name)

    def tokens(self, layer: int) -> Float[np.ndarray, "rows width"]:
        """Vector of every stored token at a layer, memory-mapped; padding is never stored."""
        return self.unit("token", layer)

    def mean(self, layer: int) -> Float[np.ndarray, "examples width"]:
        """Mean over the real tokens of each example, special ones included."""
        return self.unit("mean", layer)

    def cls(self, layer: int) -> Float[np.ndarray, "examples width"]:
        """First token of each example."""
        return self.unit("cls", layer)

    def unit(self, unit: Unit, layer: int) -> Float[np.ndarray, "rows width"]:
        """Rows of a unit: `token`, `mean` or `cls`."""
        name = matrix_file(unit, layer)
        if name not in self._files:
            layers = ", ".join(map(str, self.layers))
            raise ArgumentError(f"{self.folder} has no {unit} rows of layer {layer}; its layers are {layers}.")
        return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)

    def groups(self, unit: Unit) -> Int[np.ndarray, " rows"]:
        """The example of each row of a unit, as its position in `example_ids`."""
        if unit == "token":
            return self.column("example").to_numpy().astype(np.int64)
        return np.arange(len(self.example_ids), dtype=np.int64)

    @property
    def checksums(self) -> dict[str, str]:
        """sha256 of each file, from the record."""
        return {name: file["sha256"] for name, file in self._files.items()}

    def content(self, layer: int, unit: Unit = "token") -> str:
        """sha256 of the rows of a unit at a layer: equal for equal rows, whatever produced them."""
        return self.checksums[matrix_file(unit, layer)]

    def shares(self, other: ActivationStore, layer: int) -> bool:
        """Whether the token rows of a layer are one file with those of the other store."""
        name = matrix_file("token", layer)
        return (self.folder / name).samefile(other.folder / name)

    def share_files(self, other: ActivationStore) -> None:
        """Replace each file that equals the other store's by a hard link to it, where the disk allows it."""
        for name in self._files.keys() & other._files.keys():
            path, original = self.folder / name, other.folder / name
            if self._files[name] == other._files[name] and not path.samefile(original):
                link = path.with_name(f".{name}.link")
                with contextlib.suppress(OSError):  # another disk, or no hard links
                    os.link(original, link)
                    link.replace(path)

    def copy_to(self, folder: str | Path) -> ActivationStore:
        """The same store in a new folder, sharing its files where the disk allows it."""
        folder = Path(folder)
        folder.mkdir(parents=True)
        for name in (*self._files, RECORD):
            try:
                os.link(self.folder / name, folder / name)
            except OSError:
                shutil.copy2(self.folder / name, folder / name)
        return ActivationStore.open(folder)


def content_digests(folder: str | Path, unit: Unit = "token") -> dict[int, str]:
    """`ActivationStore.content` of each layer of a store, read from its record alone.

    Raises:
        StorageError: if the store is missing or incomplete.
    """
    record = _read_record(Path(folder))
    return {layer: record["files"][matrix_file(unit, layer)]["sha256"] for layer in record["layers"]}


def check_paired(base: ActivationStore, adapted: ActivationStore) -> None:
    """Refuse two stores that do not hold the same tokens of the same examples, row by row.

    Raises:
        StorageError: naming the first difference.
    """
    names = f"{base.folder} and {adapted.folder}"
    if not np.array_equal(base.example_ids, adapted.example_ids):
        raise StorageError(
            f"{names} were captured on different examples ({len(base.example_ids)} and {len(adapted.example_ids)}); "
            "capture both on the same ones."
        )
    for column in ("example", "token_index", "token"):
        stored, others = base.column(column), adapted.column(column)
        if stored.equals(others):
            continue
        one, other = stored.to_numpy(), others.to_numpy()
        if not np.array_equal(one, other):
            shorter = min(len(one), len(other))
            row = next(iter(np.flatnonzero(one[:shorter] != other[:shorter])), shorter)
            raise StorageError(
                f"{names} differ in `{column}` from row {row} on; capture both with one tokenizer and the same batches."
            )


def estimate_bytes(n_rows: int, n_examples: int, n_layers: int, width: int, dtype: str = "float32") -> int:
    """Size of a store: token rows in `dtype`, two float32 pooled vectors per example, and the index."""
    token = n_rows * width * np.dtype(dtype).itemsize
    pooled = 2 * n_examples * width * 4
    return n_layers * (token + pooled + 512) + 24 * n_rows + 64 * n_examples


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{folder} has no complete activations ({RECORD} is missing); capture them again.") from None
    except ValueError:
        raise StorageError(f"{folder / RECORD} is not JSON; capture the activations again.") from None
    if record.get("schema") != SCHEMA:
        raise StorageError(
            f"{folder} has schema {record.get('schema')!r}, not {SCHEMA}; capture the activations again."
        )
    return record
