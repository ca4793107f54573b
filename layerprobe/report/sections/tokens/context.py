"""Data of the section: examples with a value for each token, and latents to look up."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.tokens.examples import examples_by_token
from layerprobe.report.sections.tokens.explorer import explorer, run_name
from layerprobe.report.sections.tokens.texts import Texts


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Examples and latents, for the template and as embedded data, with the training run that is shown at first."""
    texts = Texts(tables)
    data = {"tokens": examples_by_token(tables, texts), "explorer": explorer(tables, texts)}
    method = queries.main_method(queries.methods(tables, record), record)
    present = [tables[name] for name in ("sentences", "latents") if queries.having(tables, name) is not None]
    seeds = queries.seeds_of(present[0], method) if present and method else []
    run = run_name(str(method), seeds[0]) if seeds else None
    return {**data, "data": {**data, "texts": texts.content(), "run": run}}
