"""Methods: read and refused, what each one trains and leaves, and at which learning rate."""

import pytest
import torch
from tiny import make_encoder

from layerprobe.adaptation import (
    adapt,
    cached_layers,
    check_learning_rates,
    check_method,
    expand_methods,
    frozen_layer,
    method_rate,
    parse_method,
    trained_parameter_names,
)
from layerprobe.adaptation._fit import Recipe, begin
from layerprobe.adaptation._lora import add_lora
from layerprobe.encoder import head_parameter_names, load_classifier, load_encoder
from layerprobe.errors import StudyError
from layerprobe.layers import blocks

pytestmark = pytest.mark.numerical

EVERY = ["head", "top:1", "top:2", "lora:2", "lora:2@2", "bitfit", "lp-ft", "full", "shuffled-labels"]


@pytest.mark.parametrize(
    ("text", "name", "layers"),
    [
        ("lora:08", "lora:8", None),
        ("lora:8@6", "lora:8@6", (6,)),
        ("lora:8@4-6", "lora:8@4-6", (4, 5, 6)),
        ("lora:8@6,4", "lora:8@4,6", (4, 6)),
        ("lora:8@1,2,3, 5", "lora:8@1-3,5", (1, 2, 3, 5)),
    ],
)
def test_lora_has_one_name_for_one_set_of_layers(text, name, layers):
    method = parse_method(text, 6)
    assert (method.name, method.rank, method.layers) == (name, int(method.name[5]), layers)
    assert parse_method(method.name, 6) == method


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lora", r"has no rank; write lora:r with a whole r of 1 or more"),
        ("lora:0", r"has no rank"),
        ("lora:-1", r"has no rank"),
        ("lora:8@", r"names no layers after its @"),
        ("lora:8@6-4", r"names no layers after its @"),
        ("lora:8@x", r"names no layers after its @"),
        ("lora:8@7", r"names layer 7, which no block puts out; layers are 1 to 6"),
        ("lora:8@0-2", r"names layer 0, .* \(0 is the embeddings"),
        ("bitfit:2", r"is unknown; the methods are head, top:k .* lp-ft, bitfit, lora:r, lora:r@layers"),
        ("lp-ft:", r"is unknown"),
    ],
)
def test_bad_methods_are_refused_in_one_sentence(text, says):
    with pytest.raises(StudyError, match=says) as caught:
        parse_method(text, 6)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


def test_methods_that_an_encoder_cannot_be_adapted_by_are_refused(tiny_encoder, tiny_corpus, tmp_path):
    albert = load_encoder(str(make_encoder(tmp_path / "albert", "albert")))
    for text in ("top:1", "lora:2@1"):
        with pytest.raises(StudyError, match=rf"{text}.* is an ALBERT, whose blocks are one block run many times"):
            check_method(parse_method(text), albert)
    for text in ("head", "full", "lora:2", "bitfit", "lp-ft"):
        check_method(parse_method(text), albert)
    with pytest.raises(StudyError, match=r"higher rank than .* r is 1 to 32"):
        check_method(parse_method("lora:33"), tiny_encoder)
    with pytest.raises(StudyError, match="k is 1 to 2"):
        adapt(
            tiny_encoder, tiny_corpus.train, tiny_corpus.test, tiny_corpus.label_names, tmp_path / "out",
            method=parse_method("top:3"), seed=0, progress=False,
        )  # fmt: skip
    modern = load_encoder(str(make_encoder(tmp_path / "modern", "modernbert")))
    with pytest.raises(StudyError, match=r"the blocks of .* \(modernbert\) have none; use lora:r or top:k"):
        trained_parameter_names(modern.classifier(["a", "b"], seed=0), modern, parse_method("bitfit"))


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "modernbert"])
def test_what_is_frozen_and_what_is_trained_meet_at_one_layer(family, tmp_path):
    encoder = load_encoder(str(make_encoder(tmp_path / family, family)))
    for method in expand_methods([m for m in EVERY if (family, m) != ("modernbert", "bitfit")], 2):
        model = encoder.classifier(["a", "b"], seed=0)
        if method.kind == "lora":
            add_lora(model, encoder, method, seed=0)
        trained = trained_parameter_names(model, encoder, method)
        own = {id(p) for name, p in model.named_parameters() if name in trained}
        assert head_parameter_names(model, encoder) <= trained
        moving = [any(id(p) in own for p in block.parameters()) for block in blocks(model)]
        below = any("embeddings" in name for name in trained)
        lowest = None if below else moving.index(True) if any(moving) else 2
        assert frozen_layer(method, 2) == lowest, method.name


def test_layers_worth_keeping_are_those_above_a_frozen_block():
    methods = expand_methods(["head", "top:1", "top:3", "full", "lora:2@2-3", "lora:4", "checkpoint:x"], 3)
    assert cached_layers(methods, 3) == (1, 2, 3)
    assert cached_layers(expand_methods(["top:3", "full", "bitfit"], 3), 3) == ()
    assert cached_layers(expand_methods(["lp-ft"], 3), 3) == (3,)


