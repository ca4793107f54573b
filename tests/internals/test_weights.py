"""Weights: each column beside its definition by numpy's SVD, planted intruders, and every family's matrices named."""

import copy

import numpy as np
import pytest
import torch
from test_encoder import FAMILIES
from tiny import make_encoder

from layerprobe.encoder import head_parameter_names, load_encoder
from layerprobe.errors import EncoderError, MeasureError
from layerprobe.internals import compare_weights
from layerprobe.internals._weights import _change

pytestmark = pytest.mark.numerical

SIX = ["query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out"]


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, tmp_path_factory):
    return load_encoder(
        str(make_encoder(tmp_path_factory.mktemp("weights") / request.param, request.param, n_layers=3))
    )


def noisy(model, share=0.3, seed=0):
    """A copy with noise added to every weight."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(
                share * (value.std() if value.numel() > 1 else 1.0) * torch.randn(value.shape, generator=generator)
            )
    return model


def slow(base, adapted, k=10, threshold=0.5):
    """From the definitions, by numpy's SVD of output x input matrices."""

    def parts(matrix):
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return left[:, values > 1e-6 * values[0]], values

    (u, s), (v, t), (_, d) = (parts(matrix) for matrix in (base, adapted, adapted - base))
    top = v[:, :k]
    return {
        "relative_change": np.sqrt((d**2).sum() / (s**2).sum()),
        "stable_rank_base": (s**2).sum() / s[0] ** 2,
        "stable_rank_adapted": (t**2).sum() / t[0] ** 2,
        "stable_rank_change": (d**2).sum() / d[0] ** 2,
        "intruder_dimensions": sum(max(abs(u[:, i] @ x) for i in range(u.shape[1])) < threshold for x in top.T),
        "k": top.shape[1],
    }


def test_every_matrix_of_every_family_agrees_with_numpy(encoder):
    base = encoder.classifier(["a", "b"], seed=0)
    adapted = noisy(encoder.classifier(["a", "b"], seed=0), share=0.7)
    table = compare_weights(base, adapted, encoder, progress=False)
    before, after = dict(base.named_parameters()), dict(adapted.named_parameters())
    head = head_parameter_names(adapted, encoder)
    assert list(table["parameter"]) == [name for name, p in after.items() if p.dim() == 2 and name not in head]
    assert table.attrs["left_out"] == []
    for row in table.itertuples():
        one, other = (side[row.parameter].detach().double().numpy() for side in (before, after))
        assert (row.rows, row.columns) == one.shape
        stored = "embeddings." in row.parameter
        for column, value in slow(*((one.T, other.T) if stored else (one, other))).items():
            assert getattr(row, column) == pytest.approx(value, rel=1e-6), (row.parameter, column)
    assert 0 < table["intruder_dimensions"].sum() < table["k"].sum()  # else the comparison above says little


def test_every_matrix_has_its_layer_and_role(encoder):
    model = encoder.classifier(["a", "b"], seed=0)
    table = compare_weights(model, model, encoder, progress=False)
    roles = {layer: sorted(part["role"]) for layer, part in table[table.role != "pooler"].groupby("layer")}
    fused = ["query_key_value", "attention_output", "feed_forward_in_gate", "feed_forward_out"]
    block = sorted(fused if encoder.family == "modernbert" else SIX)
    shared = encoder.family == "albert"
    assert set(roles) == ({0, 1} if shared else {0, 1, 2, 3})
    assert all(roles[layer] == block for layer in roles if layer)
    assert (table.loc[table.layer == 1, "shared_by"] == (3 if shared else 1)).all()
    assert set(roles[0]) == {"embeddings"}
    numbers = {"bert": 3, "roberta": 3, "electra": 4, "albert": 4, "distilbert": 2, "modernbert": 1}
    assert len(roles[0]) == numbers[encoder.family]
    poolers = table[table.role == "pooler"]
    assert list(poolers.layer) == ([3] if encoder.family in ("bert", "albert") else [])


