"""Few-shot tasks: accuracy by body and reader, inner depths compared, and layers before and after the inner loop."""

from layerprobe.report.section import Section
from layerprobe.report.sections.few_shot import figures
from layerprobe.report.sections.few_shot.context import context
from layerprobe.report.sections.few_shot.sentences import sentences

SECTION = Section(
    id="few_shot",
    title="Few-shot",
    requires=("few_shot_accuracy",),
    missing="This run measured no accuracy on few-shot episodes.",
    optional=(
        *("few_shot", "few_shot_training", "few_shot_differences", "few_shot_layers", "few_shot_counts"),
        *("few_shot_convergence", "few_shot_rates", "few_shot_theory", "few_shot_dictionaries"),
    ),
    figures={
        "few_shot_accuracy": figures.few_shot_accuracy,
        "few_shot_differences": figures.few_shot_differences,
        "few_shot_layers": figures.few_shot_layers,
        "few_shot_convergence": figures.few_shot_convergence,
        "few_shot_theory": figures.few_shot_theory,
        "few_shot_validation": figures.few_shot_validation,
    },
    context=context,
    sentences=sentences,
    studies="few-shot",
)
