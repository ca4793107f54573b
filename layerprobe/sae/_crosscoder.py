"""A joint dictionary of base and adapted rows: applied, saved and read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors.numpy import load_file, save_file

from layerprobe.errors import MeasureError, StorageError

FORMAT = "layerprobe-crosscoder-1"
WEIGHTS, SETTINGS = "crosscoder.safetensors", "crosscoder.json"
ARRAYS = {
    "encoder": ("d_sae", "sides", "d"),
    "encoder_bias": ("d_sae",),
    "decoder": ("d_sae", "sides", "d"),
    "decoder_bias": ("sides", "d"),
    "means": ("sides", "d"),
    "scales": ("sides",),
}
BATCH_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Crosscoder:
    """One set of latents for base and adapted rows of the same tokens; each latent has a direction on either side.

    Where an array has an axis of two, 0 is base and 1 adapted. Each side's rows are centred at its mean and divided by
    its scale, which gives both sides equal RMS; weights are in these scaled units. A latent's activation is
    relu(<encoder, rows of both sides> + bias), set to zero where activation x (sum of its two decoder norms) is below
    the threshold.
    """

    encoder: Float[np.ndarray, "d_sae 2 d"]
    encoder_bias: Float[np.ndarray, " d_sae"]
    decoder: Float[np.ndarray, "d_sae 2 d"]
    """Direction of each latent on each side; its norm says how much the latent writes there."""
    decoder_bias: Float[np.ndarray, "2 d"]
    means: Float[np.ndarray, "2 d"]
    """Mean of each side's training rows."""
    scales: Float[np.ndarray, " 2"]
    """Root mean squared distance of each side's training rows from their mean."""
    threshold: float
    k: float
    """Active latents a row, on average over the training rows."""

    @property
    def d_in(self) -> int:
        """Width of one side's rows."""
        return self.decoder.shape[2]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.decoder.shape[0]

    @property
    def norms(self) -> Float[np.ndarray, "d_sae 2"]:
        """Norm of each latent's direction on each side."""
        return np.linalg.norm(self.decoder, axis=2)

    def encode(self, base_rows: Any, adapted_rows: Any) -> Float[np.ndarray, "n d_sae"]:
        """Activations of all latents; zero where a latent is silent.

        Args:
            base_rows: (n, d); may be memory-mapped.
            adapted_rows: (n, d), the same tokens in the same order.

        Raises:
            MeasureError: if the shapes differ from each other or from the dictionary's, or a value is not finite.
        """
        codes = np.empty((len(base_rows), self.d_sae), dtype=np.float32)
        start = 0
        for part in self.parts(base_rows, adapted_rows):
            codes[start : start + len(part.codes)] = part.codes
            start += len(part.codes)
        return codes

    def decode(self, codes: Float[np.ndarray, "n d_sae"]) -> Float[np.ndarray, "n 2 d"]:
        """Rows of both sides as the latents rebuild them, in each side's own units."""
        flat = torch.from_numpy(np.array(codes, dtype=np.float32)) @ torch.from_numpy(_flat(self.decoder))
        return (flat.numpy().reshape(-1, 2, self.d_in) + self.decoder_bias) * self.scales[:, None] + self.means

    def reconstruct(self, base_rows: Any, adapted_rows: Any) -> Float[np.ndarray, "n 2 d"]:
        """Both sides' rows, encoded and decoded, in each side's own units.

        Raises:
            MeasureError: as `encode`.
        """
        return self.decode(self.encode(base_rows, adapted_rows))

    def explained_variance(self, base_rows: Any, adapted_rows: Any) -> Float[np.ndarray, " 2"]:
        """Explained variance of each side's rows: 1 - E|x - reconstruction|^2 / (E|x|^2 - |E x|^2), from sums.

        Raises:
            MeasureError: as `encode`, or if the rows of a side do not vary.
        """
        d, n = self.d_in, 0
        errors, squares, totals = np.zeros(2), np.zeros(2), np.zeros((2, d))
        for part in self.parts(base_rows, adapted_rows):
            rows = part.rows.reshape(-1, 2, d).astype(np.float64)
            rebuilt = (part.codes @ _flat(self.decoder)).reshape(-1, 2, d) + self.decoder_bias
            errors += ((rows - rebuilt) ** 2).sum((0, 2))
            squares += (rows**2).sum((0, 2))
            totals += rows.sum(0)
            n += len(rows)
        variance = squares / max(n, 1) - ((totals / max(n, 1)) ** 2).sum(1)
        if not (variance > 0).all():
            raise MeasureError(
                f"Explained variance is undefined: {n} rows were given, and those of a side do not vary; give more rows."
            )
        return 1 - errors / n / variance

    def parts(self, base_rows: Any, adapted_rows: Any) -> Iterator[Part]:
        """Scaled rows and activations, a few thousand rows at a time.

        Raises:
            MeasureError: as `encode`.
        """
        base_rows, adapted_rows = paired(base_rows, adapted_rows, "A crosscoder")
        if base_rows.shape[1] != self.d_in:
            raise MeasureError(
                f"A crosscoder of width {self.d_in} was given rows of shape {base_rows.shape}; give rows of the layer "
                "that it was trained on."
            )
        weights, bias = torch.from_numpy(_flat(self.encoder)), torch.from_numpy(self.encoder_bias)
        norms = torch.from_numpy(self.norms.sum(1))
        for start in range(0, len(base_rows), BATCH_ROWS):
            chosen = slice(start, start + BATCH_ROWS)
            rows = scaled(base_rows[chosen], adapted_rows[chosen], self.means, self.scales)
            finite = np.isfinite(rows).all(1)
            if not finite.all():
                raise MeasureError(
                    f"A crosscoder was given NaN or infinite values (first in row {start + int(finite.argmin())}); "
                    "drop or correct these rows."
                )
            codes = torch.addmm(bias, torch.from_numpy(rows), weights.T).relu_()
            codes[codes * norms < self.threshold] = 0
            yield Part(rows, codes.numpy())

    def save(self, folder: str | Path) -> None:
        """Write `crosscoder.safetensors` and `crosscoder.json` into a folder, which is made if it does not exist."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}, folder / WEIGHTS)
        about = {"format": FORMAT, "d_sae": self.d_sae, "d_in": self.d_in, "k": self.k, "threshold": self.threshold}
        (folder / SETTINGS).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Crosscoder:
        """Read what `save` wrote.

        Raises:
            StorageError: if it is missing or damaged, or its parts do not fit each other.
        """
        folder = Path(folder)
        missing = [name for name in (SETTINGS, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise StorageError(f"{folder} holds no crosscoder ({missing[0]} is missing); train it again.")
        try:
            about = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}, not {FORMAT!r}")
            stored = load_file(folder / WEIGHTS)
            sizes = {"d_sae": about["d_sae"], "sides": 2, "d": about["d_in"]}
            for name, axes in ARRAYS.items():
                array, shape = stored[name], tuple(sizes[axis] for axis in axes)
                if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                    raise ValueError(f"{name} is not {' x '.join(map(str, shape))} finite float32 values")
            arrays = {name: stored[name] for name in ARRAYS}
            return cls(**arrays, threshold=float(about["threshold"]), k=float(about["k"]))
        except Exception as error:
            raise StorageError(f"The crosscoder in {folder} cannot be read ({error!r}); train it again.") from error


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows as a crosscoder sees them."""

    rows: Float[np.ndarray, "m both"]
    """Scaled rows, base beside adapted."""
    codes: Float[np.ndarray, "m d_sae"]
    """Activations."""


