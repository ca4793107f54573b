"""What the template of the few-shot section reads: settings, tables of accuracy and counts, and notes."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report.queries import having, records_of
from layerprobe.report.section import Tables
from layerprobe.report.sections.few_shot.figures import MEASURES, READERS, THEORY, body_name
from layerprobe.report.sections.few_shot.queries import BODIES, TRAINED, chosen_rates, depths, is_by_group, test_labels
from layerprobe.report.sections.few_shot.sentences import by_part

COUNTED = ("inner_gradients", "outer_gradients", "second_order_products", "body_forward_passes", "body_backward_passes")
COMPARISONS = {
    "inner loop": "before and after the inner loop",
    "meta-training": "pretrained and meta-trained",
    "between models": "two meta-trained bodies",
}
"""Values of the column `comparison` in words."""


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Sentences, what was compared, and rows of the tables."""
    layers = having(tables, "few_shot_layers")
    accuracy = tables["few_shot_accuracy"]
    by_group = is_by_group(tables)
    return {
        "texts": by_part(tables, record),
        "few": record.study.resolved.get("few_shot") or {},
        "by_group": by_group,
        "covered": test_labels(record),
        "n": int(accuracy.n.max()),
        "seeds": int(accuracy.seeds.max()),
        "rows": accuracy_rows(tables, record),
        "counts": count_rows(tables),
        "rates": rate_rows(tables),
        "theory": THEORY,
        "dictionaries": records_of(having(tables, "few_shot_dictionaries")),
        "measures": {} if layers is None else {k: v for k, v in MEASURES.items() if k in set(layers.measure)},
        "comparisons": {} if layers is None else {k: v for k, v in COMPARISONS.items() if k in set(layers.comparison)},
        "undefined": undefined(tables),
    }


def accuracy_rows(tables: Tables, record: RunRecord) -> list[dict[str, Any]]:
    """Bodies and readers with accuracy: meta-trained bodies by depth, then the others, each with its inner loops first."""
    order, bodies = depths(tables, record), list(BODIES)
    rows = [
        row
        | {
            "body": body_name(row["method"], row["inner"]),
            "words": READERS.get(row["reader"], f"inner loop {row['inner']}"),
        }
        for row in records_of(tables["few_shot_accuracy"])
    ]

    def place(row: dict[str, Any]) -> tuple[int, int, int]:
        depth = order.index(row["inner"]) if row["inner"] in order else 0
        is_reader = int(row["reader"] != "inner")
        trained = row["method"] == TRAINED
        return bodies.index(row["method"]), *((depth, is_reader) if trained else (is_reader, depth))

    return sorted(rows, key=place)


def rate_rows(tables: Tables) -> list[dict[str, Any]]:
    """The inner rate of each body and depth with its loss, and the losses of all rates that were tried."""
    rows = []
    for rates in chosen_rates(tables):
        tried = [f"{rate:g}: {'diverged' if loss != loss else f'{loss:.3f}'}" for rate, loss in rates.losses.items()]
        rows.append(
            {
                "body": f"{rates.method}, seed {rates.seed}",
                "inner": rates.inner,
                "rate": f"{rates.rate:g}",
                "tried": tried,
            }
        )
    return rows


def count_rows(tables: Tables) -> list[dict[str, Any]]:
    """Counts as counted, with what theory says where that differs."""
    rows = records_of(having(tables, "few_shot_counts"))
    for row in rows:
        row["cells"] = [
            f"{row[name]}" if row[name] == row[f"{name}_theory"] else f"{row[name]} (theory: {row[f'{name}_theory']})"
            for name in COUNTED
        ]
    return rows


def undefined(tables: Tables) -> list[str]:
    """Which measures are undefined at which layers, and why; one sentence per measure and comparison."""
    table = having(tables, "few_shot_layers")
    if table is None:
        return []
    rows = table[table.value.isna()]
    return [
        f"{MEASURES.get(str(measure), str(measure))} is undefined in {len(part)} row{'s' * (len(part) > 1)} of the comparison "
        f"`{comparison}`: {part.note.iloc[0]}"
        for (measure, comparison), part in rows.groupby(["measure", "comparison"], sort=False)
    ]
