"""Several runs on one page: their conclusions, and paired differences where they share test examples."""

from layerprobe.report.comparison.page import compare_runs
from layerprobe.report.comparison.tables import ComparedRun, Comparison

__all__ = ["ComparedRun", "Comparison", "compare_runs"]
