"""One linear layer on pooled tokens: by definition, in every family, saved, found again, and refused where it is not whole."""

import json
import shutil

import numpy as np
import pytest
import torch
from adapting import QUIET, adapted
from tiny import louder, make_encoder

from layerprobe.adaptation import probabilities
from layerprobe.encoder import collate, head_parameter_names, load_classifier, load_encoder, same_body, tokenize
from layerprobe.errors import ArgumentError, EncoderError
from layerprobe.layers import edited, forward, resumed

pytestmark = pytest.mark.numerical

FAMILIES = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert")


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, tmp_path_factory):
    return load_encoder(str(make_encoder(tmp_path_factory.mktemp("pooled") / request.param, request.param)))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_logits_are_a_linear_map_of_the_pooled_last_layer(encoder, pooling, tiny_corpus, tmp_path):
    model = louder(encoder.classifier(["a", "b"], seed=0, pooling=pooling), encoder)
    encodings = tokenize(encoder, tiny_corpus.test, 32)
    inputs = collate(encoder, encodings, range(6))
    layers, logits = forward(model, inputs)
    assert len(layers) == encoder.n_layers + 1
    for text in range(6):  # by hand, each text without its padding
        last = layers[-1][text, : len(encodings[text]["input_ids"])]
        if encoder.family == "modernbert":
            last = model.base_model.final_norm(last)
        read = last.mean(0) if pooling == "mean" else last[0]
        by_hand = model.classifier.weight @ read + model.classifier.bias
        assert torch.allclose(logits[text], by_hand, atol=1e-5)
    with resumed(model, 1, lambda: layers[1]):
        assert torch.allclose(model(**inputs).logits, logits, atol=1e-6)
    with edited(model, {2: torch.zeros_like}):
        assert not torch.allclose(model(**inputs).logits, logits, atol=1e-3)
    model.save_pretrained(tmp_path)
    again = load_classifier(tmp_path, encoder)
    assert torch.equal(again(**inputs).logits, logits)
    assert set(again.state_dict()) == set(model.state_dict())
    assert not any("pooler" in name for name in model.state_dict())
    norm = {"model.final_norm.weight"} if encoder.family == "modernbert" else set()
    assert head_parameter_names(model, encoder) == {"classifier.weight", "classifier.bias"} | norm
    assert same_body(again, encoder.classifier(["a", "b"], seed=1), encoder)
    # Others find the body in it, whole.
    assert load_encoder(str(with_tokenizer(tmp_path, encoder))).n_layers == encoder.n_layers


def with_tokenizer(folder, encoder):
    encoder.tokenizer.save_pretrained(folder)
    return folder


def test_same_seed_same_classifier(tiny_encoder):
    one, same, other = (tiny_encoder.classifier(["a", "b"], seed=s, pooling="mean") for s in (1, 1, 2))
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert same_body(one, other, tiny_encoder)


@pytest.mark.parametrize("method", ["head", "top:1", "full", "lora:2", "bitfit", "lp-ft"])
def test_every_method_trains_and_is_measured_again_as_a_checkpoint(method, tiny_encoder, tiny_corpus, tmp_path):
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", method, n=40, pooling="mean")
    model = load_classifier(result.checkpoint, tiny_encoder)
    assert model.pooling == "mean" and result.settings["pooling"] == "mean"
    found = probabilities(model, tiny_encoder, tiny_corpus.test, QUIET)
    assert np.array_equal(found, result.predictions)
    taken = adapted(
        tiny_encoder, tiny_corpus, tmp_path / "unused", f"checkpoint:{tmp_path / 'out'}", n=40, pooling="mean"
    )
    assert taken.after == result.after and np.array_equal(taken.predictions, result.predictions)
    base = tiny_encoder.classifier(tiny_corpus.label_names, seed=0, pooling="mean")
    assert same_body(model, base, tiny_encoder) == (method == "head")


def test_a_linear_head_is_the_optimum_that_logistic_regression_finds(tiny_encoder, tiny_corpus, tmp_path):
    """Neither penalises the bias. scikit-learn has one vector w for two classes, where we have w / 2 and -w / 2, whose
    squares sum to half of its; so a penalty p on the mean cross-entropy is its C = 2 / (n p) on the sum."""
    from sklearn.linear_model import LogisticRegression

    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "head", n=40, pooling="mean")
    model = tiny_encoder.classifier(tiny_corpus.label_names, seed=0)

    def pooled(examples):
        with torch.no_grad():
            encodings = tokenize(tiny_encoder, examples, 128)
            rows = [
                forward(model, collate(tiny_encoder, encodings, [i]))[0][-1][0].mean(0) for i in range(len(examples))
            ]
        return torch.stack(rows).double().numpy()

    train = tiny_corpus.train.take(range(40))
    peer = LogisticRegression(C=2 / (40 * result.settings["penalty"]), tol=1e-8, max_iter=5000)
    peer.fit(pooled(train), train.labels)
    assert np.allclose(result.predictions, peer.predict_proba(pooled(tiny_corpus.test)), atol=2e-3)
    assert result.settings["gradient_norm"] < 1e-3


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_head_with_a_pooling_of_its_own_is_that_of_a_study_with_this_pooling(
    pooling, tiny_encoder, tiny_corpus, tmp_path
):
    one = adapted(tiny_encoder, tiny_corpus, tmp_path / "one", f"head:{pooling}", n=40)
    other = adapted(tiny_encoder, tiny_corpus, tmp_path / "other", "head", n=40, pooling=pooling)
    assert np.array_equal(one.predictions, other.predictions) and one.settings["pooling"] == pooling
    assert load_classifier(one.checkpoint, tiny_encoder).pooling == pooling
    plain = adapted(tiny_encoder, tiny_corpus, tmp_path / "plain", "head", n=40)
    assert not np.array_equal(one.predictions, plain.predictions)


def test_checkpoints_that_are_not_whole_or_pool_otherwise_are_refused(tiny_encoder, tiny_corpus, tmp_path):
    tiny_encoder.classifier(tiny_corpus.label_names, seed=0, pooling="cls").save_pretrained(tmp_path / "whole")

    def copy(name):
        return shutil.copytree(tmp_path / "whole", tmp_path / name)

    headless = copy("headless")
    (headless / "classifier.safetensors").unlink()
    damaged = copy("damaged")
    (damaged / "classifier.safetensors").write_bytes(b"\x00" * 40)
    three = copy("three")
    tiny_encoder.classifier(["x", "y", "z"], seed=0, pooling="cls").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "classifier.safetensors", three)
    odd = copy("odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "layerprobe_pooling": "max"}))
    for folder, says in {
        headless: "no trained classification head",
        damaged: "damaged or of another size",
        three: "damaged or of another size",
        odd: "layerprobe_pooling = 'max'; it is 'mean' or 'cls'",
    }.items():
        with pytest.raises(EncoderError, match=says) as caught:
            load_classifier(folder, tiny_encoder)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match=r"has the pooling 'cls', but pooling is 'mean'; set it to 'cls'"):
        adapted(tiny_encoder, tiny_corpus, tmp_path / "unused", f"checkpoint:{tmp_path / 'whole'}", pooling="mean")
