"""What a run says about dictionaries, in sentences: the findings, and the words beside the figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layerprobe.report._features import CONTROL, first_seed
from layerprobe.report.queries import having

if TYPE_CHECKING:
    import pandas as pd


def feature_sentences(tables: Mapping[str, pd.DataFrame], methods: Sequence[str]) -> list[str]:
    """At most two paragraphs for the answer, about the method that moved most: the shift, and what is still shared.

    The joint census has no null but "none at all on equal rows", so it is told in its own section and not here.
    """
    method = main_method(methods)
    if method is None:
        return []
    return [text for text in (_shift(tables, method), _kept(tables, method)) if text]


def main_method(methods: Sequence[str]) -> str | None:
    """The method that the page argues with: full fine-tuning, else the deepest, and the control only if it is alone."""
    own = [name for name in methods if name != CONTROL] or list(methods)
    return "full" if "full" in own else own[-1] if own else None


def _shift(tables: Mapping[str, pd.DataFrame], method: str) -> str | None:
    """How the share of task latents goes from base to adapted where it changes most."""
    shares = having(tables, "latent_shares", "share_task", "dictionary")
    if shares is None or not (shares.method == method).any():
        return None
    rows = first_seed(shares, method)
    pairs = rows[rows.dictionary == "first"].pivot(index="layer", columns="side")
    if not {"base", "adapted"} <= set(pairs["share_task"]):
        return None
    change: Any = (pairs["share_task"]["adapted"] - pairs["share_task"]["base"]).abs()
    if not change.notna().any():
        return f"Under {method}, too few latents fire in at least 10 test texts to say which go with the task."
    layer = int(change.idxmax())
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
    second = [
        at.loc[("second-seed", side)].share_task for side in ("base", "adapted") if ("second-seed", side) in at.index
    ]
    if len(second) == 2:
        notes.append(f"a second dictionary seed gives {_percent(second[0])} and {_percent(second[1])}")
    control = shares[(shares.method == CONTROL) & (shares.layer == layer) & (shares.side == "adapted")]
    control = control[control.dictionary == "first"]
    if len(control) and method != CONTROL:
        notes.append(f"fine-tuned on shuffled labels, {_percent(control.iloc[0].share_task)}")
    text += f" ({'; '.join(notes)})." if notes else "."
    crossing = crossing_sentence(tables, method)
    return f"{text} {crossing}" if crossing else text


def crossing_sentence(tables: Mapping[str, pd.DataFrame], method: str) -> str | None:
    """Where the adapted model's share of task latents first goes beyond the base's."""
    table = having(tables, "crossing", "quantity", "verdict")
    rows = None if table is None else table[(table.method == method) & (table.quantity == "share_task")]
    if rows is None or rows.empty:
        return None
    row: Any = rows.iloc[0]
    if row.verdict == "flat":
        return "In every layer that has dictionaries the two sides' shares are the same: the line is flat."
    if row.verdict == "undefined":
        return "Where the shares cross is undefined: too few latents could be judged."
    note = f" ({row.note})" if row.note else ""
    if row.verdict == "never":
        return f"In no layer with dictionaries does the adapted share go beyond the base's interval{note}."
    layer, low, high = int(row.layer), int(row.layer_low), int(row.layer_high)
    text = f"The adapted share is first beyond the base's interval at layer {layer}"
    if row.runs > 1:
        where = f"all at layer {low}" if low == high else f"from layer {low} to {high}"
        said = f"{int(row.crossed)} of {int(row.runs)} pairs of seeds cross, {where}"
        note = f" ({said}; {row.note})" if row.note else f" ({said})"
    return f"{text}{note}."


def _kept(tables: Mapping[str, pd.DataFrame], method: str) -> str | None:
    """What the base's dictionary still explains of the adapted model's last layer, of its rows and of the task."""
    quality = having(tables, "sae", "kind", "trained_on", "evaluated_on", "explained_variance")
    if quality is None or not (quality.method == method).any():
        return None
    rows = first_seed(quality, method)
    rows = rows[(rows.layer == rows.layer.max()) & (rows.kind == "trained")].set_index(["trained_on", "evaluated_on"])
    if not {("base", "base"), ("base", "adapted")} <= set(rows.index):
        return None
    indexed: Any = rows.loc
    own, other = indexed[("base", "base")], indexed[("base", "adapted")]
    text = (
        f"At layer {int(own.layer)}, features learnt on the base explain {_variance(own)} of the base's variance and "
        f"{_variance(other)} of the adapted model's"
    )
    if ("adapted", "adapted") in rows.index:
        text += f", its own {indexed[('adapted', 'adapted')].explained_variance:.2f}"
    recovered = other.get("loss_recovered")
    if recovered is not None and recovered == recovered:
        text += (
            f"; with the base's reconstruction in that layer's place, the adapted classifier keeps {recovered:.2f} of what the "
            f"layer saves it in loss{_interval(other.get('loss_recovered_low'), other.get('loss_recovered_high'))}"
        )
    return text + "."


def exclusive_sentence(tables: Mapping[str, pd.DataFrame], method: str) -> str | None:
    """How many latents of the joint dictionary are one side's own at the last layer."""
    table = having(tables, "census", "kind", "energy_share")
    if table is None or not (table.method == method).any():
        return None
    rows = first_seed(table, method)
    rows = rows[(rows.layer == rows.layer.max()) & (rows.kind != "dead")]
    if rows.empty:
        return None
    start = f"Of {len(rows)} live latents of a joint dictionary at layer {int(rows.layer.iloc[0])}"
    own = {side: rows[rows.kind == f"{side}_only"] for side in ("base", "adapted")}
    if not any(map(len, own.values())):
        return f"{start}, none is one side's own."
    said = " and ".join(
        f"{len(part)} are {side}-only ({_percent(max(part.energy_share.sum(), 0.0))} of the rebuilt variance)"
        for side, part in own.items()
    )
    return f"{start}, {said}."


