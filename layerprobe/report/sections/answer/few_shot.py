"""The cards of a few-shot study: is the head enough, did meta-training help, what did the inner loop change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerprobe.record import Finding, RunRecord
from layerprobe.report.decisions import badge
from layerprobe.report.queries import having
from layerprobe.report.section import Tables
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.few_shot.queries import depths, gains, layers_of, most_changed
from layerprobe.report.sections.few_shot.sentences import (
    depth_sentences,
    gain_sentences,
    layer_sentences,
    points,
    verdict,
)

ENOUGH, HELPED, CHANGED = "Is the head enough?", "Did meta-training help?", "What the inner loop changed"
CLAIMS = {
    "sufficient": "Yes, `{inner}` loses less than {margin} compared with `{reference}`",
    "inferior": "No, `{inner}` loses more than {margin} compared with `{reference}`",
    "undecided": "Undecided: `{inner}` compared with `{reference}`",
    "not tested": "Undecided: a deeper inner loop than `{inner}` was not shown to be enough, so that it was not tested",
}


def few_shot_cards(tables: Tables, record: RunRecord) -> list[Card]:
    """Is the head enough, did meta-training help, what did the inner loop change."""
    return [enough(tables, record), helped(tables, record), changed(tables, record)]


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
    """Meta-trained against pretrained under the inner depth with the best meta-trained accuracy on these episodes."""
    found = gains(tables, depths(tables, record))
    if not found:
        return card(HELPED, "Not measured: the pretrained body was not evaluated")
    best = max(found, key=lambda gain: gain.accuracy)
    words = {"raised accuracy": "Yes", "lowered accuracy": "No, it lowered accuracy"}.get(verdict(best), "Undecided")
    claim = f"{words}: {best.accuracy:.1%} with the inner loop `{best.inner}`, pretrained {best.other:.1%}"
    number = f"{points(best.value)} (meta-trained minus pretrained)"
    return card(HELPED, claim, number, gain_sentences(tables, record), best.decided, best.seeds)


def changed(tables: Tables, record: RunRecord) -> Card:
    """The most changed layer under the deepest inner loop, if its interval is apart from those of all others, and the head."""
    rows, order = layers_of(tables, "inner loop", "cka"), depths(tables, record)
    part = None if rows is None or not order else rows[(rows.inner == order[-1]) & rows.value.notna()]
    if part is None or part.empty:
        return card(CHANGED, "Not measured: layers were not compared before and after the inner loop")
    head, every = part[part.part == "head"], part[part.part == "layer"]
    body = every[~every.note.str.contains("identical")]
    details, seeds = layer_sentences(tables, record), int(part.seeds.max())
    logits = f"the head's logits {head.value.iloc[0]:.3f}" if len(head) else ""
    if body.empty:
        claim = f"Only the head: layers are identical by construction under `{order[-1]}`"
        return card(CHANGED, claim, f"CKA of {logits}" if logits else "–", details, bool(len(head)), seeds)
    least: Any = body.sort_values("value").iloc[0]
    decided = most_changed(every) == least.layer
    claim = f"layer {least.layer} changed most (CKA {least.value:.3f})"
    if not decided:
        claim = f"undecided which layer changed most: CKA is lowest at layer {least.layer} ({least.value:.3f})"
    claim = f"Under `{order[-1]}`, {claim}{f'; {logits}' if logits else ''}"
    ends = head.ci_high.iloc[0] < body.ci_low.min() if len(head) else False
    if ends:
        claim += ", less similar than every layer"
    return card(CHANGED, claim, f"CKA {least.value:.3f} (layer {least.layer})", details, decided, seeds)


def card(
    title: str, claim: str, number: str = "–", details: Sequence[str] = (), decided: bool = False, seeds: int = 0
) -> Card:
    findings = tuple(Finding(text=text, figure="few_shot") for text in details)
    return Card(title, claim, number, badge(decided, seeds), "few_shot", findings)
