"""What did it cost: resources by method, and quality against cost."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report._depth import depth_context
from layerprobe.report.section import Section, Tables


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    depth = depth_context(tables, record)
    groups = depth["figures"]["groups"]
    return {
        "depth": depth,
        "legacy_figures": {name: groups[name] for name in ("cost", "pareto") if name in groups},
    }


SECTION = Section(
    id="cost",
    title="What did it cost?",
    context=context,
)
