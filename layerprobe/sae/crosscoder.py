"""Training of a joint dictionary on paired base and adapted rows (a BatchTopK crosscoder)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from tqdm import tqdm

from layerprobe.errors import MeasureError, StudyError
from layerprobe.sae._crosscoder import Crosscoder, paired, scaled

__all__ = ["Crosscoder", "train"]

EXPANSION = 4
PASSES = 4
LEAST_STEPS = 300
AUXILIARY = 1 / 32
"""Weight of the loss that revives latents that have fallen silent."""
CALIBRATION_ROWS = 8192
READ_ROWS = 8192


def train(
    base_rows: Any,
    adapted_rows: Any,
    *,
    d_sae: int | None = None,
    k: float = 32,
    steps: int | None = None,
    seed: int = 0,
    penalty: float = 0.0,
    batch_size: int = 1024,
    learning_rate: float | None = None,
    progress: bool = True,
    description: str = "training a crosscoder",
) -> Crosscoder:
    """Train one dictionary on both sides of the same tokens, so that each latent can be placed between them.

    Both sides are scaled to a mean squared norm of 1. The loss of a row is the squared error of both sides plus
    penalty x sum f (|d_base| + |d_adapted|), plus 1/32 of what latents that have fallen silent leave of the error. In
    a batch, the k x rows largest f (|d_base| + |d_adapted|) stay active (Lindsey et al. 2024, "Sparse Crosscoders";
    Bussmann et al. 2024, "BatchTopK"; Minder et al. 2025, "Overcoming Sparsity Artifacts in Crosscoders"). A latent
    starts with the same random direction on both sides and in the encoder, so a difference between the sides is
    learned, never drawn: sides with equal rows keep equal directions.

    This is our own loop, not sae-lens', which ranks by the norm over both sides together: that would favour latents
    of one side. Gradients are written out: few activations are non-zero, and sparse products take a fraction of the
    time that dense automatic differentiation does.

    With k below the true number of active features, latents of one side lose first, since they write on half as many
    sides; with k far above it, spare latents fit noise. A penalty sets the weaker side of a one-sided latent to zero
    sooner, at the price of shrunken activations; .05 is small and .3 large.

    Args:
        base_rows: (n, d); may be memory-mapped; read in batches.
        adapted_rows: (n, d), the same tokens in the same order.
        d_sae: latents; by default four for each feature of a side.
        k: active latents a row, on average; may be fractional.
        steps: batches to train on; by default four passes over the rows, and at least 300.
        seed: of the weights and the order of rows.
        penalty: weight of the norm-weighted activations in the loss.
        batch_size: rows in a step; never more than there are.
        learning_rate: Adam's peak rate, warmed up over 5% of the steps and lowered to 0 over the last half; by default
            .08 / sqrt(d), which is .01 for 64 features.
        progress: whether to draw a progress bar on stderr.
        description: the bar's title.

    Raises:
        StudyError: if d_sae, k, steps or another setting is out of range, or the rows are fewer than the latents.
        MeasureError: if the sides' shapes differ, a side does not vary, or a value is not finite.
    """
    base_rows, adapted_rows = paired(base_rows, adapted_rows, "Training a crosscoder")
    n, d = base_rows.shape
    d_sae = EXPANSION * d if d_sae is None else d_sae
    batch_size = min(batch_size, n)
    steps = max(LEAST_STEPS, PASSES * n // max(1, batch_size)) if steps is None else steps
    learning_rate = 0.08 / d**0.5 if learning_rate is None else learning_rate
    _check(n, d_sae, k, steps, penalty, batch_size, learning_rate)
    moments = [_moments(rows, side) for rows, side in ((base_rows, "base"), (adapted_rows, "adapted"))]
    means, scales = (np.stack(part).astype(np.float32) for part in zip(*moments, strict=True))
    rng = np.random.default_rng(seed)
    weights = _start(rng, d_sae, d)
    parameters = [torch.from_numpy(getattr(weights, field.name)) for field in fields(weights)]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    patience = max(10, min(200, steps // 10))
    silent = np.zeros(d_sae, dtype=np.int64)
    waiting = np.zeros(0, dtype=np.int64)
    for _ in tqdm(range(steps), desc=description, unit="step", leave=False, disable=not progress, delay=1):
        if len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        # Sorted: a memory-mapped file is read forwards.
        batch, waiting = np.sort(waiting[:batch_size]), waiting[batch_size:]
        found = gradients(
            weights, scaled(base_rows[batch], adapted_rows[batch], means, scales), k, penalty, silent > patience
        )
        silent = np.where(found.fired, 0, silent + 1)
        for field, parameter in zip(fields(weights), parameters, strict=True):
            parameter.grad = torch.from_numpy(getattr(found.slopes, field.name))
        optimizer.step()
        schedule.step()
    trained = Crosscoder(
        encoder=weights.encoder.reshape(d_sae, 2, d),
        encoder_bias=weights.encoder_bias,
        decoder=weights.decoder.reshape(d_sae, 2, d),
        decoder_bias=weights.decoder_bias.reshape(2, d),
        means=means,
        scales=scales,
        threshold=0.0,
        k=float(k),
    )
    return replace(trained, threshold=_threshold(trained, base_rows, adapted_rows))


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights under training, or the loss's slopes in them: both sides beside each other."""

    encoder: Float[np.ndarray, "d_sae both"]
    encoder_bias: Float[np.ndarray, " d_sae"]
    decoder: Float[np.ndarray, "d_sae both"]
    decoder_bias: Float[np.ndarray, " both"]


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one batch says."""

    slopes: Weights
    fired: Bool[np.ndarray, " d_sae"]
    """Latents active in the batch."""


def gradients(
    weights: Weights, rows: Float[np.ndarray, "m both"], k: float, penalty: float, dead: Bool[np.ndarray, " d_sae"]
) -> Gradients:
    """Slopes of a batch's mean loss. What is selected counts as given, as do norms in the selection.

    Args:
        weights: as they are.
        rows: scaled rows.
        k: active latents a row, on average over the batch.
        penalty: weight of the norm-weighted activations.
        dead: latents that the auxiliary loss is to revive.
    """
    m, width = rows.shape
    d_sae = len(dead)
    sides = weights.decoder.reshape(d_sae, 2, -1)
    norms = np.linalg.norm(sides, axis=2, keepdims=True)
    total = norms.sum((1, 2))
    hidden = _product(rows, weights.encoder.T) + weights.encoder_bias
    chosen = largest(hidden * total, max(1, round(k * m)))
    row, latent = np.divmod(chosen, d_sae)
    codes = _sparse(hidden.reshape(-1)[chosen], row, latent, (m, d_sae))
    error = codes @ weights.decoder + weights.decoder_bias - rows
    pull = error * np.float32(2 / m)
    back = _product(pull, weights.decoder.T).reshape(-1)[chosen] + np.float32(penalty / m) * total[latent]
    inward = _sparse(back, row, latent, (m, d_sae))
    slopes = Weights(inward.T @ rows, _sums(inward), codes.T @ pull, pull.sum(0))
    if penalty:
        units = sides / np.maximum(norms, np.float32(1e-12))
        slopes.decoder[...] += units.reshape(d_sae, width) * (np.float32(penalty / m) * _sums(codes))[:, None]
    if dead.any():
        _revive(slopes, weights, rows, error, hidden, np.flatnonzero(dead))
    return Gradients(slopes, np.bincount(latent, minlength=d_sae) > 0)


def _revive(
    slopes: Weights,
    weights: Weights,
    rows: Float[np.ndarray, "m both"],
    error: Float[np.ndarray, "m both"],
    hidden: Float[np.ndarray, "m d_sae"],
    dead: Int[np.ndarray, " n_dead"],
) -> None:
    """Add the slopes of the auxiliary loss: silent latents are asked to explain the error (Gao et al. 2024)."""
    m, width = rows.shape
    mine = hidden[:, dead]
    keep = min(max(1, width // 4), len(dead))
    bound = np.partition(mine, len(dead) - keep, axis=1)[:, len(dead) - keep]
    row, latent = np.nonzero((mine >= bound[:, None]) & (mine > 0))
    codes = _sparse(mine[row, latent], row, latent, mine.shape)
    decoder = weights.decoder[dead]
    pull = (codes @ decoder + error) * np.float32(2 * AUXILIARY / m)
    inward = _sparse(_product(pull, decoder.T)[row, latent], row, latent, mine.shape)
    slopes.decoder[dead] += codes.T @ pull
    slopes.encoder[dead] += inward.T @ rows
    slopes.encoder_bias[dead] += _sums(inward)


def largest(scores: Float[np.ndarray, "m d_sae"], count: int) -> Int[np.ndarray, " chosen"]:
    """Flat positions, in rising order, of the largest positive scores of a whole batch; among equals the first.

    Exact, and on a CPU several times as fast as `torch.topk` over a whole batch.
    """
    flat = scores.reshape(-1)
    if count >= flat.size:
        return np.flatnonzero(flat > 0)
    bound = np.partition(flat, flat.size - count)[flat.size - count]
    if bound <= 0:
        return np.flatnonzero(flat > 0)
    found = np.flatnonzero(flat >= bound)
    surplus = len(found) - count
    if surplus:
        found = np.delete(found, np.flatnonzero(flat[found] == bound)[-surplus:])
    return found


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # torch's product follows torch's number of threads, as all else in a run does.
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


def _sparse(values: np.ndarray, row: np.ndarray, latent: np.ndarray, shape: tuple[int, ...]) -> csr_array:
    return csr_array((values, latent, np.searchsorted(row, np.arange(shape[0] + 1))), shape=shape)


def _sums(codes: csr_array) -> Float[np.ndarray, " d_sae"]:
    return np.bincount(codes.indices, weights=codes.data, minlength=codes.shape[1]).astype(np.float32)


def _start(rng: np.random.Generator, d_sae: int, d: int) -> Weights:
    directions = rng.standard_normal((d_sae, d), dtype=np.float32)
    both = np.concatenate([directions, directions], axis=1)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    return Weights(both.copy(), np.zeros(d_sae, np.float32), both, np.zeros(2 * d, np.float32))


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1, steps // 20), 2 * (steps - step) / steps)


def _check(n: int, d_sae: int, k: float, steps: int, penalty: float, batch_size: int, learning_rate: float) -> None:
    if d_sae < 1:
        raise StudyError(f"A crosscoder was asked to have d_sae = {d_sae} latents; ask for at least 1.")
    if not 0 < k <= d_sae:
        raise StudyError(
            f"A crosscoder was given k = {k} active latents a row of d_sae = {d_sae}; give k above 0 and at most {d_sae}."
        )
    if n < max(2, d_sae):
        raise StudyError(
            f"A crosscoder of {d_sae} latents was given {n} rows; it needs at least {max(2, d_sae)}: give more texts or "
            "lower d_sae."
        )
    if steps < 1 or batch_size < 1 or not learning_rate > 0 or not penalty >= 0:
        raise StudyError(
            f"A crosscoder was given steps = {steps}, batch_size = {batch_size}, learning_rate = {learning_rate}, "
            f"penalty = {penalty}; the first three are above 0, and the penalty is not negative."
        )


def _moments(rows: np.ndarray, side: str) -> tuple[Float[np.ndarray, " d"], np.float64]:
    """Mean row, and root mean squared distance from it."""
    n, d = rows.shape
    total, square = np.zeros(d), 0.0
    starts = range(0, n, READ_ROWS)
    for start in starts:
        part = np.asarray(rows[start : start + READ_ROWS], dtype=np.float64)
        finite = np.isfinite(part).all(1)
        if not finite.all():
            raise MeasureError(
                f"Training a crosscoder was given NaN or infinite values (first in row {start + int(finite.argmin())} "
                f"of the {side} side); drop or correct these rows."
            )
        total += part.sum(0)
    mean = total / n
    for start in starts:
        square += ((np.asarray(rows[start : start + READ_ROWS], dtype=np.float64) - mean) ** 2).sum()
    # Float32 resolves 1e-7 of a value: less than that of the mean is rounding.
    if square / n <= 1e-13 * (mean**2).sum():
        raise MeasureError(
            f"Training a crosscoder was given {n} rows of the {side} side that do not vary; give rows of several texts."
        )
    return mean, np.sqrt(square / n)


def _threshold(crosscoder: Crosscoder, base_rows: np.ndarray, adapted_rows: np.ndarray) -> float:
    """Score from which k latents a row are active, on average over training rows spread over the whole set."""
    n = len(base_rows)
    spread = np.unique(np.linspace(0, n - 1, min(CALIBRATION_ROWS, n)).astype(np.int64))
    scores = crosscoder.encode(base_rows[spread], adapted_rows[spread]) * crosscoder.norms.sum(1)
    flat = scores.reshape(-1)
    position = max(0, flat.size - max(1, round(crosscoder.k * len(spread))))
    return float(np.partition(flat, position)[position])
