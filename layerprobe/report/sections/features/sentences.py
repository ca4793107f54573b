"""How the share of task latents changes, and what the base's dictionary still explains, for the main method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pandas as pd

from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.features.figures import control_shares, method_rows


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """At most two paragraphs about the main method.

    The joint census is not among them: its nulls are trained in some studies only.
    """
    method = queries.main_method(queries.changed(tables, record), record)
    if method is None:
        return []
    texts = shift_sentence(tables, record, method), transfer_sentence(tables, record, method)
    return [Finding(text=text, figure="features") for text in texts if text]


def shift_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """The share of task latents in base and adapted at the layer with the largest difference, with nulls and controls.

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
        f"Under {method}, the share of latents associated with a label has its largest estimated change at layer {layer}: {_share(base)} of "
        f"{int(base.live)} in the base's dictionary, {_share(adapted)} of {int(adapted.live)} in the adapted model's"
    )
    notes = []
    every = tables["latent_shares"].query(
        "method == @method and dictionary == 'first' and side == 'adapted' and layer == @layer"
    )
    if seeds := over_seeds(every, "share_task", _percent):
        notes.append(f"these are of training seed {rows.seed.iloc[0]}; {seeds}")
    high = max(base.share_permuted_high, adapted.share_permuted_high)
    if high == high:
        at_most = "at most " if high > 0 else ""
        notes.append(f"with permuted labels: {at_most}about {_percent(high)}")
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
            f"The mean label effect of latents in adapted minus that in base is largest at layer {largest.name} "
            f"({largest.difference:+.4f}; dictionaries at {where}). With one dictionary seed, how much it varies between "
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
    if pd.isna(row.after):
        return f"{text}at layer {layer} or below."
    if row.after_high > 0:
        return (
            f"{text}between layers {int(row.after)} and {layer}, but for at most {row.after_high:.4f} that layer "
            f"{int(row.after)} may already have."
        )
    return f"{text}between layers {int(row.after)} and {layer}."


def _difference(row: Any) -> str:
    return f"{row.difference:+.4f} ({row.low:+.4f} to {row.high:+.4f})"


def transfer_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """How much of the adapted model's last layer the base's dictionary and its controls explain, and what the task keeps."""
    rows = method_rows(tables, record, "sae", method)
    if rows is None:
        return None
    layer = int(rows.layer.max())
    rows = rows[rows.layer == layer]
    at: Any = rows[rows.kind == "trained"].set_index(["trained_on", "evaluated_on"]).loc
    other = at["base", "adapted"]
    text = (
        f"At layer {layer}, the base's dictionary explains {_variance(at['base', 'base'])} of the base's variance and "
        f"{_variance(other)} of the adapted model's, compared with {at['adapted', 'adapted'].explained_variance:.2f} by "
        "the adapted model's dictionary"
    )
    every = tables["sae"].query("method == @method and layer == @layer and kind == 'trained'")
    crossed = every[(every.trained_on == "base") & (every.evaluated_on == "adapted")]
    if seeds := over_seeds(crossed, "explained_variance", "{:.2f}".format):
        text += f" (adapted models of training seed {rows.seed.iloc[0]}; {seeds} by the base's dictionary)"
    text += control_clause(controls_on(rows, "adapted")) + gap_clause(tables, record, method, layer)
    loss, accuracy = (_recovered(other, quantity) for quantity in ("loss", "accuracy"))
    if loss or accuracy:
        parts = [
            f"{share} of its contribution to the {name}"
            for share, name in ((loss, "loss"), (accuracy, "accuracy"))
            if share
        ]
        text += (
            f" With the base's reconstruction in place of that layer, {' and '.join(parts)} of the adapted classifier "
            f"survive{'s' * (len(parts) == 1)} (0%: the layer's mean)."
        )
        text += control_recovery(controls_on(rows, "adapted"))
    head = other.get("ev_head_rows")
    if head is not None and head == head:
        text += (
            f" Its head reads only the first token of each example there ({_percent(other.head_rows / other['rows'])} of the "
            f"rows), of whose variance the base's dictionary explains {head:.2f} (95% interval {other.ev_head_low:.2f} to "
            f"{other.ev_head_high:.2f})."
        )
    return text


CONTROL_WORDS = {"untrained": "an untrained one", "frozen-decoder": "one with frozen random directions"}
"""Dictionaries whose directions were not learned, in words."""


