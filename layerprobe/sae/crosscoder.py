"""A joint dictionary of base and adapted rows (a BatchTopK crosscoder): trained, applied, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.numpy import load_file, save_file
from torch import Tensor

from layerprobe.errors import ArgumentError, MeasureError, StorageError
from layerprobe.files import write_json
from layerprobe.progress import track
from layerprobe.sae._dictionary import check_finite, float64_device, row_batches, to_sparse
from layerprobe.sae._evaluation import check_codes
from layerprobe.sae._rows import READ_ROWS, evenly_spaced, order

if TYPE_CHECKING:
    from scipy.sparse import csc_array

    from layerprobe.sae._sparse import Chosen, Weights

__all__ = ["Crosscoder", "CrosscoderConfig", "train"]

EXPANSION = 4
PASSES, LEAST_STEPS = 4, 300
AUXILIARY = 1 / 32
"""Weight of the loss that revives inactive latents."""
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


@dataclass(frozen=True)
class CrosscoderConfig:
    """Everything that determines a crosscoder besides its rows."""

    d_sae: int | None = None
    """Number of latents. Default: four per feature of a side."""
    k: float = 32
    """Active latents per row, on average; may be fractional. With k below the true number of active features, latents
    of one side suffer first, since they write on half as many sides; with k far above it, spare latents fit noise."""
    steps: int | None = None
    """Batches to train on. Default: four passes over the rows, and at least 300 steps."""
    seed: int = 0
    """Seed of the weights and the order of rows."""
    penalty: float = 0.0
    """Weight of the norm-weighted activations in the loss. It sets the weaker side of a one-sided latent to zero sooner,
    at the price of smaller activations; .05 is small and .3 large."""
    batch_size: int = 1024
    """Rows per step; all rows where there are fewer."""
    learning_rate: float | None = None
    """Peak rate of Adam, after a warm-up over 5% of the steps and before a linear decay over the last half. Default:
    .08 / sqrt(d), which is .01 for 64 features."""


@dataclass(frozen=True, eq=False)
class Crosscoder:
    """One set of latents for base and adapted rows of the same tokens; each latent has a direction on either side.

    Where an array has an axis of two, 0 is base and 1 adapted. The rows of each side are centred at their mean and
    divided by their scale, which gives both sides equal RMS; weights are in these scaled units. The activation of a
    latent is relu(<encoder, rows of both sides> + bias), set to zero where activation x (sum of its two decoder norms)
    is below the threshold.
    """

    encoder: Float[np.ndarray, "d_sae 2 d"]
    encoder_bias: Float[np.ndarray, " d_sae"]
    decoder: Float[np.ndarray, "d_sae 2 d"]
    """Direction of each latent on each side; its norm is how much the latent writes there."""
    decoder_bias: Float[np.ndarray, "2 d"]
    means: Float[np.ndarray, "2 d"]
    """Mean of each side's training rows."""
    scales: Float[np.ndarray, " 2"]
    """Root mean squared distance of each side's training rows from their mean."""
    threshold: float
    k: float
    """Active latents per row, on average over the training rows."""
    device: str = "cpu"
    """Where it computes."""

    @property
    def d_in(self) -> int:
        """Features of one side's rows."""
        return self.decoder.shape[2]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.decoder.shape[0]

    @property
    def norms(self) -> Float[np.ndarray, "d_sae 2"]:
        """Norm of each latent's direction on each side."""
        return np.linalg.norm(self.decoder, axis=2)

    def encode(self, base_rows: Any, adapted_rows: Any) -> csc_array:
        """Activations of all latents on all rows: a sparse matrix, rows x latents, stored by latent.

        Args:
            base_rows: (n, d); may be memory-mapped.
            adapted_rows: (n, d), the same tokens in the same order.

        Raises:
            MeasureError: if the shapes differ from each other or from the dictionary's, or a value is not finite.
        """
        base_rows, adapted_rows = paired(base_rows, adapted_rows)
        if base_rows.shape[1] != self.d_in:
            raise MeasureError(
                f"{{base_rows}} has shape {base_rows.shape}, but the crosscoder takes {self.d_in} features per side; give "
                "rows of the layer that it was trained on.",
                "base_rows",
            )
        dense = (
            self.activations(check_finite(self.scaled(base_rows, adapted_rows, batch), batch.start))
            for batch in row_batches(len(base_rows))
        )
        return to_sparse(dense, (len(base_rows), self.d_sae))

    def scaled(
        self, base_rows: np.ndarray, adapted_rows: np.ndarray, chosen: slice | np.ndarray
    ) -> Float[Tensor, "m both"]:
        """Chosen rows of both sides next to each other, centred and scaled."""
        rows = np.concatenate([base_rows[chosen], adapted_rows[chosen]], axis=1, dtype=np.float32)
        scales = np.repeat(self.scales, self.d_in)
        return (torch.from_numpy(rows).to(self.device) - self._flat(self.means)) / self._flat(scales)

    def activations(self, rows: Float[Tensor, "m both"]) -> Float[Tensor, "m d_sae"]:
        """Activations of all latents on scaled rows."""
        encoder = self._flat(self.encoder).view(self.d_sae, -1)
        codes = torch.addmm(self._flat(self.encoder_bias), rows, encoder.T).relu_()
        codes[codes * self._flat(self.norms.sum(1)) < self.threshold] = 0
        return codes

    def explained_variance(self, base_rows: Any, adapted_rows: Any, codes: csc_array) -> Float[np.ndarray, " 2"]:
        """Explained variance of each side's rows: 1 - E|x - reconstruction|^2 / (E|x|^2 - |E x|^2), from sums.

        Args:
            base_rows: (n, d); may be memory-mapped.
            adapted_rows: (n, d), the same tokens in the same order.
            codes: activations on these rows, by `encode`.

        Raises:
            MeasureError: if shapes do not fit, or the rows of a side do not vary.
        """
        base_rows, adapted_rows = paired(base_rows, adapted_rows)
        n = len(base_rows)
        check_codes(codes, n, self.d_sae)
        by_row, device = codes.tocsr(), float64_device(torch.device(self.device))
        sums = torch.zeros(2, 2, dtype=torch.float64, device=device)
        totals = torch.zeros(2 * self.d_in, dtype=torch.float64, device=device)
        decoder = self._flat(self.decoder).view(self.d_sae, -1)
        for batch in row_batches(n):
            rows = self.scaled(base_rows, adapted_rows, batch)
            active = torch.from_numpy(by_row[batch].toarray()).to(self.device)
            rebuilt = active @ decoder + self._flat(self.decoder_bias)
            rows, rebuilt = (z.to(device).double() for z in (rows, rebuilt))
            sums += torch.stack([z.square().view(-1, 2, self.d_in).sum((0, 2)) for z in (rows - rebuilt, rows)])
            totals += rows.sum(0)
        errors, squares = sums.cpu().numpy() / max(n, 1)
        variance = squares - ((totals.cpu().numpy() / max(n, 1)) ** 2).reshape(2, -1).sum(1)
        if not (variance > 0).all():
            raise MeasureError(
                f"Explained variance is undefined: {n} rows were given, and those of a side do not vary; give more rows."
            )
        return 1 - errors / variance

    def save(self, folder: str | Path) -> None:
        """Write `crosscoder.safetensors` and `crosscoder.json` into a folder, which is created if it does not exist."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}, folder / WEIGHTS)
        settings = {"format": FORMAT, "d_sae": self.d_sae, "d_in": self.d_in, "k": self.k, "threshold": self.threshold}
        write_json(folder / SETTINGS, settings)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> Crosscoder:
        """Read what `save` wrote.

        Raises:
            StorageError: if it is missing or damaged, or its parts do not fit each other.
        """
        folder = Path(folder)
        missing = [name for name in (SETTINGS, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise StorageError(f"{folder} has no crosscoder ({missing[0]} is missing); train it again.")
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            if settings["format"] != FORMAT:
                raise ValueError(f"its format is {settings['format']!r}, not {FORMAT!r}")
            stored = load_file(folder / WEIGHTS)
            sizes = {"d_sae": settings["d_sae"], "sides": 2, "d": settings["d_in"]}
            for name, axes in ARRAYS.items():
                array, shape = stored[name], tuple(sizes[axis] for axis in axes)
                if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                    raise ValueError(f"{name} is not {' x '.join(map(str, shape))} finite float32 values")
            arrays = {name: stored[name] for name in ARRAYS}
            return cls(**arrays, threshold=float(settings["threshold"]), k=float(settings["k"]), device=device)
        except Exception as error:
            raise StorageError(f"The crosscoder in {folder} cannot be read ({error!r}); train it again.") from error

    def _flat(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).reshape(-1).to(self.device)


def train(
    base_rows: Any,
    adapted_rows: Any,
    config: CrosscoderConfig = CrosscoderConfig(),
    *,
    device: str = "cpu",
) -> Crosscoder:
    """Train one dictionary on both sides of the same tokens, so that each latent can be located between them.

    Both sides are scaled to a mean squared norm of 1. The loss of a row is the squared error of both sides plus
    penalty x sum f (|d_base| + |d_adapted|), plus 1/32 of the error of inactive latents that reconstruct the residual.
    In a batch, the k x rows largest f (|d_base| + |d_adapted|) stay active (Lindsey et al. 2024, "Sparse Crosscoders";
    Bussmann et al. 2024, "BatchTopK"; Minder et al. 2025, "Overcoming Sparsity Artifacts in Crosscoders"). A latent
    starts with the same random direction on both sides and in the encoder, so a difference between the sides is learned,
    never drawn: sides with equal rows keep equal directions.

    sae-lens has no crosscoder, and its BatchTopK on concatenated rows ranks by the norm over both sides together, which
    would favour latents of one side.

    Args:
        base_rows: (n, d); may be memory-mapped; read in batches.
        adapted_rows: (n, d), the same tokens in the same order.
        config: sizes, schedule and seed.
        device: where to train; the returned crosscoder computes there too.

    Raises:
        ArgumentError: if a value of the configuration is out of range, or there are fewer rows than latents.
        MeasureError: if the sides' shapes differ, a side does not vary, or a value is not finite.
    """
    from layerprobe.sae._selection import nth_largest

    base_rows, adapted_rows = paired(base_rows, adapted_rows)
    n, d = base_rows.shape
    batch_size = min(config.batch_size, n)
    config = replace(
        config,
        d_sae=EXPANSION * d if config.d_sae is None else config.d_sae,
        batch_size=batch_size,
        steps=max(LEAST_STEPS, PASSES * n // max(1, batch_size)) if config.steps is None else config.steps,
        learning_rate=0.08 / d**0.5 if config.learning_rate is None else config.learning_rate,
    )
    _check(config, n)
    moments = [_moments(rows, side) for rows, side in ((base_rows, "base"), (adapted_rows, "adapted"))]
    means, scales = (np.stack(part).astype(np.float32) for part in zip(*moments, strict=True))
    rng = np.random.default_rng(config.seed)
    start = _start(rng, means, scales, config, device)
    batches = (start.scaled(base_rows, adapted_rows, batch) for batch in order(n, batch_size, rng))
    trained = _fit(start, batches, config)
    sample = evenly_spaced(n)
    # The score from which k latents per row are active, on average over training rows.
    scores = trained.activations(trained.scaled(base_rows, adapted_rows, sample)) * trained._flat(trained.norms.sum(1))
    return replace(trained, threshold=float(nth_largest(scores, max(1, round(config.k * len(sample))))))


def _fit(start: Crosscoder, batches: Iterator[Float[Tensor, "m both"]], config: CrosscoderConfig) -> Crosscoder:
    from layerprobe.sae._sparse import Weights

    # The encoder is stored latent by latent, as its gradient is computed: otherwise each step would copy that.
    d_sae, steps = start.d_sae, config.steps or 0
    weights = Weights(
        start._flat(start.encoder).view(d_sae, -1).clone().T.requires_grad_(),
        start._flat(start.encoder_bias).clone().requires_grad_(),
        start._flat(start.decoder).view(d_sae, -1).clone().requires_grad_(),
        start._flat(start.decoder_bias).clone().requires_grad_(),
    )
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate or 0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    patience = max(10, min(200, steps // 10))
    inactive = torch.zeros(d_sae, dtype=torch.long, device=start.device)
    for _ in track(range(steps), "training a crosscoder"):
        total, fired = loss(weights, next(batches), config, inactive > patience)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
        inactive = torch.where(fired, 0, inactive + 1)
    w_enc, b_enc, w_dec, b_dec = (value.detach().cpu() for value in weights)
    shape = start.decoder.shape
    return replace(
        start,
        encoder=w_enc.T.contiguous().numpy().reshape(shape),
        encoder_bias=b_enc.numpy(),
        decoder=w_dec.numpy().reshape(shape),
        decoder_bias=b_dec.numpy().reshape(shape[1:]),
    )


def loss(
    weights: Weights, rows: Float[Tensor, "m both"], config: CrosscoderConfig, dead: Bool[Tensor, " d_sae"]
) -> tuple[Float[Tensor, ""], Bool[Tensor, " d_sae"]]:
    """Mean loss of a batch, and the latents that are active in it. The selection has no gradient.

    Args:
        weights: both sides next to each other.
        rows: scaled rows.
        config: gives k and the penalty.
        dead: latents that the auxiliary loss is to revive.
    """
    from layerprobe.sae._sparse import reconstruct

    chosen = _choose(weights, rows, config, dead)
    rebuilt = reconstruct(rows, weights, chosen, centred=False)
    error, latents, m = rebuilt.levels.squeeze(1) - rows, chosen.latents, len(rows)
    total = error.square().sum() / m
    if config.penalty:
        total = total + config.penalty / m * (rebuilt.values * _norms(weights.w_dec)[latents]).sum()
    if rebuilt.revived is not None:
        # Inactive latents are to reconstruct what the active ones leave (Gao et al. 2024).
        total = total + AUXILIARY / m * (rebuilt.revived + error.detach()).square().sum()
    return total, torch.bincount(latents, minlength=len(dead)) > 0


@torch.no_grad()
def _choose(
    weights: Weights, rows: Float[Tensor, "m both"], config: CrosscoderConfig, dead: Bool[Tensor, " d_sae"]
) -> Chosen:
    from layerprobe.sae._selection import largest_of_batch
    from layerprobe.sae._sparse import LEAST_NORM, Chosen, scores

    norms = _norms(weights.w_dec).clamp_min(LEAST_NORM)
    ranked = scores(rows, weights, norms)
    active = largest_of_batch(ranked, max(1, round(config.k * len(rows))))
    if not bool(dead.any()):
        return Chosen(ranked, norms, active)
    columns = dead.nonzero()[:, 0]
    hidden = Chosen(ranked, norms, active, columns).dead_hidden
    top = hidden.topk(min(max(1, rows.shape[1] // 4), len(columns)), sorted=False).indices
    return Chosen(ranked, norms, active, columns, torch.zeros_like(hidden).scatter_(1, top, 1.0) * (hidden > 0))


def _norms(decoder: Float[Tensor, "d_sae both"]) -> Float[Tensor, " d_sae"]:
    """Of each latent's directions, the sum over both sides."""
    return decoder.view(len(decoder), 2, -1).norm(dim=2).sum(1)


