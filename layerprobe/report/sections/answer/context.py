"""What the template of the answer reads: the cards, the advice, a warning, and what the caption of the layer strip says."""

from __future__ import annotations

from functools import partial
from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.labels import label_warning
from layerprobe.report.section import Tables
from layerprobe.report.sections.answer.cards import cards
from layerprobe.report.sections.answer.needed import advice

BADGES = {
    "shown": "The interval excludes the threshold and the value exceeds its null, over two training seeds or more.",
    "one seed only": "The interval excludes the threshold and the value exceeds its null, for one training run; another may differ.",
    "undecided": "Neither the claim nor its opposite is shown.",
}
"""Badges with their meaning."""


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Cards as a function of all findings; unit and number of examples of the layer strip, None without similarities."""
    return {
        "rows": queries.rows_compared(tables, queries.methods(tables, record)),
        "cards": partial(cards, tables, record),
        "advice": advice(tables, record),
        "warning": label_warning(tables, record),
        "badges": BADGES,
    }
