"""The values of frozen blocks over the training examples: computed once, written to a folder, read during training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerprobe.adaptation._config import AdaptConfig
from layerprobe.adaptation.methods import Method, cached_layers
from layerprobe.data import Examples
from layerprobe.device import MOST_EXAMPLES, batch_size, forward_bytes
from layerprobe.encoder import Encoder, collate, head_row, length_sorted_batches, tokenize
from layerprobe.errors import StorageError
from layerprobe.families import FAMILIES
from layerprobe.files import write_json
from layerprobe.layers import edited, skipping
from layerprobe.progress import track

BATCH = 32
INDEX = "frozen.json"


@dataclass(frozen=True)
class Frozen:
    """One layer's values over the training examples, in float32 and without dropout.

    Below layer L there is one row per token; of layer L one row per example, which is all that a head reads of a frozen
    body.
    """

    layer: int
    rows: np.ndarray
    """`(rows, width)`, memory-mapped."""
    starts: np.ndarray
    """`(examples,)`: each example's first row."""
    lengths: np.ndarray
    """`(examples,)`: each example's number of rows."""
    seconds: float
    """Time of computing and writing this layer."""

    def batch(self, examples: Sequence[int] | np.ndarray) -> Tensor:
        """`(examples, longest, width)`, short examples padded with zeros, which the attention mask hides."""
        values = np.zeros((len(examples), int(self.lengths[examples].max()), self.rows.shape[1]), dtype=np.float32)
        for i, example in enumerate(examples):
            start, length = self.starts[example], self.lengths[example]
            values[i, :length] = self.rows[start : start + length]
        return torch.from_numpy(values)


FrozenValues = Mapping[int, Frozen]
"""Frozen values by layer."""


def open_frozen(folder: str | Path) -> dict[int, Frozen]:
    """The values that `compute_frozen` wrote to a folder, by layer."""
    folder = Path(folder)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    tokens = np.array(index["tokens"], dtype=np.int64)
    order = np.concatenate(length_sorted_batches(tokens, BATCH))
    values = {}
    for number, entry in index["layers"].items():
        lengths = tokens if entry["unit"] == "token" else np.ones_like(tokens)
        starts = np.empty_like(lengths)
        starts[order] = np.cumsum(lengths[order]) - lengths[order]
        rows = np.load(folder / f"layer-{number}.npy", mmap_mode="r", allow_pickle=False)
        values[int(number)] = Frozen(int(number), rows, starts, lengths, entry["seconds"])
    return values


@torch.inference_mode()
def compute_frozen(
    encoder: Encoder, examples: Examples, layers: Collection[int], folder: str | Path, config: AdaptConfig
) -> None:
    """Write the values of layers (1 ... L) of the base model over examples to a folder, in one pass.

    The pass is in float32 whatever the precision of training: heads read float32 values, one pass serves every method, and
    the values are those of the adapted model when it is evaluated, in float32.

    Args:
        encoder: the pretrained encoder.
        examples: the training examples.
        layers: which layers (`cached_layers` of the methods that are to be trained).
        folder: where to write; created if necessary.
        config: its `pooling`, `max_length` and `device` are used.

    Raises:
        StorageError: if the disk is too small.
    """
    folder, last = Path(folder), encoder.n_layers
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = encoder.classifier(("0", "1"), seed=0, pooling=config.pooling)
    model.to(config.device)
    row = head_row(model, encoder)
    encodings = tokenize(encoder, examples, config.max_length)
    tokens = [len(encoding["input_ids"]) for encoding in encodings]
    counts = {layer: len(tokens) if layer == last else sum(tokens) for layer in sorted(layers)}
    needed, free = 4 * encoder.width * sum(counts.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"The values of the frozen blocks take {needed / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free in {folder}; "
            "free some space there, or use another folder."
        )
    seconds = dict.fromkeys(counts, 0.0)
    batch_start = written = 0.0
    inputs: dict[str, Tensor] = {}

    def write(layer: int, value: Tensor) -> Tensor:
        # The time of a layer: since the start of the batch, less the writing of the layers below it.
        nonlocal written
        start = time.perf_counter()
        if layer == last:
            rows = _head_rows(model.base_model, value, inputs["attention_mask"], row)
        else:
            rows = value[inputs["attention_mask"].bool()]
        files[layer].write(rows.contiguous().cpu().numpy().data)
        end = time.perf_counter()
        seconds[layer] += end - batch_start - written
        written += end - start
        return value

    with ExitStack() as stack:
        files = {layer: stack.enter_context((folder / f"layer-{layer}.npy").open("wb")) for layer in counts}
        for layer, count in counts.items():
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, encoder.width)}
            np.lib.format.write_array_header_1_0(files[layer], header)
        stack.enter_context(edited(model, {layer: partial(write, layer) for layer in counts}))
        stack.enter_context(skipping(model, range(max(counts) + 1, last + 1)))
        # Rows are in the order of lengths, whatever the size of batches.
        each = forward_bytes(model.config, max(tokens))
        batches = length_sorted_batches(tokens, batch_size(config.device, each, usual=BATCH, most=MOST_EXAMPLES))
        for indices in track(batches, "frozen blocks"):
            batch_start, written = time.perf_counter(), 0.0
            inputs = {key: value.to(config.device) for key, value in collate(encoder, encodings, indices).items()}
            model.base_model(**inputs)
    entries = {layer: {"unit": "example" if layer == last else "token", "seconds": seconds[layer]} for layer in counts}
    write_json(folder / INDEX, {"tokens": tokens, "layers": entries})


def cache_bytes(methods: Collection[Method], encoder: Encoder, *, tokens: int, examples: int) -> int:
    """Bytes on disk of the frozen values that these methods need together.

    Args:
        methods: the methods, which share the values, as do their seeds.
        encoder: the pretrained encoder.
        tokens: number of tokens of all training examples, special ones included.
        examples: number of training examples.
    """
    layers = cached_layers(methods, encoder.n_layers)
    rows = sum(examples if layer == encoder.n_layers else tokens for layer in layers)
    return 4 * rows * encoder.width


def _head_rows(body: Any, last: Tensor, mask: Tensor, row: str) -> Tensor:
    """All that a head reads of the frozen body, `(examples, width)`.

    ModernBERT's head starts at the final norm and may average over tokens: the norm's scale commutes with that mean, so
    the mean of the normalised tokens is enough.
    """
    family = FAMILIES[body.config.model_type]
    if row == "pooler":
        activation = family.pooler_activation
        return body.pooler(last) if activation is None else activation(body.pooler(last[:, 0]))
    if family.final_norm is not None:
        norm = body.get_submodule(family.final_norm)
        last = nn.functional.layer_norm(last, norm.normalized_shape, eps=norm.eps)
    if row == "mean":
        return (last * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    return last[:, 0]
