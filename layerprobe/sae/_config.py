"""How a sparse autoencoder is trained: the configuration, and the sizes that follow from it and the rows."""

from __future__ import annotations

from dataclasses import dataclass

from layerprobe.errors import ArgumentError
from layerprobe.sae._dictionary import Dictionary
from layerprobe.sae.architectures import Architecture, find_architecture

EXPANSION = 4
ROWS_PER_LATENT = 2
"""At least, with the default width."""
PASSES, MOST_PASSES, STEPS = 4, 32, 200
"""Passes over the rows by default; where there are few rows, up to 32 passes to reach 200 steps."""


@dataclass(frozen=True)
class SaeConfig:
    """Everything that determines a trained dictionary besides its rows and its start."""

    architecture: str = "topk"
    """One of `layerprobe.sae.architectures.ARCHITECTURES`."""
    expansion: float | None = None
    """Latents per feature of a row. Default: 4, or fewer so that there are two rows per latent."""
    k: int | None = None
    """Active latents per row, for architectures that take it. Default: one per twelve features (32 of 384)."""
    samples: int | None = None
    """Rows to train on, repetitions counted. Default: four passes over the rows, and up to 32 to reach 200 steps."""
    batch_size: int = 1024
    """Rows per step; all rows where there are fewer."""
    learning_rate: float | None = None
    """Peak rate of Adam, after a warm-up over 5% of the steps and before a linear decay over the last 20%. Default:
    3e-3 * (1536 / latents)^(1/3), at most 1e-2."""
    seed: int = 0
    """Seed of the initial weights, and of the order of rows unless `order_seed` is set."""
    order_seed: int | None = None
    """Seed of the order of rows."""
    frozen_decoder: bool = False
    """Whether the decoder keeps its initial directions: with random ones, a control."""
    frozen_encoder: bool = False
    """Whether the encoder keeps its initial weights: with random ones, a control."""
    least_cosine: float | None = None
    """Least cosine of each decoder direction with its initial one: with random ones, a soft-frozen control."""


@dataclass(frozen=True)
class Plan:
    """A configuration with every size set."""

    architecture: Architecture
    d_in: int
    d_sae: int
    k: int
    batch_size: int
    steps: int
    learning_rate: float
    seed: int
    order_seed: int
    frozen_decoder: bool
    frozen_encoder: bool
    least_cosine: float | None


def plan(config: SaeConfig, shape: tuple[int, ...], start: Dictionary | None = None) -> Plan:
    """Set the sizes that a configuration leaves open, by the shape of the rows and the start.

    Raises:
        ArgumentError: if the sizes do not fit each other, the rows or the start.
    """
    architecture = find_architecture(config.architecture)
    if len(shape) != 2 or shape[1] < 1 or shape[0] < 2:
        raise ArgumentError(
            f"{{rows}} has shape {tuple(shape)}; a sparse autoencoder needs at least two rows of at least one feature.",
            "rows",
        )
    n, d_in = shape
    if start:
        _check_start(start, architecture, d_in, config.expansion)
    d_sae = start.d_sae if start else default_width(n, d_in, config.expansion)
    if n < d_sae:
        raise ArgumentError(
            f"{{rows}} has {n} rows, but a sparse autoencoder of {d_sae} latents needs at least {d_sae}; give more "
            f"{{rows}}, or lower {{expansion}} to at most {n / d_in:.3g}.",
            *("rows", "expansion"),
        )
    if architecture.uses_k and config.k is not None and not 1 <= config.k <= d_sae:
        raise ArgumentError(
            f"{{k}} is {config.k}, but the dictionary has {d_sae} latents ({d_sae / d_in:.3g} per feature); choose {{k}} "
            f"from 1 to {d_sae}, or raise {{expansion}}.",
            *("k", "expansion"),
        )
    for name in ("batch_size", "samples", "learning_rate"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ArgumentError(f"{{{name}}} is {value}; it must be above 0.", name)
    if config.least_cosine is not None and not -1 <= config.least_cosine <= 1:
        raise ArgumentError(f"{{least_cosine}} is {config.least_cosine}; it must be from -1 to 1.", "least_cosine")
    batch_size = min(config.batch_size, n)
    return Plan(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        k=config.k or default_k(d_in, d_sae),
        batch_size=batch_size,
        steps=training_steps(config, n),
        learning_rate=config.learning_rate or default_learning_rate(d_sae),
        seed=config.seed,
        order_seed=config.seed if config.order_seed is None else config.order_seed,
        frozen_decoder=config.frozen_decoder,
        frozen_encoder=config.frozen_encoder,
        least_cosine=config.least_cosine,
    )


def training_steps(config: SaeConfig, n: int) -> int:
    """Number of training steps that a configuration makes on `n` rows."""
    batch_size = min(config.batch_size, n)
    samples = config.samples or round(max(PASSES, min(MOST_PASSES, STEPS * batch_size / n)) * n)
    return max(1, samples // batch_size)


def default_width(n: int, d_in: int, expansion: float | None) -> int:
    """Number of latents of a dictionary on `n` rows: `expansion` per feature, or the default of `SaeConfig`.

    Raises:
        ArgumentError: if `expansion` leaves no latent.
    """
    if expansion is None:
        return max(1, min(EXPANSION * d_in, n // ROWS_PER_LATENT))
    d_sae = round(expansion * d_in) if expansion > 0 else 0
    if d_sae < 1:
        raise ArgumentError(
            f"{{expansion}} is {expansion}, which leaves no latent with {d_in} features; raise it to at least "
            f"{1 / d_in:.3g}.",
            "expansion",
        )
    return d_sae


def default_k(d_in: int, d_sae: int) -> int:
    """Active latents per row: one per twelve features, at least one."""
    return max(1, min(round(d_in / 12), d_sae))


def default_learning_rate(d_sae: int) -> float:
    """Peak rate of Adam: 3e-3 at 1,536 latents, proportional to the inverse cube root of their number."""
    return min(1e-2, 3e-3 * (1536 / d_sae) ** (1 / 3))


def _check_start(start: Dictionary, architecture: Architecture, d_in: int, expansion: float | None) -> None:
    if start.architecture != (architecture.saved_as or architecture.name):
        raise ArgumentError(
            f"{{start}} is saved as {start.architecture}, so a {architecture.name} dictionary cannot start from it; start "
            f"from a {architecture.name} dictionary.",
            "start",
        )
    if start.d_in != d_in:
        raise ArgumentError(
            f"{{rows}} has {d_in} features, but {{start}} takes {start.d_in}; start from a dictionary of the same layer.",
            *("rows", "start"),
        )
    if expansion is not None and round(expansion * d_in) != start.d_sae:
        raise ArgumentError(
            f"{{expansion}} is {expansion}, which gives {round(expansion * d_in)} latents, but {{start}} has "
            f"{start.d_sae}; leave {{expansion}} out.",
            *("expansion", "start"),
        )
