"""What training costs: seconds, memory, energy, floating-point operations."""

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
from torch import Tensor, nn

from layerprobe.encoder import length_sorted_batches
from layerprobe.errors import MeasureError
from layerprobe.layers import blocks, edited

SAMPLING_SECONDS = 0.01
"""Between two looks at the process's resident memory."""
PROBED_LENGTHS = (4, 8, 16)
"""Word pieces of the texts on which operations are counted; three determine a quadratic."""


# Seconds, memory, energy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What the work inside a `Meter` took."""

    seconds: float
    """Of the clock on the wall."""
    peak_bytes: int
    """Largest resident memory of this process above what it held at the start; on the host, not on a GPU."""
    memory_kind: Literal["sampled", "high-water"]
    """`sampled`: read every hundredth of a second, and raised to the process's high-water mark where that rose.
    `high-water`: where nothing but that mark can be read (macOS), how much it rose: 0 when an earlier peak was higher."""
    energy_wh: float | None
    """Watt-hours of the processors (CPU and GPU), without memory, whose power is never measured."""
    energy_kind: Literal["measured", "estimated"] | None
    """`measured` by counters of the hardware, which count all that runs on the machine; `estimated` from this process's
    (and its children's) CPU time and the CPU's nominal power."""
    energy_note: str
    """How the energy was found, or why there is none."""


class Meter:
    """Measures what the work inside its context costs.

    ```python
    with Meter() as meter:
        train()
    meter.cost.seconds
    ```

    Energy needs `codecarbon`, which is used offline: it looks up no host and writes no file. Finding the hardware takes
    it a second or two, which are not part of what is measured.
    """

    def __init__(self, *, energy: bool = True) -> None:
        """`energy=False` spares the search for the hardware's power."""
        self._energy = energy
        self._tracker: Any = None
        self._cost: Cost | None = None

    @property
    def cost(self) -> Cost:
        """What was measured.

        Raises:
            MeasureError: before the context has ended.
        """
        if self._cost is None:
            raise MeasureError("A Meter's cost was read before its context ended; read it after the `with` block.")
        return self._cost

    def __enter__(self) -> Meter:
        self._tracker, self._note = _tracker() if self._energy else (None, "energy was not asked for")
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
            if mark > self._mark:  # the process never held more than now: this mark is exact, between samples too
                self._peak = max(self._peak, mark)
            peak = self._peak - self._base
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
    """Bytes of this process in memory now, where the system tells (Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None


def _high_water() -> int:
    """The most bytes that this process has ever held in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but for macOS


def _tracker() -> tuple[Any, str]:
    """A started codecarbon tracker, or None and the reason."""
    if importlib.util.find_spec("codecarbon") is None:
        return None, "codecarbon is not installed (the extra layerprobe[energy])"
    try:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        # Every way out is closed by argument, since a user's own codecarbon settings would otherwise open it. The
        # country decides the carbon of a watt-hour, which is not reported, and must be given.
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            save_to_file=False,
            save_to_api=False,
            save_to_logger=False,
            save_to_prometheus=False,
            save_to_logfire=False,
            emissions_endpoint=None,
            electricitymaps_api_token=None,
            log_level="critical",
            allow_multiple_runs=True,
            tracking_mode="process",
            measure_power_secs=1,
        )
        tracker.start()
    except Exception as error:  # whatever a foreign library's look at the hardware meets, training goes on
        return None, f"codecarbon failed ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    return tracker, ""


_COUNTERS = {"intel_rapl": "RAPL", "intel_power_gadget": "Intel Power Gadget", "windows_emi": "EMI"}


def _energy(tracker: Any, note: str) -> tuple[float | None, Literal["measured", "estimated"] | None, str]:
    """Watt-hours of the processors, how they were found, and that in words."""
    if tracker is None:
        return None, None, note
    try:
        tracker.stop()
        data = tracker.final_emissions_data
        watt_hours = 1000 * (data.cpu_energy + data.gpu_energy)
        # Not part of codecarbon's interface: where it can't be read, the energy counts as estimated.
        modes = [getattr(part, "_mode", "") for part in getattr(tracker, "_hardware", [])]
    except Exception as error:
        return None, None, f"codecarbon failed ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    counter = next((_COUNTERS[mode] for mode in modes if mode in _COUNTERS), None)
    if counter is not None:
        return watt_hours, "measured", f"codecarbon read {counter}, which counts all that ran on the machine"
    return watt_hours, "estimated", f"codecarbon estimated it from CPU time and nominal power ({data.cpu_model})"


