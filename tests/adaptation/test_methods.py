"""Methods: parsed and refused, what each one trains and leaves, at which learning rate; and how one is added."""

import itertools
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from adapting import adapted, changed
from tiny import make_encoder

from layerprobe.adaptation import (
    AdaptConfig,
    Method,
    cached_layers,
    check_learning_rates,
    expand_methods,
    methods,
    parse_method,
)
from layerprobe.encoder import head_parameter_names, load_classifier, load_encoder
from layerprobe.errors import ArgumentError
from layerprobe.layers import blocks

pytestmark = pytest.mark.numerical

EVERY = [
    "head",
    "head:mean",
    "top:1",
    "top:2",
    "lora:2",
    "lora:2@2",
    "bitfit",
    "lp-ft",
    "full",
    "full:equal-step",
    "shuffled-labels",
]


def test_methods_are_parsed_and_refused():
    assert [m.name for m in expand_methods("depths", 3)] == ["head", "top:1", "top:2", "top:3", "full"]
    assert [m.name for m in expand_methods("depths", None)] == ["head", "full"]
    assert parse_method("top:02").name == "top:2"
    for text in ("top:0", "top:99", "top:x", "top", "topp:2", "head:1", "head:", "checkpoint:", ""):
        with pytest.raises(ArgumentError) as caught:
            parse_method(text, 6)
        assert repr(text) in str(caught.value)
    with pytest.raises(ArgumentError, match="k is 1 to 6"):
        parse_method("top:99", 6)
    for names, word in ((["head", "head"], "twice"), ([], "is empty")):
        with pytest.raises(ArgumentError, match=word) as caught:
            expand_methods(names, 6)
        assert caught.value.with_names({"methods": "adaptation.methods"}).startswith("adaptation.methods ")


@pytest.mark.parametrize("text", [*EVERY, "checkpoint:/some where/x:y"])
def test_methods_are_values(text):
    method = parse_method(text)
    copies = [parse_method(method.name, 6), pickle.loads(pickle.dumps(method))]
    assert all(copy == method and hash(copy) == hash(method) for copy in copies)
    assert all(parse_method(other) != method for other in EVERY if other != text)
    assert method.trains == (method.checkpoint_folder is None)


def test_methods_are_parsed_without_torch():
    """So that a plan of tasks needs neither torch nor a model."""
    code = "import sys; from layerprobe.adaptation import parse_method; parse_method('lora:8@4-6'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_distinguishes_methods():
    parsed = {name: parse_method(name) for name in [*EVERY, "checkpoint:x"]}
    assert {name: method.depth(6) for name, method in parsed.items() if method.depth(6) is not None} == {
        "head": 0, "head:mean": 0, "top:1": 1, "top:2": 2, "full": 6,
    }  # fmt: skip
    assert parsed["full"].depth(None) is None
    assert [name for name, method in parsed.items() if method.is_control] == ["shuffled-labels"]
    assert [name for name, method in parsed.items() if not method.changes_body] == ["head", "head:mean"]
    assert [name for name, method in parsed.items() if not method.trains_blocks] == [
        "head",
        "head:mean",
        "checkpoint:x",
    ]
    assert [name for name, method in parsed.items() if not method.uses_seed] == ["checkpoint:x"]
    ranks = {name: method.reference_rank for name, method in parsed.items() if method.reference_rank is not None}
    assert sorted(ranks, key=ranks.get) == ["top:1", "top:2", "full"]


def test_identity_holds_what_decides_the_result():
    config = AdaptConfig(learning_rates={"lora": 0.1}, search=True, precision="fp32")
    common = {"pooling": "model", "tuning": "default", "precision": "fp32"}
    descent = {**common, "epochs": 2, "batch_size": 16, "search": True, "checkpoints": None}
    assert parse_method("head").identity(config) == {**common, "head_learning_rate": None}
    assert parse_method("head:cls").identity(config) == {**common, "pooling": "cls", "head_learning_rate": None}
    assert parse_method("lora:2").identity(config) == {**descent, "rate": 0.1}
    assert parse_method("lp-ft").identity(config) == {**descent, "rate": 5e-5, "head_learning_rate": None}


@pytest.mark.parametrize(
    ("text", "name", "layers"),
    [
        ("lora:08", "lora:8", ()),
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
        *((text, r"is malformed; write lora:r with a rank r of 1 or more") for text in ("lora", "lora:0", "lora:-1")),
        *((text, r"or lora:r@layers with numbers or ranges") for text in ("lora:8@", "lora:8@6-4", "lora:8@x")),
        ("lora:8@7", r"names layer 7, which is not the output of a block; layers are 1 to 6"),
        ("lora:8@0-2", r"names layer 0, .* \(0 is the embeddings"),
        (
            "bitfit:2",
            r"is unknown; the methods are head, head:mean, head:cls, top:k .* lora:r@layers, checkpoint:PATH and the control shuffled",
        ),
        ("lp-ft:", r"is unknown"),
    ],
)
def test_bad_methods_are_refused_in_one_sentence(text, says):
    with pytest.raises(ArgumentError, match=says) as caught:
        parse_method(text, 6)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


