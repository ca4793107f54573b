"""Interventions: each row beside a model that was really altered, in every family, and nothing left altered."""

import copy

import numpy as np
import pytest
import torch
from test_encoder import FAMILIES
from tiny import WORDS, make_encoder

from layerprobe.data import Examples
from layerprobe.encoder import collate, head_parameter_names, load_encoder, tokenize
from layerprobe.errors import DataError, EncoderError
from layerprobe.internals import _interventions as module
from layerprobe.internals import interventions
from layerprobe.layers import blocks, edited, forward, skipping

pytestmark = pytest.mark.numerical

VALUES = ["accuracy", "loss"]


def some_texts(n=12):
    rng = np.random.default_rng(0)
    words = tuple(" ".join(rng.choice(WORDS, size=rng.integers(1, 14))) for _ in range(n))
    return Examples(tuple(map(str, range(n))), words, None, rng.integers(0, 3, size=n))


def disturbed(model, chosen, seed=1):
    """A copy with noise in the weights whose names are chosen."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if chosen(name):
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return model


def run(base, adapted, encoder, examples, **options):
    table = interventions(base, adapted, encoder, examples, max_length=32, batch_size=5, progress=False, **options)
    return table.set_index(["kind", "layer"])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = make_encoder(tmp_path_factory.mktemp("interventions") / request.param, request.param, n_layers=3)
    encoder = load_encoder(str(folder))
    base = encoder.classifier(["a", "b", "c"], seed=0)
    return encoder, base, some_texts()


@torch.no_grad()
def by_hand(model, encoder, examples, edits=None):
    """Accuracy and loss, a text at a time; `edits` maps the text's inputs to a context."""
    right, losses = [], []
    for i, encoding in enumerate(tokenize(encoder, examples, 32)):
        inputs = collate(encoder, [encoding], [0])
        if edits is None:
            logits = model(**inputs).logits.double()
        else:
            with edits(inputs):
                logits = model(**inputs).logits.double()
        label = int(examples.labels[i])
        right.append(int(logits.argmax()) == label)
        losses.append(float(logits.logsumexp(1) - logits[0, label]))
    return [np.mean(right), pytest.approx(np.mean(losses), rel=1e-5)]


def test_each_row_is_that_of_a_model_altered_by_hand(family):
    encoder, base, examples = family
    adapted = disturbed(base, lambda name: True)
    table = run(base, adapted, encoder, examples)
    shared = encoder.family == "albert"

    assert list(table.loc[("untouched", 3), VALUES]) == by_hand(adapted, encoder, examples)
    head = head_parameter_names(base, encoder)
    weights = base.state_dict()
    inside = {id(p) for block in blocks(base) for p in block.parameters()}
    embeddings = {
        name
        for name, p in base.named_parameters()
        if name not in head and id(p) not in inside and ".pooler" not in name
    }
    taken = copy.deepcopy(adapted)
    taken.load_state_dict({name: weights[name] for name in embeddings}, strict=False)
    assert list(table.loc[("weights", 0), VALUES]) == by_hand(taken, encoder, examples)
    for layer in () if shared else (1, 2, 3):
        taken = copy.deepcopy(adapted)
        blocks(taken)[layer - 1].load_state_dict(blocks(base)[layer - 1].state_dict())
        assert list(table.loc[("weights", layer), VALUES]) == by_hand(taken, encoder, examples)
    if encoder.pooler == "pretrained":
        taken = copy.deepcopy(adapted)
        taken.base_model.pooler.load_state_dict(base.base_model.pooler.state_dict())
        assert list(table.loc[("pooler", 3), VALUES]) == by_hand(taken, encoder, examples)
    for layer in (0, 1, 2):
        gone = range(layer + 1, 4)
        found = by_hand(adapted, encoder, examples, lambda inputs, gone=gone: skipping(adapted, gone))
        assert list(table.loc[("skipped", layer), VALUES]) == found
    for layer in (0, 1, 2, 3):

        def given(inputs, layer=layer):
            value = forward(base, inputs)[0][layer]
            return edited(adapted, {layer: lambda own: value})

        assert list(table.loc[("stitched", layer), VALUES]) == by_hand(adapted, encoder, examples, given)

    kinds = ["untouched", *["weights"] * (1 if shared else 4), *["pooler"] * (encoder.pooler == "pretrained")]
    kinds += ["skipped"] * 3 + ["stitched"] * 4
    assert list(table.index.get_level_values("kind")) == kinds
    assert [(layer, kind) for layer, kind, why in table.attrs["left_out"]] == (
        [(layer, "weights") for layer in (1, 2, 3)] if shared else []
    )
    assert table["loss"].nunique() >= len(table) - 1  # only stitched at 0 repeats a row, or the rows above say little