def test_learning_rates_are_by_method_then_kind_then_default():
    def rate(text, **overrides):
        return method_rate(parse_method(text), 5e-5, {key.replace("_", ":"): value for key, value in overrides.items()})

    assert rate("full") == rate("top:2") == rate("lp-ft") == rate("shuffled-labels") == 5e-5
    assert rate("bitfit") > rate("lora:8") > rate("full")
    assert rate("lora:8", lora=1e-4) == 1e-4
    assert rate("lora:8", lora=1e-4, lora_8=2e-4) == 2e-4
    assert rate("lora:4", lora=1e-4, lora_8=2e-4) == 1e-4
    assert rate("shuffled-labels", full=1e-4) == 1e-4  # a control is trained as what it controls
    methods = expand_methods(["head", "lora:8", "full"], 6)
    check_learning_rates({"lora": 1e-4, "lora:8": 1e-4, "full": 1e-5}, methods)
    with pytest.raises(StudyError, match=r"'lora:4', which no method .* full, lora, lora:8"):
        check_learning_rates({"lora:4": 1e-4}, methods)
    with pytest.raises(StudyError, match="'head'"):
        check_learning_rates({"head": 1e-4}, methods)
    with pytest.raises(StudyError, match="'full' is 0"):
        check_learning_rates({"full": 0}, methods)


def adapted(encoder, corpus, folder, method, **options):
    return adapt(
        encoder, corpus.train.take(range(32)), corpus.test, corpus.label_names, folder,
        method=parse_method(method), seed=0, progress=False, **{"epochs": 1, **options},
    )  # fmt: skip


def changed(encoder, corpus, result):
    before = dict(encoder.classifier(corpus.label_names, seed=0).named_parameters())
    after = dict(load_classifier(result.checkpoint, encoder).named_parameters())
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_bitfit_changes_bias_terms_and_the_head(tiny_encoder, tiny_corpus, tmp_path):
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "bitfit")
    names = changed(tiny_encoder, tiny_corpus, result)
    assert all(name.endswith("bias") or name.startswith("classifier.") for name in names)
    assert {"bert.embeddings.LayerNorm.bias", "bert.encoder.layer.0.output.dense.bias", "classifier.weight"} <= names
    assert result.settings["learning_rate"] == method_rate(parse_method("bitfit"), 5e-5, {})
    assert result.settings["frozen_layers"] == []


def test_lp_ft_goes_on_from_the_converged_head(tiny_encoder, tiny_corpus, tmp_path):
    head = adapted(tiny_encoder, tiny_corpus, tmp_path / "head", "head")
    still = adapted(tiny_encoder, tiny_corpus, tmp_path / "still", "lp-ft", learning_rate=1e-12)
    models = [load_classifier(result.checkpoint, tiny_encoder) for result in (head, still)]
    assert torch.allclose(models[0].classifier.weight, models[1].classifier.weight, atol=1e-6)
    assert still.settings["head_penalty"] == head.settings["penalty"]
    assert still.settings["head_gradient_norm"] < 0.01
    moved = adapted(tiny_encoder, tiny_corpus, tmp_path / "moved", "lp-ft", learning_rate=1e-4)
    names = changed(tiny_encoder, tiny_corpus, moved)
    assert any("embeddings" in name for name in names) and any("encoder.layer.0" in name for name in names)
    steps = moved.log[moved.log.split == "train"].step
    assert steps.is_monotonic_increasing and len(moved.log) > len(head.log)
    assert moved.trainable_parameters == moved.total_parameters


def test_albert_is_adapted_by_what_suits_shared_blocks(tiny_corpus, tmp_path):
    encoder = load_encoder(str(make_encoder(tmp_path / "albert", "albert")))
    for method in ("head", "full", "lora:2", "bitfit"):
        result = adapted(encoder, tiny_corpus, tmp_path / "out", method)
        names = changed(encoder, tiny_corpus, result)
        inside = {name for name in names if name.startswith("albert.encoder.albert_layer_groups")}
        assert bool(inside) == (method != "head")
        if method == "lora:2":
            assert all("attention.query.weight" in name or "attention.value.weight" in name for name in inside)


def recipe(encoder, corpus, method, **changes):
    return Recipe(
        **{
            "encoder": encoder, "label_names": corpus.label_names, "method": parse_method(method), "pooling": "model",
            "encodings": [], "labels": corpus.train.labels, "frozen": {}, "seed": 0, "epochs": 1, "batch_size": 8,
            "head_learning_rate": None, "device": "cpu", "progress": False, **changes,
        }
    )  # fmt: skip


def test_additions_start_from_the_seed(tiny_encoder, tiny_corpus):
    one, same, other = (begin(recipe(tiny_encoder, tiny_corpus, "lora:2", seed=seed)) for seed in (1, 1, 2))
    name = "bert.encoder.layer.0.attention.self.query.lora_A.default.weight"
    values = [dict(model.named_parameters())[name] for model in (one, same, other)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
