"""The stages: the only bridge from a study and its artifacts to the libraries that compute.

One module per stage. The registry lists them all, in the order in which their tables are collected.
"""

from __future__ import annotations

from layerprobe.stage import Stage
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.aligned import Aligned
from layerprobe.stages.associations import Associations
from layerprobe.stages.basis_controls import BasisControls, BasisExcess
from layerprobe.stages.capture import Capture, CaptureSae, CaptureTrain
from layerprobe.stages.crosscoder import Crosscoder
from layerprobe.stages.crossing import Crossing
from layerprobe.stages.depth import Depth
from layerprobe.stages.drift_controls import DriftControls
from layerprobe.stages.encode import Encode
from layerprobe.stages.energy import Energy
from layerprobe.stages.energy_rounds import EnergyRounds, EnergyTrial
from layerprobe.stages.exclusive import CensusNull, Exclusive
from layerprobe.stages.exhibit import Exhibit
from layerprobe.stages.frozen_blocks import FrozenBlocks
from layerprobe.stages.geometry import Geometry
from layerprobe.stages.interventions import Interventions
from layerprobe.stages.label_variance import LabelVariance
from layerprobe.stages.latents import Latents
from layerprobe.stages.match import Match
from layerprobe.stages.meta_convergence import ConvergencePrefix, ConvergenceRates, MetaConvergence
from layerprobe.stages.meta_counts import MetaCounts
from layerprobe.stages.meta_dictionaries import MetaDictionaries
from layerprobe.stages.meta_evaluate import MetaCompare, MetaEvaluate
from layerprobe.stages.meta_model import MetaModel
from layerprobe.stages.meta_prefix import MetaPrefix
from layerprobe.stages.meta_rates import MetaRates
from layerprobe.stages.meta_similarity import MetaBetween, MetaSimilarity
from layerprobe.stages.meta_theory import MetaTheory
from layerprobe.stages.meta_train import MetaTrain
from layerprobe.stages.nulls import Nulls
from layerprobe.stages.outside import Outside
from layerprobe.stages.probes import Probes
from layerprobe.stages.random_change import RandomChange
from layerprobe.stages.reference import Reference
from layerprobe.stages.sae import Sae
from layerprobe.stages.seeds import Seeds
from layerprobe.stages.sentence_latents import SentenceLatents
from layerprobe.stages.sentences import Sentences
from layerprobe.stages.similarity import Similarity
from layerprobe.stages.stability import Stability
from layerprobe.stages.steps import Steps
from layerprobe.stages.tokens import Tokens
from layerprobe.stages.transfer import Transfer
from layerprobe.stages.transitions import Transitions
from layerprobe.stages.weights import Weights

REGISTRY: tuple[type[Stage], ...] = (
    FrozenBlocks,
    Adapt,
    Outside,
    Capture,
    CaptureTrain,
    Reference,
    Similarity,
    Nulls,
    Seeds,
    Geometry,
    Tokens,
    Sentences,
    LabelVariance,
    Probes,
    Weights,
    Interventions,
    CaptureSae,
    Sae,
    Encode,
    Crosscoder,
    Associations,
    Transfer,
    Aligned,
    Stability,
    Match,
    Latents,
    Transitions,
    CensusNull,
    Exclusive,
    SentenceLatents,
    Exhibit,
    Crossing,
    BasisControls,
    BasisExcess,
    Steps,
    Depth,
    RandomChange,
    DriftControls,
    MetaPrefix,
    MetaRates,
    MetaTrain,
    MetaEvaluate,
    MetaCompare,
    MetaSimilarity,
    MetaBetween,
    MetaCounts,
    MetaTheory,
    MetaModel,
    MetaDictionaries,
    ConvergencePrefix,
    ConvergenceRates,
    MetaConvergence,
    EnergyTrial,
    EnergyRounds,
    Energy,
)
