"""Forward passes over texts, every layer's rows streamed to disk."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from layerprobe.activations._store import ROWS, ActivationStore, clear, finish, matrix_file
from layerprobe.data import Examples
from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize
from layerprobe.errors import EncoderError, StorageError, StudyError
from layerprobe.layers import blocks, forward


def capture(
    model: nn.Module,
    encoder: Encoder,
    examples: Examples,
    folder: str | Path,
    *,
    max_length: int = 128,
    layers: Sequence[int] | None = None,
    token_examples: int | None = None,
    token_rows: int | None = None,
    pooled: bool = True,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 32,
    device: str = "cpu",
    reference: ActivationStore | None = None,
    progress: bool = True,
) -> ActivationStore:
    """Run a model over texts once and store what every layer puts out.

    Rows go to disk batch by batch; memory holds one batch. Padding is never stored and never averaged over. To compare
    two models, capture both with the same arguments: padding alone moves float32 activations by 2e-7.

    Args:
        model: a classifier on the encoder's architecture, freshly loaded, in float32 and eval mode.
        encoder: gives the tokenizer and the layers' numbers.
        examples: texts to run over.
        folder: a new or empty folder for the store.
        max_length: word pieces kept of a text.
        layers: layers to store; by default all, 0 to L.
        token_examples: store the tokens of only the first so many examples; by default of all.
        token_rows: store the tokens of whole examples until the next would pass this many rows.
        pooled: whether to store mean and first-token vectors of all examples.
        dtype: type of stored token rows; pooled vectors are always float32.
        batch_size: texts in a batch.
        device: where to compute.
        reference: an earlier store; matrices that turn out identical to its own become one file with them.
        progress: whether to draw a progress bar on stderr.

    Raises:
        StudyError: if there is nothing to capture, a layer does not exist, or a value overflows float16.
        EncoderError: if the model is in training mode or computes under autocast.
        StorageError: if the disk is full or the folder holds something.
    """
    folder = Path(folder)
    if model.training:
        raise EncoderError(
            "The model is in training mode, so dropout would be in its activations; call model.eval() first."
        )
    n_layers = len(blocks(model))
    chosen = tuple(range(n_layers + 1)) if layers is None else tuple(sorted(set(layers)))
    if not chosen or chosen[0] < 0 or chosen[-1] > n_layers:
        raise StudyError(f"Layers {list(chosen)} were asked for; {encoder.name} has 0 (embeddings) to {n_layers}.")
    if not len(examples):
        raise StudyError("There is no text to capture activations on; give at least one example.")
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder} is not empty; give a new folder for the activations.")
    encodings = tokenize(encoder, examples, max_length)
    with_tokens = _with_tokens([len(e["input_ids"]) for e in encodings], token_examples, token_rows)
    if not pooled:  # nothing is wanted of the others
        encodings = encodings[:with_tokens]
        examples = examples.take(range(with_tokens))
        if not encodings:
            raise StudyError(f"token_rows = {token_rows} is less than the first text's tokens; ask for more rows.")
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = _Writer(folder, chosen, encoder.width, encodings, with_tokens, pooled, dtype)
        _run(model.to(device), encoder, encodings, writer, batch_size, device, progress)
        hashes = writer.close(encoder, encodings)
        record = {
            "layers": list(chosen),
            "width": encoder.width,
            "n_rows": writer.n_rows,
            "dtype": dtype,
            "max_length": max_length,
            "batch_size": batch_size,
            "example_ids": list(examples.ids),
        }
        return finish(folder, record, reference, hashes)
    except OSError as error:
        clear(folder)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"The disk is full: the activations in {folder} could not be written, and the part that was is removed; "
                "free some space or store fewer examples, and capture again."
            ) from error
        raise
    except BaseException:
        clear(folder)
        if existed:
            folder.mkdir(exist_ok=True)
        raise


def _with_tokens(lengths: Sequence[int], token_examples: int | None, token_rows: int | None) -> int:
    """How many examples, from the first on, have their tokens stored."""
    number = len(lengths) if token_examples is None else min(token_examples, len(lengths))
    if token_rows is not None:
        number = int(np.searchsorted(np.cumsum(lengths[:number]), token_rows, side="right"))
    return number


@torch.inference_mode()
def _run(
    model: nn.Module,
    encoder: Encoder,
    encodings: list[dict[str, list[int]]],
    writer: _Writer,
    batch_size: int,
    device: str,
    progress: bool,
) -> None:
    mixed: set[bool] = set()
    # Under autocast the norms still give float32, so the outputs' type alone would not tell.
    handle = blocks(model)[0].register_forward_pre_hook(
        lambda module, args: mixed.add(True) if torch.is_autocast_enabled(torch.device(device).type) else None
    )
    try:
        _capture_batches(model, encoder, encodings, writer, batch_size, device, progress, mixed)
    finally:
        handle.remove()


def _capture_batches(
    model: nn.Module,
    encoder: Encoder,
    encodings: list[dict[str, list[int]]],
    writer: _Writer,
    batch_size: int,
    device: str,
    progress: bool,
    mixed: set[bool],
) -> None:
    batches = length_sorted_batches([len(e["input_ids"]) for e in encodings], batch_size)
    for indices in tqdm(batches, desc="capturing", unit="batch", leave=False, disable=not progress, delay=1):
        inputs = {key: value.to(device) for key, value in collate(encoder, encodings, indices).items()}
        layers, _ = forward(model, inputs)
        if layers[-1].dtype != torch.float32 or mixed:
            raise EncoderError(
                f"The model computes in {'mixed precision' if mixed else layers[-1].dtype}, not float32, as one does that "
                "has been through mixed-precision training; save it and load it afresh."
            )
        writer.add(indices, layers, inputs["attention_mask"].bool())


class _Writer:
    """Memory-mapped matrices, filled batch by batch."""

    def __init__(
        self,
        folder: Path,
        layers: tuple[int, ...],
        width: int,
        encodings: list[dict[str, list[int]]],
        with_tokens: int,
        pooled: bool,
        dtype: str,
    ) -> None:
        self.folder, self.layers, self.with_tokens, self.dtype = folder, layers, with_tokens, np.dtype(dtype)
        self.n_rows = sum(len(e["input_ids"]) for e in encodings[:with_tokens])
        self.order: list[int] = []

        def matrix(unit: str, layer: int, rows: int, kind: Any) -> np.memmap:
            path = folder / matrix_file(unit, layer)
            return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(rows, width))

        rows = (self.n_rows, width)
        self.tokens = {layer: _RowFile(folder / matrix_file("token", layer), rows, self.dtype) for layer in layers}
        self.pooled = {
            (unit, layer): matrix(unit, layer, len(encodings), np.float32)
            for unit in ("mean", "cls")
            for layer in layers
            if pooled
        }

    def add(self, indices: np.ndarray, layers: tuple[Tensor, ...], mask: Tensor) -> None:
        wanted = np.flatnonzero(indices < self.with_tokens)
        self.order.extend(int(i) for i in indices[wanted])
        kept = mask.clone()
        kept[np.flatnonzero(indices >= self.with_tokens)] = False
        flat = kept.flatten().nonzero().squeeze(1)
        weights = mask.to(layers[0].dtype)
        counts = weights.sum(1, keepdim=True)
        for layer in self.layers:
            value = layers[layer]
            if len(flat):
                rows = value.reshape(-1, value.shape[-1]).index_select(0, flat).cpu().numpy()
                self.tokens[layer].append(self._stored(rows, layer))
            if self.pooled:
                mean = torch.einsum("btd,bt->bd", value, weights) / counts
                self.pooled["mean", layer][indices] = mean.cpu().numpy()
                self.pooled["cls", layer][indices] = value[:, 0].cpu().numpy()

    def _stored(self, rows: np.ndarray, layer: int) -> np.ndarray:
        if self.dtype == rows.dtype:
            return rows
        if np.abs(rows).max() > np.finfo(self.dtype).max:
            raise StudyError(
                f"A value of layer {layer} ({np.abs(rows).max():.3g}) overflows {self.dtype}; "
                'store with activations.dtype = "float32".'
            )
        return rows.astype(self.dtype)

    def close(self, encoder: Encoder, encodings: list[dict[str, list[int]]]) -> dict[str, str]:
        """Write what each row is; the checksums of the files whose content went through here."""
        import pandas as pd

        for file in self.tokens.values():
            file.close()
        lengths = [len(encodings[i]["input_ids"]) for i in self.order]
        ids = [token for i in self.order for token in encodings[i]["input_ids"]]
        special = [flag for i in self.order for flag in encodings[i]["special_tokens_mask"]]
        rows = {
            "example": np.repeat(np.array(self.order, dtype=np.int32), lengths),
            "token_index": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths] or [np.zeros(0, np.int32)]),
            "token": np.array(encoder.tokenizer.convert_ids_to_tokens(ids), dtype=object),
            "special": np.array(special, dtype=bool),
        }
        pd.DataFrame(rows).to_parquet(self.folder / ROWS, index=False)
        return {file.path.name: file.sum.hexdigest() for file in self.tokens.values()}


class _RowFile:
    """An `.npy` file of known shape, appended to row by row and hashed on the way.

    Appending costs half of what filling a memory map does, whose pages are each faulted in and then flushed.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.path, self.sum = path, hashlib.sha256()
        self.file = path.open("wb")
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        self._write(header.getvalue())

    def append(self, rows: np.ndarray) -> None:
        self._write(np.ascontiguousarray(rows).data)

    def _write(self, content: bytes | memoryview) -> None:
        self.file.write(content)
        self.sum.update(content)

    def close(self) -> None:
        self.file.close()
