"""A run as one self-contained HTML page, and several runs on one. Needs neither torch nor transformers."""

from layerprobe.record import Finding
from layerprobe.report.comparison import compare_runs
from layerprobe.report.page import figure_function, findings, write_report
from layerprobe.report.sections.answer import Card, advice, answer_lines, cards
from layerprobe.report.sections.made.sentences import near_copy_sentences

__all__ = [
    "Card",
    "Finding",
    "advice",
    "answer_lines",
    "cards",
    "compare_runs",
    "figure_function",
    "findings",
    "near_copy_sentences",
    "write_report",
]
