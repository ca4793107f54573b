"""What changed: latents by kind, transfer, matches and the joint census."""

from __future__ import annotations

from typing import Any

from layerprobe.record import Finding, RunRecord
from layerprobe.report import _features, queries
from layerprobe.report._feature_words import feature_sentences, panels
from layerprobe.report.section import Section, Tables


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    changed, unchanged = queries.changed(tables, record), queries.unchanged(tables, record)
    drawn = _features.drawn(tables, changed)
    return {
        "figures": drawn,
        "features": panels(tables, changed, unchanged, list(drawn)),
        "legacy_figures": {name: {"": figure.to_plotly_json()} for name, figure in drawn.items()},
    }


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    changed = queries.changed(tables, record)
    return [Finding(text=text, figure="features") for text in feature_sentences(tables, changed)]


SECTION = Section(
    id="features",
    title="What changed?",
    context=context,
    sentences=sentences,
    priority=2,
    scripts=("script.js",),
)
