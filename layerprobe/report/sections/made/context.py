"""The study as text, and tables to download."""

from __future__ import annotations

import base64
import json
from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report.near_copies import near_copy_sentences
from layerprobe.report.section import Tables

LARGEST_DOWNLOAD = 400_000
"""Bytes of a table as CSV up to which the page embeds it; the path of a larger one is shown instead."""


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """The study with every default, and links to all tables."""
    return {
        "settings": json.dumps(record.study.resolved, indent=1, ensure_ascii=False),
        "downloads": downloads(tables),
        "near_copies": near_copy_sentences(tables["near_copies"]) if "near_copies" in tables else [],
    }


def downloads(tables: Tables) -> list[dict[str, Any]]:
    """Name, number of rows and, for a small table, a link with its content as CSV."""
    links = []
    for name in sorted(tables):
        content = tables[name].to_csv(index=False).encode()
        small = len(content) <= LARGEST_DOWNLOAD
        link = "data:text/csv;base64," + base64.b64encode(content).decode() if small else None
        links.append({"name": name, "rows": len(tables[name]), "link": link})
    return links
