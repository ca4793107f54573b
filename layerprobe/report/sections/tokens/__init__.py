"""See for yourself: examples token by token, and latents to look up."""

from layerprobe.report.section import Section
from layerprobe.report.sections.tokens.context import context

SECTION = Section(
    id="tokens",
    title="See for yourself",
    requires=("examples", "tokens"),
    missing="The run has no table of the tokens of its test examples; repeat it with the current version.",
    optional=(
        "sentences",
        "predictions",
        "sentence_latents",
        "latents",
        "latent_histograms",
        "latent_classes",
        "latent_examples",
        "latent_tokens",
        "latent_peaks",
    ),
    context=context,
    scripts=("tokens.js", "explorer.js"),
)
