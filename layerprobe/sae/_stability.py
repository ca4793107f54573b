"""Latents that another seed finds too, and those that it does not: their subspace, and dictionaries without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from layerprobe.errors import ArgumentError
from layerprobe.sae._dictionary import Dictionary, row_batches
from layerprobe.sae._matching import Matching

STABLE = 0.7
"""Cosine with its partner from which a latent is stable (Paulo and Belrose 2025)."""


@dataclass(frozen=True)
class PartialDictionary(Dictionary):
    """A dictionary without some of its latents."""

    kept: Bool[np.ndarray, " d_sae"]

    @torch.inference_mode()
    def encode(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        return super().encode(rows) * torch.from_numpy(self.kept).to(rows)


def stable_latents(matching: Matching) -> tuple[Bool[np.ndarray, " one"], Bool[np.ndarray, " other"]]:
    """Which latents of two dictionaries have a partner in the other with a cosine of at least .7."""
    tables = matching.table, matching.reverse
    one, other = ((table["cosine"] >= STABLE).to_numpy() for table in tables)
    return one, other


def of_equal_energy(
    dictionary: Dictionary,
    codes: Any,
    stable: Bool[np.ndarray, " d_sae"],
    live: Bool[np.ndarray, " d_sae"],
    seed: int = 0,
) -> dict[str, Bool[np.ndarray, " d_sae"]]:
    """Stable and unstable latents of about equal energy sum f^2 |d|^2, to be ablated in turn.

    All live latents of the group with less energy, and of the other group as many, in random order, as come closest to it.

    Args:
        dictionary: gives the directions d.
        codes: its activations f, by `encode`.
        stable: by `stable_latents`.
        live: latents to choose from.
        seed: of the order.

    Raises:
        ArgumentError: if there is no live latent in one of the groups.
    """
    energy = codes.power(2).sum(0) * dictionary.decoder.cpu().double().square().sum(1).numpy()
    groups = {"stable": stable & live, "unstable": ~stable & live}
    if not all(group.any() for group in groups.values()):
        raise ArgumentError("{stable} has no live latent in one of the groups; there is nothing to compare.", "stable")
    less, more = sorted(groups, key=lambda name: energy[groups[name]].sum())
    order = np.random.default_rng(seed).permutation(np.flatnonzero(groups[more]))
    reached = np.cumsum(energy[order])
    count = int(np.abs(reached - energy[groups[less]].sum()).argmin()) + 1
    chosen = np.zeros_like(stable)
    chosen[order[:count]] = True
    return {less: groups[less], more: chosen}


@dataclass(frozen=True)
class SubspaceOverlap:
    """How much the leading directions of two sets of latents span the same subspace."""

    dimensions: int
    """Dimensions of either subspace: the smaller participation ratio of the two sets, rounded."""
    overlap: float
    """Mean squared cosine of the principal angles: 1 for one subspace, dimensions / d for random ones."""
    null_mean: float
    """The same for as many directions drawn from the rows' covariance, mean over draws."""
    null_high: float
    """Its largest value over draws; an overlap above it has p = 1 / (1 + draws)."""
    draws: int


def subspace_overlap(
    one: Float[np.ndarray, "m d"],
    other: Float[np.ndarray, "k d"],
    rows: Num[np.ndarray, "n d"],
    *,
    draws: int = 19,
    seed: int = 0,
) -> SubspaceOverlap:
    """Compare the subspaces of two sets of directions, such as the latents of two seeds that have no partner.

    Latents that differ between seeds may still span one subspace, in different bases. Two dictionaries of the same rows
    do so anyway as far as the rows vary in few directions: the null draws directions from the rows' covariance.

    Args:
        one: directions; scaled to length 1.
        other: directions.
        rows: rows of the layer; may be memory-mapped.
        draws: of the null.
        seed: of the draws.

    Raises:
        ArgumentError: if there are fewer than two directions in a set, widths differ, or the rows do not vary.
    """
    if min(len(one), len(other)) < 2 or not one.shape[1] == other.shape[1] == rows.shape[1]:
        raise ArgumentError(
            f"{{one}} has shape {one.shape}, {{other}} {other.shape} and {{rows}} {rows.shape}; give at least two "
            "directions each, in the space of the rows.",
            *("one", "other", "rows"),
        )
    d, rng = rows.shape[1], np.random.default_rng(seed)
    origin, total, squares = rows[0].astype(np.float64), np.zeros(d), np.zeros((d, d))
    for batch in row_batches(len(rows)):
        moved = rows[batch].astype(np.float64) - origin
        total += moved.sum(0)
        squares += moved.T @ moved
    values, vectors = np.linalg.eigh(squares / len(rows) - np.outer(total, total) / len(rows) ** 2)
    if not values[-1] > 0:
        raise ArgumentError("{rows} do not vary; give more rows.", "rows")
    mix = vectors * np.sqrt(np.maximum(values, 0))
    grams = [_gram(z.astype(np.float64)) for z in (one, other)]
    ratios = [np.trace(gram) ** 2 / (gram**2).sum() for gram in grams]
    r = max(1, round(min(ratios)))
    null = []
    for _ in range(draws):
        first, second = (_gram(rng.standard_normal((len(z), d)) @ mix.T) for z in (one, other))
        null.append(_overlap(first, second, r))
    return SubspaceOverlap(r, _overlap(grams[0], grams[1], r), float(np.mean(null)), float(np.max(null)), draws)


def _gram(directions: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "d d"]:
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = directions / np.where(lengths > 0, lengths, 1)
    return unit.T @ unit


def _overlap(one: Float[np.ndarray, "d d"], other: Float[np.ndarray, "d d"], r: int) -> float:
    leading = (np.linalg.eigh(gram)[1][:, -r:] for gram in (one, other))
    first, second = leading
    return float(((first.T @ second) ** 2).sum() / r)
