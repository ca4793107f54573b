"""Was it needed: accuracy of each method, paired differences, and the smallest sufficient depth."""

from layerprobe.report.section import Section
from layerprobe.report.sections.quality.context import context
from layerprobe.report.sections.quality.figures import differences, quality
from layerprobe.report.sections.quality.sentences import sentences

SECTION = Section(
    id="quality",
    title="Was it needed?",
    requires=("adaptation",),
    missing="No quality was measured in this run.",
    optional=("differences", "seed_differences", "sufficiency"),
    figures={"quality": quality, "differences": differences},
    context=context,
    sentences=sentences,
)
