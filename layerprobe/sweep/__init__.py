"""Sweeps: one base study for every combination of models, data sets or other settings, computed as one graph."""

from layerprobe.sweep._config import Combination, Sweep
from layerprobe.sweep._plan import SharedTask, SweepPlan, plan_sweep
from layerprobe.sweep._run import SweepResult, run_sweep

__all__ = ["Combination", "SharedTask", "Sweep", "SweepPlan", "SweepResult", "plan_sweep", "run_sweep"]
