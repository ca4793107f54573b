"""Would training less have been enough? Paired comparisons of methods, and what can be concluded from them."""

from layerprobe.sufficiency._depth import Sufficiency, depths_of, smallest_sufficient_depth
from layerprobe.sufficiency._differences import differences, seed_differences
from layerprobe.sufficiency._pareto import pareto
from layerprobe.sufficiency._power import needed_from, required_examples
from layerprobe.sufficiency._results import correctness

__all__ = [
    "Sufficiency",
    "correctness",
    "depths_of",
    "differences",
    "needed_from",
    "pareto",
    "required_examples",
    "seed_differences",
    "smallest_sufficient_depth",
]
