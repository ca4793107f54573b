"""The cost of training: seconds, memory, energy, floating-point operations."""

from __future__ import annotations

import importlib.util
import logging
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from layerprobe.encoder import length_sorted_batches
from layerprobe.errors import MeasureError
from layerprobe.families import FAMILIES
from layerprobe.layers import blocks

SAMPLING_SECONDS = 0.01
"""Between two readings of the process's resident memory."""
PROBED_LENGTHS = (4, 5, 6)
"""Lengths in tokens at which operations are counted; three determine a quadratic."""


# Seconds, memory, energy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """The cost of the work inside a `Meter`."""

    seconds: float
    """Wall-clock time."""
    peak_bytes: int
    """Largest resident memory of this process above that at the start; of the host, not of a GPU."""
    memory_kind: Literal["sampled", "high-water"]
    """`sampled`: read every hundredth of a second, and raised to the process's high-water mark where that rose.
    `high-water`: the rise of that mark, where nothing else can be read (macOS): 0 if an earlier peak was higher."""
    energy_wh: float | None
    """Watt-hours of the processors (CPU and GPU), without memory, whose power is never measured."""
    energy_kind: Literal["measured", "estimated"] | None
    """`measured` by counters of the hardware, which count everything that runs on the machine; `estimated` from the CPU
    time of this process and its children and the CPU's nominal power."""
    energy_note: str
    """How the energy was obtained, or why there is none."""


class Meter:
    """Measures the cost of the work inside its context.

    ```python
    with Meter() as meter:
        train()
    meter.cost.seconds
    ```

    Energy needs `codecarbon`, which is used offline: it contacts no host and writes no file. Its detection of the hardware
    takes a second or two, which are not part of the measurement.
    """

    def __init__(self, *, energy: bool = True) -> None:
        """`energy=False` saves the detection of the hardware."""
        self._measures_energy = energy
        self._cost: Cost | None = None

    @property
    def cost(self) -> Cost:
        """The measured cost.

        Raises:
            MeasureError: before the context has ended.
        """
        if self._cost is None:
            raise MeasureError("A Meter's cost was read before its context ended; read it after the `with` block.")
        return self._cost

    def __enter__(self) -> Meter:
        self._tracker: Any
        self._tracker, self._note = _tracker() if self._measures_energy else (None, "energy was not measured")
        self._base, self._mark = _resident(), _high_water()
        self._peak = self._base or 0
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        if self._base is not None:
            self._sampler.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        self._done.set()
        if self._base is not None:
            self._sampler.join()
        mark = _high_water()
        if self._base is None:
            peak = mark - self._mark
        else:
            # If the mark rose, it is the exact peak of this context, also between samples.
            peak = max(self._peak, mark if mark > self._mark else 0) - self._base
        watt_hours, kind, note = _energy(self._tracker, self._note)
        self._cost = Cost(
            seconds, max(0, peak), "high-water" if self._base is None else "sampled", watt_hours, kind, note
        )

    def _sample(self) -> None:
        while True:
            self._peak = max(self._peak, _resident() or 0)
            if self._done.wait(SAMPLING_SECONDS):
                return


def _resident() -> int | None:
    """Bytes of this process in memory now, where the system reports it (Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None


def _high_water() -> int:
    """The largest number of bytes that this process has ever had in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes except on macOS


def _tracker() -> tuple[Any, str]:
    """A started codecarbon tracker, or None and the reason."""
    if importlib.util.find_spec("codecarbon") is None:
        return None, "codecarbon is not installed (the extra layerprobe[energy])"
    try:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        # Every output is disabled by argument, since a user's codecarbon settings would otherwise enable it. The country
        # decides the carbon of a watt-hour, which is not reported, but it is required.
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            **{f"save_to_{output}": False for output in ("file", "api", "logger", "prometheus", "logfire")},
            emissions_endpoint=None,
            electricitymaps_api_token=None,
            log_level="critical",
            allow_multiple_runs=True,
            tracking_mode="process",
            measure_power_secs=1,
        )
        tracker.start()
    except Exception as error:  # whatever codecarbon raises about the hardware, training continues
        return None, _failure(error)
    return tracker, ""


_COUNTERS = {"intel_rapl": "RAPL", "intel_power_gadget": "Intel Power Gadget", "windows_emi": "EMI"}


def _energy(tracker: Any, note: str) -> tuple[float | None, Literal["measured", "estimated"] | None, str]:
    """Watt-hours of the processors, how they were obtained, and that in words."""
    if tracker is None:
        return None, None, note
    try:
        tracker.stop()
        data = tracker.final_emissions_data
        watt_hours = 1000 * (data.cpu_energy + data.gpu_energy)
        # Not part of codecarbon's interface: where it cannot be read, the energy counts as estimated.
        modes = [getattr(part, "_mode", "") for part in getattr(tracker, "_hardware", [])]
    except Exception as error:
        return None, None, _failure(error)
    counter = next((_COUNTERS[mode] for mode in modes if mode in _COUNTERS), None)
    if counter is not None:
        return watt_hours, "measured", f"codecarbon read {counter}, which counts everything that ran on the machine"
    return watt_hours, "estimated", f"codecarbon estimated it from CPU time and nominal power ({data.cpu_model})"


