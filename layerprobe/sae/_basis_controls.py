"""The label effect of a dictionary and of every control, on the rows of one side, with and without a label shift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Num

from layerprobe.sae import bases
from layerprobe.sae._associations import share_task
from layerprobe.sae._dictionary import Dictionary, encode
from layerprobe.sae._label_effect import LabelEffect, label_effect
from layerprobe.sae.bases import Basis, Projection

if TYPE_CHECKING:
    from scipy.sparse import csc_array

UNTRAINED_SEEDS, RANDOM_SEEDS = 5, 3
"""Untrained dictionaries, and sets of random directions."""
Name = tuple[str, int]
"""A basis and its seed."""


@dataclass(frozen=True)
class Reading:
    """What one basis shows on the test rows of one side."""

    basis: str
    basis_seed: int
    projected: bool
    """Whether the between-label mean directions were removed from the rows."""
    effect: LabelEffect
    share_task: float
    """Share of the judged latents that are associated with a label."""


@dataclass(frozen=True)
class SideRows:
    """Rows of one layer of one model."""

    training: Num[np.ndarray, "n d"]
    """Rows that dictionaries are trained on; thresholds are set on some of them."""
    test: Num[np.ndarray, "m d"]
    example: Int[np.ndarray, " m"]
    """Example of each test row."""
    labels: Int[np.ndarray, " examples"]
    """Label of each test example."""


def basis_controls(
    rows: SideRows,
    dictionaries: Mapping[Name, Dictionary],
    controls: Mapping[Name, Dictionary] | None,
    label_directions: Float[np.ndarray, "removed d"],
    *,
    k: int,
    seed: int = 0,
) -> list[Reading]:
    """Read dictionaries as they are, and controls with the densities of the first dictionary.

    Controls without training are random dictionaries of the TopK kind (five seeds), random directions (three), neurons
    and principal components, each with as many latents as the dictionary. With the label directions removed, everything is
    repeated: dictionaries encode the changed rows, and thresholds are set anew.

    Args:
        rows: of one layer of one side.
        dictionaries: trained on this side, by name and seed.
        controls: other dictionaries with as many latents, by name and seed; None for no control at all.
        label_directions: what is removed, the same for both sides, by `between_label_directions`.
        k: active latents per row of untrained dictionaries.
        seed: of the bases. Bases with one seed have the same directions on both sides, if these do not depend on rows.

    Raises:
        ArgumentError: if widths or numbers of latents differ.
        MeasureError: if test rows, examples and labels do not fit.
    """
    sample = np.asarray(rows.training[bases.matching_rows(len(rows.training))], dtype=np.float32)
    test = np.asarray(rows.test, dtype=np.float32)
    projection = Projection(sample.mean(0), label_directions)
    counts: dict[bool, np.ndarray] = {}
    readings = []

    def read(name: Name, projected: bool, codes: csc_array) -> None:
        effect = label_effect(codes, rows.example, rows.labels)
        share = share_task(codes, rows.example, rows.labels)
        readings.append(Reading(*name, projected, effect, share))

    for name, dictionary in dictionaries.items():
        for projected, (training, held_out) in enumerate(_codes(dictionary, sample, test, projection)):
            counts.setdefault(bool(projected), np.diff(training.indptr))
            read(name, bool(projected), held_out)
    if controls is None:
        return readings
    latents = len(counts[False])
    for name, basis, own in _bases(sample, latents, k, seed, controls):
        training, held_out = (bases.scores(basis, part, projection) for part in (sample, test))
        for projected in (False, True):
            if projected:
                training, held_out = training.projected(), held_out.projected()
            above = bases.thresholds(training, counts[projected], own)
            read(name, projected, bases.activations(held_out, above))
    return readings


def _codes(
    dictionary: Dictionary, sample: np.ndarray, test: np.ndarray, projection: Projection
) -> list[tuple[csc_array, csc_array]]:
    """Activations of a dictionary on training and test rows, without and with the projection."""
    basis = bases.dictionary_basis(dictionary)
    if basis.k is None:
        return [tuple(encode(dictionary, part(rows)) for rows in (sample, test)) for part in (np.asarray, projection)]
    # A TopK dictionary needs one product for both.
    scored = [bases.scores(basis, rows, projection) for rows in (sample, test)]
    plain = tuple(bases.own_activations(one) for one in scored)
    return [plain, tuple(bases.own_activations(one.projected()) for one in scored)]


def _bases(
    sample: Float[np.ndarray, "n d"], latents: int, k: int, seed: int, controls: Mapping[Name, Dictionary]
) -> Iterator[tuple[Name, Basis, Int[np.ndarray, " latents"] | None]]:
    """Each control, and how often its latents are active by themselves where that is not known from their scores."""
    d, mean = sample.shape[1], sample.mean(0)
    for number in range(seed, seed + UNTRAINED_SEEDS):
        yield ("untrained", number), bases.random_topk(d, latents, k, mean, number), None
    for number in range(seed, seed + RANDOM_SEEDS):
        yield ("random directions", number), bases.random_directions(d, latents, number), None
    yield ("neurons", seed), bases.neurons(d, latents, seed), None
    yield ("principal components", seed), bases.principal_directions(sample, latents, seed), None
    for name, dictionary in controls.items():
        basis = bases.dictionary_basis(dictionary)
        yield name, basis, None if basis.k else np.diff(encode(dictionary, sample).indptr)