# Floating-point operations --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of a training, two for each multiplication with its addition, matrix products only."""

    frozen: int
    """Forward, through what lies below all that is trained."""
    forward: int
    """Forward, through the rest."""
    backward: int
    """For the gradients of the trained weights, and of the activations down to the lowest of them."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.frozen + self.forward + self.backward

    def __add__(self, other: TrainingFlops) -> TrainingFlops:
        """Of one training after another, as in `lp-ft`."""
        return TrainingFlops(self.frozen + other.frozen, self.forward + other.forward, self.backward + other.backward)


def training_flops(
    model: nn.Module, lengths: Sequence[int] | np.ndarray, *, batch_size: int, epochs: float, cached: bool
) -> TrainingFlops:
    """Floating-point operations of training those parameters of a classifier that require gradients.

    They are counted by `torch.utils.flop_counter` with eager attention (it sees nothing of a CPU's fused attention) on
    single texts of three lengths. A text's operations are a quadratic in its length, exactly (attention is quadratic, the
    rest linear or constant), and a batch's are its rows' (padded to the longest), so three lengths give them for all.
    Not counted: embedding look-ups, norms, activations, dropout, the optimizer's update, gradient clipping.

    Args:
        model: a classifier, a PEFT one too, with `requires_grad` set as for training; left as it was.
        lengths: word pieces of each training text.
        batch_size: texts a batch. Batches are taken to be sorted by length, the least padding there can be; batches
            of like length in seeded order have a little more.
        epochs: passes over the texts; a fraction where some passes saw only a part.
        cached: whether what lies below all that is trained is computed once, or in every epoch.

    Raises:
        MeasureError: if nothing is trained, or there are no texts.
    """
    given: Any = model
    inner = given.get_base_model() if hasattr(given, "get_base_model") else given
    trained = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    if not trained:
        raise MeasureError("No parameter of the model requires gradients; set `requires_grad` as for training.")
    if not len(lengths):
        raise MeasureError("There are no texts to count the operations of training on; give at least one.")
    padded = [(int(np.asarray(lengths)[batch[0]]), len(batch)) for batch in length_sorted_batches(lengths, batch_size)]
    # Sums of length^0, length^1, length^2 over the texts as padded.
    moments = [sum(length**power * size for length, size in padded) for power in range(3)]
    with _eager(inner):
        counts = [_one_text(inner, length, trained) for length in PROBED_LENGTHS]
    frozen, forward, backward = (
        sum(c * m for c, m in zip(_quadratic(part), moments, strict=True)) for part in zip(*counts, strict=True)
    )
    return TrainingFlops(
        frozen=round(frozen * (1 if cached else Fraction(epochs))),
        forward=round(forward * Fraction(epochs)),
        backward=round(backward * Fraction(epochs)),
    )


def _one_text(model: Any, length: int, trained: list[nn.Parameter]) -> tuple[int, int, int]:
    """Frozen forward, other forward, and backward operations of one text of this many word pieces."""
    from torch.utils.flop_counter import FlopCounterMode

    stack, pooler = blocks(model), getattr(model.base_model, "pooler", None)
    own = {id(parameter) for parameter in trained}
    in_blocks = {id(p) for block in stack for p in block.parameters()}
    in_pooler = {id(p) for p in pooler.parameters()} if pooler is not None else set()
    above = {id(p) for name, p in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}
    above |= {id(p) for name, p in model.named_parameters() if ".final_norm." in name}
    below = own - in_blocks - in_pooler - above  # embeddings, and what projects them to the blocks' width
    lowest = next((i for i, block in enumerate(stack) if own & {id(p) for p in block.parameters()}), len(stack))
    frozen = 0
    counter = FlopCounterMode(display=False)

    def reached(value: Tensor) -> Tensor:
        nonlocal frozen
        frozen = counter.get_total_flops()
        return value

    def pooled(module: nn.Module, args: Any, output: Any, start: list[int]) -> None:
        nonlocal frozen
        frozen += counter.get_total_flops() - start.pop()

    starts: list[int] = []
    handles = []
    if pooler is not None and lowest == len(stack) and not below and not own & in_pooler:
        # A frozen pooler under a trained classifier is as fixed as the blocks.
        handles.append(pooler.register_forward_pre_hook(lambda *_: starts.append(counter.get_total_flops())))
        handles.append(pooler.register_forward_hook(lambda m, a, o: pooled(m, a, o, starts)))
    pad = model.config.pad_token_id
    ids = torch.full((1, length), 1 if pad == 0 else 0, device=trained[0].device)
    try:
        with counter, torch.enable_grad(), edited(model, {} if below else {lowest: reached}):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            forward = counter.get_total_flops()
            torch.autograd.grad(logits.sum(), trained, allow_unused=True)
            total = counter.get_total_flops()
    finally:
        for handle in handles:
            handle.remove()
    return frozen, forward - frozen, total - forward


def _quadratic(values: Sequence[int]) -> list[Fraction]:
    """Coefficients of length^0, length^1, length^2 of the quadratic through the counts at the probed lengths."""
    result = [Fraction(0)] * 3
    for i, (x, y) in enumerate(zip(PROBED_LENGTHS, values, strict=True)):
        a, b = (PROBED_LENGTHS[j] for j in range(3) if j != i)
        scale = Fraction(y, (x - a) * (x - b))
        for power, factor in enumerate((a * b, -(a + b), 1)):
            result[power] += scale * factor
    return result


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Attention as plain matrix products inside this context, in a model without dropout; both as before after it."""
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
