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
    """The share of task latents in base and adapted at the layer where it changes most, with nulls and controls.

    It is a description: what it allows to be said of features is decided in the section `bases`.
    """
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
    others = _random_shares(tables, method, layer)
    if others is not None:
        notes.append(f"in random directions of the same densities, {_percent(others[0])} and {_percent(others[1])}")
    text += f" ({'; '.join(notes)})." if notes else "."
    if others is None:
        text += " No other basis was measured, so a label shift of the whole layer may explain it."
    crossing = crossing_sentence(tables, method)
    return f"{text} {crossing}" if crossing else text


def _random_shares(tables: Tables, method: str, layer: int) -> list[float] | None:
    """Share of latents associated with a label among random directions, base and adapted; None if it was not measured."""
    table = queries.having(tables, "basis_controls")
    if table is None:
        return None
    rows = table[
        (table.method == method) & (table.layer == layer) & (table.basis == "random directions") & ~table.projected
    ]
    means = rows.groupby("side").share_task.mean().reindex(["base", "adapted"])
    return None if means.isna().any() else means.tolist()


def crossing_sentence(tables: Tables, method: str) -> str | None:
    """Between which layers the latents of the adapted model begin to be more associated with labels than the base's."""
    table, differences = queries.having(tables, "crossing"), queries.having(tables, "crossing_layers")
    if table is None or differences is None:
        return None
    rows, by_layer = (
        part[(part.method == method) & (part.quantity == "label_effect")] for part in (table, differences)
    )
    if rows.empty:
        return None
    row: Any = rows.iloc[0]
    at: Any = by_layer.set_index("layer")
    if row.verdict == "flat":
        return "In every layer with dictionaries, base and adapted have the same latents."
    if row.verdict == "undefined":
        return "The label effect of latents is undefined: too few latents are active in at least 10 test examples."
    where = f"layer {row.layers}" if "," not in row.layers else f"layers {row.layers}"
    if row.verdict == "conditional":
        largest: Any = at.loc[at.difference.idxmax()]
        return (
            f"The mean label effect of latents in adapted less that in base is largest at layer {largest.name} "
            f"({largest.difference:+.3f}; dictionaries at {where}). With one dictionary seed, how much it varies between "
            "dictionaries is unknown, so no layer is named at which it begins."
        )
    seeds = f"{int(row.dictionaries)} dictionary seeds, {int(row.runs)} training run{'s' if row.runs > 1 else ''}"
    basis = f"95% intervals that hold for all layers at once; dictionaries at {where}; {seeds}"
    if row.verdict == "none":
        largest = at.loc[at.difference.idxmax()]
        return (
            f"At no layer with dictionaries is the mean label effect of latents shown to be larger in adapted than in base: "
            f"the largest difference is {_difference(largest)} at layer {largest.name} ({basis})."
        )
    layer = int(row.layer)
    text = (
        f"The mean label effect of latents is first shown to be larger in adapted than in base at layer {layer}, by "
        f"{_difference(at.loc[layer])} ({basis}), so the increase began "
    )
    if row.after != row.after or row.after is None:
        return f"{text}at layer {layer} or below."
    if row.after_high > 0:
        return (
            f"{text}between layers {int(row.after)} and {layer}, but for at most {row.after_high:.3f} that layer "
            f"{int(row.after)} may already have."
        )
    return f"{text}between layers {int(row.after)} and {layer}."


def _difference(row: Any) -> str:
    return f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"


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
