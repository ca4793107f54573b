"""Layers replaced, skipped and given: what a pass computes afterwards is what the blocks above would."""

import numpy as np
import pytest
import torch
from test_encoder import FAMILIES, texts
from tiny import make_encoder

from layerprobe.encoder import collate, load_encoder, tokenize
from layerprobe.layers import blocks, edited, forward, resumed, skipping

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module", params=FAMILIES)
def passed(request, tmp_path_factory):
    folder = make_encoder(tmp_path_factory.mktemp("layers") / request.param, request.param, n_layers=3)
    encoder = load_encoder(str(folder))
    inputs = collate(encoder, tokenize(encoder, texts("w1 w2 w3 good", "w4 bad"), 32), [0, 1])
    return encoder.classifier(["no", "yes"], seed=0), inputs


@torch.no_grad()
def test_a_pass_resumed_at_any_layer_ends_as_the_whole_one(passed):
    model, inputs = passed
    layers, logits = forward(model, inputs)
    for layer, value in enumerate(layers):
        with resumed(model, layer, lambda value=value: value):
            again, found = forward(model, inputs)
        assert torch.equal(found, logits)
        assert all(torch.equal(a, b) for a, b in zip(layers[layer:], again[layer:], strict=True))
    assert torch.equal(model(**inputs).logits, logits)  # nothing is left behind


@torch.no_grad()
def test_the_blocks_below_a_given_layer_are_not_computed(passed):
    model, inputs = passed
    calls = []
    handles = [
        m.register_forward_hook(lambda *a: calls.append(1)) for m in model.modules() if type(m) is torch.nn.Linear
    ]
    counts = []
    for layer in range(4):
        calls.clear()
        value = torch.zeros(*inputs["input_ids"].shape, model.config.hidden_size)
        with resumed(model, layer, lambda value=value: value):
            model(**inputs)
        counts.append(len(calls))
    for handle in handles:
        handle.remove()
    steps = -np.diff(counts)
    assert (steps == steps[0]).all() and steps[0] >= 3  # each block that is given costs as much less


@torch.no_grad()
def test_replacing_a_layer_by_itself_changes_nothing_and_by_another_text_does(passed):
    model, inputs = passed
    layers, logits = forward(model, inputs)
    with edited(model, {i: lambda value: value.clone() for i in range(4)}):
        assert torch.equal(model(**inputs).logits, logits)
    for layer in range(4):
        with edited(model, {layer: lambda value: value.flip(0)}):
            other, found = forward(model, inputs)
        assert not torch.allclose(found, logits)
        assert all(torch.equal(a, b) for a, b in zip(layers[:layer], other[:layer], strict=True))


@torch.no_grad()
def test_a_skipped_block_passes_on_what_it_is_given(passed):
    model, inputs = passed
    layers, _ = forward(model, inputs)
    with skipping(model, [2]):
        other, _ = forward(model, inputs)
    assert torch.equal(other[1], layers[1]) and torch.equal(other[2], layers[1])
    assert not torch.equal(other[3], layers[3])
    with skipping(model, [1, 2, 3]):
        assert all(torch.equal(value, layers[0]) for value in forward(model, inputs)[0])


def test_shared_blocks_stand_in_the_list_as_often_as_they_are_run(passed):
    model, _ = passed
    stack = blocks(model)
    assert len(stack) == 3
    assert len({id(block) for block in stack}) == (1 if model.config.model_type == "albert" else 3)
