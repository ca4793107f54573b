"""What changed: latents by kind, transfer of dictionaries, matches and the joint census."""

from layerprobe.report.section import Section
from layerprobe.report.sections.features import figures
from layerprobe.report.sections.features.context import context
from layerprobe.report.sections.features.sentences import sentences

SECTION = Section(
    id="features",
    title="What changed?",
    requires=("sae",),
    missing="No sparse autoencoder was trained (sae.layers = []), so there is nothing to report about features.",
    optional=(
        "latent_shares",
        "basis_controls",
        "crossing",
        "crossing_layers",
        "transfer_steps",
        "sae_densities",
        "matching",
        "census",
        "exclusive",
        "aligned_transfer",
        "difference_pca",
        "stability",
        "subspace_overlap",
        *("latents", "latent_examples", "examples", "tokens"),
    ),
    figures={
        "task_mass": figures.task_mass,
        "latent_kinds": figures.latent_kinds,
        "crossing": figures.crossing,
        "transfer": figures.transfer,
        "aligned": figures.aligned,
        "difference_pca": figures.difference_pca,
        "transfer_steps": figures.transfer_steps,
        "latent_densities": figures.latent_densities,
        "matching": figures.matching,
        "census": figures.census,
    },
    context=context,
    sentences=sentences,
    priority=2,
    scripts=("script.js",),
)