def test_methods_that_do_not_fit_an_encoder_are_refused(tiny_encoder, tiny_corpus, tmp_path):
    albert = load_encoder(str(make_encoder(tmp_path / "albert", "albert")))
    with pytest.raises(
        ArgumentError, match=r"full:equal-step.* makes the steps of layers equal, .* share their weights"
    ):
        parse_method("full:equal-step").check(albert)
    for text in ("top:1", "lora:2@1"):
        with pytest.raises(ArgumentError, match=rf"{text}.* some blocks and not others, .* share their weights"):
            parse_method(text).check(albert)
    for text in ("head", "full", "lora:2", "bitfit", "lp-ft"):
        parse_method(text).check(albert)
    with pytest.raises(ArgumentError, match=r"rank of the method 'lora:33' exceeds .* r is 1 to 32"):
        parse_method("lora:33").check(tiny_encoder)
    with pytest.raises(ArgumentError, match="k is 1 to 2"):
        adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "top:3")
    modern = load_encoder(str(make_encoder(tmp_path / "modern", "modernbert")))
    with pytest.raises(ArgumentError, match=r"the blocks of .* \(modernbert\) have none; use lora:r or top:k"):
        parse_method("bitfit").trainable(modern.classifier(["a", "b"], seed=0), modern)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "modernbert"])
def test_frozen_and_trained_part_meet_at_one_layer(family, tmp_path):
    encoder = load_encoder(str(make_encoder(tmp_path / family, family)))
    for method in expand_methods([m for m in EVERY if (family, m) != ("modernbert", "bitfit")], 2):
        model = encoder.classifier(["a", "b"], seed=0)
        method.prepare(model, encoder, seed=0)
        trained = method.trainable(model, encoder)
        parameters = {id(p) for name, p in model.named_parameters() if name in trained}
        assert head_parameter_names(model, encoder) <= trained
        moving = [any(id(p) in parameters for p in block.parameters()) for block in blocks(model)]
        below = any("embeddings" in name for name in trained)
        lowest = None if below else moving.index(True) if any(moving) else 2
        assert method.frozen_layer(2) == lowest, method.name


def test_trained_parameters_nest_with_depth(tiny_encoder):
    model = tiny_encoder.classifier(["a", "b"], seed=0)
    sets = [method.trainable(model, tiny_encoder) for method in expand_methods("depths", 2)]
    assert all(one < other for one, other in itertools.pairwise(sets))


def test_top_k_counts_blocks_by_number(tmp_path):
    """Not by the order of their names, in which block 10 comes before block 2."""
    encoder = load_encoder(str(make_encoder(tmp_path / "deep", n_layers=12, width=8)))
    names = parse_method("top:3").trainable(encoder.classifier(["a", "b"], seed=0), encoder)
    assert {int(name.split(".")[3]) for name in names if "encoder.layer." in name} == {9, 10, 11}


def test_cached_layers_are_those_above_a_frozen_block():
    several = expand_methods(["head", "top:1", "top:3", "full", "lora:2@2-3", "lora:4", "checkpoint:x"], 3)
    assert cached_layers(several, 3) == (1, 2, 3)
    assert cached_layers(expand_methods(["top:3", "full", "bitfit"], 3), 3) == ()
    assert cached_layers(expand_methods(["lp-ft"], 3), 3) == (3,)


def test_learning_rates_are_by_method_then_family_then_default():
    def rate(text, **rates):
        rates = {key.replace("_", ":"): value for key, value in rates.items()}
        return parse_method(text).learning_rate(AdaptConfig(learning_rates=rates))

    assert rate("full") == rate("top:2") == rate("lp-ft") == rate("shuffled-labels") == 5e-5
    assert rate("bitfit") > rate("lora:8") > rate("full")
    assert rate("lora:8", lora=1e-4) == 1e-4
    assert rate("lora:8", lora=1e-4, lora_8=2e-4) == 2e-4
    assert rate("lora:4", lora=1e-4, lora_8=2e-4) == 1e-4
    assert rate("shuffled-labels", full=1e-4) == 1e-4  # a control is trained at the rate of its counterpart
    several = expand_methods(["head", "lora:8", "full"], 6)
    check_learning_rates({"lora": 1e-4, "lora:8": 1e-4, "full": 1e-5}, several)
    with pytest.raises(ArgumentError, match=r"learning_rates contains 'lora:4', which none .* full, lora, lora:8"):
        check_learning_rates({"lora:4": 1e-4}, several)
    with pytest.raises(ArgumentError, match="'head'"):
        check_learning_rates({"head": 1e-4}, several)


