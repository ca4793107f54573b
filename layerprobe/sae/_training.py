"""Dictionaries trained by sae-lens on rows that are already on disk."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from tqdm import tqdm

from layerprobe.errors import StudyError
from layerprobe.sae._dictionary import Dictionary, load

TOPK_FAMILY = ("topk", "batchtopk", "matryoshka_batchtopk")
ONE_THRESHOLD = ("batchtopk", "matryoshka_batchtopk")
CALIBRATION_ROWS = 8192
PASSES = 4
LOGGED_STEPS = 200


def train(
    rows: Num[np.ndarray, "n d"],
    folder: str | Path,
    *,
    architecture: str = "topk",
    expansion: float = 4,
    k: int = 32,
    samples: int | None = None,
    batch_size: int = 1024,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
    description: str = "training a sparse autoencoder",
) -> Dictionary:
    """Train a sparse autoencoder and save it in sae-lens' own format, with its training log beside it.

    Rows are read in shuffled order, scaled to a mean norm of sqrt(d) while training; the scale is folded into the saved
    weights, which take raw rows. The decoder's bias starts at the rows' mean: from zero, a large mean leaves most
    latents dead. In the BatchTopK family the saved threshold is set so that k latents are active on average on
    training rows; the running estimate that sae-lens keeps lags behind in short runs.

    Args:
        rows: activations, rows x features; may be memory-mapped.
        folder: gets `cfg.json`, `sae_weights.safetensors` and `history.parquet` (step, loss, explained_variance, l0,
            dead_share, measured on the training batch).
        architecture: as sae-lens names it.
        expansion: latents for each feature of a row.
        k: active latents a row, in the TopK family.
        samples: rows to train on, repeats counted; by default four passes.
        batch_size: rows in a step; never more than there are rows.
        learning_rate: Adam's peak rate, warmed up over 5% of the steps and lowered to a tenth over the last 20%. On
            240,000 rows of a small encoder's last layer 3e-3 explained .78 of held-out variance, 1e-3 .74, 3e-4 .62.
        seed: of the weights and the order of rows.
        progress: whether to draw a progress bar on stderr.
        description: the bar's title.

    Raises:
        StudyError: if the rows are too few, or k and the width do not fit.
    """
    import pandas as pd

    if len(rows) < 2:
        raise StudyError(f"A sparse autoencoder was given {len(rows)} rows; raise sae.rows or give more texts.")
    batch_size = min(batch_size, len(rows))
    steps = max(1, (samples or PASSES * len(rows)) // batch_size)
    with _seeded(seed):
        sae = TrainingSAE.from_dict(_config(architecture, rows.shape[1], expansion, k, steps))
        settings = SAETrainerConfig(
            total_training_samples=steps * batch_size,
            train_batch_size_samples=batch_size,
            lr=learning_rate,
            lr_end=learning_rate / 10,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 5,
            dead_feature_window=max(10, min(1000, steps // 5)),
            feature_sampling_window=max(1, min(2000, steps)),
            n_batches_for_norm_estimate=max(1, min(20, len(rows) // batch_size)),
        )
        provider = _shuffled(rows, batch_size, seed)
        with tqdm(total=steps, desc=description, unit="step", leave=False, disable=not progress, delay=1) as bar:
            trainer = _Trainer(settings, sae, provider, _mean(rows), bar)
            # sae-lens draws a bar of its own, which no argument switches off.
            with contextlib.redirect_stderr(io.StringIO()):
                trainer.fit()
    _calibrate(sae, rows, architecture, k)
    folder = Path(folder)
    sae.save_inference_model(folder)
    pd.DataFrame(trainer.history).to_parquet(folder / "history.parquet", index=False)
    return load(folder)


def untrained(like: Dictionary, rows: Num[np.ndarray, "n d"], *, architecture: str, k: int, seed: int) -> Dictionary:
    """The same kind of dictionary as training starts from: random directions about the rows' mean. A control."""
    with _seeded(seed):
        sae = TrainingSAE.from_dict(_config(architecture, like.d_in, like.d_sae / like.d_in, k, 1))
    sample = _sample(rows)
    scale = like.d_in**0.5 / float(sample.norm(dim=1).mean())
    with torch.no_grad():
        sae.b_dec.copy_(_mean(rows) * scale)
    sae.fold_activation_norm_scaling_factor(scale)
    _calibrate(sae, rows, architecture, k)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return load(folder)


