"""What is said of depth in words: what the head alone gives up, what was enough, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layerprobe.record import Conclusion, Finding, RunRecord
from layerprobe.report._depth_figures import COSTS, is_depth
from layerprobe.report._findings import REFERENCES, methods
from layerprobe.report.queries import seeds_of

if TYPE_CHECKING:
    import pandas as pd

Tables = Mapping[str, "pd.DataFrame"]


def depth_findings(tables: Tables, record: RunRecord) -> list[Finding]:
    """What the head alone gives up, the smallest sufficient depth, and what to do."""
    found = [*_head(tables)]
    concluded = record.sufficiency
    if concluded:
        found.append(Finding(text=f"{concluded.sentence} {recommendation(tables, concluded)}", figure="quality"))
    return found


def _head(tables: Tables) -> list[Finding]:
    after = after_on_test(tables)
    if after is None or not {"head", "full"} <= set(after.method):
        return []
    row: Any = row_of(tables.get("differences"), "head")
    if row is not None and row.reference == "full":
        seeds = f", means of {row.seeds} seeds" if row.seeds > 1 else ""
        text = (
            f"The head alone reaches accuracy {row.accuracy:.3f}, full fine-tuning {row.reference_accuracy:.3f}, on the same "
            f"{row.n:,} test texts{seeds}: training only the head {_gives(row.difference)} (difference head - full "
            f"{100 * row.difference:+.1f}, 95% interval {100 * row.ci_low:+.1f} to {100 * row.ci_high:+.1f}, "
            f"{'which chance alone could give' if row.ci_low <= 0 <= row.ci_high else 'more than chance gives'})"
        )
    else:
        shared = sorted(set(seeds_of(after, "head")) & set(seeds_of(after, "full")))
        if not shared:
            return []
        rows = {name: after[(after.method == name) & (after.seed == shared[0])].iloc[0] for name in ("head", "full")}
        text = (
            f"The head alone reaches accuracy {accuracy(rows['head'])}, full fine-tuning {accuracy(rows['full'])}: training "
            f"only the head {_gives(rows['head'].accuracy - rows['full'].accuracy)}; the two were not compared text by text in this run"
        )
    majority = after[after.method == f"{REFERENCES}majority"]
    if len(majority):
        text += f"; always naming the commonest label gets {majority.iloc[0].accuracy:.3f}"
    return [Finding(text=text + ".", figure="quality")]


def _gives(difference: float) -> str:
    """What the head alone gives up, in points of accuracy."""
    return f"{'gives up' if difference <= 0 else 'gains'} {abs(100 * difference):.1f} points"


def recommendation(tables: Tables, concluded: Conclusion) -> str:
    """What to train, from the conclusion about depth, with what it saves and how sure that is."""
    return _advice(tables, concluded) + _better(tables, concluded.reference)


def _better(tables: Tables, reference: str) -> str:
    """Methods that did better than the reference although the sequence stopped before them: their simultaneous band tells."""
    gaps = tables.get("differences")
    passed = methods_with(tables.get("sufficiency"), outcome="sufficient")
    if gaps is None:
        return ""
    rows = gaps[(gaps.band_low > 0) & ~gaps.method.isin(passed)]
    said = [
        f"{row.method} by {row.difference:+.4f} ({row.band_low:+.4f} to {row.band_high:+.4f})"
        for row in rows.itertuples()
    ]
    if not said:
        return ""
    return (
        f" But better than {reference} in the 95% bands that hold for all methods at once: {listed(said)}. The sequence, which stops "
        "at its first failure, did not get that far; these bands speak for themselves."
    )


def _advice(tables: Tables, concluded: Conclusion) -> str:
    reference, smallest, undecided = concluded.reference, concluded.smallest, concluded.undecided
    if smallest is None:
        text = f"On this evidence keep {reference}"
        if undecided and concluded.needed:
            return f"{text}, or judge {undecided} on more test texts before giving it up: the data here cannot tell."
        if undecided:
            return f"{text}: {undecided} can be told neither to do nor to fail."
        return f"{text}: no shallower depth was shown to lose less than {concluded.margin:.3g} of accuracy."
    saved = _saved(tables, smallest, reference)
    text = f"On this evidence train {smallest}{saved}"
    beside = methods_with(tables.get("sufficiency"), outcome="sufficient", family="holm")
    if beside:
        text += f"; outside the sequence of depths {', '.join(beside)} {'do' if len(beside) > 1 else 'does'} as well"
    alpha = concluded.alpha
    return f"{text}. This procedure names a depth that loses more than the margin in at most {100 * alpha:.3g}% of studies."


def _saved(tables: Tables, method: str, reference: str) -> str:
    """Shares of the reference's costs, as far as they were measured."""
    bought = prices(tables)
    if bought is None or not {method, reference} <= set(bought.method):
        return ""
    rows: Any = bought.set_index("method")
    words = {"flops": "training FLOPs", "seconds": "seconds", "trainable_parameters": "trained parameters"}
    said = [
        f"{rows.loc[method, column] / rows.loc[reference, column]:.0%} of the {name}"
        for column, name in words.items()
        if column in rows and rows.loc[reference, column] > 0 and rows.loc[method, column] >= 0
    ]
    return f", at {listed(said)} of {reference}" if said else ""


def reference_of(tables: Tables) -> str | None:
    """What the others are held against: as concluded, else `full`, else the deepest method."""
    gaps = tables.get("differences")
    if gaps is not None and len(gaps):
        return str(gaps.reference.iloc[0])
    names = [name for name in methods(tables) if is_depth(name)]
    return names[-1] if len(names) > 1 else None


def after_on_test(tables: Tables) -> pd.DataFrame | None:
    """Rows of quality after adaptation on the test texts."""
    table = tables.get("adaptation")
    return None if table is None else table[(table["when"] == "after") & (table["split"] == "test")]


def prices(tables: Tables) -> pd.DataFrame | None:
    """One row a method that trains something: accuracy and costs on average over seeds."""
    after = after_on_test(tables)
    if after is None:
        return None
    rows = after[~after.method.str.startswith(REFERENCES) & (after.method != "shuffled-labels")]
    columns = ["accuracy", *(c for c in COSTS if c in rows.columns and rows[c].notna().any())]
    order = [name for name in methods(tables) if name in set(rows.method)]
    return rows.groupby("method")[columns].mean().reindex(order).reset_index()


def row_of(table: pd.DataFrame | None, method: str) -> Any:
    if table is None:
        return None
    rows = table[table.method == method]
    return rows.iloc[0] if len(rows) else None


def methods_with(table: pd.DataFrame | None, **wanted: str) -> list[str]:
    if table is None:
        return []
    rows = table
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return [str(name) for name in rows.method]


def accuracy(row: Any) -> str:
    return f"{row.accuracy:.3f} (95% interval {row.accuracy_low:.3f} to {row.accuracy_high:.3f})"


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
