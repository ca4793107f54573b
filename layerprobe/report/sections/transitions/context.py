"""What readers can choose among, and the sentence of each method."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report.section import Tables
from layerprobe.report.sections.transitions.figures import methods_in
from layerprobe.report.sections.transitions.sentences import transition_sentence

MATCHES = {"all": "all judged latents", "close": "only close matches"}


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Methods, sets of matches, and a sentence per method."""
    names = methods_in(tables, record)
    table = tables["transitions"]
    return {
        "choices": {"method": ("Method", {name: name for name in names}), "matches": ("Matches", MATCHES)},
        "words": [text for name in names if (text := transition_sentence(tables, record, name))],
        "seeds": int(table.seed.nunique()),
    }
