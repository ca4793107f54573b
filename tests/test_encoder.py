"""Encoders: six families numbered alike, checkpoints matched with their base, and mistakes named."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from tiny import make_encoder

from layerprobe import encoder as module
from layerprobe.data import Examples
from layerprobe.encoder import collate, load_classifier, load_encoder, tokenize
from layerprobe.errors import EncoderError
from layerprobe.layers import blocks, edited, forward

pytestmark = pytest.mark.numerical

FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert", "albert")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return load_encoder(str(make_encoder(tmp_path_factory.mktemp("family") / request.param, request.param)))


def texts(*words):
    return Examples(tuple(map(str, range(len(words)))), words, None, np.zeros(len(words), dtype=np.int64))


def test_layers_are_the_blocks_own_outputs(family):
    model = family.classifier(["no", "yes"], seed=0)
    examples = texts("w1 w2 w3 good", "w4 bad")
    inputs = collate(family, tokenize(family, examples, 32), [0, 1])
    with torch.no_grad():
        layers, logits = forward(model, inputs)
        reported = model(**inputs, output_hidden_states=True).hidden_states
    assert len(layers) == family.n_layers + 1 == 3
    assert logits.shape == (2, 2)
    for layer in range(family.n_layers):
        assert torch.equal(layers[layer], reported[layer])
    last = model.base_model.final_norm(layers[-1]) if family.family == "modernbert" else layers[-1]
    assert torch.allclose(last, reported[-1], atol=1e-6)


def test_a_written_layer_changes_all_above_it_and_none_below(family):
    model = family.classifier(["no", "yes"], seed=0)
    inputs = collate(family, tokenize(family, texts("w1 w2 w3 good"), 32), [0])
    with torch.no_grad():
        before, _ = forward(model, inputs)
        with edited(model, {1: lambda value: value + torch.randn_like(value)}):
            after, _ = forward(model, inputs)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[2], after[2], atol=1e-3)


def test_same_seed_same_head_and_the_global_generator_is_left_alone(tiny_encoder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = (tiny_encoder.classifier(["a", "b"], seed=7) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    third = tiny_encoder.classifier(["a", "b"], seed=8)
    assert not torch.equal(one.classifier.weight, third.classifier.weight)
    assert torch.equal(blocks(one)[1].output.dense.weight, blocks(third)[1].output.dense.weight)


def test_wrongly_numbered_layers_are_refused(tiny_bert, monkeypatch):
    real = module.forward

    def shifted(model, inputs):
        layers, logits = real(model, inputs)
        return (layers[1], layers[1], *layers[2:]), logits

    monkeypatch.setattr(module, "forward", shifted)
    with pytest.raises(EncoderError, match=r"Hidden state 0 .* can't be numbered"):
        load_encoder(str(tiny_bert))


def test_deaf_layers_are_refused(tmp_path, monkeypatch):
    folder = make_encoder(tmp_path / "bert")
    real = module._load

    def deaf(*args, **kwargs):
        model, missing = real(*args, **kwargs)
        torch.nn.init.zeros_(model.classifier.weight)
        return model, missing

    monkeypatch.setattr(module, "_load", deaf)
    with pytest.raises(EncoderError, match=r"Noise written at layer 0 .* leaves its logits"):
        load_encoder(str(folder))


def altered(source, target, **changes):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_bad_models_are_refused_in_one_sentence(tiny_bert, tmp_path):
    corrupt = shutil.copytree(tiny_bert, tmp_path / "corrupt")
    weights = corrupt / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    pickled = shutil.copytree(tiny_bert, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    untokenized = shutil.copytree(tiny_bert, tmp_path / "untokenized")
    for path in untokenized.glob("*token*"):
        path.unlink()
    decoder = altered(tiny_bert, tmp_path / "gpt", model_type="gpt2")
    (tmp_path / "bare").mkdir()
    deeper = altered(tiny_bert, tmp_path / "deeper", num_hidden_layers=3)
    mistyped = altered(tiny_bert, tmp_path / "mistyped", hidden_dropout_prob="much")
    for name, word in {
        corrupt: "are damaged",
        pickled: "a pickle, which is never loaded",
        untokenized: "no tokenizer vocabulary",
        decoder: "gpt2 model, not an encoder",
        tmp_path / "bare": "holds no config.json",
        tmp_path / "nowhere": "no model folder",
        deeper: "lacks weights of its own body",
        mistyped: "config.json of .* cannot be used",
        spoilt(tiny_bert, tmp_path / "spoilt"): r"hold NaN or infinite values \(bert\.encoder\.layer\.1",
        weights: "is a file",
    }.items():
        with pytest.raises(EncoderError, match=word) as caught:
            load_encoder(str(name))
        assert "\n" not in str(caught.value)
    with pytest.raises(EncoderError, match=r"'org/nothing' is no folder here, and the Hub was not asked"):
        load_encoder("org/nothing")


def spoilt(source, target):
    """A copy with one weight that is not a number."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    name = next(key for key in weights if "layer.1.output.dense.weight" in key)
    weights[name] = np.where(np.arange(weights[name].size).reshape(weights[name].shape) == 7, np.nan, weights[name])
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def retokenized(target, change):
    """A checkpoint whose tokenizer was changed after it was made."""
    make_encoder(target, labels=["a", "b"])
    path = target / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return target


def swap_two_tokens(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]


def lose_a_token(content):
    del content["model"]["vocab"]["good"]


def keep_case(content):
    content["normalizer"]["lowercase"] = False


def test_code_in_a_model_folder_is_not_run(tiny_bert, tmp_path):
    folder = altered(
        tiny_bert,
        tmp_path / "code",
        auto_map={"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.C"},
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nModel = C = None\n")
    with contextlib.suppress(EncoderError):
        load_encoder(str(folder))
    assert not (tmp_path / "ran").exists()


def test_checkpoints_must_be_adaptations_of_the_base(tiny_bert, tiny_encoder, tmp_path):
    tuned = make_encoder(tmp_path / "tuned", labels=["a", "b"])
    assert load_classifier(tuned, tiny_encoder).config.num_labels == 2
    for folder, word in {
        make_encoder(tmp_path / "roberta", "roberta", labels=["a", "b"]): "give the base model",
        make_encoder(tmp_path / "deep", n_layers=3, labels=["a", "b"]): "3 blocks of width 32",
        tiny_bert: "no trained classification head",
        tmp_path / "none": "no checkpoint folder",
        spoilt(tuned, tmp_path / "spoilt"): "hold NaN or infinite values",
        retokenized(tmp_path / "swapped", swap_two_tokens): r"token 'bad' is number \d+, not number \d+",
        retokenized(tmp_path / "lost", lose_a_token): "token 'good' is missing",
        retokenized(tmp_path / "cased", keep_case): "splits texts otherwise",
    }.items():
        with pytest.raises(EncoderError, match=word):
            load_classifier(folder, tiny_encoder)


def test_long_and_odd_texts_are_cut_and_kept(tiny_encoder):
    encoded = tokenize(tiny_encoder, texts("word " * 5000, "", "🎉", "<script>alert(1)</script>"), 66)
    assert [len(e["input_ids"]) for e in encoded][:2] == [66, 2]
    assert all(e["input_ids"][0] == encoded[0]["input_ids"][0] for e in encoded)


def test_the_bundled_encoder_is_numbered_from_its_embeddings():
    encoder = load_encoder("bundled:minilm-l6")
    assert (encoder.family, encoder.n_layers, encoder.width, encoder.pooler) == ("bert", 6, 384, "pretrained")
