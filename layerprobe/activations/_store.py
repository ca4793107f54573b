"""Stored activations: memory-mapped matrices of rows, and what each row is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import StorageError, StudyError

if TYPE_CHECKING:
    import pandas as pd

Unit = Literal["token", "mean", "cls"]

SCHEMA = 1
RECORD = "store.json"
ROWS = "rows.parquet"


def matrix_file(unit: str, layer: int) -> str:
    """Name of the file that holds one layer's rows of one unit."""
    return f"{unit}-layer-{layer:02d}.npy"


class ActivationStore:
    """A folder of activations: for each layer the rows of all stored tokens, and pooled vectors of all examples.

    Token rows stand in the order in which they were captured (longest texts first); `rows` tells what each one is.
    Pooled vectors stand in the order of `example_ids`.

    Attributes:
        folder: where it stands.
        layers: layers that are stored, 0 = embeddings' output ... L = last block's output.
        width: numbers in a row.
        n_rows: token rows a layer.
        example_ids: ids of the examples, in the order in which they were given.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self._record = record
        self.layers: tuple[int, ...] = tuple(record["layers"])
        self.width: int = record["width"]
        self.n_rows: int = record["n_rows"]
        self.example_ids: np.ndarray = np.array(record["example_ids"], dtype=np.str_)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> ActivationStore:
        """Open a store.

        Args:
            folder: as `capture` wrote it.
            verify: whether to compare every file with its checksum.

        Raises:
            StorageError: if it is missing, half-written or damaged.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StorageError(
                f"{folder} holds no finished activations ({RECORD} is missing); capture them again."
            ) from None
        except ValueError:
            raise StorageError(f"{folder / RECORD} is not JSON; capture the activations again.") from None
        if record.get("schema") != SCHEMA:
            raise StorageError(
                f"{folder} has schema {record.get('schema')!r}, this version reads {SCHEMA}; capture again."
            )
        for name, about in record["files"].items():
            path = folder / name
            if (
                not path.is_file()
                or path.stat().st_size != about["bytes"]
                or (verify and sha256(path) != about["sha256"])
            ):
                raise StorageError(f"{path} is missing, cut short or altered; capture the activations again.")
        return cls(folder, record)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """What each token row is: `example` (position in `example_ids`), `token_index`, `token`, `special`."""
        import pandas as pd

        return pd.read_parquet(self.folder / ROWS)

    def tokens(self, layer: int) -> Float[np.ndarray, "rows width"]:
        """Every stored token's vector at a layer, memory-mapped; never one of padding."""
        return self._matrix("token", layer)

    def mean(self, layer: int) -> Float[np.ndarray, "examples width"]:
        """Mean over each example's real tokens, special ones included."""
        return self._matrix("mean", layer)

    def cls(self, layer: int) -> Float[np.ndarray, "examples width"]:
        """Each example's first token."""
        return self._matrix("cls", layer)

    def unit(self, unit: Unit, layer: int) -> Float[np.ndarray, "rows width"]:
        """Rows of a unit: `token`, `mean` or `cls`."""
        return self._matrix(unit, layer)

    def groups(self, unit: Unit) -> Int[np.ndarray, " rows"]:
        """Which example each row of a unit belongs to, as its position in `example_ids`."""
        if unit == "token":
            return self.rows["example"].to_numpy(dtype=np.int64)
        return np.arange(len(self.example_ids), dtype=np.int64)

    def content(self, layer: int) -> str:
        """sha256 of a layer's token rows: equal for equal rows, however they came about."""
        return self._record["files"][matrix_file("token", layer)]["sha256"]

    def shares(self, other: ActivationStore, layer: int) -> bool:
        """Whether a layer's token rows are one file with the other store's."""
        name = matrix_file("token", layer)
        return (self.folder / name).samefile(other.folder / name)

    def _matrix(self, unit: str, layer: int) -> np.ndarray:
        name = matrix_file(unit, layer)
        if name not in self._record["files"]:
            there = ", ".join(map(str, self.layers))
            raise StudyError(f"{self.folder} holds no {unit} rows of layer {layer}; it holds layers {there}.")
        return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)


def paired(base: ActivationStore, adapted: ActivationStore) -> None:
    """Make sure that two stores hold the same tokens of the same examples, row by row.

    Raises:
        StorageError: naming the first difference.
    """
    if len(base.example_ids) != len(adapted.example_ids) or (base.example_ids != adapted.example_ids).any():
        raise StorageError(
            f"{base.folder} and {adapted.folder} were captured on different examples "
            f"({len(base.example_ids)} and {len(adapted.example_ids)}); capture both on the same texts."
        )
    for column in ("example", "token_index", "token"):
        one, other = base.rows[column].to_numpy(), adapted.rows[column].to_numpy()
        if len(one) != len(other) or (one != other).any():
            at = len(one) if len(one) != len(other) else int(np.flatnonzero(one != other)[0])
            raise StorageError(
                f"{base.folder} and {adapted.folder} differ in `{column}` from row {at} on; "
                "capture both with one tokenizer and the same batches."
            )


def estimate_bytes(n_rows: int, n_examples: int, n_layers: int, width: int, dtype: str = "float32") -> int:
    """Bytes that a store will take: token rows in `dtype`, two float32 pooled vectors an example, and the index."""
    token = n_rows * width * np.dtype(dtype).itemsize
    pooled = 2 * n_examples * width * 4
    return n_layers * (token + pooled + 512) + 24 * n_rows + 64 * n_examples


def sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(
    folder: Path, record: dict[str, Any], reference: ActivationStore | None, hashes: Mapping[str, str]
) -> ActivationStore:
    """Seal a folder of matrices: share what equals the reference's, then write the record last."""
    files = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".npy", ".parquet")):
        about = {"sha256": hashes.get(path.name) or sha256(path), "bytes": path.stat().st_size}
        files[path.name] = about
        if reference and reference._record["files"].get(path.name) == about:
            _share(path, reference.folder / path.name)
    record = {"schema": SCHEMA, **record, "files": files}
    partial = folder / f".{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    partial.replace(folder / RECORD)
    return ActivationStore(folder, record)


def _share(path: Path, original: Path) -> None:
    """Make one file of two with equal content, where the disk allows it."""
    twin = path.with_name(f".{path.name}.twin")
    try:
        os.link(original, twin)
        twin.replace(path)
    except OSError:
        twin.unlink(missing_ok=True)  # other disk, or no hard links: both copies stay


def twin(store: ActivationStore, folder: str | Path) -> ActivationStore:
    """The same store in a second folder, sharing its files where the disk allows it."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    for path in sorted(store.folder.iterdir()):
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copy2(path, folder / path.name)
    return ActivationStore.open(folder)


def clear(folder: Path) -> None:
    """Remove a half-written store."""
    shutil.rmtree(folder, ignore_errors=True)
