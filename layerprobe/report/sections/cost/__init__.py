"""What did it cost: resources by method, and accuracy against cost."""

from layerprobe.report.section import Section
from layerprobe.report.sections.cost.context import context
from layerprobe.report.sections.cost.figures import cost, pareto

SECTION = Section(
    id="cost",
    title="What did it cost?",
    requires=("adaptation",),
    missing="No cost was measured in this run.",
    optional=("differences", "pareto"),
    figures={"cost": cost, "pareto": pareto},
    context=context,
)
