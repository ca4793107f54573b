"""The cards of the answer, and the lines that a terminal prints of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from layerprobe.record import Finding, RunRecord
from layerprobe.report.labels import label_warning
from layerprobe.report.queries import Tables
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.answer.changed import changed
from layerprobe.report.sections.answer.few_shot import few_shot_cards
from layerprobe.report.sections.answer.needed import advice, needed
from layerprobe.report.sections.answer.where import where

WHERE, NEEDED = ("drift",), ("quality", "differences", "cost", "shipping")
"""Figures whose sentences belong to the first and the last card; those of all others belong to "What changed"."""


def cards(tables: Tables, record: RunRecord, findings: Sequence[Finding] | None = None) -> list[Card]:
    """Where, what changed, was it needed: each with one claim, one number and a badge. A few-shot study has cards of its own.

    Args:
        tables: of the run.
        record: of the run.
        findings: full sentences of the sections, by default those of the record.
    """
    if record.study.resolved.get("few_shot") is not None:
        return few_shot_cards(tables, record)
    sentences = record.findings if findings is None else findings
    details: list[list[Finding]] = [[], [], []]
    for finding in sentences:
        details[0 if finding.figure in WHERE else 2 if finding.figure in NEEDED else 1].append(finding)
    made = (function(tables, record) for function in (where, changed, needed))
    return [replace(card, details=tuple(own)) for card, own in zip(made, details, strict=True)]


def answer_lines(tables: Tables, record: RunRecord) -> list[str]:
    """The answer as plain lines: a warning if there is one, the cards, and what to do."""
    lines = [str(card) for card in cards(tables, record)]
    warning, todo = label_warning(tables, record), advice(tables, record)
    return [*([f"Warning: {warning}"] if warning else []), *lines, *([f"What to do: {todo}"] if todo else [])]
