"""Energy and communication of meta-training at a data centre and adaptation on clusters of devices."""

from layerprobe.report.section import Section
from layerprobe.report.sections.energy import figures
from layerprobe.report.sections.energy.context import context
from layerprobe.report.sections.energy.sentences import sentences

SECTION = Section(
    id="energy",
    title="Energy and communication",
    requires=("energy",),
    missing="No energy was computed: the study has no section [energy].",
    figures={
        "energy_parts": figures.energy_parts,
        "energy_map": figures.energy_map,
        "energy_rounds": figures.energy_rounds,
    },
    context=context,
    sentences=sentences,
    studies="few-shot",
    scripts=("model.js", "script.js"),
)
