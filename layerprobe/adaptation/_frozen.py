"""What frozen blocks put out over the training texts: computed once, and kept on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from layerprobe.adaptation._methods import Method, cached_layers
from layerprobe.data import Examples
from layerprobe.encoder import Encoder, collate, length_sorted_batches
from layerprobe.errors import StorageError
from layerprobe.layers import edited, skipping

VERSION = 1
"""Raised when the stored values change for equal input."""
BATCH = 32
ROWS, META = "rows.npy", "meta.json"


@dataclass(frozen=True)
class Frozen:
    """One layer's values over all training texts, in float32 and without dropout.

    Below layer L there is a row for each token, text after text; of layer L a row for each text, which is all that a head
    reads of the frozen body.
    """

    layer: int
    rows: np.ndarray
    """`(rows, width)`, memory-mapped."""
    starts: np.ndarray
    """`(texts + 1,)`: where each text's rows start."""
    seconds: float
    """Computing and keeping this layer took, whenever that was."""

    def batch(self, texts: Sequence[int] | np.ndarray) -> Tensor:
        """`(texts, longest, width)`, short texts filled up with zeros, which the attention mask hides."""
        lengths = self.starts[1:] - self.starts[:-1]
        out = np.zeros((len(texts), int(lengths[texts].max()), self.rows.shape[1]), dtype=np.float32)
        for place, text in enumerate(texts):
            out[place, : lengths[text]] = self.rows[self.starts[text] : self.starts[text + 1]]
        return torch.from_numpy(out)


def cache_bytes(methods: Collection[Method], encoder: Encoder, *, tokens: int, texts: int) -> int:
    """Bytes on disk that training by these methods keeps of frozen blocks.

    Args:
        methods: of one study, which share what they keep; seeds share it too.
        encoder: that they adapt.
        tokens: word pieces of all training texts, special ones included.
        texts: number of training texts.
    """
    layers = cached_layers(methods, encoder.n_layers)
    rows = sum(texts if layer == encoder.n_layers else tokens for layer in layers)
    return 4 * rows * encoder.width


def frozen_values(
    model: Any,
    encoder: Encoder,
    examples: Examples,
    encodings: list[dict[str, list[int]]],
    layers: Collection[int],
    folder: Path,
    *,
    max_length: int,
    device: str,
    progress: bool,
) -> dict[int, Frozen]:
    """The values of layers (1 ... L) of the pretrained body, found in a folder, else computed in one pass and kept there.

    The pass is in float32 whatever the precision of training: heads read float32 values, one pass then serves every
    method, and the values are those that the adapted model has when it is measured, in float32.

    Args:
        model: a classifier whose blocks below the highest of `layers` are the pretrained ones.
        encoder: the pretrained encoder.
        examples, encodings: the texts, and `tokenize` of them.
        layers: which layers.
        folder: shared by all studies of one user; an entry's name says what it was computed from.
        max_length: that the texts were tokenized with.
        device: where to compute.
        progress: whether to draw a progress bar on stderr.

    Raises:
        StorageError: if the disk is too small.
    """
    reads = _reads(model, encoder)
    texts = _texts_digest(examples)
    lengths = np.array([len(e["input_ids"]) for e in encodings], dtype=np.int64)
    targets: dict[int, tuple[Path, np.ndarray]] = {}
    for layer in layers:
        what = f"head:{reads}" if layer == encoder.n_layers else "tokens"
        key = hashlib.sha256(
            json.dumps([VERSION, encoder.fingerprint, texts, max_length, layer, what, device]).encode()
        ).hexdigest()
        starts = np.concatenate([[0], np.cumsum(np.ones_like(lengths) if layer == encoder.n_layers else lengths)])
        targets[layer] = (folder / key[:32], starts)
    found = {layer: _open(path, layer, starts, encoder.width) for layer, (path, starts) in targets.items()}
    absent = {layer: targets[layer] for layer in targets if found[layer] is None}
    if absent:
        _compute(model, encoder, encodings, absent, reads, device, progress)
        found |= {layer: _open(path, layer, starts, encoder.width) for layer, (path, starts) in absent.items()}
    result = {layer: value for layer, value in found.items() if value is not None}
    assert len(result) == len(targets), "what was just written can be read"
    return result


def _open(path: Path, layer: int, starts: np.ndarray, width: int) -> Frozen | None:
    """A whole entry, or None; entries appear by a rename once they are whole."""
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        rows = np.load(path / ROWS, mmap_mode="r", allow_pickle=False)
        seconds = float(meta["seconds"])
    except (OSError, ValueError, KeyError):
        return None
    if rows.shape != (starts[-1], width) or rows.dtype != np.float32:
        return None
    return Frozen(layer, rows, starts, seconds)


