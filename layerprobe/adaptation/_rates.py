"""Learning rates: one default a kind of method, and what a study sets in their stead."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from layerprobe.adaptation._methods import Method
from layerprobe.errors import StudyError

# The fewer weights a method trains, the larger its steps must be to get as far. Published rates (BitFit, Ben Zaken et al.
# 2022: 1e-4 to 1e-3; LoRA, Hu et al. 2021: 4e-4 to 5e-4) are for tens of epochs. Measured for two (MiniLM-L6, 1,000 tweets,
# one seed), cross-entropy on 1,000 test texts: bitfit 1.069 at 5e-5, .916 at 1e-3, .815 at 3e-3; lora:8 1.078 at 5e-5, .948
# at 5e-4, .790 at 1.5e-3. A wide encoder, or long training, may need less: a search tells.
OWN: Mapping[str, float] = {"bitfit": 3e-3, "lora": 1.5e-3}
"""Peak learning rates of the kinds that do not share the one of `top:k` and `full`."""

SEARCH_FACTORS = (1 / 3, 1.0, 3.0)
"""A search tries these multiples of the rate that a method would have without it."""


def method_rate(method: Method, learning_rate: float, overrides: Mapping[str, float]) -> float:
    """Peak learning rate of a method that trains blocks.

    Args:
        method: not `head`, which has no rate of its own, nor `checkpoint`.
        learning_rate: of `top:k`, `full`, `lp-ft` and `shuffled-labels`, where `overrides` says nothing else.
        overrides: rate by method (`lora:8@4-6`) or, for all of a kind, by what stands before the colon (`lora`).
            `shuffled-labels` follows `full`, of which it is the control.
    """
    names = [method.name, method.kind] + (["full"] if method.kind == "shuffled-labels" else [])
    for name in names:
        if name in overrides:
            return overrides[name]
    return OWN.get(method.kind, learning_rate)


def check_learning_rates(overrides: Mapping[str, float], methods: Collection[Method]) -> None:
    """Refuse rates for methods that a study does not have, and rates that are no rates.

    Raises:
        StudyError: naming the first such entry.
    """
    fitting = {
        name for method in methods if method.kind not in ("head", "checkpoint") for name in (method.name, method.kind)
    }
    for name, rate in overrides.items():
        if name not in fitting:
            raise StudyError(
                f"A learning rate is set for {name!r}, which no method of the study trains blocks by; "
                f"rates can be set for {', '.join(sorted(fitting)) or 'none of them'}."
            )
        if not 0 < rate < 1:
            raise StudyError(f"The learning rate of {name!r} is {rate}; give a number above 0 and below 1.")
