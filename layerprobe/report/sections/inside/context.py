"""Steps of the slider, and what readers can choose among."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.inside.figures import QUALITIES, QUANTITIES, drifts, methods_in
from layerprobe.report.sections.inside.sentences import drift_words, intruder_sentence, probe_sentence

EVERY = {"": "every method"}
"""The choice of all methods on one figure."""
PARTS = {"probes": "linear probes", "interventions": "interventions on blocks", "weights": "change of weights"}
"""Tables of the section in words."""


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Words of each step of the slider, methods of each figure, and numbers of examples and seeds for captions."""
    names, methods = queries.methods(tables, record), drifts(tables, record)
    steps = [drift_words(name, rows, record) for name, rows in methods.items()]
    with_depth = [i for i, name in enumerate(methods) if queries.has_depth(name, record)]
    similarity, weights = queries.having(tables, "similarity"), methods_in(tables, record, "weights")
    main = queries.main_method(weights, record)
    present = [name for name in QUANTITIES if queries.having(tables, "weights", name) is not None]
    return {
        "rows": queries.rows_compared(tables, names),
        "data": {"steps": steps},
        "steps": len(steps),
        "first": with_depth[-1] if with_depth else len(steps) - 1,
        "seeds": max((len(queries.seeds_of(similarity, name)) for name in names), default=0)
        if similarity is not None
        else 0,
        "probes": _evaluated(tables, record, "probes"),
        "qualities": {
            name: words for name, words in QUALITIES.items() if queries.having(tables, "probes", name) is not None
        },
        "interventions": _evaluated(tables, record, "interventions"),
        "weights": sorted(weights, key=lambda name: name != main),
        "quantities": {name: QUANTITIES[name][0] for name in present},
        "intruders": intruder_sentence(tables),
        "ahead": probe_sentence(tables, record),
        "absent": [
            *(["drift of several methods"] if not steps and len(record.methods) > 1 else []),
            *(words for name, words in PARTS.items() if queries.having(tables, name) is None),
        ],
    }


def _evaluated(tables: Tables, record: RunRecord, name: str) -> dict[str, Any] | None:
    """Methods to choose among, number of examples and number of seeds; None without the table."""
    table = queries.having(tables, name)
    if table is None:
        return None
    methods = {method: method for method in methods_in(tables, record, name)}
    return {
        "methods": (EVERY if len(methods) > 1 else {}) | methods,
        "n": int(table["n"].max()),
        "seeds": int(table.seed.nunique()),
    }
