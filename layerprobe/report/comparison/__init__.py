"""Several runs on one page: their conclusions, and paired differences where they share test examples."""

from layerprobe.report.comparison.page import check_folder, compare_runs
from layerprobe.report.comparison.tables import ComparedRun, Comparison

__all__ = ["ComparedRun", "Comparison", "check_folder", "compare_runs"]
