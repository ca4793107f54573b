"""Consensus averaging of the models of a cluster of devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from layerprobe.energy._two_stage import Grid, check_positive
from layerprobe.errors import ArgumentError

TopologyName = Literal["ring", "mesh", "server"]


@dataclass(frozen=True)
class Topology:
    """Who averages with whom in a cluster.

    Attributes:
        name: "ring", "mesh" (all with all) or "server" (all through one).
        weights: doubly stochastic mixing weights; row k holds those of the new model of device k.
        neighbours: directed transmissions of each device over sidelinks in a round; 0 with a server.
        server_uplinks, server_downlinks: transmissions of the whole cluster to and from the server in a round.
    """

    name: str
    weights: Float[np.ndarray, "devices devices"]
    neighbours: int
    server_uplinks: int
    server_downlinks: int

    @property
    def contraction(self) -> float:
        """Factor by which a round of averaging reduces disagreement at worst: the second largest singular value."""
        return float(np.linalg.norm(self.weights - 1 / len(self.weights), 2))


@dataclass(frozen=True)
class Averaged:
    """Models after a round of averaging.

    Attributes:
        models: one row per device.
        disagreement: root mean square, over devices, of the Euclidean distance to the mean model, after averaging.
        disagreement_before: the same before averaging.
    """

    models: Float[np.ndarray, "devices parameters"]
    disagreement: float
    disagreement_before: float


def topology(name: str, devices: int) -> Topology:
    """Mixing weights and transmissions of a cluster.

    On a ring, a device takes 1/3 of its own model and 1/3 of each neighbour's (of two devices, half of each): Metropolis
    weights (Xiao and Boyd 2004). A full mesh and a server give every device the mean, at different transmissions.

    Args:
        name: "ring", "mesh" or "server".
        devices: number of devices, at least 1.

    Raises:
        ArgumentError: if the name is unknown or there is no device.
    """
    if name not in get_args(TopologyName):
        raise ArgumentError(f"{{name}} is {name!r}; it is one of {', '.join(get_args(TopologyName))}.", "name")
    if devices < 1:
        raise ArgumentError(f"{{devices}} is {devices}; a cluster has at least 1.", "devices")
    if name != "ring" or devices <= 3:
        weights = np.full((devices, devices), 1 / devices)
    else:
        own = np.eye(devices)
        weights = (own + np.roll(own, 1, axis=1) + np.roll(own, -1, axis=1)) / 3
    if name == "server":
        return Topology(name, weights, 0, devices, devices)
    return Topology(name, weights, min(devices - 1, 2) if name == "ring" else devices - 1, 0, 0)


def averaging(models: Float[np.ndarray, "devices parameters"], weights: Float[np.ndarray, "rows columns"]) -> Averaged:
    """One round of consensus averaging: the model of each device becomes a weighted mean of the cluster's models.

    Doubly stochastic weights preserve the mean over devices. Replace this function to average with another framework.

    Args:
        models: exchanged parameters, one row per device, in a floating-point type, which is kept.
        weights: doubly stochastic weights, `(devices, devices)`, such as `topology("ring", devices).weights`.

    Raises:
        ArgumentError: if the shapes do not fit, a value is not finite, or weights are negative or not doubly stochastic.
    """
    devices = len(models)
    if weights.shape != (devices, devices):
        raise ArgumentError(
            f"{{weights}} has shape {weights.shape}, but {{models}} has {devices} rows; it takes {(devices, devices)}.",
            *("weights", "models"),
        )
    sums = np.concatenate([weights.sum(axis=0), weights.sum(axis=1)])
    if not ((weights >= 0).all() and np.allclose(sums, 1, rtol=0, atol=1e-9)):
        raise ArgumentError(
            "{weights} are not doubly stochastic; they must not be negative, and rows and columns must sum to 1.",
            "weights",
        )
    if not np.isfinite(models).all():
        raise ArgumentError("{models} has values that are not finite; a device diverged.", "models")
    # Relative to the first device, so that identical models stay exactly as they are.
    averaged = models[0] + weights.astype(models.dtype) @ (models - models[0])
    return Averaged(averaged, _disagreement(averaged), _disagreement(models))


def server_bit_per_joule(uplink_bit_per_joule: Grid, downlink_bit_per_joule: Grid) -> float | np.ndarray:
    """Efficiency of exchanging models through a server, in bit/J, as that of one sidelink.

    In a round each device sends its model up and receives the mean. As an argument of `TwoStage`, together with
    `neighbours=1`, it gives the energy of as many uplinks and downlinks as there are devices.

    Raises:
        ArgumentError: if an efficiency is not above 0.
    """
    up, down = np.asarray(uplink_bit_per_joule, float), np.asarray(downlink_bit_per_joule, float)
    check_positive("uplink_bit_per_joule", up, infinite=True)
    check_positive("downlink_bit_per_joule", down, infinite=True)
    with np.errstate(divide="ignore"):
        both = 1 / (1 / up + 1 / down)
    return both if both.ndim else float(both)


def _disagreement(models: np.ndarray) -> float:
    # Relative to the first device, so that identical models differ by exactly 0.
    apart = models.astype(np.float64) - models[0]
    return float(np.sqrt(((apart - apart.mean(axis=0)) ** 2).sum(axis=1).mean()))
