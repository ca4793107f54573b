"""The answer: the question, the findings of all sections, and the layer strip."""

from layerprobe.report.section import Section
from layerprobe.report.sections.answer.context import context
from layerprobe.report.sections.answer.figures import layer_strip

SECTION = Section(
    id="answer",
    title="Answer",
    optional=("similarity",),
    figures={"layer_strip": layer_strip},
    context=context,
)
