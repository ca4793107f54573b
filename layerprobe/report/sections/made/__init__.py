"""How was this made: the command, the study, versions, tasks, and the tables to download."""

from layerprobe.report.section import Section
from layerprobe.report.sections.made.context import context

SECTION = Section(id="made", title="How was this made?", optional=("near_copies",), context=context, studies="all")
