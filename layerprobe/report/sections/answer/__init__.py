"""The answer: the question, the layer strip, three cards and what to do."""

from layerprobe.report.section import Section
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.answer.cards import answer_lines, cards
from layerprobe.report.sections.answer.context import context
from layerprobe.report.sections.answer.figures import layer_strip
from layerprobe.report.sections.answer.needed import advice

__all__ = ["SECTION", "Card", "advice", "answer_lines", "cards"]

SECTION = Section(
    id="answer",
    title="Answer",
    optional=("similarity", "drift_controls", "task_specific", "differences", "adaptation", "checkpoint_labels"),
    figures={"layer_strip": layer_strip},
    context=context,
    studies="all",
)