def controls_on(rows: pd.DataFrame, side: str) -> pd.DataFrame:
    """The rows of the table `sae` for the base's controls that were read on a side."""
    return rows[rows.kind.isin(list(CONTROL_WORDS)) & (rows.trained_on == "base") & (rows.evaluated_on == side)]


def against_controls(controls: pd.DataFrame) -> Literal["more", "less", "undecided"]:
    """Whether the base's dictionary explains more than every control, less than one of them, or neither can be shown.

    By the paired 95% intervals over examples. "More" needs all of them (an intersection-union test at 2.5%); "less" one
    that lies below 0, with a false-positive rate of at most 2.5% per control.

    Args:
        controls: rows with `base_excess_low` and `base_excess_high`.
    """
    if len(controls) and (controls.base_excess_low > 0).all():
        return "more"
    return "less" if (controls.base_excess_high < 0).any() else "undecided"


def control_clause(controls: pd.DataFrame) -> str:
    """The rest of the sentence on explained variance: what controls explain of the same rows, and the verdict."""
    if controls.empty or "base_excess_low" not in controls:
        return "; no control was read on the adapted model's rows."
    by_kind = controls.set_index("kind").explained_variance
    values = " and ".join(f"{by_kind[kind]:.2f} by {words}" for kind, words in CONTROL_WORDS.items() if kind in by_kind)
    verdict = against_controls(controls)
    if verdict == "more":
        says = "more than either" if len(controls) > 1 else "more than this control"
        return f", and {values}: the base's dictionary explains {says}, for these dictionaries."
    if verdict == "less":
        return f", and {values}: directions that were never learned explain more than the base's dictionary does."
    return f", and {values}: that the base's dictionary explains more than these controls is not shown."


def control_recovery(controls: pd.DataFrame) -> str:
    """A sentence on the largest shares that a control recovers; empty where none was measured."""
    names = [name for name in ("loss", "accuracy") if f"{name}_recovered" in controls]
    best = {name: controls[f"{name}_recovered"].max() for name in names}
    parts = [f"{_percent(value)} for the {name}" for name, value in best.items() if value == value]
    return f" With a control's reconstruction, at most {' and '.join(parts)}." if parts else ""


def gap_clause(tables: Tables, record: RunRecord, method: str, layer: int) -> str:
    """A sentence on the share of the gap of two dictionaries that a shift and a rotation close; empty without a gap."""
    rows = method_rows(tables, record, "aligned_transfer", method)
    if rows is None:
        return ""
    rows = rows[(rows.layer == layer) & (rows.kind == "trained") & (rows.alignment == "rotation")]
    if rows.empty or rows.gap_share.isna().all():
        return ""
    row: Any = rows.iloc[0]
    share = f"{_percent(row.gap_share)} (95% interval {_percent(row.gap_share_low)} to {_percent(row.gap_share_high)})"
    if not row.gap_share_low > 0:
        return f" That a shift and a rotation of the rows close any of this gap is not shown ({share})."
    return f" A shift and a rotation of the rows, fitted on other examples, close {share} of the gap of these dictionaries."


def difference_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """What the joint dictionary of the last layer explains of adapted - base, compared with as many principal components."""
    rows = method_rows(tables, record, "difference_pca", method)
    rows = None if rows is None else rows[rows.coefficients]
    if rows is None or rows.empty:
        return None
    row: Any = rows.sort_values("layer").iloc[-1]
    verdict = "neither is shown to explain more"
    if row.excess_low > 0:
        verdict = "the components explain more"
    elif row.excess_high < 0:
        verdict = "the joint dictionary explains more"
    return (
        f"Of the variance of the difference adapted - base at layer {int(row.layer)}, the joint dictionary explains "
        f"{row.joint:.2f} (95% interval {row.joint_low:.2f} to {row.joint_high:.2f}) with {row.l0:.1f} active latents per "
        f"token, and {int(row.components)} principal components of the difference {row.explained_variance:.2f} (95% "
        f"interval {row.ev_low:.2f} to {row.ev_high:.2f}): {verdict}."
    )


def _recovered(row: Any, quantity: str) -> str | None:
    """A recovered share with its interval; None where it is undefined or was not measured."""
    value = row.get(f"{quantity}_recovered")
    if value is None or value != value:
        return None
    low, high = row.get(f"{quantity}_recovered_low"), row.get(f"{quantity}_recovered_high")
    bounded = low == low and high == high
    interval = f"95% interval {_percent(low)} to {_percent(high)}" if bounded else "no interval: this cost may be 0"
    return f"{_percent(value)} ({interval})"


