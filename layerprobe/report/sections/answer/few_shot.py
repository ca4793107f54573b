"""The cards of a few-shot study: is the head enough, did meta-training help, what did the inner loop change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerprobe.record import Finding, RunRecord
from layerprobe.report.decisions import badge
from layerprobe.report.queries import having
from layerprobe.report.section import Tables
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.answer.energy import energy_card
from layerprobe.report.sections.few_shot.queries import change_of, depths, gains
from layerprobe.report.sections.few_shot.sentences import (
    depth_sentences,
    gain_sentences,
    layer_sentences,
    layers_in_words,
    points,
)

ENOUGH, HELPED, CHANGED = "Is the head enough?", "Did meta-training help?", "What the inner loop changed"
CLAIMS = {
    "sufficient": "Yes, `{inner}` loses less than {margin} compared with `{reference}`",
    "inferior": "No, `{inner}` loses more than {margin} compared with `{reference}`",
    "undecided": "Undecided: `{inner}` compared with `{reference}`",
    "not tested": "Undecided: a deeper inner loop than `{inner}` was not shown to be enough, so that it was not tested",
}


def few_shot_cards(tables: Tables, record: RunRecord) -> list[Card]:
    """Is the head enough, did meta-training help, what did the inner loop change; first what costs least, if that was asked."""
    energy = [] if having(tables, "energy") is None else [energy_card(tables, record)]
    return [*energy, enough(tables, record), helped(tables, record), changed(tables, record)]


def enough(tables: Tables, record: RunRecord) -> Card:
    """The shallowest inner depth against the deepest."""
    table = having(tables, "few_shot_differences")
    if table is None:
        return card(ENOUGH, "Not measured: the study has one inner depth")
    row: Any = table.sort_values("order").iloc[-1]
    margin = f"{100 * row.margin:.3g} point{'' if row.margin == 0.01 else 's'}"
    claim = CLAIMS[row.outcome].format(inner=row.inner, reference=row.reference, margin=margin)
    number = f"{points(row.difference)} ({row.inner} minus {row.reference})"
    title = ENOUGH if row.inner == "head" else f"Is {row.inner} enough?"
    decided = row.outcome in ("sufficient", "inferior")
    return card(title, claim, number, depth_sentences(tables, record), decided, int(row.seeds))


def helped(tables: Tables, record: RunRecord) -> Card:
    """Meta-trained against pretrained under the deepest inner loop, which is chosen before any accuracy is seen."""
    found = gains(tables, depths(tables, record)[-1:])
    if not found:
        return card(HELPED, "Not measured: the pretrained body was not evaluated")
    (gain,) = found
    words = "Undecided" if not gain.decided else "Yes" if gain.value > 0 else "No, it lowered accuracy"
    claim = f"{words}: {gain.accuracy:.1%} with the inner loop `{gain.inner}`, pretrained {gain.other:.1%}"
    number = f"{points(gain.value)} (meta-trained minus pretrained)"
    return card(HELPED, claim, number, gain_sentences(tables, record), gain.decided, gain.seeds)


def changed(tables: Tables, record: RunRecord) -> Card:
    """The least similar layer under the deepest inner loop, and the head."""
    order = depths(tables, record)
    found = change_of(tables, order[-1]) if order else None
    if found is None:
        return card(CHANGED, "Not measured: layers were not compared before and after the inner loop")
    details, head = layer_sentences(tables, record), found.head
    logits = "" if head is None else f"the head's logits {head.value:.3f}"
    if found.least is None:
        claim = f"Only the head: layers are identical by construction under `{order[-1]}`"
        return card(CHANGED, claim, f"CKA of {logits}" if logits else "–", details, bool(logits), found.seeds)
    layer, value = int(found.least.layer), float(found.least.value)
    if found.ties:
        claim = f"Under `{order[-1]}`, layer {layer} is the least similar, but is not shown to have changed more than {layers_in_words(found.ties)}"
    elif found.others:
        claim = f"Under `{order[-1]}`, layer {layer} changed most"
    else:
        claim = f"Under `{order[-1]}`, only layer {layer} and the head can change"
    if head is not None:
        claim += f"; {logits}{', less similar than every layer' if found.head_is_least else ''}"
    number = f"CKA {value:.3f} (layer {layer})"
    return card(CHANGED, claim, number, details, bool(found.least.ci_high < 1) and not found.ties, found.seeds)


def card(
    title: str, claim: str, number: str = "–", details: Sequence[str] = (), decided: bool = False, seeds: int = 0
) -> Card:
    findings = tuple(Finding(text=text, figure="few_shot") for text in details)
    return Card(title, claim, number, badge(decided, seeds), "few_shot", findings)