def panels(
    tables: Mapping[str, pd.DataFrame], methods: Sequence[str], unmoved: Sequence[str], figures: Sequence[str]
) -> dict[str, Any]:
    """What the section says: for each method its sentences, which figures there are, and why others are not.

    Args:
        methods: those that moved a layer.
        unmoved: those that did not.
        figures: names of the figures that could be drawn.
    """
    shares, quality = having(tables, "latent_shares", "share_task"), having(tables, "sae")
    matching, census = having(tables, "matching"), having(tables, "census", "kind")
    found = []
    for number, method in enumerate(methods):
        rows = None if quality is None else first_seed(quality, method)
        found.append(
            {
                "method": method,
                "number": number,
                "main": method == main_method(methods),
                "has": {
                    name: f"{name}-{number}" in figures
                    for name in ("kinds", "transfer", "task-loss", "steps", "densities", "matching", "census")
                },
                "crossing": crossing_sentence(tables, method),
                "exclusive": exclusive_sentence(tables, method),
                "why": [] if rows is None or "why" not in rows else _reasons(rows),
                "different": matching is not None
                and ((matching.method == method) & (matching.start == "different starts")).any(),
                "latents": 0 if census is None else int((first_seed(census, method).kind != "dead").sum()),
                "delta": _delta(census, method),
                "rows": 0 if rows is None or rows.empty else int(rows["rows"].max()),
                "texts": 0 if rows is None or "task_texts" not in rows else _largest(rows.task_texts),
            }
        )
    return {
        "panels": found,
        "any": quality is not None or "latent_shares" in tables,
        "old": shares is None and "latent_shares" in tables,
        "flat": [
            {"method": name, "text": text, "exact": _same(tables, name)}
            for name in unmoved
            if (text := crossing_sentence(tables, name))
        ],
        "control": shares is not None and (shares.method == CONTROL).any(),
        "judged": 0 if shares is None else int(shares["live"].min()),
        "n": 0 if shares is None else int(shares["n"].max()),
        "second": shares is not None and (shares.dictionary != "first").any(),
        "training_seeds": 0 if shares is None else int(shares.seed.nunique()),
    }


def _same(tables: Mapping[str, pd.DataFrame], method: str) -> bool:
    """Whether both sides' numbers of latents of each kind are equal in every layer."""
    shares = having(tables, "latent_shares", "share_task")
    if shares is None:
        return False
    kinds = ["task", "general", "both", "unexplained"]
    rows = shares[shares.method == method].groupby(["seed", "layer", "dictionary"])[kinds].nunique()
    return bool(len(rows)) and bool((rows == 1).all(axis=None))


def _delta(census: pd.DataFrame | None, method: str) -> str:
    """Median Delta of live latents by layer: where one side's decoder is weaker as a whole, all of it moves."""
    if census is None or "delta" not in census:
        return ""
    rows = first_seed(census, method)
    medians = rows[rows.kind != "dead"].groupby("layer").delta.median()
    return ", ".join(f"{value:.2f} at layer {layer}" for layer, value in medians.items())


def _reasons(rows: pd.DataFrame) -> list[str]:
    """Why what of the task is kept is undefined, by layer and side."""
    # A row's reasons are sentences about loss and accuracy; the figure shows loss alone.
    why = rows.why.fillna("").map(lambda text: re.search(r"(?:No|The interval of) loss .*?\.(?= The | No |$)", text))
    told = rows.assign(why=why.map(lambda found: found[0] if found else ""))
    told = told[told.why != ""]
    found: dict[str, list[str]] = {}
    row: Any
    for row in told.itertuples():
        place = f"layer {row.layer}, {row.evaluated_on}"
        if place not in found.setdefault(str(row.why), []):
            found[str(row.why)].append(place)
    return [f"{why} ({'; '.join(places)})" for why, places in found.items()]


def _largest(column: Any) -> int:
    return int(column.max()) if column.notna().any() else 0


def _interval(low: Any, high: Any) -> str:
    known = low is not None and high is not None and low == low and high == high
    return f" (95% interval {low:.2f} to {high:.2f})" if known else " (no interval: the layer's own share may be 0)"


def _variance(row: Any) -> str:
    return f"{row.explained_variance:.2f} (95% interval {row.ev_low:.2f} to {row.ev_high:.2f})"


def _share(row: Any) -> str:
    if row.share_task != row.share_task:
        return "an undefined share (too few active latents)"
    return f"{_percent(row.share_task)} (95% interval {_percent(row.share_low)} to {_percent(row.share_high)})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%" if 0 < value < 0.1 else f"{100 * value:.0f}%"
