"""A run as one self-contained HTML page. Needs neither torch nor transformers."""

from __future__ import annotations

from layerprobe.report._findings import Finding, findings
from layerprobe.report._page import write_report

__all__ = ["Finding", "findings", "write_report"]
