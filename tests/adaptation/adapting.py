"""What the tests of adaptation share: adapting a tiny encoder, and the parameters that it changed."""

from dataclasses import replace

import torch

from layerprobe.adaptation import AdaptConfig, adapt, parse_method
from layerprobe.encoder import load_classifier

QUIET = AdaptConfig()


def adapted(encoder, corpus, folder, method, *, n=None, seed=0, frozen=None, **config):
    """Adapt by a method, one epoch by default, on the first n training examples."""
    config = replace(QUIET, **{"epochs": 1, "learning_rate": 1e-3, **config})
    corpus = replace(corpus, train=corpus.train.take(range(n or len(corpus.train))))
    return adapt(encoder, corpus, folder, method=parse_method(method), seed=seed, config=config, frozen=frozen)


def changed(encoder, corpus, result, seed=0):
    """Names of the parameters whose saved values differ from the pretrained ones under the same fresh head."""
    before = dict(encoder.classifier(corpus.label_names, seed=seed).named_parameters())
    after = dict(load_classifier(result.checkpoint, encoder).named_parameters())
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}
