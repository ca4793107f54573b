"""A random change of the weights: as large as that of an adaptation, and in no direction of it."""

import pytest
import torch
from test_weights import noisy

from layerprobe.encoder import head_parameter_names
from layerprobe.errors import EncoderError
from layerprobe.internals import compare_weights, random_change

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def models(tiny_encoder):
    base = tiny_encoder.classifier(["a", "b"], seed=0)
    adapted = noisy(base, 0.05)
    table = adapted.base_model.embeddings.word_embeddings.weight
    with torch.no_grad():  # tokens that do not occur in training keep their row
        table[10:] = base.base_model.embeddings.word_embeddings.weight[10:]
    return base, adapted


def test_each_matrix_moves_as_far_as_under_the_adaptation(tiny_encoder, models):
    base, adapted = models
    kept = {name: value.clone() for name, value in base.state_dict().items()}
    changed = random_change(base, adapted, tiny_encoder, seed=3)
    assert all(
        torch.equal(value, kept[name]) for name, value in base.state_dict().items()
    )  # base itself is not touched
    expected, found = (
        compare_weights(base, other, tiny_encoder).set_index("parameter").relative_change
        for other in (adapted, changed)
    )
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-5) and (found > 0).all()
    before, after, random = (model.state_dict() for model in (base, adapted, changed))
    head = head_parameter_names(base, tiny_encoder)
    for name in dict(base.named_parameters()):
        learnt, drawn = (after[name] - before[name]).flatten(), (random[name] - before[name]).flatten()
        if name in head:
            assert torch.equal(random[name], before[name])
        else:
            assert float(drawn.norm()) == pytest.approx(float(learnt.norm()), rel=1e-4), name
        if name not in head and len(drawn) > 1000:
            assert abs(torch.cosine_similarity(learnt, drawn, dim=0)) < 0.3


def test_rows_of_an_embedding_table_keep_the_norms_of_their_change(tiny_encoder, models):
    base, adapted = models
    changed = random_change(base, adapted, tiny_encoder, seed=3)
    tables = [model.base_model.embeddings.word_embeddings.weight for model in (base, adapted, changed)]
    rows = [(table - tables[0]).norm(dim=1) for table in tables[1:]]
    assert torch.allclose(rows[1], rows[0], rtol=1e-4) and not rows[1][10:].any() and rows[1][:10].all()


def test_draws_differ_by_seed_alone_and_no_change_stays_none(tiny_encoder, models):
    base, adapted = models
    one, again, other = (random_change(base, adapted, tiny_encoder, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    still = random_change(base, base, tiny_encoder, seed=1).state_dict()
    assert all(torch.equal(value, still[name]) for name, value in base.state_dict().items())


def test_models_of_other_shapes_are_refused(tiny_encoder, models):
    base, adapted = models
    other = noisy(adapted)
    other.base_model.embeddings.word_embeddings.weight = torch.nn.Parameter(torch.zeros(5, 32))
    with pytest.raises(EncoderError, match=r"no weight .*word_embeddings.* of this shape"):
        random_change(base, other, tiny_encoder, seed=0)
