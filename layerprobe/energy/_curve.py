"""Energy against rounds of meta-training: the best number of rounds, and what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.energy._two_stage import LINKS, Energy, Traffic, TwoStage
from layerprobe.errors import ArgumentError

Number = float | np.ndarray | np.generic


@dataclass(frozen=True)
class MeasuredRounds:
    """Rounds that each task needed to reach the target after `meta_rounds` of meta-training.

    Attributes:
        meta_rounds: rounds of meta-training, t0.
        task_rounds: rounds of each task; where `censored`, the rounds after which it was stopped short of the target.
        censored: whether each task was stopped short of the target; none by default.
    """

    meta_rounds: int
    task_rounds: Sequence[float] | np.ndarray
    censored: Sequence[bool] | np.ndarray | None = None

    def __post_init__(self) -> None:
        rounds = tuple(float(value) for value in self.task_rounds)
        object.__setattr__(self, "task_rounds", rounds)
        censored = (False,) * len(rounds) if self.censored is None else tuple(bool(value) for value in self.censored)
        if len(censored) != len(rounds):
            raise ArgumentError(
                f"{{censored}} has {len(censored)} values, {{task_rounds}} has {len(rounds)}; both are given per task.",
                *("censored", "task_rounds"),
            )
        object.__setattr__(self, "censored", censored)


@dataclass(frozen=True)
class Optimum:
    """The candidate of least energy; arrays of the grid's shape where efficiencies were given as arrays.

    Attributes:
        meta_rounds: best number of rounds of meta-training among the candidates that reached the target, the smallest of
            equally good ones.
        energy: its energy by part, in joule.
        ratio: energy without meta-training (t0 = 0) over that of the optimum; NaN if t0 = 0 is no candidate. It is at least
            1 by construction where t0 = 0 reached the target, since the optimum is chosen among candidates with it.
        ratio_is_lower_bound: whether t0 = 0 was stopped short of the target, so that its energy is a lower bound.
        undecided: whether the lower bound of a censored candidate is below the optimum's energy, so that this candidate
            might be better.
    """

    meta_rounds: int | np.ndarray
    energy: Energy
    ratio: float | np.ndarray
    ratio_is_lower_bound: bool
    undecided: bool | np.ndarray


@dataclass(frozen=True)
class LinkSensitivity:
    """How the optimum depends on the efficiency of one link, the others held fixed; arrays where efficiencies were.

    Attributes:
        elasticity: relative change of the least energy per relative change of the efficiency, -1 to 0: minus the link's
            share of the energy. NaN where the least energy is 0.
        low, high: the range of the efficiency, in bit/J, within which the best number of meta-training rounds stays the
            same; `high` may be infinite and `low` 0.
    """

    elasticity: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


@dataclass(frozen=True)
class Sensitivity:
    """How the optimum depends on each efficiency."""

    uplink: LinkSensitivity
    downlink: LinkSensitivity
    sidelink: LinkSensitivity


@dataclass(frozen=True)
class EnergyCurve:
    """Energy of every candidate number of meta-training rounds.

    Attributes:
        model: what the energy was computed with.
        meta_rounds: the candidates, in ascending order.
        censored: whether some task was stopped short of the target: the energy is then a lower bound, and the candidate is
            left out of the optimum.
        energy: energy by part, in joule, `(candidates, *grid)`.
        traffic: transmitted bits of each candidate.
    """

    model: TwoStage
    meta_rounds: Int[np.ndarray, " candidates"]
    censored: Bool[np.ndarray, " candidates"]
    energy: Energy
    traffic: tuple[Traffic, ...]

    @property
    def ratio(self) -> Float[np.ndarray, "candidates ..."]:
        """Energy without meta-training (t0 = 0) over that of each candidate, NaN where either is censored or missing."""
        total = np.asarray(self.energy.total)
        known = np.where(self._along(self.censored), np.nan, total)
        at_zero = np.flatnonzero(self.meta_rounds == 0)
        base = known[at_zero[0]] if len(at_zero) else np.nan
        return _ratio(np.broadcast_to(base, known.shape), known)

    def optimum(self) -> Optimum:
        """The candidate of least energy among those that reached the target.

        Raises:
            ArgumentError: if no candidate reached the target for every task.
        """
        best, total = self._best(), np.asarray(self.energy.total)
        least = self._at(total, best)
        at_zero = np.flatnonzero(self.meta_rounds == 0)
        bounds = total[self.censored]
        return Optimum(
            meta_rounds=_plain(self.meta_rounds[best]),
            energy=Energy(*(_plain(self._at(getattr(self.energy, part.name), best)) for part in fields(Energy))),
            ratio=_plain(_ratio(total[at_zero[0]], least) if len(at_zero) else np.full(least.shape, np.nan)),
            ratio_is_lower_bound=bool(len(at_zero) and self.censored[at_zero[0]]),
            undecided=_plain((bounds < least).any(axis=0)),
        )

    def sensitivity(self) -> Sensitivity:
        """How the least energy and the best number of rounds depend on the efficiency of each link.

        Exact: the energy of each candidate is linear in the inverse of an efficiency.

        Raises:
            ArgumentError: if no candidate reached the target for every task.
        """
        return Sensitivity(*(self._link_sensitivity(link) for link in LINKS))

    def _link_sensitivity(self, link: str) -> LinkSensitivity:
        best = self._best()
        parts = {part.name: np.asarray(getattr(self.energy, part.name)) for part in fields(Energy)}
        others = sum((values for name, values in parts.items() if name != link), np.zeros_like(parts[link]))
        bits = self._along(np.array([getattr(traffic, link) for traffic in self.traffic]))
        bits = np.broadcast_to(bits, others.shape)
        # The optimum is best as long as x (own bits - other bits) <= other energy - own energy, x = 1 / efficiency.
        slope = self._at(bits, best) - bits
        room = others - self._at(others, best)
        reached = self._along(~self.censored)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = room / slope
            most = np.where(reached & (slope > 0), crossing, np.inf).min(axis=0)
            least = np.where(reached & (slope < 0), crossing, 0).max(axis=0)
            efficiency = np.broadcast_to(getattr(self.model, f"{link}_bit_per_joule"), most.shape)
            # Rounding must not put the efficiency itself outside.
            low, high = np.minimum(1 / most, efficiency), np.maximum(1 / np.maximum(least, 0), efficiency)
            share = _ratio(self._at(parts[link], best), self._at(np.asarray(self.energy.total), best))
        return LinkSensitivity(elasticity=_plain(0 - share), low=_plain(low), high=_plain(high))

    def _best(self) -> np.ndarray:
        """Index of the best candidate, of the grid's shape."""
        if self.censored.all():
            raise ArgumentError(
                f"{{measured}} has no number of meta-training rounds after which every task reached the target (tried: "
                f"{', '.join(map(str, self.meta_rounds))}); lower the target or allow more rounds.",
                "measured",
            )
        known = np.where(self._along(self.censored), np.inf, np.asarray(self.energy.total))
        return np.asarray(known.argmin(axis=0))

    def _along(self, values: np.ndarray) -> np.ndarray:
        """Values of the candidates, shaped to broadcast along the grid."""
        return values.reshape(-1, *(1,) * (np.ndim(self.energy.total) - 1))

    @staticmethod
    def _at(values: np.ndarray | float, best: np.ndarray) -> np.ndarray:
        return np.asarray(np.take_along_axis(np.asarray(values), best[None], axis=0)[0])


