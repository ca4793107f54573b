"""How sure: what intervals cover, what was left out, and the quality of the dictionaries."""

from layerprobe.report.section import Section
from layerprobe.report.sections.sure.context import context

SECTION = Section(id="sure", title="How sure?", optional=("similarity", "similarity_left_out", "sae"), context=context)
