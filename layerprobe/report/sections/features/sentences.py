"""How the share of task latents changes, and what the base's dictionary still explains, for the main method."""

from __future__ import annotations

from typing import Any

from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.features.figures import control_shares, method_rows


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """At most two paragraphs about the main method.

    The joint census is not among them: it has no null other than "none at all on equal rows".
    """
    method = queries.main_method(queries.changed(tables, record), record)
    if method is None:
        return []
    texts = shift_sentence(tables, record, method), transfer_sentence(tables, record, method)
    return [Finding(text=text, figure="features") for text in texts if text]


def shift_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """The share of task latents in base and adapted at the layer where it changes most, with nulls and controls."""
    rows = method_rows(tables, record, "latent_shares", method)
    if rows is None:
        return None
    shares = rows[rows.dictionary == "first"].pivot(index="layer", columns="side", values="share_task")
    change = (shares.adapted - shares.base).abs()
    if not change.notna().any():
        return (
            f"Under {method}, too few latents are active in at least 10 test examples to test associations with labels."
        )
    layer: Any = change.idxmax()
    at: Any = rows[rows.layer == layer].set_index(["dictionary", "side"])
    base, adapted = at.loc[("first", "base")], at.loc[("first", "adapted")]
    text = (
        f"Under {method}, the share of latents associated with a label changes most at layer {layer}: {_share(base)} of "
        f"{int(base.live)} in the base's dictionary, {_share(adapted)} of {int(adapted.live)} in the adapted model's"
    )
    notes = []
    high = max(base.share_permuted_high, adapted.share_permuted_high)
    if high == high:
        notes.append(f"with labels permuted, at most {_percent(high)} in 95% of draws")
    if {("second-seed", "base"), ("second-seed", "adapted")} <= set(at.index):
        second = [_percent(at.share_task["second-seed", side]) for side in ("base", "adapted")]
        notes.append(f"a second dictionary seed gives {' and '.join(second)}")
    control = control_shares(tables, record, method)
    if control is not None and (control.layer == layer).any():
        value = control[control.layer == layer].share_task.iloc[0]
        notes.append(f"under the control {control.method.iloc[0]}, {_percent(value)} in the adapted model's")
    text += f" ({'; '.join(notes)})." if notes else "."
    crossing = crossing_sentence(tables, method)
    return f"{text} {crossing}" if crossing else text


def crossing_sentence(tables: Tables, method: str) -> str | None:
    """The first layer at which the adapted model's share of task latents exceeds the base's interval."""
    table = queries.having(tables, "crossing")
    rows = None if table is None else table[(table.method == method) & (table.quantity == "share_task")]
    if rows is None or rows.empty:
        return None
    row: Any = rows.iloc[0]
    if row.verdict == "flat":
        return "In every layer with dictionaries, base and adapted have the same share of task latents."
    if row.verdict == "undefined":
        return "The layer at which the shares cross is undefined: too few latents could be judged."
    note = f" ({row.note})" if row.note else ""
    if row.verdict == "never":
        return f"In no layer with dictionaries does the adapted share exceed the base's interval{note}."
    if row.runs > 1:
        low, high = int(row.layer_low), int(row.layer_high)
        where = f"all at layer {low}" if low == high else f"from layer {low} to {high}"
        note = f"; {row.note}" if row.note else ""
        note = f" ({int(row.crossed)} of {int(row.runs)} pairs of seeds cross, {where}{note})"
    return f"The adapted share first exceeds the base's interval at layer {int(row.layer)}{note}."


def transfer_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """How much of the adapted model's last layer the base's dictionary explains, and how much of the task it keeps."""
    rows = method_rows(tables, record, "sae", method)
    if rows is None:
        return None
    layer = int(rows.layer.max())
    rows = rows[(rows.layer == layer) & (rows.kind == "trained")].set_index(["trained_on", "evaluated_on"])
    at: Any = rows.loc
    other = at["base", "adapted"]
    text = (
        f"At layer {layer}, the base's dictionary explains {_variance(at['base', 'base'])} of the base's variance and "
        f"{_variance(other)} of the adapted model's, compared with {at['adapted', 'adapted'].explained_variance:.2f} by "
        "the adapted model's dictionary"
    )
    recovered = other.get("loss_recovered")
    if recovered is not None and recovered == recovered:
        low, high = other.loss_recovered_low, other.loss_recovered_high
        bounded = low == low and high == high
        unbounded = "no interval: the cost of ablating the layer may be 0"
        interval = f"95% interval {low:.2f} to {high:.2f}" if bounded else unbounded
        text += (
            f"; with the base's reconstruction in place of that layer, {recovered:.2f} of the adapted classifier's task "
            f"loss is recovered ({interval})"
        )
    return text + "."


def exclusive_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """How many latents of the joint dictionary at the last layer are exclusive to one side."""
    rows = method_rows(tables, record, "census", method)
    if rows is None:
        return None
    layer = int(rows.layer.max())
    rows = rows[(rows.layer == layer) & (rows.kind != "dead")]
    if rows.empty:
        return None
    start = f"Of {len(rows)} live latents of a joint dictionary at layer {layer}"
    exclusive = {side: rows[rows.kind == f"{side}_only"] for side in ("base", "adapted")}
    if not any(map(len, exclusive.values())):
        return f"{start}, none is exclusive to one side."
    parts = [
        f"{len(part)} are {side}-only ({_percent(max(part.energy_share.sum(), 0.0))} of the reconstructed variance)"
        for side, part in exclusive.items()
    ]
    return f"{start}, {' and '.join(parts)}."


def _variance(row: Any) -> str:
    return f"{row.explained_variance:.2f} (95% interval {row.ev_low:.2f} to {row.ev_high:.2f})"


def _share(row: Any) -> str:
    if row.share_task != row.share_task:
        return "an undefined share (too few active latents)"
    return f"{_percent(row.share_task)} (95% interval {_percent(row.share_low)} to {_percent(row.share_high)})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%" if 0 < value < 0.1 else f"{100 * value:.0f}%"
