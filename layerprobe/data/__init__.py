"""Labelled examples with stable ids: a corpus split once, and sets from outside its domain."""

from layerprobe.data._corpus import Corpus, load_corpus
from layerprobe.data._examples import Examples
from layerprobe.data._ood import OodSet, load_ood
from layerprobe.data._sources import DataSource

__all__ = ["Corpus", "DataSource", "Examples", "OodSet", "load_corpus", "load_ood"]
