"""Where did it change: similarity of base and adapted by layer, compared with nulls and other measures."""

from layerprobe.report.section import Section
from layerprobe.report.sections.drift.context import context
from layerprobe.report.sections.drift.figures import drift, drift_by_unit, geometry, layer_grid, row_sets
from layerprobe.report.sections.drift.sentences import sentences

SECTION = Section(
    id="drift",
    title="Where did it change?",
    requires=("similarity",),
    missing="No similarity was measured in this run.",
    optional=("adaptation", "drift_controls", "similarity_nulls", "similarity_grid", "geometry"),
    figures={
        "drift": drift,
        "drift_by_unit": drift_by_unit,
        "row_sets": row_sets,
        "geometry": geometry,
        "layer_grid": layer_grid,
    },
    context=context,
    sentences=sentences,
    priority=0,
)
