"""What did each depth do inside: drift by depth, probes, interventions, weights."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report._depth import depth_context
from layerprobe.report.section import Section, Tables


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    depth = depth_context(tables, record)
    groups = depth["figures"]["groups"]
    return {
        "depth": depth,
        "legacy_figures": {name: groups[name] for name in ("probes", "interventions", "weights") if name in groups},
        "rows": queries.rows_compared(tables, queries.methods(tables, record)),
        "data": {"slider": depth["figures"]["slider"]},
    }


SECTION = Section(
    id="inside",
    title="What did each depth do?",
    context=context,
    scripts=("script.js",),
)
