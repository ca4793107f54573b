"""Low-rank additions: in the right maps of every family, and folded into plain weights without a change."""

from dataclasses import replace

import pytest
import torch
from adapting import adapted, changed
from tiny import louder, make_encoder

from layerprobe import families
from layerprobe.adaptation import parse_method
from layerprobe.encoder import collate, load_classifier, load_encoder, tokenize
from layerprobe.errors import ArgumentError
from layerprobe.layers import forward

pytestmark = pytest.mark.numerical

FAMILIES = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert")
NEW_HEAD = {
    "distilbert": "pre_classifier.weight",
    "modernbert": "head.dense.weight",
    "roberta": "classifier.dense.weight",
}


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, tmp_path_factory):
    return load_encoder(str(make_encoder(tmp_path_factory.mktemp("lora") / request.param, request.param)))


@torch.no_grad()
def test_merged_equals_unmerged_and_is_a_plain_checkpoint(encoder, tiny_corpus, tmp_path):
    model = louder(encoder.classifier(["a", "b"], seed=0), encoder)
    plain = set(model.state_dict())
    inputs = collate(encoder, tokenize(encoder, tiny_corpus.test, 32), range(8))
    base = model(**inputs).logits
    method = parse_method("lora:3")
    method.prepare(model, encoder, seed=0)
    assert torch.equal(model(**inputs).logits, base)  # nothing is added at first
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3)
    apart = model(**inputs).logits
    assert (apart - base).abs().max() > 1e-2
    method.finish(model)
    assert set(model.state_dict()) == plain
    assert torch.allclose(model(**inputs).logits, apart, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_classifier(tmp_path, encoder)(**inputs).logits, model(**inputs).logits)
    assert not list(tmp_path.glob("adapter*"))


def maps(encoder, blocks):
    """The query and value maps of these blocks, by name, in the family's own order."""
    names = [name for name, _ in encoder.classifier(["a", "b"], seed=0).named_modules()]
    ends = (".query", ".value", ".q_lin", ".v_lin", ".Wqkv")
    inside = [name for name in names if name.endswith(ends)]
    return [name for name in inside if encoder.family == "albert" or any(f".{block}." in name for block in blocks)]


def test_each_block_gets_its_query_and_value_additions(encoder):
    model, method = encoder.classifier(["a", "b"], seed=0), parse_method("lora:2")
    method.prepare(model, encoder, seed=0)
    added = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    each = 1 if encoder.family == "modernbert" else 2
    assert len(added) == each * (1 if encoder.family == "albert" else 2)
    assert added == set(maps(encoder, (0, 1)))


def test_additions_at_some_layers_leave_all_below_and_train_the_new_head(encoder, tiny_corpus, tmp_path):
    if encoder.family == "albert":
        pytest.skip("its blocks share weights: refused, see test_methods")
    result = adapted(encoder, tiny_corpus, tmp_path / "out", "lora:2@2", n=24)
    base, tuned = encoder.classifier(tiny_corpus.label_names, seed=0), load_classifier(result.checkpoint, encoder)
    names = changed(encoder, tiny_corpus, result)
    inside = {name for name in names if ".1." in name}
    assert {name.removesuffix(".weight") for name in inside} == set(maps(encoder, (1,)))
    assert NEW_HEAD.get(encoder.family, "classifier") in {
        name if name in NEW_HEAD.values() else "classifier" for name in names
    }
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    for name in inside:  # the addition has rank 2
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) == 2
    inputs = collate(encoder, tokenize(encoder, tiny_corpus.test, 32), range(8))
    with torch.no_grad():
        layers, others = forward(base, inputs)[0], forward(tuned, inputs)[0]
    assert torch.equal(layers[0], others[0]) and torch.equal(layers[1], others[1])
    assert not torch.equal(layers[2], others[2])
    assert result.settings["frozen_layers"] == [1]


def test_a_new_pooler_is_trained_and_a_pretrained_one_is_not(tiny_bert, tiny_encoder, tiny_corpus, tmp_path):
    import transformers

    transformers.BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    tiny_encoder.tokenizer.save_pretrained(tmp_path / "bare")
    bare = load_encoder(str(tmp_path / "bare"))
    for encoder, trained in ((bare, True), (tiny_encoder, False)):
        model = encoder.classifier(["a", "b"], seed=0)
        method = parse_method("lora:2")
        method.prepare(model, encoder, seed=0)
        names = method.trainable(model, encoder)
        assert ("bert.pooler.dense.weight" in names) == trained


def test_a_family_whose_maps_have_other_names_is_refused(tiny_encoder, monkeypatch):
    maps = {"attention.self.query": "query", "attention.self.valuation": "value"}
    monkeypatch.setitem(families.FAMILIES, "bert", replace(families.FAMILIES["bert"], matrices=maps))
    model = tiny_encoder.classifier(["a", "b"], seed=0)
    with pytest.raises(
        ArgumentError, match=r"adds to the valuation map of each block, but the blocks .* \(bert\) have none"
    ):
        parse_method("lora:2").prepare(model, tiny_encoder, seed=0)
