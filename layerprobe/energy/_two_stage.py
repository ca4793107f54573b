"""Energy of meta-training once at a data centre and adapting to each task on a cluster of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerprobe.errors import ArgumentError

PerTask = float | Sequence[float] | np.ndarray
"""One value for all tasks, or one per task."""
Grid = float | Sequence[float] | np.ndarray
"""One value, or an array of values; several arrays are broadcast against each other."""
Joule = float | np.ndarray
LINKS = ("uplink", "downlink", "sidelink")


@dataclass(frozen=True)
class Energy:
    """Energy by part, in joule: floats, or arrays of one shape where efficiencies were given as arrays.

    Attributes:
        center: learning at the data centre, cooling and power supply (PUE) included.
        uplink: data from devices to the data centre.
        downlink: the model from the data centre to devices.
        devices: learning on devices.
        sidelink: models exchanged between devices.
    """

    center: Joule
    uplink: Joule
    downlink: Joule
    devices: Joule
    sidelink: Joule

    @property
    def learning(self) -> Joule:
        """Energy of computation, in joule: `center` and `devices`."""
        return self.center + self.devices

    @property
    def communication(self) -> Joule:
        """Energy of transmission, in joule: `uplink`, `downlink` and `sidelink`."""
        return self.uplink + self.downlink + self.sidelink

    @property
    def total(self) -> Joule:
        """All energy, in joule."""
        return self.learning + self.communication


@dataclass(frozen=True)
class Traffic:
    """What is transmitted, in bit."""

    uplink: float
    downlink: float
    sidelink: float


@dataclass(frozen=True, kw_only=True)
class TwoStage:
    """Energy of meta-training for `meta_rounds` at a data centre, then adapting to every task on its own devices.

    With t0 rounds of meta-training on the tasks Q and t_i rounds of adaptation to task i,

        E(t0) = 1[t0 > 0] E_meta(t0) + sum_i E_i(t_i)
        E_meta = pue t0 sum_{i in Q} (support_batches + second_order_factor query_batches) joule_per_batch_center
               + (t0 if resend_data else 1) sum_{i in Q} devices_i upload_bits_i / uplink
               + sum_i devices_i parameters_down bits_per_parameter / downlink
        E_i = t_i devices_i [device_batches_i joule_per_batch_device_i
               + neighbours_i parameters_exchanged bits_per_parameter / sidelink]

    The data centre and the uplink count the tasks Q, the downlink all tasks. Devices hold the pretrained encoder: t0 = 0
    adapts it directly and is not learning from scratch, so that published ratios are not comparable. Devices that share a
    server instead of sidelinks: see `server_bit_per_joule`.

    Source: ours, after Savazzi, Rampa, Kianoush and Bennis (2022, arXiv 2212.01049); the paper's own equations were not
    available.

    Raises:
        ArgumentError: naming the argument that is out of range or has the wrong length.
    """

    pue: float
    """Power usage effectiveness of the data centre: its whole energy over that of its computers, at least 1."""
    joule_per_batch_center: float
    """Energy of one batch at the data centre, in joule."""
    joule_per_batch_device: PerTask
    """Energy of one batch on a device, in joule; a scalar or one value per task."""
    second_order_factor: float
    """Energy of a query batch over that of a support batch, at least 1 (1 for first-order meta-gradients)."""
    uplink_bit_per_joule: Grid
    """Efficiency from device to data centre, in bit/J: above 0, may be infinite, a scalar or an array."""
    downlink_bit_per_joule: Grid
    """Efficiency from data centre to device, in bit/J: above 0, may be infinite, a scalar or an array."""
    sidelink_bit_per_joule: Grid
    """Efficiency from device to device, in bit/J: above 0, may be infinite, a scalar or an array."""
    parameters_down: float
    """Number of parameters that a device receives before adaptation: all that the outer loop changed."""
    parameters_exchanged: float
    """Number of parameters that a device sends to a neighbour in a round: those that the inner loop adapts."""
    bits_per_parameter: float = 32
    """Bits per parameter in transmission."""
    devices_per_task: PerTask
    """Number of devices of a task; a scalar or one value per task."""
    neighbours: PerTask
    """Transmissions of each device in a round, 0 to devices - 1 (mean over devices); a scalar or one value per task."""
    support_batches: float
    """Support batches per meta-training task and round."""
    query_batches: float
    """Query batches per meta-training task and round."""
    device_batches: PerTask
    """Batches per device and round of adaptation; a scalar or one value per task."""
    upload_bits_per_device: PerTask
    """Data that a device sends for meta-training, in bit; a scalar or one value per task."""
    resend_data: bool
    """Whether the data are sent again in each round of meta-training."""
    meta_tasks: int | Sequence[int] | np.ndarray
    """The tasks of meta-training: how many (the first ones), or their indices."""

    def __post_init__(self) -> None:
        for name in ("pue", "second_order_factor"):
            _check(name, getattr(self, name), at_least=1)
        for name in (
            "joule_per_batch_center",
            "parameters_down",
            "parameters_exchanged",
            "support_batches",
            "query_batches",
        ):
            _check(name, getattr(self, name))
        check_positive("bits_per_parameter", self.bits_per_parameter)
        for name in ("joule_per_batch_device", "device_batches", "upload_bits_per_device", "neighbours"):
            self._set_per_task(name, at_least=0)
        self._set_per_task("devices_per_task", at_least=1)
        for devices in np.atleast_1d(self.devices_per_task):
            if not float(devices).is_integer():
                raise ArgumentError(f"{{devices_per_task}} has {devices}; it takes whole numbers.", "devices_per_task")
        for link in LINKS:
            self._set_efficiency(f"{link}_bit_per_joule")
        try:
            np.broadcast_shapes(*(np.shape(efficiency) for efficiency in self._efficiencies))
        except ValueError:
            names = [f"{link}_bit_per_joule" for link in LINKS]
            shapes = ", ".join(str(np.shape(efficiency)) for efficiency in self._efficiencies)
            listed = ", ".join(f"{{{name}}}" for name in names)
            raise ArgumentError(f"{listed} have shapes {shapes}, which cannot be broadcast together.", *names) from None
        self._check_lengths()
        self._check_neighbours()
        if isinstance(self.meta_tasks, (int, np.integer)):
            object.__setattr__(self, "meta_tasks", int(self.meta_tasks))
        else:
            object.__setattr__(self, "meta_tasks", tuple(int(task) for task in self.meta_tasks))
        self._meta_tasks(self._n_tasks)

    def energy(self, meta_rounds: float, task_rounds: Sequence[float] | np.ndarray) -> Energy:
        """Energy by part, in joule.

        Args:
            meta_rounds: rounds of meta-training, t0; 0 adapts the pretrained model directly.
            task_rounds: rounds of adaptation of each task, `(tasks,)`. Rounds that were stopped at a cap give a lower
                bound: `energy_curve` handles them.

        Raises:
            ArgumentError: if rounds are negative or not finite, or their number does not fit the values per task.
        """
        rounds = self._rounds(meta_rounds, task_rounds)
        bits = self.traffic(meta_rounds, task_rounds)
        of_task, of_devices = self._meta_tasks(len(rounds)), self._per_task("devices_per_task", len(rounds))
        batches = self.support_batches + self.second_order_factor * self.query_batches
        per_round = self._per_task("device_batches", len(rounds)) * self._per_task(
            "joule_per_batch_device", len(rounds)
        )
        shape = np.broadcast_shapes(*(np.shape(efficiency) for efficiency in self._efficiencies))

        def joule(value: np.ndarray | float) -> Joule:
            return np.broadcast_to(value, shape).copy() if shape else float(value)

        uplink, downlink, sidelink = (
            getattr(bits, link) / np.asarray(efficiency, float)
            for link, efficiency in zip(LINKS, self._efficiencies, strict=True)
        )
        return Energy(
            center=joule(self.pue * float(meta_rounds) * len(of_task) * batches * self.joule_per_batch_center),
            uplink=joule(uplink),
            downlink=joule(downlink),
            devices=joule((rounds * of_devices * per_round).sum()),
            sidelink=joule(sidelink),
        )

    def traffic(self, meta_rounds: float, task_rounds: Sequence[float] | np.ndarray) -> Traffic:
        """Transmitted bits by link, over all tasks and rounds; arguments as for `energy`."""
        rounds = self._rounds(meta_rounds, task_rounds)
        devices = self._per_task("devices_per_task", len(rounds))
        uploads = (devices * self._per_task("upload_bits_per_device", len(rounds)))[self._meta_tasks(len(rounds))].sum()
        sent = (rounds * devices * self._per_task("neighbours", len(rounds))).sum()
        times = float(meta_rounds) if self.resend_data else float(meta_rounds > 0)
        return Traffic(
            uplink=float(times * uploads),
            downlink=float(meta_rounds > 0) * float(devices.sum()) * self.parameters_down * self.bits_per_parameter,
            sidelink=float(sent) * self.parameters_exchanged * self.bits_per_parameter,
        )

    @property
    def _efficiencies(self) -> tuple[Grid, Grid, Grid]:
        return self.uplink_bit_per_joule, self.downlink_bit_per_joule, self.sidelink_bit_per_joule

    @property
    def _lengths(self) -> dict[str, int]:
        """Number of values of every argument that was given per task."""
        names = ("devices_per_task", "neighbours", "joule_per_batch_device", "device_batches", "upload_bits_per_device")
        return {name: len(getattr(self, name)) for name in names if isinstance(getattr(self, name), tuple)}

    @property
    def _n_tasks(self) -> int | None:
        """Number of tasks, if any value is given per task."""
        return next(iter(self._lengths.values()), None)

    def _set_per_task(self, name: str, at_least: float) -> None:
        values = np.asarray(getattr(self, name), float)
        if values.ndim > 1 or not values.size:
            raise ArgumentError(f"{{{name}}} has shape {values.shape}; it takes a number, or one per task.", name)
        for value in np.atleast_1d(values):
            _check(name, float(value), at_least=at_least)
        object.__setattr__(self, name, tuple(values.tolist()) if values.ndim else float(values))

    def _set_efficiency(self, name: str) -> None:
        values = np.array(getattr(self, name), float)
        if not values.size:
            raise ArgumentError(f"{{{name}}} is empty; it takes a number or an array, in bit/J.", name)
        check_positive(name, values, infinite=True)
        values.setflags(write=False)
        object.__setattr__(self, name, values if values.ndim else float(values))

    def _check_lengths(self) -> None:
        if len(set(self._lengths.values())) > 1:
            listed = ", ".join(f"{{{name}}} has {length}" for name, length in self._lengths.items())
            raise ArgumentError(f"{listed}; values per task must be equally many.", *self._lengths)

    def _check_neighbours(self) -> None:
        neighbours, devices = np.broadcast_arrays(self.neighbours, self.devices_per_task)
        for sent, held in zip(np.atleast_1d(neighbours), np.atleast_1d(devices), strict=True):
            if sent > held - 1:
                raise ArgumentError(
                    f"{{neighbours}} is {sent:g}, but {{devices_per_task}} is {held:g}; a device has at most {held - 1:g} "
                    "neighbours.",
                    *("neighbours", "devices_per_task"),
                )

    def _meta_tasks(self, n_tasks: int | None) -> list[int]:
        """Indices of the meta-training tasks, checked against the number of tasks where it is known."""
        tasks = list(range(self.meta_tasks)) if isinstance(self.meta_tasks, int) else [int(i) for i in self.meta_tasks]
        if not tasks:
            raise ArgumentError("{meta_tasks} is empty; meta-training needs at least one task.", "meta_tasks")
        if len(set(tasks)) < len(tasks):
            raise ArgumentError(f"{{meta_tasks}} is {self.meta_tasks}; an index is repeated.", "meta_tasks")
        if min(tasks) < 0 or (n_tasks is not None and max(tasks) >= n_tasks):
            allowed = "counted from 0" if n_tasks is None else f"and there are {n_tasks} tasks, counted from 0"
            raise ArgumentError(
                f"{{meta_tasks}} is {self.meta_tasks}; it is a number of tasks or their indices, {allowed}.",
                "meta_tasks",
            )
        return tasks

    def _per_task(self, name: str, n_tasks: int) -> np.ndarray:
        return np.broadcast_to(np.asarray(getattr(self, name), float), (n_tasks,))

    def _rounds(self, meta_rounds: float, task_rounds: Sequence[float] | np.ndarray) -> np.ndarray:
        _check("meta_rounds", meta_rounds)
        if not float(meta_rounds).is_integer():
            raise ArgumentError(f"{{meta_rounds}} is {meta_rounds}; it takes a whole number.", "meta_rounds")
        rounds = np.asarray(task_rounds, float)
        if rounds.ndim != 1 or not rounds.size:
            raise ArgumentError(
                f"{{task_rounds}} has shape {rounds.shape}; it takes one number per task.", "task_rounds"
            )
        for value in rounds:
            _check("task_rounds", float(value))
        if self._n_tasks not in (None, len(rounds)):
            name = next(iter(self._lengths))
            raise ArgumentError(
                f"{{task_rounds}} has {len(rounds)} values, but {{{name}}} has {self._n_tasks}; both are given per task.",
                *("task_rounds", name),
            )
        self._meta_tasks(len(rounds))
        return rounds


def shipping(
    *,
    training_joule: float,
    parameters: float,
    devices: float,
    downlink_bit_per_joule: Grid,
    bits_per_parameter: float = 32,
    pue: float = 1,
) -> Energy:
    """Energy of adapting once at a data centre and sending what changed to every device.

    Args:
        training_joule: energy of the training, in joule.
        parameters: number of parameters that training changed.
        devices: number of devices that receive them.
        downlink_bit_per_joule: efficiency from data centre to device, in bit/J; a scalar or an array.
        bits_per_parameter: bits per parameter in transmission.
        pue: power usage effectiveness of the data centre, at least 1.

    Returns:
        The energy by part, of which only `center` and `downlink` are above 0.

    Raises:
        ArgumentError: naming the argument that is out of range.
    """
    for name, value in (("training_joule", training_joule), ("parameters", parameters), ("devices", devices)):
        _check(name, value)
    _check("pue", pue, at_least=1)
    check_positive("bits_per_parameter", bits_per_parameter)
    efficiency = np.asarray(downlink_bit_per_joule, float)
    check_positive("downlink_bit_per_joule", efficiency, infinite=True)
    downlink = parameters * bits_per_parameter * devices / efficiency

    def joule(value: np.ndarray | float) -> Joule:
        return np.broadcast_to(value, efficiency.shape).copy() if efficiency.ndim else float(value)

    return Energy(joule(pue * training_joule), joule(0), joule(downlink), joule(0), joule(0))


def check_positive(name: str, values: Grid, *, infinite: bool = False) -> None:
    for value in np.asarray(values, float).ravel():
        if not (value > 0 and (infinite or math.isfinite(value))):
            raise ArgumentError(
                f"{{{name}}} is {value:g}; it must be above 0{'' if infinite else ' and finite'}.", name
            )


def _check(name: str, value: float, *, at_least: float = 0) -> None:
    if not (math.isfinite(value) and value >= at_least):
        raise ArgumentError(f"{{{name}}} is {value}; it must be finite and at least {at_least:g}.", name)
