"""See for yourself: examples token by token, and latents to look up."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report._explorer import explorer, texts
from layerprobe.report.section import Section, Tables


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    tokens, latents = texts(tables), explorer(tables)
    return {"tokens": tokens, "explorer": latents, "data": {"tokens": tokens, "explorer": latents}}


SECTION = Section(id="tokens", title="See for yourself", context=context, scripts=("tokens.js", "explorer.js"))