class _Trainer(SAETrainer):
    """sae-lens' trainer with the decoder's bias started at the mean, a history, and our progress bar."""

    def __init__(
        self, settings: SAETrainerConfig, sae: Any, provider: Iterator[torch.Tensor], mean: torch.Tensor, bar: tqdm
    ) -> None:
        super().__init__(cfg=settings, sae=sae, data_provider=provider)
        self.mean, self.bar = mean, bar
        self.history: list[dict[str, float]] = []
        self.every = max(1, settings.total_training_steps // LOGGED_STEPS)

    def step(self, batch: torch.Tensor) -> Any:
        if self.n_training_steps == 0:
            with torch.no_grad():
                self.sae.b_dec.copy_(self.mean * (self.activation_scaler.scaling_factor or 1.0))
        output = super().step(batch)
        if self.n_training_steps % self.every == 0:
            log = self.build_train_step_log_dict(output, self.n_training_samples)
            self.history.append(
                {
                    "step": self.n_training_steps,
                    "loss": log["losses/overall_loss"],
                    "explained_variance": log["metrics/explained_variance"],
                    "l0": log["metrics/l0"],
                    "dead_share": log["sparsity/dead_features"] / self.sae.cfg.d_sae,
                }
            )
        self.bar.update()
        return output


def _config(architecture: str, d_in: int, expansion: float, k: int, steps: int) -> dict[str, Any]:
    d_sae = round(expansion * d_in)
    if d_sae < 1:
        raise StudyError(f"sae.expansion = {expansion} of {d_in} features leaves no latent; raise it.")
    if architecture in TOPK_FAMILY and k > d_sae:
        raise StudyError(
            f"sae.k = {k} of {d_sae} latents (sae.expansion = {expansion} of {d_in} features); lower sae.k to at most "
            f"{d_sae}, or raise sae.expansion."
        )
    about: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "normalize_activations": "expected_average_only_in"}
    warm_up = steps // 4
    kinds: dict[str, Any] = {
        "topk": lambda: TopKTrainingSAEConfig(**about, k=k),
        "batchtopk": lambda: BatchTopKTrainingSAEConfig(**about, k=k),
        "matryoshka_batchtopk": lambda: MatryoshkaBatchTopKTrainingSAEConfig(
            **about, k=k, matryoshka_widths=[max(1, d_sae // part) for part in (8, 4, 2)] + [d_sae]
        ),
        "standard": lambda: StandardTrainingSAEConfig(**about, l1_coefficient=2.0, l1_warm_up_steps=warm_up),
        "gated": lambda: GatedTrainingSAEConfig(**about, l1_coefficient=2.0, l1_warm_up_steps=warm_up),
        "jumprelu": lambda: JumpReLUTrainingSAEConfig(**about, l0_coefficient=1.0, l0_warm_up_steps=warm_up),
    }
    if architecture not in kinds:
        raise StudyError(f"sae.architecture = {architecture!r}; the architectures are {', '.join(kinds)}.")
    return kinds[architecture]().to_dict()


def _shuffled(rows: np.ndarray, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Full batches of shuffled rows without end: each pass visits every row once, and no batch is short."""
    rng = np.random.default_rng(seed)
    waiting = np.zeros(0, dtype=np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(len(rows))])
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        # Sorted: a memory-mapped file is read forwards. The order within a batch does not matter.
        yield torch.from_numpy(np.asarray(rows[np.sort(batch)], dtype=np.float32))


def _mean(rows: np.ndarray) -> Float[torch.Tensor, " d"]:
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), 16_384):
        total += np.asarray(rows[start : start + 16_384], dtype=np.float64).sum(0)
    return torch.from_numpy(total / len(rows)).float()


def _sample(rows: np.ndarray) -> Float[torch.Tensor, "n d"]:
    """Rows spread evenly over the whole set."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(CALIBRATION_ROWS, len(rows))).astype(np.int64))
    return torch.from_numpy(np.array(rows[chosen], dtype=np.float32))


@torch.no_grad()
def _calibrate(sae: Any, rows: np.ndarray, architecture: str, k: int) -> None:
    """Set the one threshold of a BatchTopK dictionary so that k latents are active on average."""
    if architecture not in ONE_THRESHOLD:
        return
    sample = _sample(rows)
    hidden = (sae.process_sae_in(sample) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1)
    flat = hidden.relu().flatten()
    # As saved, the decoder's norms are folded into the encoder, so the threshold is in the units ranked here.
    sae.topk_threshold = torch.kthvalue(flat, max(1, len(flat) - k * len(sample))).values.to(sae.topk_threshold.dtype)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch for a while, and leave its state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
