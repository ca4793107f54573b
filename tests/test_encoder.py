"""Encoders: six families numbered in the same way, checkpoints matched with their base, and user errors named."""

import contextlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_encoder
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import RobertaProcessing
from transformers.convert_slow_tokenizer import bytes_to_unicode

from layerprobe import checkpoints
from layerprobe.data import Examples
from layerprobe.encoder import collate, load_classifier, load_encoder, token_spans, tokenize
from layerprobe.errors import EncoderError
from layerprobe.families import FAMILIES as TABLE
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


def test_an_edited_layer_changes_all_above_it_and_none_below(family):
    model = family.classifier(["no", "yes"], seed=0)
    inputs = collate(family, tokenize(family, texts("w1 w2 w3 good"), 32), [0])
    with torch.no_grad():
        before, _ = forward(model, inputs)
        with edited(model, {1: lambda value: value + torch.randn_like(value)}):
            after, _ = forward(model, inputs)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[2], after[2], atol=1e-3)


def test_same_seed_same_head_and_the_global_generator_is_not_changed(tiny_encoder):
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
    real = checkpoints.forward

    def shifted(model, inputs):
        layers, logits = real(model, inputs)
        return (layers[1], layers[1], *layers[2:]), logits

    monkeypatch.setattr(checkpoints, "forward", shifted)
    with pytest.raises(EncoderError, match=r"Hidden state 0 .* cannot be numbered"):
        load_encoder(str(tiny_bert))


def test_layers_without_effect_are_refused(tmp_path, monkeypatch):
    folder = make_encoder(tmp_path / "bert")
    real = checkpoints.Checkpoint.classifier

    def without_weights(self, **config):
        model, missing = real(self, **config)
        torch.nn.init.zeros_(model.classifier.weight)
        return model, missing

    monkeypatch.setattr(checkpoints.Checkpoint, "classifier", without_weights)
    with pytest.raises(EncoderError, match=r"Noise added to layer 0 .* does not change its logits"):
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
        corrupt: "weights of .* cannot be loaded .*; if they are damaged, copy or download them again",
        pickled: "a pickle, which is never loaded",
        untokenized: "no tokenizer vocabulary",
        decoder: "gpt2 model, not an encoder",
        tmp_path / "bare": "has no config.json",
        tmp_path / "nowhere": "no model folder",
        deeper: "lacks weights of its body",
        mistyped: "config.json of .* cannot be loaded",
        spoilt(tiny_bert, tmp_path / "spoilt"): r"contain NaN or infinite values \(bert\.encoder\.layer\.1",
        weights: "is a file",
    }.items():
        with pytest.raises(EncoderError, match=word) as caught:
            load_encoder(str(name))
        assert "\n" not in str(caught.value)
    with pytest.raises(EncoderError, match=r"no local model 'org/nothing', and the Hub was not contacted"):
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
    """A checkpoint whose tokenizer was changed after it was saved."""
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
        spoilt(tuned, tmp_path / "spoilt"): "contain NaN or infinite values",
        retokenized(tmp_path / "swapped", swap_two_tokens): r"token 'bad' has number \d+ instead of \d+",
        retokenized(tmp_path / "lost", lose_a_token): "token 'good' is missing",
        retokenized(tmp_path / "cased", keep_case): "they differ in case, accents",
    }.items():
        with pytest.raises(EncoderError, match=word):
            load_classifier(folder, tiny_encoder)


def test_long_and_odd_texts_are_cut_and_kept(tiny_encoder):
    encoded = tokenize(tiny_encoder, texts("word " * 5000, "", "🎉", "<script>alert(1)</script>"), 66)
    assert [len(e["input_ids"]) for e in encoded][:2] == [66, 2]
    assert all(e["input_ids"][0] == encoded[0]["input_ids"][0] for e in encoded)


