"""Layers edited, skipped and given: the pass continues as the blocks above would from these values."""

import copy

import numpy as np
import pytest
import torch
from test_encoder import FAMILIES, texts
from tiny import make_encoder

from layerprobe.encoder import collate, load_encoder, tokenize
from layerprobe.errors import EncoderError
from layerprobe.layers import blocks, edited, forward, refuse_autocast, resumed, skipping

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module", params=FAMILIES)
def passed(request, tmp_path_factory):
    folder = make_encoder(tmp_path_factory.mktemp("layers") / request.param, request.param, n_layers=3)
    encoder = load_encoder(str(folder))
    inputs = collate(encoder, tokenize(encoder, texts("w1 w2 w3 good", "w4 bad"), 32), [0, 1])
    return encoder.classifier(["no", "yes"], seed=0), inputs


@torch.no_grad()
def test_a_pass_resumed_at_any_layer_ends_as_the_complete_one(passed):
    model, inputs = passed
    layers, logits = forward(model, inputs)
    for layer, value in enumerate(layers):
        with resumed(model, layer, lambda value=value: value):
            again, result = forward(model, inputs)
        assert torch.equal(result, logits)
        assert all(torch.equal(a, b) for a, b in zip(layers[layer:], again[layer:], strict=True))
    assert torch.equal(model(**inputs).logits, logits)  # no hook remains


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
    assert (steps == steps[0]).all() and steps[0] >= 3  # each block that is not computed saves the same


@torch.no_grad()
def test_replacing_a_layer_by_itself_changes_nothing_and_by_another_example_does(passed):
    model, inputs = passed
    layers, logits = forward(model, inputs)
    with edited(model, {i: lambda value: value.clone() for i in range(4)}):
        assert torch.equal(model(**inputs).logits, logits)
    for layer in range(4):
        with edited(model, {layer: lambda value: value.flip(0)}):
            other, result = forward(model, inputs)
        assert not torch.allclose(result, logits)
        assert all(torch.equal(a, b) for a, b in zip(layers[:layer], other[:layer], strict=True))


@torch.no_grad()
def test_a_skipped_block_returns_its_input(passed):
    model, inputs = passed
    layers, _ = forward(model, inputs)
    with skipping(model, [2]):
        other, _ = forward(model, inputs)
    assert torch.equal(other[1], layers[1]) and torch.equal(other[2], layers[1])
    assert not torch.equal(other[3], layers[3])
    with skipping(model, [1, 2, 3]):
        assert all(torch.equal(value, layers[0]) for value in forward(model, inputs)[0])


def test_shared_blocks_are_listed_once_per_run(passed):
    model, _ = passed
    stack = blocks(model)
    assert len(stack) == 3
    assert len({id(block) for block in stack}) == (1 if model.config.model_type == "albert" else 3)


def test_any_part_under_autocast_is_refused_and_no_hook_stays(passed):
    model, inputs = passed
    with refuse_autocast(model, "cpu"):
        forward(model, inputs)
    stack = blocks(model)
    real, stack[-1].forward = stack[-1].forward, torch.autocast("cpu", dtype=torch.bfloat16)(stack[-1].forward)
    try:
        with pytest.raises(EncoderError, match="mixed precision, not float32"), refuse_autocast(model, "cpu"):
            forward(model, inputs)
    finally:
        stack[-1].forward = real
    assert not any(module._forward_pre_hooks for module in model.modules())
    half = copy.deepcopy(model).bfloat16()
    with pytest.raises(EncoderError, match=r"torch\.bfloat16, not float32"), refuse_autocast(half, "cpu"):
        pass
