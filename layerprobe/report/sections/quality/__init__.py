"""Was it needed: quality at each depth, and the smallest sufficient one."""

from __future__ import annotations

from typing import Any

from layerprobe.record import Finding, RunRecord
from layerprobe.report._depth import depth_context
from layerprobe.report._depth_words import depth_findings
from layerprobe.report.section import Section, Tables


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    depth = depth_context(tables, record)
    groups = depth["figures"]["groups"]
    return {
        "depth": depth,
        "legacy_figures": {name: groups[name] for name in ("quality", "differences") if name in groups},
    }


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    return depth_findings(tables, record)


SECTION = Section(
    id="quality",
    title="Was it needed?",
    context=context,
    sentences=sentences,
)
