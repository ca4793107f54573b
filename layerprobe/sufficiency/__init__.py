"""Would training less have been enough? Paired comparisons of methods, and the conclusions that they allow."""

from layerprobe.sufficiency._depth import Sufficiency, smallest_sufficient_depth
from layerprobe.sufficiency._differences import differences, seed_differences
from layerprobe.sufficiency._pareto import pareto
from layerprobe.sufficiency._power import required_examples, required_seeds
from layerprobe.sufficiency._results import correctness
from layerprobe.sufficiency._selection import by_validation
from layerprobe.sufficiency._spread import FEWEST_SEEDS

__all__ = [
    "FEWEST_SEEDS",
    "Sufficiency",
    "by_validation",
    "correctness",
    "differences",
    "pareto",
    "required_examples",
    "required_seeds",
    "seed_differences",
    "smallest_sufficient_depth",
]
