"""The section `[energy]` of a study: clusters of devices that are simulated, and what a batch and a bit are taken to cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictInt

from layerprobe.section_types import Count, Rate, Section, listed

Efficiency = Annotated[float, Field(gt=0, allow_inf_nan=False)]
JOULE_PER_FLOP_CENTER = (2e-11, 2e-10)
"""Range of joule per floating-point operation at a data centre: busy GPUs in float32 to servers without one."""
JOULE_PER_FLOP_DEVICE = (5e-11, 2e-9)
"""Range of joule per floating-point operation of devices: embedded GPUs to small single-board computers."""


class EnergySection(Section):
    """Energy and bits: with `[few_shot]`, of meta-training at a data centre and of adapting on clusters of devices; without,
    of training every method at a data centre and sending the result to devices."""

    pue: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.5
    """Power usage effectiveness of the data centre: its whole energy over that of its computers, 1 or more."""
    uplink_bit_per_joule: Efficiency = 5e4
    """Bits per joule from device to data centre. An assumption, as are the other two: 50 kbit/J."""
    downlink_bit_per_joule: Efficiency = 5e4
    """Bits per joule from data centre to device."""
    sidelink_bit_per_joule: Efficiency = 5e4
    """Bits per joule from device to device."""
    bits_per_parameter: Count = 32
    """Bits per parameter in transmission."""
    joule_per_flop_center: Efficiency = 5e-11
    """Joule per floating-point operation at the data centre, where no counter of the hardware can be read. An assumption; 2e-11
    to 2e-10 is usual."""
    joule_per_flop_device: Efficiency = 2e-10
    """As `joule_per_flop_center`, of a device; 5e-11 to 2e-9 is usual."""
    recipients: Count = 10_000
    """Devices that a model is sent to after ordinary training."""
    devices: Annotated[tuple[Annotated[StrictInt, Field(ge=2)], ...], BeforeValidator(listed), Field(min_length=1)] = (
        *(2, 4, 8),
    )
    """Numbers of devices per task that are simulated."""
    topologies: Annotated[tuple[Literal["ring", "mesh"], ...], BeforeValidator(listed), Field(min_length=1)] = (
        *("ring", "mesh"),
    )
    """Who averages with whom: the two neighbours on a `ring`, or all with all in a `mesh`. The simulation of a mesh also serves
    devices that share a server."""
    local_shots: Count = 1
    """Examples per class that each device holds; no two devices of a task share one."""
    local_steps: Count = 1
    """Gradient steps of each device per round, on all its examples, at the inner rate of the depth."""
    tasks: Annotated[StrictInt, Field(ge=2)] = 8
    """Tasks of meta-test classes, each adapted to by a cluster."""
    validation_tasks: Annotated[StrictInt, Field(ge=2)] = 4
    """Tasks of meta-validation classes on which the target accuracy is fixed."""
    queries: Annotated[StrictInt, Field(ge=500)] = 500
    """Query examples per task that accuracy is measured on, equally many per class."""
    target: Rate | None = None
    """Accuracy that every cluster adapts up to, one for all depths. Default: a share of what every depth reaches on the
    validation tasks."""
    max_rounds: Annotated[StrictInt, Field(ge=2)] = 40
    """Rounds after which a cluster is stopped; its rounds then are a lower bound."""
