"""What happened inside: drift of all methods, probes, interventions on blocks, and changes of weights."""

from layerprobe.report.section import Section
from layerprobe.report.sections.inside.context import context
from layerprobe.report.sections.inside.figures import drift_by_depth, interventions, probes, weights

SECTION = Section(
    id="inside",
    title="What happened inside?",
    missing="Probes, interventions on blocks and weights were not measured in this run (internals.parts).",
    optional=("similarity", "adaptation", "probes", "interventions", "weights"),
    figures={"drift_by_depth": drift_by_depth, "probes": probes, "interventions": interventions, "weights": weights},
    context=context,
    scripts=("script.js",),
)