def with_tokenizer(encoder, pieces, post=None):
    """The encoder with another tokenizer, trained on a few words."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pieces
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 5, trainer)
    tokenizer.post_processor = post
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    return replace(encoder, tokenizer=fast)


ODD = "  The cat 🎉👩‍👩‍👧 naïve\tsat שלום"


@pytest.mark.parametrize("trimmed", [True, False])
def test_spans_of_byte_level_tokens_are_the_characters_of_their_bytes(tiny_encoder, trimmed):
    post = RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=trimmed)
    encoder = with_tokenizer(tiny_encoder, ByteLevel(add_prefix_space=False), post)
    examples = texts(ODD)
    (spans,), (encoded,) = token_spans(encoder, examples, 100), tokenize(encoder, examples, 100)
    names = encoder.tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert spans[0] is None and spans[-1] is None and len(spans) == len(names)
    # Twin: the tokens' bytes in order, and the character that each byte of the text belongs to.
    numbers = {letter: byte for byte, letter in bytes_to_unicode().items()}
    owner = [i for i, character in enumerate(ODD) for _ in character.encode()]
    read = b""
    for span, name in zip(spans[1:-1], names[1:-1], strict=True):
        part = bytes(numbers[letter] for letter in name)
        touched = owner[len(read) : len(read) + len(part)]
        read += part
        expected = ODD[touched[0] : touched[-1] + 1]
        assert ODD[slice(*span)].strip() == expected.strip() and (
            not expected.strip() or ODD[slice(*span)].strip() == ODD[slice(*span)]
        )
    assert read.decode() == ODD
    party = ODD.index("🎉")
    assert spans.count((party, party + 1)) == 4  # one for each byte


def test_spans_cut_words_from_the_original_text(tiny_encoder):
    examples = texts("Film, w1  BAD odd", "Ünd w2", "w3 " * 50)
    spans = token_spans(tiny_encoder, examples, 12)
    words = [
        [None if s is None else text[slice(*s)] for s in of] for text, of in zip(examples.texts, spans, strict=True)
    ]
    assert [word for word in words[0] if word] == ["Film", ",", "w1", "BAD", *"odd"]
    assert words[1][1:4] == ["Ü", "n", "d"] and words[2] == [None, *["w3"] * 10, None]
    marked = with_tokenizer(tiny_encoder, Metaspace())  # which writes the space before a word as a part of it
    text = " the  cat"
    parts = [text[slice(*span)] for span in token_spans(marked, texts(text), 32)[0]]
    assert [part for part in parts if part.strip()] == ["the", "cat"]


def test_spans_of_a_pair_are_in_the_joined_text(tiny_encoder):
    examples = Examples(("0",), ("w1 good",), ("Bad film",), np.zeros(1, dtype=np.int64))
    (spans,) = token_spans(tiny_encoder, examples, 32)
    (joined,) = examples.joined
    assert joined == "w1 good ⏐ Bad film"
    assert [span and joined[slice(*span)] for span in spans] == [None, "w1", "good", None, "Bad", "film", None]


def test_tokens_have_no_span_where_the_tokenizer_reports_none(tiny_encoder):
    class Slow:
        is_fast = False

        def __init__(self, real):
            self.real = real

        def __call__(self, *arguments, **options):
            assert "return_offsets_mapping" not in options
            return self.real(*arguments, **options)

    encoder = replace(tiny_encoder, tokenizer=Slow(tiny_encoder.tokenizer))
    assert token_spans(encoder, texts("w1 w2", "w3"), 32) == [[None] * 4, [None] * 3]
    assert token_spans(encoder, texts(), 32) == []


def test_the_bundled_encoder_is_numbered_from_its_embeddings():
    encoder = load_encoder("bundled:minilm-l6")
    assert (encoder.family, encoder.n_layers, encoder.width, encoder.pooler) == ("bert", 6, 384, "pretrained")


def test_each_row_of_the_family_table_describes_its_models(family):
    """Against the models themselves; the roles of matrices are tested with the comparison of weights."""
    row, model = TABLE[family.family], family.classifier(["no", "yes"], seed=0)
    body, stack = model.base_model, blocks(model)
    assert row.shared_blocks == (len({id(block) for block in stack}) < len(stack))
    names = {
        name.rpartition(".")[2] for name, module in stack[0].named_modules() if isinstance(module, torch.nn.Linear)
    }
    assert row.lora_targets and set(row.lora_targets) <= names
    assert row.segments == (getattr(body.config, "type_vocab_size", 1) > 1)
    assert row.final_norm == next((name for name, _ in body.named_children() if "final" in name), None)
    assert (row.head_pooling is not None) == hasattr(body.config, "classifier_pooling")
    pooler = getattr(body, "pooler", None)
    assert (row.pooler_activation is not None) == isinstance(pooler, torch.nn.Linear)
    if row.pooler_activation is not None:
        rows = torch.randn(2, 3, family.width)
        assert torch.equal(row.pooler_activation(pooler(rows[:, 0])), body.pooler_activation(pooler(rows[:, 0])))
    # The longest input that the position table allows is accepted.
    ids = torch.full((1, family.max_positions), 7)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_the_table_covers_the_tested_families():
    assert set(TABLE) == set(FAMILIES)