def test_bitfit_changes_bias_terms_and_the_head(tiny_encoder, tiny_corpus, tmp_path):
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "bitfit", n=32)
    names = changed(tiny_encoder, tiny_corpus, result)
    assert all(name.endswith("bias") or name.startswith("classifier.") for name in names)
    assert {"bert.embeddings.LayerNorm.bias", "bert.encoder.layer.0.output.dense.bias", "classifier.weight"} <= names
    assert result.settings["learning_rate"] == parse_method("bitfit").default_rate
    assert result.settings["frozen_layers"] == []


def test_lp_ft_starts_from_the_converged_head(tiny_encoder, tiny_corpus, tmp_path):
    head = adapted(tiny_encoder, tiny_corpus, tmp_path / "head", "head", n=32)
    still = adapted(tiny_encoder, tiny_corpus, tmp_path / "still", "lp-ft", n=32, learning_rate=1e-12)
    models = [load_classifier(result.checkpoint, tiny_encoder) for result in (head, still)]
    assert torch.allclose(models[0].classifier.weight, models[1].classifier.weight, atol=1e-6)
    assert still.settings["head_penalty"] == head.settings["penalty"]
    assert still.settings["head_gradient_norm"] < 0.01
    moved = adapted(tiny_encoder, tiny_corpus, tmp_path / "moved", "lp-ft", n=32, learning_rate=1e-4)
    names = changed(tiny_encoder, tiny_corpus, moved)
    assert any("embeddings" in name for name in names) and any("encoder.layer.0" in name for name in names)
    steps = moved.log[moved.log.split == "train"].step
    assert steps.is_monotonic_increasing and len(moved.log) > len(head.log)
    assert moved.trainable_parameters == moved.total_parameters


def test_albert_is_adapted_by_methods_that_suit_shared_blocks(tiny_corpus, tmp_path):
    encoder = load_encoder(str(make_encoder(tmp_path / "albert", "albert")))
    for method in ("head", "full", "lora:2", "bitfit"):
        result = adapted(encoder, tiny_corpus, tmp_path / "out", method, n=32)
        names = changed(encoder, tiny_corpus, result)
        inside = {name for name in names if name.startswith("albert.encoder.albert_layer_groups")}
        assert bool(inside) == (method != "head")
        if method == "lora:2":
            assert all("attention.query.weight" in name or "attention.value.weight" in name for name in inside)


def test_additions_start_from_the_seed(tiny_encoder):
    name = "bert.encoder.layer.0.attention.self.query.lora_A.default.weight"
    values = []
    for seed in (1, 1, 2):
        model = tiny_encoder.classifier(["a", "b"], seed=0)
        parse_method("lora:2").prepare(model, tiny_encoder, seed)
        values.append(model.get_parameter(name))
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


@dataclass(frozen=True)
class Norms(Method):
    """Trains the layer norms of the top blocks, and the head: a toy method with a parameter."""

    k: int
    syntax: ClassVar[str] = "norms:k"
    default_rate: ClassVar[float] = 1e-2

    @property
    def name(self):
        return f"norms:{self.k}"

    @classmethod
    def parse(cls, text, n_layers):
        keyword, _, k = text.partition(":")
        return cls(int(k)) if keyword == "norms" else None

    def body_parameters(self, model, encoder):
        top = {id(p) for block in blocks(model)[-self.k :] for p in block.parameters()}
        return frozenset(name for name, p in model.named_parameters() if "LayerNorm" in name and id(p) in top)

    def frozen_layer(self, n_layers):
        return n_layers - self.k


def test_a_method_is_added_by_one_class_and_one_line(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "REGISTRY", (*methods.REGISTRY, Norms))
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "norms:1", n=32)
    names = changed(tiny_encoder, tiny_corpus, result)
    assert names == {
        *(
            f"bert.encoder.layer.1.{part}.LayerNorm.{p}"
            for part in ("attention.output", "output")
            for p in ("weight", "bias")
        ),
        "classifier.weight",
        "classifier.bias",
    }
    assert result.settings["learning_rate"] == 1e-2 and result.settings["frozen_layers"] == [1]
    assert result.flops.frozen > 0 and result.trainable_parameters < result.total_parameters / 10
    check_learning_rates({"norms": 1e-3}, expand_methods(["norms:1"], 2))
    with pytest.raises(ArgumentError, match="checkpoint:PATH, norms:k and the control shuffled-labels"):
        parse_method("unknown")
