"""Forward passes over examples, with the rows of every layer written to disk batch by batch."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from layerprobe.activations._row_index import RowIndexWriter
from layerprobe.activations._store import ROWS, ActivationStore, matrix_file
from layerprobe.data import Examples
from layerprobe.encoder import Encoder, collate, length_sorted_batches, token_counts, tokenize
from layerprobe.errors import ArgumentError, EncoderError, StorageError
from layerprobe.files import is_disk_full
from layerprobe.layers import blocks, forward, refuse_autocast
from layerprobe.progress import track


@dataclass(frozen=True)
class CaptureConfig:
    """Which rows are stored, and how."""

    max_length: int = 128
    """Longest input, in tokens."""
    layers: Sequence[int] | None = None
    """Layers to store; by default all, 0 to L."""
    token_examples: int | None = None
    """Store the tokens of only this many examples, the first ones; by default of all."""
    token_rows: int | None = None
    """Store the tokens of as many complete examples, the first ones, as have at most this many tokens."""
    pooled: bool = True
    """Whether to store the mean and the first token of all examples."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of stored token rows; pooled vectors are always float32."""
    batch_size: int = 32
    """Examples per batch."""


def capture(
    model: nn.Module,
    encoder: Encoder,
    examples: Examples,
    folder: str | Path,
    config: CaptureConfig | None = None,
    *,
    device: str = "cpu",
) -> ActivationStore:
    """Run a model over examples once and store the output of every layer.

    Rows are written batch by batch and texts are tokenized twice, once for their lengths and once in their batch; memory
    holds one batch and a few numbers per example. Padding is neither stored nor averaged. To compare two
    models, capture both with equal arguments: padding alone changes float32 activations by 2e-7.

    Args:
        model: a classifier of the encoder's architecture, freshly loaded, in float32 and eval mode.
        encoder: its tokenizer and layer numbering.
        examples: the examples.
        folder: a new or empty folder for the store.
        config: which rows are stored; by default all of them.
        device: where to compute.

    Raises:
        ArgumentError: if there is nothing to capture, a layer does not exist, or a value overflows float16.
        EncoderError: if the model is in training mode or does not compute in float32.
        StorageError: if the disk is full or the folder is not empty.
    """
    config, folder = config or CaptureConfig(), Path(folder)
    if model.training:
        raise EncoderError("The model is in training mode, so dropout would change its activations; call model.eval().")
    n_layers = len(blocks(model))
    layers = tuple(range(n_layers + 1)) if config.layers is None else tuple(sorted(set(config.layers)))
    if not layers or layers[0] < 0 or layers[-1] > n_layers:
        raise ArgumentError(
            f"{{layers}} is {list(layers)}, but the layers of {encoder.name} are 0 (embeddings) to {n_layers}.",
            "layers",
        )
    if not len(examples):
        raise ArgumentError("{examples} is empty; capture at least one example.", "examples")
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder} is not empty; give a new folder for the activations.")
    lengths = token_counts(encoder, examples, config.max_length)
    with_tokens = len(lengths) if config.token_examples is None else min(config.token_examples, len(lengths))
    if config.token_rows is not None:
        with_tokens = int(np.searchsorted(np.cumsum(lengths[:with_tokens]), config.token_rows, side="right"))
    if not config.pooled:  # the other examples are not needed
        examples, lengths = examples.take(range(with_tokens)), lengths[:with_tokens]
        if not with_tokens:
            raise ArgumentError(
                f"{{token_rows}} is {config.token_rows}, less than the tokens of the first example; raise it.",
                "token_rows",
            )
    model.to(device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = _Writer(folder, layers, encoder, lengths, with_tokens, config)
        batches = length_sorted_batches(lengths, config.batch_size)
        with torch.inference_mode(), refuse_autocast(model, device):
            for indices in track(batches, "capturing"):
                encodings = tokenize(encoder, examples.take(indices), config.max_length)
                inputs = collate(encoder, encodings, range(len(encodings)))
                inputs = {key: value.to(device) for key, value in inputs.items()}
                writer.add(indices, encodings, forward(model, inputs)[0], inputs["attention_mask"].bool())
        checksums = writer.close()
        record = {
            "layers": list(layers),
            "width": encoder.width,
            "n_rows": writer.n_rows,
            "dtype": config.dtype,
            "max_length": config.max_length,
            "batch_size": config.batch_size,
            "example_ids": list(examples.ids),
        }
        return ActivationStore.seal(folder, record, checksums)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if is_disk_full(error):
            raise StorageError(
                f"The disk is full: the activations in {folder} could not be written and were removed; "
                "free some space or store fewer examples, and capture again."
            ) from error
        raise


class _Writer:
    """The matrices of a store, filled batch by batch."""

    def __init__(
        self,
        folder: Path,
        layers: Sequence[int],
        encoder: Encoder,
        lengths: np.ndarray,
        with_tokens: int,
        config: CaptureConfig,
    ) -> None:
        self.with_tokens, self.dtype = with_tokens, np.dtype(config.dtype)
        self.n_rows = int(lengths[:with_tokens].sum())
        self.index = RowIndexWriter(folder / ROWS, encoder.tokenizer)
        width = encoder.width
        self.tokens = {
            layer: _RowFile(folder / matrix_file("token", layer), (self.n_rows, width), self.dtype) for layer in layers
        }
        self.pooled = {
            (unit, layer): _PooledFile(folder / matrix_file(unit, layer), (len(lengths), width))
            for unit in ("mean", "cls")
            for layer in layers
            if config.pooled
        }

    def add(
        self,
        indices: np.ndarray,
        encodings: Sequence[Mapping[str, list[int]]],
        layers: tuple[Tensor, ...],
        mask: Tensor,
    ) -> None:
        stored = indices < self.with_tokens
        for position in np.flatnonzero(stored).tolist():
            self.index.add(int(indices[position]), encodings[position])
        kept = (mask & torch.from_numpy(stored).to(mask.device)[:, None]).flatten().nonzero().squeeze(1)
        weights = mask.to(layers[0].dtype)
        counts = weights.sum(1, keepdim=True)
        for layer, file in self.tokens.items():
            value = layers[layer]
            if len(kept):
                rows = value.reshape(-1, value.shape[-1]).index_select(0, kept).cpu().numpy()
                file.write(np.ascontiguousarray(self._converted(rows, layer)).data)
            if self.pooled:
                mean = torch.einsum("btd,bt->bd", value, weights) / counts
                self.pooled["mean", layer].write(indices, mean.cpu().numpy())
                self.pooled["cls", layer].write(indices, value[:, 0].cpu().numpy())

    def _converted(self, rows: np.ndarray, layer: int) -> np.ndarray:
        if self.dtype != rows.dtype and (largest := np.abs(rows).max()) > np.finfo(self.dtype).max:
            raise ArgumentError(
                f"A value of layer {layer} ({largest:.3g}) overflows {self.dtype}; set {{dtype}} to float32.", "dtype"
            )
        return rows.astype(self.dtype, copy=False)

    def close(self) -> dict[str, str]:
        """Complete all files; returns the checksums of those that were hashed while they were written."""
        self.index.close()
        for file in self.pooled.values():
            file.close()
        return {file.path.name: file.close() for file in self.tokens.values()}


class _PooledFile:
    """An `.npy` file of known shape whose rows are written in any order, without a memory map that grows with it."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self._file, self._row_bytes = path.open("wb"), 4 * shape[1]
        description = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, description)
        self._start = self._file.tell()

    def write(self, indices: np.ndarray, rows: np.ndarray) -> None:
        for index, row in zip(indices.tolist(), rows.astype("<f4", copy=False), strict=True):
            self._file.seek(self._start + index * self._row_bytes)
            self._file.write(row.tobytes())

    def close(self) -> None:
        self._file.close()


class _RowFile:
    """An `.npy` file of known shape, appended to and hashed row by row: faster than a memory map, whose pages fault."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.path, self._sum, self._file = path, hashlib.sha256(), path.open("wb")
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self, description)

    def write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._sum.update(content)

    def close(self) -> str:
        """sha256 of the content."""
        self._file.close()
        return self._sum.hexdigest()