def _failure(error: Exception) -> str:
    return f"codecarbon failed ({type(error).__name__}: {' '.join(str(error).split())[:120]})"


# Floating-point operations --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of a training: two per multiply-add, matrix products only."""

    frozen: int
    """Forward, through everything below the lowest trained parameter."""
    forward: int
    """Forward, through the rest."""
    backward: int
    """For the gradients of the trained weights, and of the activations down to the lowest of them."""

    @property
    def total(self) -> int:
        return self.frozen + self.forward + self.backward

    def __add__(self, other: TrainingFlops) -> TrainingFlops:
        """Of one training after another, as in `lp-ft`."""
        return TrainingFlops(self.frozen + other.frozen, self.forward + other.forward, self.backward + other.backward)


def training_flops(
    model: nn.Module, lengths: Sequence[int] | np.ndarray, *, batch_size: int, epochs: float
) -> TrainingFlops:
    """Floating-point operations of training those parameters of a classifier that require gradients.

    They are counted by `torch.utils.flop_counter` with eager attention (it does not see a CPU's fused attention) on single
    examples of three lengths. The operations of an example are exactly quadratic in its length (attention is quadratic,
    everything else linear or constant), and a batch's are the sum over its padded examples, so three lengths suffice.
    The frozen part is computed once, everything else in every epoch. Not counted: embedding look-ups, norms, activations,
    dropout, the optimizer's update, gradient clipping.

    Args:
        model: a classifier with `requires_grad` set as for training; restored afterwards.
        lengths: tokens of each training example.
        batch_size: examples per batch. Batches are assumed to be sorted by length, which gives the least padding; batches
            of similar length in seeded order have slightly more.
        epochs: passes over the examples; a fraction where some passes covered only a part.

    Raises:
        MeasureError: if nothing is trained, or there are no examples.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise MeasureError("No parameter of {model} requires gradients; set `requires_grad` as for training.", "model")
    if not len(lengths):
        raise MeasureError("{lengths} is empty; give the tokens of at least one example.", "lengths")
    with _eager(model):
        counts = [_count(model, length) for length in PROBED_LENGTHS]
    totals = [0, 0, 0]
    for batch in length_sorted_batches(lengths, batch_size):
        # Newton's form of the quadratic through consecutive lengths, in whole numbers.
        x = int(np.asarray(lengths)[batch[0]]) - PROBED_LENGTHS[0]
        for part, (a, b, c) in enumerate(zip(*counts, strict=True)):
            totals[part] += len(batch) * (a + x * (b - a) + x * (x - 1) // 2 * (c - 2 * b + a))
    frozen, forward, backward = totals
    return TrainingFlops(frozen, round(forward * Fraction(epochs)), round(backward * Fraction(epochs)))


def _count(model: Any, length: int) -> tuple[int, int, int]:
    """Frozen forward, other forward, and backward operations of one example of this many tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = torch.full((1, length), int(model.config.pad_token_id == 0), device=trained[0].device)
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        forward = counter.get_total_flops()
        by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
        torch.autograd.grad(logits.sum(), trained, allow_unused=True)
        backward = counter.get_total_flops() - forward
    names = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    frozen, above = 0, _above_frozen(model)
    if above is not None:
        frozen = by_module[names[model.base_model]] - sum(by_module.get(names[module], 0) for module in above)
    return frozen, forward - frozen, backward


def _above_frozen(model: Any) -> list[nn.Module] | None:
    """The blocks, and the pooler, from the lowest trained one on; None if anything below them is trained."""
    body, pooler = model.base_model, getattr(model.base_model, "pooler", None)
    norm = FAMILIES[body.config.model_type].final_norm
    parts = [*blocks(model), *([] if pooler is None else [pooler])]
    inside = {id(parameter) for part in parts for parameter in part.parameters()}
    for name, parameter in body.named_parameters():
        if parameter.requires_grad and id(parameter) not in inside and not name.startswith(f"{norm}."):
            return None
    trained = [any(parameter.requires_grad for parameter in part.parameters()) for part in parts]
    # ALBERT's shared block occurs once per layer.
    return list(dict.fromkeys(parts[trained.index(True) :] if any(trained) else []))


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Attention as plain matrix products and no dropout inside this context; both are restored afterwards."""
    body = model.base_model
    attention = body.config._attn_implementation
    training = [module for module in model.modules() if module.training]
    body.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        body.set_attn_implementation(attention)
        for module in training:
            module.training = True
