"""An encoder as a learner: the vectors of its pooled classifier, whole or from a cached prefix, in every family."""

import itertools

import numpy as np
import pytest
import torch
from tiny import make_encoder, write_csv

from layerprobe.data import load_corpus
from layerprobe.encoder import collate, load_encoder, tokenize
from layerprobe.errors import ArgumentError
from layerprobe.metalearning import InnerConfig, State, Task, TextInputs, encoder_learner, meta_gradient
from layerprobe.metalearning._encoder import Batch
from layerprobe.metalearning._text_inputs import GROUP_COST, groups_of_similar_length

FAMILIES = ("bert", "roberta", "electra", "distilbert", "modernbert")


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, tmp_path_factory):
    return load_encoder(str(make_encoder(tmp_path_factory.mktemp("few") / request.param, request.param, n_layers=3)))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return load_corpus(str(write_csv(tmp_path_factory.mktemp("few") / "texts.csv", n=60)), train=30, test=20).train


def test_vectors_are_those_of_the_pooled_classifier(encoder, examples):
    from layerprobe.layers import forward

    learner, inputs = encoder_learner(encoder, ways=2), TextInputs(encoder, examples, max_length=32)
    model = encoder.classifier(("0", "1"), seed=0, pooling="mean")
    with torch.no_grad():
        model.classifier.weight.copy_(learner.parameters()["head.weight"])
        encodings = tokenize(encoder, examples, 32)
        _, logits = forward(model, collate(encoder, encodings, range(8)))
        found = learner.logits(learner.parameters(), inputs.state(range(8)))
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)


def test_groups_of_similar_length_change_nothing_but_the_padding(encoder, examples):
    """Every division gives the gradients of one batch, in the order of the examples."""
    learner, inputs = encoder_learner(encoder, ways=2), TextInputs(encoder, examples, max_length=32)
    rows, labels = [3, 1, 4, 10, 5, 9], torch.tensor([0, 1, 0, 1, 0, 1])
    whole = inputs.state(rows, divided=False)
    (group,) = whole.value.groups
    halves = []
    for part in ([4, 0, 2], [5, 3, 1]):
        longest = int(group["attention_mask"][part].sum(1).max())
        halves.append({key: value[part][:, :longest] for key, value in group.items()})
    divided = State(0, Batch(tuple(halves), torch.tensor([1, 5, 2, 4, 0, 3])))
    names, config = learner.names_at(None), InnerConfig("full", 2, 0.1)
    found = []
    for state in (whole, divided, inputs.state(rows)):
        parameters = {n: v.clone().requires_grad_(n in names) for n, v in learner.parameters().items()}
        found.append(meta_gradient(learner, parameters, Task(state, labels, state, labels), config, outer=names))
    for other in found[1:]:
        assert other.loss == pytest.approx(found[0].loss, abs=1e-5)
        for name, value in found[0].gradients.items():
            torch.testing.assert_close(other.gradients[name], value, atol=1e-5, rtol=1e-3)


def test_groups_are_divided_where_that_saves_more_than_calls_cost():
    rng = np.random.default_rng(0)
    assert [list(group) for group in groups_of_similar_length([7, 7, 7])] == [[0, 1, 2]]
    lengths = [30, 5, 31, 5, 5, 30, 6, 5] * 2
    short, long = groups_of_similar_length(lengths)
    assert sorted(short) == [i for i, n in enumerate(lengths) if n < 10] and len(long) == 6
    lengths = rng.integers(4, 40, 12)

    def cost(groups):
        return sum(GROUP_COST + len(group) * max(lengths[i] for i in group) for group in groups)

    order = np.argsort(lengths, kind="stable")
    every = (
        [order[start:end] for start, end in itertools.pairwise((0, *cuts, 12))]
        for n in range(5)
        for cuts in itertools.combinations(range(1, 12), n)
    )
    assert cost(groups_of_similar_length(lengths)) == min(map(cost, every))


@pytest.mark.parametrize("depth", [0, 1])
def test_a_cached_prefix_changes_nothing(encoder, examples, depth, tmp_path):
    learner, inputs = encoder_learner(encoder, ways=2), TextInputs(encoder, examples, max_length=32)
    config = InnerConfig("head" if depth == 0 else "top:1", 2, 0.5)
    labels = torch.tensor([0, 1, 0, 1])
    outer = [*learner.names_at(depth), "head.weight", "head.bias"]

    def gradient():
        parameters = {n: v.clone().requires_grad_(n in outer) for n, v in learner.parameters().items()}
        task = Task(inputs.state([3, 1, 4, 10]), labels, inputs.state([5, 9, 2, 6]), labels)
        return meta_gradient(learner, parameters, task, config, outer=outer)

    whole = gradient()
    inputs.cache(learner, depth=depth, rows=np.arange(12))
    from_memory = gradient()
    inputs.save_cache(tmp_path)
    inputs = TextInputs(encoder, examples, max_length=32)
    inputs.open_cache(tmp_path, learner, depth=depth)
    for cached in (from_memory, gradient()):
        assert whole.loss == pytest.approx(cached.loss, abs=1e-6)
        for name in outer:
            torch.testing.assert_close(whole.gradients[name], cached.gradients[name], atol=1e-6, rtol=1e-3)


def test_layers_are_the_pooled_activations_of_the_package(encoder, examples, tmp_path):
    from layerprobe.activations import ActivationStore, capture

    learner, inputs = encoder_learner(encoder, ways=2), TextInputs(encoder, examples, max_length=128)
    capture(encoder.classifier(("0", "1"), seed=0), encoder, examples, tmp_path / "rows")
    store = ActivationStore.open(tmp_path / "rows")
    rows = np.arange(len(examples))[::-1]
    found = inputs.layers(learner, learner.parameters(), rows)
    assert sorted(found) == [0, 1, 2, 3]
    for layer, values in found.items():
        np.testing.assert_allclose(values[::-1], store.mean(layer), atol=1e-5)
    last = inputs.vectors(learner, learner.parameters(), rows)
    if encoder.family != "modernbert":  # whose final norm belongs to the head
        np.testing.assert_allclose(last, found[3], atol=1e-6)
    inputs.cache(learner, depth=1, rows=rows)
    upper = inputs.layers(learner, learner.parameters(), rows)
    assert sorted(upper) == [2, 3]
    np.testing.assert_allclose(upper[3], found[3], atol=1e-5)


def test_every_parameter_of_the_body_has_its_part(encoder):
    learner = encoder_learner(encoder, ways=2)
    model = encoder.classifier(("0", "1"), seed=0, pooling="mean")
    in_body = sum(p.numel() for p in model.base_model.parameters())
    # Position or segment tables, and final norms, may be shared between parts by name only; each weight is counted once.
    distinct = {value.data_ptr(): value.numel() for name, value in learner.parameters().items() if "head" not in name}
    assert sum(distinct.values()) == in_body


def test_random_weights_differ_and_are_seeded(encoder):
    plain, one, same, other = (
        encoder_learner(encoder, ways=2, seed=seed, random=random).parameters()
        for seed, random in ((0, False), (0, True), (0, True), (1, True))
    )
    name = next(name for name in plain if name.startswith("block 1.") and plain[name].dim() == 2)
    assert not torch.equal(plain[name], one[name]) and torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert one[name].std() < 0.05


def test_shared_blocks_are_refused(tmp_path):
    albert = load_encoder(str(make_encoder(tmp_path / "albert", "albert")))
    with pytest.raises(ArgumentError, match="of the family albert, whose blocks share their weights"):
        encoder_learner(albert, ways=2)
