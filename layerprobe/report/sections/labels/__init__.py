"""How much of each layer's variance is between labels: base, adapted and their difference against permuted labels."""

from layerprobe.report.section import Section
from layerprobe.report.sections.labels.context import context
from layerprobe.report.sections.labels.figures import label_variance
from layerprobe.report.sections.labels.sentences import sentences

SECTION = Section(
    id="labels",
    title="How much of each layer's variance is between labels?",
    requires=("label_variance",),
    missing="Label variance was not measured in this run.",
    optional=("adaptation", "similarity"),
    figures={"label_variance": label_variance},
    context=context,
    sentences=sentences,
)