def paired(base_rows: Any, adapted_rows: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' rows as arrays, memory-mapped ones as they are.

    Raises:
        MeasureError: if they are not two matrices of one shape.
    """
    sides = [
        rows.detach().numpy() if hasattr(rows, "detach") else np.asanyarray(rows) for rows in (base_rows, adapted_rows)
    ]
    base, adapted = sides
    if base.ndim != 2 or base.shape != adapted.shape or not base.shape[1]:
        raise MeasureError(
            f"{what} was given base rows of shape {base.shape} and adapted rows of shape {adapted.shape}; give two "
            "matrices, rows x features, with the same tokens in the same order."
        )
    return base, adapted


def scaled(
    base_rows: Shaped[np.ndarray, "m d"],
    adapted_rows: Shaped[np.ndarray, "m d"],
    means: Float[np.ndarray, "2 d"],
    scales: Float[np.ndarray, " 2"],
) -> Float[np.ndarray, "m both"]:
    """Both sides' rows beside each other in float32, centred and scaled."""
    rows = np.concatenate([base_rows, adapted_rows], axis=1, dtype=np.float32)
    rows -= means.reshape(-1)
    rows /= np.repeat(scales, base_rows.shape[1])
    return rows


def _flat(weights: Float[np.ndarray, "d_sae 2 d"]) -> Float[np.ndarray, "d_sae both"]:
    return weights.reshape(len(weights), -1)
