"""What the caption of the layer strip says."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Unit and number of examples of the layer strip; None without similarities."""
    return {"rows": queries.rows_compared(tables, queries.methods(tables, record))}
