"""A run as one self-contained HTML page, and several runs on one. Needs neither torch nor transformers."""

from __future__ import annotations

from layerprobe.report._compare import compare_runs
from layerprobe.report._findings import Finding, findings
from layerprobe.report._page import write_report

__all__ = ["Finding", "compare_runs", "findings", "write_report"]
