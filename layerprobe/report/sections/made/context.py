"""The study as text, and tables to download."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from layerprobe.record import RunRecord
from layerprobe.report.near_copies import near_copy_sentences
from layerprobe.report.section import Tables

LARGEST_DOWNLOADS = 600_000
"""Characters of all tables as CSV up to which the page embeds them, the smallest first; the path of others is shown."""
PLAIN = ",.:;/()[]+-_=|@!*'~?"
"""Characters besides letters and digits that an address may hold as they are."""


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """The study with every default, and links to all tables."""
    return {
        "settings": json.dumps(record.study.resolved, indent=1, ensure_ascii=False),
        "downloads": downloads(tables),
        "near_copies": near_copy_sentences(tables["near_copies"]) if "near_copies" in tables else [],
    }


def downloads(tables: Tables) -> list[dict[str, Any]]:
    """Name, number of rows and, as far as the page has room for it, a link with the content as CSV."""
    # A cell has a character and a separator at least: tables that cannot fit are not converted.
    small = {name: table for name, table in tables.items() if 2 * table.size <= LARGEST_DOWNLOADS}
    content = {name: table.to_csv(index=False) for name, table in small.items()}
    room, links = LARGEST_DOWNLOADS, {}
    for name in sorted(content, key=lambda name: (len(content[name]), name)):
        if len(content[name]) > room:
            break
        escaped = quote(content[name], safe=PLAIN)
        if (room := room - len(escaped)) < 0:
            break
        links[name] = f"data:text/csv;charset=utf-8,{escaped}"
    return [{"name": name, "rows": len(tables[name]), "link": links.get(name)} for name in sorted(tables)]