def energy_curve(model: TwoStage, measured: Sequence[MeasuredRounds]) -> EnergyCurve:
    """Energy of every measured number of meta-training rounds.

    Args:
        model: what rounds, batches and bits cost; its efficiencies may be arrays, which makes a grid.
        measured: the rounds of every task after each number of meta-training rounds, in any order.

    Raises:
        ArgumentError: if there is no measurement, a number of meta-training rounds is repeated, or rounds do not fit the
            model.
    """
    if not measured:
        raise ArgumentError("{measured} is empty; give the rounds of at least one t0.", "measured")
    ordered = sorted(measured, key=lambda candidate: candidate.meta_rounds)
    tried = [candidate.meta_rounds for candidate in ordered]
    if len(set(tried)) < len(tried):
        raise ArgumentError(f"{{measured}} repeats a number of meta-training rounds: {tried}.", "measured")
    lengths = {len(candidate.task_rounds) for candidate in ordered}
    if len(lengths) > 1:
        raise ArgumentError(
            f"{{measured}} has different numbers of tasks: {', '.join(map(str, sorted(lengths)))}; all candidates need the "
            "same tasks.",
            "measured",
        )
    energies = [model.energy(candidate.meta_rounds, candidate.task_rounds) for candidate in ordered]
    return EnergyCurve(
        model=model,
        meta_rounds=np.array(tried, dtype=np.int64),
        censored=np.array([any(candidate.censored or ()) for candidate in ordered], dtype=bool),
        energy=Energy(*(np.stack([getattr(energy, part.name) for energy in energies]) for part in fields(Energy))),
        traffic=tuple(model.traffic(candidate.meta_rounds, candidate.task_rounds) for candidate in ordered),
    )


def _ratio(above: Number, below: Number) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.divide(above, below))


def _plain(values: Number) -> Any:
    """A Python scalar where there is no grid."""
    return values if np.ndim(values) else np.asarray(values).item()
