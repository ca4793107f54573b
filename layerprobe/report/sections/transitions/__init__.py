"""What became of the base's features: transitions between kinds of matched latents."""

from layerprobe.report.section import Section
from layerprobe.report.sections.transitions import figures
from layerprobe.report.sections.transitions.context import context
from layerprobe.report.sections.transitions.sentences import sentences

SECTION = Section(
    id="transitions",
    title="What became of each feature?",
    requires=("transitions",),
    missing="No latents of base and adapted were compared in this run.",
    figures={"transitions": figures.transitions, "transition_excess": figures.transition_excess},
    context=context,
    sentences=sentences,
    priority=2,
)
