"""What a run holds besides the results of its stages: the record's description of data and model, and the collected tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from layerprobe.context import Context
from layerprobe.facts import Facts
from layerprobe.record import (
    ArtifactRecord,
    Conclusion,
    MeasureRecord,
    MethodRecord,
    RunRecord,
    TaskRecord,
)
from layerprobe.runs import Run
from layerprobe.stage import ResolvedStudy, Stage, TableSpec, columns
from layerprobe.stages import REGISTRY
from layerprobe.stages.depth import CONCLUSION
from layerprobe.store import Artifact

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = TableSpec(
    "examples",
    "The test examples: one row per example.",
    columns(
        "example_id",
        text="the text; the two texts of a pair are separated by ⏐",
        label="its label",
        split="always `test`",
    ),
)

NEAR_COPIES = TableSpec(
    "near_copies",
    "Near copies of examples across the parts of the data: one row per part that they were searched for in.",
    columns(
        part="`train`, `unseen` (examples that give the rows for dictionaries) or `out-of-domain`",
        name="name of the out-of-domain set; empty for the others",
        of="the part or parts that hold the originals",
        n="examples of `part` that were compared, as first drawn",
        n_of="examples of `of`",
        copies="examples of `part` that are near copies of examples of `of`",
        originals="examples of `of` that have a near copy in `part`",
        equal_text="near copies with equal text after Unicode NFKC, case folding and collapsing white space",
        equal_tokens="further near copies with equal tokens within data.max_length",
        similar="further near copies whose sets of word shingles have a Jaccard similarity of at least .7",
        same_label="near copies with the label of one of their originals",
        removed="near copies that were removed from `part`: all, or none if data.near_duplicates is `keep`",
        replaced="removed near copies that were replaced by other examples; 0 for `unseen`",
    ),
)
ADDED_TABLES = (EXAMPLES, NEAR_COPIES)
"""Tables that come from the data and not from a stage."""


def describe(record: RunRecord, facts: Facts) -> None:
    """Record what is known of data, encoder, methods and measures before the first task."""
    from layerprobe.similarity import MEASURES

    resolved = facts.resolved
    record.data, record.encoder = facts.data, facts.encoder
    record.provenance.device, record.provenance.precision = resolved.device, resolved.precision
    record.methods = [
        MethodRecord(
            name=method.name,
            label=method.label,
            trains_embeddings=method.frozen_layer(resolved.n_layers) is None,
            depth=method.depth(resolved.n_layers),
            is_control=method.is_control,
            uses_seed=method.uses_seed,
            changes_body=method.changes_body,
        )
        for method in (resolved.shape.methods if resolved.study.few_shot is None else ())
    ]
    record.measures = [
        MeasureRecord(
            name=measure.name,
            label=measure.label,
            kind=measure.kind,
            low=_finite(measure.range[0]),
            high=_finite(measure.range[1]),
            symmetric=measure.symmetric,
            exact=measure.attains_top,
            baseline_of=measure.baseline_of,
            citation=measure.citation,
        )
        for measure in MEASURES
        if {measure.name, measure.baseline_of} & set(resolved.study.similarity.measures)
    ]


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def task_record(task: Stage, artifact: Artifact) -> TaskRecord:
    """What the record holds of a finished task."""
    return TaskRecord(
        stage=task.name,
        name=task.title,
        key=artifact.key,
        seconds=artifact.meta.seconds,
        reused=artifact.reused,
        concurrent=artifact.meta.concurrent_tasks,
    )


def opened_folders(finished: Mapping[Stage, Artifact]) -> Iterable[ArtifactRecord]:
    """Folders that people may open on their own."""
    for task, artifact in finished.items():
        if task.opened is not None and (artifact.folder / task.opened).is_dir():
            yield ArtifactRecord(stage=task.name, name=task.title, folder=str(artifact.folder / task.opened))


def collect(result: Run, context: Context, finished: Mapping[Stage, Artifact], tasks: Sequence[Stage]) -> None:
    """Collect the tables of all tasks, and the findings that follow from them."""
    import pandas as pd

    from layerprobe.report import findings

    parts: dict[str, list[pd.DataFrame]] = {
        EXAMPLES.name: [_examples_table(context)],
        NEAR_COPIES.name: [near_copies_table(context.resolved)],
    }
    for task in tasks:
        artifact = finished[task]
        for name in artifact.table_names:
            table = artifact.table(name)
            if "seconds" in table.columns:
                table = table.assign(concurrent_tasks=artifact.meta.concurrent_tasks)
            parts.setdefault(name, []).append(table)
        if CONCLUSION in artifact.meta.files:
            conclusion = json.loads((artifact.folder / CONCLUSION).read_text(encoding="utf-8"))
            result.record.sufficiency = Conclusion(**conclusion)
    tables = {
        name: _with_facts(pd.concat(frames, ignore_index=True), context.resolved) for name, frames in parts.items()
    }
    specs = {spec.name: spec for stage in REGISTRY for spec in stage.tables} | {
        spec.name: spec for spec in ADDED_TABLES
    }
    result.save_tables(tables, specs)
    result.record.findings = findings(tables, result.record)


def _with_facts(table: pd.DataFrame, resolved: ResolvedStudy) -> pd.DataFrame:
    """Add what is known of each row's method, so that no reader of the table parses its name."""
    import pandas as pd

    if "method" not in table.columns or resolved.study.few_shot is not None:
        return table
    methods = {method.name: method for method in resolved.shape.methods}
    depths = {name: method.depth(resolved.n_layers) for name, method in methods.items()}
    facts: dict[str, Any] = {
        "depth": pd.Series([depths.get(name) for name in table["method"]], dtype="Int64", index=table.index),
        "is_control": [name in methods and methods[name].is_control for name in table["method"]],
        "is_reference": [name not in methods for name in table["method"]],
    }
    return table.assign(**{name: values for name, values in facts.items() if name not in table.columns})


def _examples_table(context: Context) -> pd.DataFrame:
    import pandas as pd

    test = context.corpus.test
    labels = [context.corpus.label_names[label] for label in test.labels]
    return pd.DataFrame({"example_id": test.ids, "text": test.joined, "label": labels, "split": "test"})


def near_copies_table(resolved: ResolvedStudy) -> pd.DataFrame:
    """The near copies found in each part, as the table `near_copies`."""
    import pandas as pd

    return pd.DataFrame([asdict(count) for count in resolved.near_copies], columns=list(NEAR_COPIES.columns))