def test_an_unchanged_model_has_no_change_at_all(encoder):
    base, adapted = encoder.classifier(["a", "b"], seed=0), encoder.classifier(["a", "b"], seed=1)  # other heads
    table = compare_weights(base, adapted, encoder, progress=False)
    assert (table.relative_change == 0).all() and (table.intruder_dimensions == 0).all()
    assert table.stable_rank_change.isna().all()
    assert (table.stable_rank_base == table.stable_rank_adapted).all()
    touched = noisy(adapted)
    different = compare_weights(base, touched, encoder, progress=False)
    assert np.allclose(different.stable_rank_base, table.stable_rank_base, rtol=1e-9)  # the two ways agree


@pytest.mark.parametrize("shape", [(40, 40), (80, 40), (40, 80)])
def test_a_planted_intruder_is_found_and_a_small_rotation_is_not(shape):
    rng = np.random.default_rng(0)
    out, into = shape
    u, _ = np.linalg.qr(rng.normal(size=(out, min(shape))))
    v, _ = np.linalg.qr(rng.normal(size=(into, min(shape))))
    base = (u * 0.9 ** np.arange(min(shape))) @ v.T
    mixed = u[:, :20].sum(axis=1) / np.sqrt(20)  # cosine .22 to each of twenty of base's vectors
    intruding = base + 10 * np.outer(mixed, rng.normal(size=into) / np.sqrt(into))
    found = _change(base, intruding, 10, 0.5)
    assert found.intruder_dimensions == 1
    assert found.stable_rank_change == pytest.approx(1)
    turn = rng.normal(size=(out, out))
    rotation = np.linalg.qr(np.eye(out) + 1e-3 * (turn - turn.T))[0]
    assert _change(base, rotation @ base, 10, 0.5).intruder_dimensions == 0
    assert _change(base, 2 * base, 10, 0.99).intruder_dimensions == 0
    assert _change(base, 2 * base, 10, 0.99).relative_change == pytest.approx(1)
    # A new direction is one although base has no strength left to compare it with.
    assert _change(np.zeros(shape), base, 10, 0.5).intruder_dimensions == 10


def test_directions_of_no_strength_are_not_counted():
    base = np.diag([3.0, 2.0, 1.0, 0.0, 0.0])
    adapted = base.copy()
    adapted[4, 4] = 2.5  # along a vector that base's SVD gives, but base puts nothing there
    found = _change(base, adapted, 10, 0.5)
    assert (found.intruder_dimensions, found.k) == (1, 4)


def test_what_cannot_be_compared_is_named(tiny_encoder, tmp_path):
    base, adapted = (tiny_encoder.classifier(["a", "b"], seed=0) for _ in range(2))
    with pytest.raises(MeasureError, match="k is 0; look at 1"):
        compare_weights(base, adapted, tiny_encoder, k=0)
    with pytest.raises(MeasureError, match=r"is 1.5; it is a cosine in \(0, 1\]"):
        compare_weights(base, adapted, tiny_encoder, threshold=1.5)
    adapted.resize_token_embeddings(200)
    table = compare_weights(base, adapted, tiny_encoder, progress=False)
    word = "bert.embeddings.word_embeddings.weight"
    assert table.attrs["left_out"] == [(word, "it is 144 x 32 in base but 200 x 32 in the adapted model")]
    assert word not in set(table.parameter)
    with torch.no_grad():
        adapted.bert.encoder.layer[1].output.dense.weight[0, 0] = float("inf")
    with pytest.raises(EncoderError, match=r"layer\.1\.output\.dense\.weight holds values that are not finite"):
        compare_weights(base, adapted, tiny_encoder, progress=False)
    deeper = load_encoder(str(make_encoder(tmp_path / "deep", n_layers=3)))
    with pytest.raises(EncoderError, match=r"Base has no weight bert\.encoder\.layer\.2"):
        compare_weights(base, deeper.classifier(["a", "b"], seed=0), deeper, progress=False)