def test_a_head_only_model_is_untouched_by_what_is_bases(family, monkeypatch):
    encoder, base, examples = family
    head = head_parameter_names(base, encoder)
    adapted = disturbed(base, lambda name: name in head)
    quick = run(base, adapted, encoder, examples)
    monkeypatch.setattr(module, "_unchanged", lambda *models: frozenset())
    computed = run(base, adapted, encoder, examples)
    for table in (quick, computed):
        for kind in {"weights", "stitched", "pooler"} & set(table.index.get_level_values("kind")):
            rows = table.loc[kind]
            assert (rows.loss == table.loc[("untouched", 3), "loss"]).all()
            assert (rows[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
        assert table.loc["skipped", "loss"].nunique() == 3


def test_rows_that_need_no_pass_are_those_that_a_pass_gives(family, monkeypatch):
    encoder, base, examples = family
    top = {id(p) for p in blocks(base)[2].parameters()}
    names = {name for name, p in base.named_parameters() if id(p) in top}
    adapted = disturbed(base, lambda name: name in names)
    quick = run(base, adapted, encoder, examples)
    monkeypatch.setattr(module, "_unchanged", lambda *models: frozenset())
    assert quick.equals(run(base, adapted, encoder, examples))
    if encoder.family != "albert":
        same = quick.loss == quick.loc[("untouched", 3), "loss"]
        assert not same[("weights", 3)] and not same[("stitched", 3)]
        assert same[("weights", 2)] and same[("stitched", 2)]


def test_both_models_are_left_as_they_were(family):
    encoder, base, examples = family
    adapted = disturbed(base, lambda name: True)
    models = [base, adapted]
    weights = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    modules = [list(model.named_modules()) for model in models]
    run(base, adapted, encoder, examples)
    for model, values, own in zip(models, weights, modules, strict=True):
        assert list(model.named_modules()) == own
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def test_models_are_left_whole_when_a_pass_fails(tiny_encoder, monkeypatch):
    base = tiny_encoder.classifier(["a", "b", "c"], seed=0)
    adapted = disturbed(base, lambda name: True)
    own = list(adapted.named_modules())

    def fail(*args):
        raise RuntimeError("no memory")

    blocks(base)[1].register_forward_hook(fail)
    monkeypatch.setattr(module, "forward", lambda model, inputs: forward(adapted, inputs))
    with pytest.raises(RuntimeError, match="no memory"):
        run(base, adapted, tiny_encoder, some_texts(4))
    assert list(adapted.named_modules()) == own


def test_a_new_pooler_belongs_to_the_head(tmp_path, tiny_bert):
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    for path in tiny_bert.glob("*token*"):
        (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    encoder = load_encoder(str(tmp_path / "bare"))
    assert encoder.pooler == "new"
    base, adapted = (encoder.classifier(["a", "b", "c"], seed=seed) for seed in (0, 1))  # their poolers differ
    table = run(base, adapted, encoder, some_texts())
    assert "pooler" not in table.index.get_level_values("kind")
    assert (table.loc["stitched", "difference_high"] == 0).all()


def test_the_interval_of_a_difference_covers_and_agrees_with_a_bootstrap():
    rng = np.random.default_rng(0)

    def draw(n, gained, lost):
        kind = rng.choice(3, size=n, p=[gained, lost, 1 - gained - lost])
        agreed = rng.random(n) < 0.7
        return np.where(kind == 2, agreed, kind == 0), np.where(kind == 2, agreed, kind == 1)

    for n, gained, lost in ((100, 0.02, 0.05), (100, 0.004, 0.0), (300, 0.1, 0.05)):
        intervals = [module._difference_interval(*draw(n, gained, lost)) for _ in range(1000)]
        covered = np.mean([low <= gained - lost <= high for low, high in intervals])
        assert covered >= 0.935, (n, gained, lost)
    one, other = draw(4000, 0.12, 0.08)
    steps = one.astype(int) - other
    means = [steps[rng.integers(0, 4000, 4000)].mean() for _ in range(2000)]
    assert module._difference_interval(one, other) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=2e-3)
    same = np.ones(500, bool)
    assert module._difference_interval(same, same) == pytest.approx(
        (-0.00552, 0.00552), abs=1e-5
    )  # 1.96 * sqrt(2) / 502


def test_differences_are_paired_with_the_untouched_model(tiny_encoder):
    base = tiny_encoder.classifier(["a", "b", "c"], seed=0)
    table = run(base, disturbed(base, lambda name: True), tiny_encoder, some_texts(40))
    assert np.allclose(table.difference, table.accuracy - table.loc[("untouched", 2), "accuracy"])
    assert (table.accuracy_low < table.accuracy).all() and (table.accuracy < table.accuracy_high).all()
    changed = table.drop(index=("untouched", 2))
    assert ((changed.difference_low < changed.difference) & (changed.difference < changed.difference_high)).all()
    assert set(table.n) == {40}


def test_bad_input_is_named(tiny_encoder, tmp_path):
    base = tiny_encoder.classifier(["a", "b"], seed=0)
    three = some_texts()
    with pytest.raises(DataError, match="The texts have label 2 but the adapted model's outputs are 0 to 1"):
        run(base, base, tiny_encoder, three)
    with pytest.raises(DataError, match="got no text"):
        run(base, base, tiny_encoder, three.take([]))
    deeper = load_encoder(str(make_encoder(tmp_path / "deep", n_layers=3))).classifier(["a", "b", "c"], seed=0)
    with pytest.raises(
        EncoderError, match="Base is a bert of 2 blocks, width 32 but the adapted model a bert of 3 blocks"
    ):
        run(base, deeper, tiny_encoder, three)
