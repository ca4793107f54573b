"""Labelled examples with stable ids: a corpus split once, and sets from outside its domain."""

from layerprobe.data._corpus import Corpus, NearDuplicates, load_corpus
from layerprobe.data._examples import Examples, Labelled, read_examples
from layerprobe.data._given import SavedData, save_data
from layerprobe.data._guess import ColumnGuess, guess_columns
from layerprobe.data._near_copies import Copies, CopyCount, Finder, KnownCopies, NearCopies
from layerprobe.data._ood import OodSet, load_ood
from layerprobe.data._sources import DataSource

__all__ = [
    "ColumnGuess",
    "Copies",
    "CopyCount",
    "Corpus",
    "DataSource",
    "Examples",
    "Finder",
    "KnownCopies",
    "Labelled",
    "NearCopies",
    "NearDuplicates",
    "OodSet",
    "SavedData",
    "guess_columns",
    "load_corpus",
    "load_ood",
    "read_examples",
    "save_data",
]