def paired(base_rows: Any, adapted_rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' rows as arrays, memory-mapped ones unchanged.

    Raises:
        MeasureError: if they are not two matrices of one shape.
    """
    base, adapted = np.asanyarray(base_rows), np.asanyarray(adapted_rows)
    if base.ndim != 2 or base.shape != adapted.shape or not base.shape[1]:
        raise MeasureError(
            f"{{base_rows}} has shape {base.shape} and {{adapted_rows}} {adapted.shape}; give two matrices, rows x "
            "features, of the same tokens in the same order.",
            *("base_rows", "adapted_rows"),
        )
    return base, adapted


def _start(
    rng: np.random.Generator, means: np.ndarray, scales: np.ndarray, config: CrosscoderConfig, device: str
) -> Crosscoder:
    """Random directions of norm 1 over both sides, the same on either side and in the encoder."""
    d_sae: Any = config.d_sae
    directions = rng.standard_normal((d_sae, means.shape[1]), dtype=np.float32)
    both = np.concatenate([directions, directions], axis=1)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    both = both.reshape(d_sae, 2, -1)
    zeros = np.zeros(d_sae, np.float32), np.zeros_like(means)
    return Crosscoder(both, zeros[0], both, zeros[1], means, scales, threshold=0.0, k=float(config.k), device=device)


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1, steps // 20), 2 * (steps - step) / steps)


def _check(config: CrosscoderConfig, n: int) -> None:
    for name in ("d_sae", "k", "steps", "batch_size", "learning_rate"):
        if not getattr(config, name) > 0:
            raise ArgumentError(f"{{{name}}} is {getattr(config, name)}; it must be above 0.", name)
    if not config.penalty >= 0:
        raise ArgumentError(f"{{penalty}} is {config.penalty}; it must not be negative.", "penalty")
    d_sae: Any = config.d_sae
    if config.k > d_sae:
        raise ArgumentError(
            f"{{k}} is {config.k}, but the crosscoder has {d_sae} latents; choose {{k}} of at most {d_sae}.", "k"
        )
    if n < max(2, d_sae):
        raise ArgumentError(
            f"A crosscoder of {d_sae} latents was given {n} rows; it needs at least {max(2, d_sae)}: give more rows or "
            "lower {d_sae}.",
            "d_sae",
        )


def _moments(rows: np.ndarray, side: str) -> tuple[Float[np.ndarray, " d"], np.float64]:
    """Mean row, and root mean squared distance from it: two passes over the stored rows, on the host, in float64."""
    n, d = rows.shape
    total, square = np.zeros(d), 0.0
    starts = range(0, n, READ_ROWS)
    for start in starts:
        part = np.asarray(rows[start : start + READ_ROWS], dtype=np.float64)
        finite = np.isfinite(part).all(1)
        if not finite.all():
            raise MeasureError(
                f"A crosscoder was given NaN or infinite values (first in row {start + int(finite.argmin())} of the "
                f"{side} side); drop or correct these rows."
            )
        total += part.sum(0)
    mean = total / n
    for start in starts:
        square += ((np.asarray(rows[start : start + READ_ROWS], dtype=np.float64) - mean) ** 2).sum()
    # Float32 resolves 1e-7 of a value: less than that of the mean is rounding.
    if square / n <= 1e-13 * (mean**2).sum():
        raise MeasureError(
            f"A crosscoder was given {n} rows of the {side} side that do not vary; give rows of several examples."
        )
    return mean, np.sqrt(square / n)
