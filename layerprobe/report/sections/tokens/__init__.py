"""See for yourself: examples token by token, and latents to look up."""

from layerprobe.report.section import Section
from layerprobe.report.sections.tokens.context import context

SECTION = Section(
    id="tokens",
    title="See for yourself",
    requires=("examples",),
    missing="The run has no table of test examples, so there is nothing to look up.",
    optional=("sentences", "sentence_latents", "latents", "latent_histograms", "latent_classes", "latent_examples"),
    context=context,
    scripts=("tokens.js", "explorer.js"),
)