@torch.inference_mode()
def _compute(
    model: Any,
    encoder: Encoder,
    encodings: list[dict[str, list[int]]],
    targets: Mapping[int, tuple[Path, np.ndarray]],
    reads: str,
    device: str,
    progress: bool,
) -> None:
    last = encoder.n_layers
    body = model.base_model
    model.eval()
    partials: dict[int, Path] = {}
    arrays: dict[int, np.ndarray] = {}
    seconds = dict.fromkeys(targets, 0.0)
    batch: dict[str, Any] = {}

    def keep(layer: int, value: Tensor) -> Tensor:
        # A layer's own seconds: from the batch's start, less the writing of the layers below it.
        begin = time.perf_counter()
        seconds[layer] += begin - batch["start"] - batch["writing"]
        array, starts = arrays[layer], targets[layer][1]
        if layer == last:
            array[batch["texts"]] = _head_rows(body, value, batch["inputs"], reads).cpu().numpy()
        else:
            held = value.cpu().numpy()
            for place, text in enumerate(batch["texts"]):
                array[starts[text] : starts[text + 1]] = held[place, : starts[text + 1] - starts[text]]
        spent = time.perf_counter() - begin
        seconds[layer] += spent
        batch["writing"] += spent
        return value

    try:
        for layer, (path, starts) in targets.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            partials[layer] = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            arrays[layer] = _reserve(partials[layer] / ROWS, (int(starts[-1]), encoder.width))
        batches = length_sorted_batches([len(e["input_ids"]) for e in encodings], BATCH)
        with (
            edited(model, {layer: partial(keep, layer) for layer in targets}),
            skipping(model, range(max(targets) + 1, last + 1)),
        ):
            for indices in tqdm(
                batches, desc="frozen blocks", unit="batch", leave=False, disable=not progress, delay=1
            ):
                batch |= {"start": time.perf_counter(), "writing": 0.0, "texts": indices}
                batch["inputs"] = {k: v.to(device) for k, v in collate(encoder, encodings, indices).items()}
                body(**batch["inputs"])
        for layer, (path, starts) in targets.items():
            arrays[layer].flush()  # type: ignore[attr-defined]
            (partials[layer] / META).write_text(json.dumps({"layer": layer, "seconds": seconds[layer]}))
            _publish(partials[layer], path, whole=_open(path, layer, starts, encoder.width) is not None)
    finally:
        for place in partials.values():
            shutil.rmtree(place, ignore_errors=True)


def _publish(made: Path, path: Path, *, whole: bool) -> None:
    """Rename an entry to its name, unless another process has meanwhile put a whole one there; a damaged one goes."""
    if not whole:
        shutil.rmtree(path, ignore_errors=True)
        made.rename(path)


def _reserve(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """An array on disk whose space is taken at once: writing to a map beyond a full disk would end the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(
                    f"The disk is full: {path.stat().st_size / 1e6:.0f} MB for a layer of the frozen blocks do not fit "
                    f"in {path.parent.parent}; free some space there, or name another folder."
                ) from error
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    return array


def _reads(model: Any, encoder: Encoder) -> str:
    """Which row of a text the head reads: the pretrained pooler's, the mean of the tokens, or the first token."""
    pooling = getattr(model, "pooling", "model")
    if pooling != "model":
        return str(pooling)
    if encoder.pooler == "pretrained":
        return "pooler"
    return str(getattr(model.config, "classifier_pooling", "cls"))


def _head_rows(body: nn.Module, last: Tensor, inputs: Mapping[str, Tensor], reads: str) -> Tensor:
    """All that a head reads of the frozen body, `(texts, width)`.

    ModernBERT's head starts at the final norm and may average over tokens: the norm's scale commutes with that mean, so
    the mean of the normalised tokens is enough.
    """
    module: Any = body
    if reads == "pooler":
        if module.config.model_type == "albert":  # a bare linear map, with what follows it in the body's own forward
            return module.pooler_activation(module.pooler(last[:, 0]))
        return module.pooler(last)
    norm = getattr(module, "final_norm", None)
    if norm is not None:
        last = nn.functional.layer_norm(last, norm.normalized_shape, eps=norm.eps)
    if reads == "mean":
        mask = inputs["attention_mask"].unsqueeze(-1)
        return (last * mask).sum(1) / mask.sum(1)
    return last[:, 0]


def _texts_digest(examples: Examples) -> str:
    content = [list(examples.texts), list(examples.pairs) if examples.pairs is not None else None]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