def stability_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """What the adapted dictionary's stable and unstable latents at the last layer are worth, and their subspaces."""
    parts, rows = [], method_rows(tables, record, "stability", method)
    if rows is not None:
        layer = int(rows.layer.max())
        at: Any = rows[rows.layer == layer].set_index("ablated").loc
        stable, unstable = int(at["stable"].of), int(at["unstable"].of)
        parts.append(
            f"At layer {layer}, {stable} of {stable + unstable} live latents of the adapted model's dictionary have a partner "
            "in the second dictionary seed (cosine at least 0.7)."
        )
        lost = {name: _recovered(at[name], "loss") for name in ("none", "stable", "unstable")}
        if all(lost.values()):
            parts.append(
                f"With its reconstruction, {lost['none']} of the layer's contribution to the loss survives; {lost['stable']} without "
                f"{int(at['stable'].latents)} stable latents, and {lost['unstable']} without {int(at['unstable'].latents)} "
                f"unstable ones of about equal energy ({_percent(at['unstable'].energy_share)} of all)."
            )
    overlaps = method_rows(tables, record, "subspace_overlap", method)
    if overlaps is not None:
        row: Any = overlaps.sort_values("layer").iloc[-1]
        beyond = row.overlap > row.null_high
        parts.append(
            f"The subspaces of both seeds' latents without a partner at layer {int(row.layer)} ({int(row.dimensions)} "
            f"dimensions) overlap by {row.overlap:.2f}, {'more than' if beyond else 'no more than'} directions drawn from the "
            f"rows' covariance do (mean {row.null_mean:.2f}, at most {row.null_high:.2f} in {int(row.draws)} draws)."
        )
    return " ".join(parts) or None


def exclusive_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """How many latents of the joint dictionary at the last layer are exclusive to one side, compared with nulls."""
    rows = method_rows(tables, record, "census", method)
    if rows is None:
        return None
    layer = int(rows.layer.max())
    rows = rows[(rows.layer == layer) & (rows.kind != "dead")]
    if rows.empty:
        return None
    start = f"Of {len(rows)} live latents of a joint dictionary at layer {layer}"
    candidates = int(rows.kind.isin(["base_only", "adapted_only"]).sum())
    if not candidates:
        return f"{start}, none is shown to be exclusive to one side."
    nulls = method_rows(tables, record, "exclusive", method)
    nulls = None if nulls is None else nulls[nulls.layer == layer]
    look = f"{start}, {candidates} look exclusive to one side"
    if nulls is None or nulls.empty:
        return (
            f"{look}; no null was trained (sae.census_nulls), and latents that fit the noise of one side look the same, so "
            "that it is not known whether any is a feature of one side alone."
        )
    words = {"noise": "sides that differ by noise alone", "seeds": "two training seeds"}
    compared = " and ".join(
        f"{row.null_mean:.1f} in joint dictionaries of {words[str(row.null)]} ({row.nulls:.0f} trained; 95th percentile "
        f"{row.null_high:.0f})"
        for row in nulls.itertuples()
    )
    first: Any = nulls.iloc[0]
    if first.base_only + first.adapted_only:
        return (
            f"{look}, compared with {compared}: {int(first.base_only)} of base and {int(first.adapted_only)} of the adapted "
            "model are exclusive at a false-discovery rate of 5%."
        )
    return (
        f"{look}, compared with {compared}: none is shown to be a feature of one side alone (with so many null "
        f"dictionaries, fewer than {int(nulls.fewest.max())} cannot be)."
    )


def over_seeds(rows: pd.DataFrame, column: str, words: Callable[[float], str]) -> str:
    """Mean and range of a number over training seeds, in words; empty for one seed."""
    values = rows.groupby("seed")[column].mean()
    if len(values) < 2:
        return ""
    return (
        f"over {len(values)} training seeds the mean is {words(values.mean())}, the range {words(values.min())} to "
        f"{words(values.max())}"
    )


def _variance(row: Any) -> str:
    return f"{row.explained_variance:.2f} (95% interval {row.ev_low:.2f} to {row.ev_high:.2f})"


def _share(row: Any) -> str:
    if row.share_task != row.share_task:
        return "an undefined share (too few active latents)"
    return f"{_percent(row.share_task)} (95% interval {_percent(row.share_low)} to {_percent(row.share_high)})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%" if 0 < value < 0.1 else f"{100 * value:.0f}%"
