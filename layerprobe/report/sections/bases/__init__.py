"""Did features become task-specific: the label effect of dictionaries against that of other bases of the same rows."""

from layerprobe.report.section import Section
from layerprobe.report.sections.bases import figures
from layerprobe.report.sections.bases.context import context
from layerprobe.report.sections.bases.sentences import sentences

SECTION = Section(
    id="bases",
    title="Did features become task-specific?",
    requires=("basis_controls", "basis_excess", "task_specific"),
    missing="This run has no basis controls, so that a rise of label associations cannot be distinguished from a label shift.",
    figures={"basis_effects": figures.basis_effects, "basis_excess": figures.basis_excess},
    context=context,
    sentences=sentences,
    priority=2,
)
