"""What is trained and for how long: the sizes that were asked for, or defaults made from the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

from layerprobe.errors import StudyError
from layerprobe.sae._dictionary import Dictionary

TOPK_FAMILY = ("topk", "batchtopk", "matryoshka_batchtopk")
ONE_THRESHOLD = ("batchtopk", "matryoshka_batchtopk")
ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "standard", "gated", "jumprelu")

EXPANSION = 4
ROWS_PER_LATENT = 2
"""Of the default width, at least."""
PASSES = 4
STEPS = 200
"""Least number of steps, so that few rows are seen more often."""
MOST_PASSES = 32


@dataclass(frozen=True)
class Recipe:
    """All that decides a dictionary besides its rows, its seeds and its start."""

    architecture: str
    d_in: int
    d_sae: int
    k: int
    batch_size: int
    steps: int
    learning_rate: float
    frozen_decoder: bool = False

    def build(self) -> TrainingSAE[Any]:
        """An untrained dictionary, from torch's random state."""
        from layerprobe.sae._selection import Matryoshka
        from layerprobe.sae._sparse import BatchTopK, TopK

        about: dict[str, Any] = {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "normalize_activations": "expected_average_only_in",
        }
        penalty: dict[str, Any] = {"l1_coefficient": 2.0, "l1_warm_up_steps": self.steps // 4}
        widths = sorted({max(1, self.d_sae // part) for part in (8, 4, 2, 1)})
        made: dict[str, Any] = {
            "topk": lambda: TopK(TopKTrainingSAEConfig(**about, k=self.k)),
            "batchtopk": lambda: BatchTopK(BatchTopKTrainingSAEConfig(**about, k=self.k)),
            "matryoshka_batchtopk": lambda: Matryoshka(
                MatryoshkaBatchTopKTrainingSAEConfig(**about, k=self.k, matryoshka_widths=widths)
            ),
            "standard": lambda: TrainingSAE.from_dict(StandardTrainingSAEConfig(**about, **penalty).to_dict()),
            "gated": lambda: TrainingSAE.from_dict(GatedTrainingSAEConfig(**about, **penalty).to_dict()),
            "jumprelu": lambda: TrainingSAE.from_dict(
                JumpReLUTrainingSAEConfig(**about, l0_coefficient=1.0, l0_warm_up_steps=self.steps // 4).to_dict()
            ),
        }
        return made[self.architecture]()

    def settings(self) -> SAETrainerConfig:
        return SAETrainerConfig(
            total_training_samples=self.steps * self.batch_size,
            train_batch_size_samples=self.batch_size,
            lr=self.learning_rate,
            # Unused by the constant schedule, but its default is an assertion error.
            lr_end=self.learning_rate / 10,
            lr_warm_up_steps=self.steps // 20,
            lr_decay_steps=self.steps // 5,
            dead_feature_window=max(10, min(1000, self.steps // 5)),
            feature_sampling_window=max(1, min(2000, self.steps)),
        )


def recipe(
    shape: tuple[int, ...],
    *,
    architecture: str,
    expansion: float | None,
    k: int | None,
    samples: int | None,
    batch_size: int,
    learning_rate: float | None,
    start: Dictionary | None = None,
    frozen_decoder: bool = False,
) -> Recipe:
    """Sizes as asked, else by width and number of rows; see `train` for the defaults and their reasons.

    Raises:
        StudyError: if they do not fit each other, the rows or the start.
    """
    if architecture not in ARCHITECTURES:
        raise StudyError(f"sae.architecture = {architecture!r}; the architectures are {', '.join(ARCHITECTURES)}.")
    if len(shape) != 2 or shape[1] < 1 or shape[0] < 2:
        raise StudyError(
            f"A sparse autoencoder was given rows of shape {tuple(shape)}; it needs at least two rows of at least one "
            "feature: raise sae.rows or give more texts."
        )
    n, d_in = shape
    d_sae = start.d_sae if start else default_width(n, d_in, expansion)
    if start:
        _check_start(start, architecture, d_in, expansion)
    if n < d_sae:
        raise StudyError(
            f"A sparse autoencoder of {d_sae} latents was given {n} rows, so it could keep one latent for each row; it "
            f"needs at least {d_sae} rows: raise sae.rows, give more texts, or lower sae.expansion to at most "
            f"{n / d_in:.3g}."
        )
    if architecture in TOPK_FAMILY and k is not None and not 1 <= k <= d_sae:
        raise StudyError(
            f"sae.k = {k} of {d_sae} latents ({d_sae / d_in:.3g} for each of {d_in} features); choose sae.k from 1 to "
            f"{d_sae}, or raise sae.expansion."
        )
    for name, value in {"batch_size": batch_size, "samples": samples, "learning_rate": learning_rate}.items():
        if value is not None and not value > 0:
            raise StudyError(f"A sparse autoencoder was given {name} = {value}; give a number above zero.")
    batch_size = min(batch_size, n)
    if samples is None:
        passes = max(PASSES, min(MOST_PASSES, STEPS * batch_size / n))
        samples = round(passes * n)
    return Recipe(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        k=default_k(d_in, d_sae) if k is None else k,
        batch_size=batch_size,
        steps=max(1, samples // batch_size),
        learning_rate=default_learning_rate(d_sae) if learning_rate is None else learning_rate,
        frozen_decoder=frozen_decoder,
    )


def default_width(n: int, d_in: int, expansion: float | None) -> int:
    """Number of latents: as asked, else four for each feature, or one for each two rows if that is less."""
    if expansion is None:
        return max(1, min(EXPANSION * d_in, n // ROWS_PER_LATENT))
    d_sae = round(expansion * d_in) if expansion > 0 else 0
    if d_sae < 1:
        raise StudyError(
            f"sae.expansion = {expansion} of {d_in} features leaves no latent; raise it to at least {1 / d_in:.3g}."
        )
    return d_sae


def default_k(d_in: int, d_sae: int) -> int:
    """Active latents a row: one for each twelve features (32 of 384, 64 of 768), at least one."""
    return max(1, min(round(d_in / 12), d_sae))


def default_learning_rate(d_sae: int) -> float:
    """Adam's peak rate: 3e-3 at 1,536 latents, falling with the cube root of their number."""
    return min(1e-2, 3e-3 * (1536 / d_sae) ** (1 / 3))


def _check_start(start: Dictionary, architecture: str, d_in: int, expansion: float | None) -> None:
    saved = "jumprelu" if architecture in ONE_THRESHOLD else architecture
    if start.architecture != saved:
        raise StudyError(
            f"A {architecture} dictionary cannot start from one that is saved as {start.architecture}; start from a "
            f"{architecture} dictionary, or train without a start."
        )
    if start.d_in != d_in:
        raise StudyError(
            f"The rows are {d_in} wide, the dictionary to start from takes {start.d_in}; start from one of the same layer."
        )
    if expansion is not None and round(expansion * d_in) != start.d_sae:
        raise StudyError(
            f"sae.expansion = {expansion} asks for {round(expansion * d_in)} latents, the dictionary to start from has "
            f"{start.d_sae}; leave the expansion out."
        )
