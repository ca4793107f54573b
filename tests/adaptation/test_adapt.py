"""Adaptation: each depth trains what it says and nothing else, equal seeds agree, checkpoints are matched by label."""

import numpy as np
import pandas as pd
import pytest
import torch
from adapting import QUIET, adapted, changed
from tiny import make_encoder

from layerprobe.adaptation import TrainingFlops, _training, compute_frozen, open_frozen, precision, reference
from layerprobe.data import load_corpus
from layerprobe.encoder import head_parameter_names, load_classifier, load_encoder
from layerprobe.errors import ArgumentError

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_head_leaves_the_body_identical_in_every_family(family, tiny_corpus, tmp_path):
    encoder = load_encoder(str(make_encoder(tmp_path / family, family)))
    result = adapted(encoder, tiny_corpus, tmp_path / "out", "head")
    model = encoder.classifier(tiny_corpus.label_names, seed=0)
    head = head_parameter_names(model, encoder)
    assert changed(encoder, tiny_corpus, result) <= head
    assert any("classifier" in name for name in changed(encoder, tiny_corpus, result))
    assert result.trainable_parameters == sum(p.numel() for n, p in model.named_parameters() if n in head)
    assert result.after.loss < result.before.loss
    # DistilBERT's head ends in a ReLU, at whose kinks a minimum has no zero gradient.
    assert result.settings["gradient_norm"] < (0.3 if family == "distilbert" else 0.05)


@pytest.mark.parametrize("k", [1, 2])
def test_top_k_trains_the_top_blocks_and_the_head(k, tiny_encoder, tiny_corpus, tmp_path):
    result = adapted(tiny_encoder, tiny_corpus, tmp_path / "out", f"top:{k}")
    names = changed(tiny_encoder, tiny_corpus, result)
    blocks = {int(name.split("encoder.layer.")[1].split(".")[0]) for name in names if "encoder.layer." in name}
    assert blocks == set(range(2 - k, 2))
    assert not any("embeddings" in name for name in names)
    assert any(name.startswith("classifier") for name in names)


def test_full_trains_everything_and_equal_seeds_agree(tiny_encoder, tiny_corpus, tmp_path):
    one, same = (adapted(tiny_encoder, tiny_corpus, tmp_path / str(i), "full", seed=3) for i in range(2))
    other = adapted(tiny_encoder, tiny_corpus, tmp_path / "other", "full", seed=4)
    assert one.trainable_parameters == one.total_parameters
    assert any("embeddings" in name for name in changed(tiny_encoder, tiny_corpus, one, seed=3))
    assert one.after == same.after and one.log.equals(same.log)
    assert np.array_equal(one.predictions, same.predictions)
    assert not np.array_equal(one.predictions, other.predictions)
    assert list(one.log.columns) == ["step", "epoch", "loss", "learning_rate", "split"]
    assert (one.log.loss > 0).all()


def test_the_control_learns_from_permuted_labels(tiny_encoder, tmp_path, tiny_csv):
    corpus = load_corpus(str(tiny_csv), train=100, test=60)
    options = {"epochs": 8, "learning_rate": 3e-3}
    real = adapted(tiny_encoder, corpus, tmp_path / "real", "full", **options)
    control = adapted(tiny_encoder, corpus, tmp_path / "control", "shuffled-labels", **options)
    assert real.after.accuracy > 0.9
    assert control.after.accuracy < 0.8


def test_head_is_at_least_as_good_as_logistic_regression_on_what_it_reads(tiny_encoder, tiny_csv, tmp_path):
    corpus = load_corpus(str(tiny_csv), train=100, test=60)
    result = adapted(tiny_encoder, corpus, tmp_path / "head", "head")
    read = []
    for number, part in enumerate((corpus.train, corpus.test)):
        compute_frozen(tiny_encoder, part, [2], tmp_path / str(number), QUIET)
        read.append(open_frozen(tmp_path / str(number))[2].batch(np.arange(len(part)))[:, 0])
    logistic = reference(read[0], corpus.train.labels, read[1], corpus.test.labels, seed=0).quality
    assert result.after.accuracy >= logistic.accuracy - 0.1
    assert result.after.loss <= logistic.loss + 0.1


def test_checkpoints_are_measured_as_they_are_and_matched_by_label_name(tiny_encoder, tiny_corpus, tmp_path):
    tuned = adapted(tiny_encoder, tiny_corpus, tmp_path / "tuned", "full", epochs=4)
    model = load_classifier(tuned.checkpoint, tiny_encoder)
    with torch.no_grad():  # the same model with its classes in the other order
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    names = list(reversed(tiny_corpus.label_names))
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    model.save_pretrained(tmp_path / "flipped")
    for folder in ("tuned", "flipped"):
        taken = adapted(tiny_encoder, tiny_corpus, tmp_path / "unused", f"checkpoint:{tmp_path / folder}")
        assert taken.after.accuracy == tuned.after.accuracy
        assert taken.after.loss == pytest.approx(tuned.after.loss, abs=1e-6)
        assert (taken.trainable_parameters, taken.seconds) == (0, 0.0)
    assert not (tmp_path / "unused").exists()
    other = make_encoder(tmp_path / "other", labels=["cats", "dogs"])
    with pytest.raises(ArgumentError, match="cats, dogs, but the data has class a, class b"):
        adapted(tiny_encoder, tiny_corpus, tmp_path / "unused", f"checkpoint:{other}")
    three = make_encoder(tmp_path / "three", labels=["x", "y", "z"])
    with pytest.raises(ArgumentError, match=r"3 labels .* but the data has 2"):
        adapted(tiny_encoder, tiny_corpus, tmp_path / "unused", f"checkpoint:{three}")


def test_divergence_raises_and_saves_nothing(tiny_encoder, tiny_corpus, tmp_path):
    with pytest.raises(ArgumentError, match="diverged") as caught:
        adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "full", learning_rate=1e30)
    assert str(caught.value).endswith("lower learning_rate.")
    assert caught.value.with_names({"learning_rate": "adaptation.learning_rate"}).endswith("adaptation.learning_rate.")
    assert not (tmp_path / "out").exists()


def test_frozen_blocks_stay_in_eval_mode_while_training(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    from transformers import Trainer

    from layerprobe.layers import blocks

    seen = []
    real = Trainer.training_step

    def step(self, model, *args, **kwargs):
        loss = real(self, model, *args, **kwargs)
        seen.append([block.training for block in blocks(self.model)])
        return loss

    monkeypatch.setattr(Trainer, "training_step", step)
    adapted(tiny_encoder, tiny_corpus, tmp_path / "out", "top:1")
    assert seen and all(modes == [False, True] for modes in seen)


def test_precision_is_bf16_only_where_the_processor_has_it(monkeypatch):
    for there, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert precision("cpu") == expected
    assert precision("mps") == "fp32"
    assert [precision("cpu", choice) for choice in ("bf16", "fp32")] == ["bf16", "fp32"]
    for device, choice, message in (("cpu", "fp16", "is auto, bf16, tf32 or fp32"), ("mps", "bf16", "use fp32")):
        with pytest.raises(ArgumentError, match=message):
            precision(device, choice)


@pytest.mark.parametrize("n", [80, 400])
def test_a_head_is_no_worse_than_uniform_even_without_signal(n, tiny_encoder, tmp_path):
    """A penalty chosen on a dozen examples may give an over-confident head: 1.2 nats where a uniform guess has .69."""
    rng = np.random.default_rng(n)
    words = [f"w{i}" for i in range(60)]
    rows = [(" ".join(rng.choice(words, 6)), f"class {rng.choice(['a', 'b'])}") for _ in range(n + 200)]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "noise.csv", index=False)
    corpus = load_corpus(str(tmp_path / "noise.csv"), train=n, test=200)
    for seed in range(2):
        result = adapted(tiny_encoder, corpus, tmp_path / "out", "head", seed=seed)
        assert result.after.loss < np.log(2) + 0.1


def test_precision_on_a_gpu_follows_its_instructions(monkeypatch):
    """A GPU without bf16 emulates it, which torch counts as support unless it is asked not to."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or new)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0) if new else (7, 5))
    new = True
    assert [precision("cuda", choice) for choice in ("auto", "tf32", "fp32")] == ["bf16", "tf32", "fp32"]
    new = False
    assert precision("cuda") == "fp32"
    for choice, message in (("bf16", "bf16, which the device cuda cannot train in"), ("tf32", "compute capability 8")):
        with pytest.raises(ArgumentError, match=message):
            precision("cuda", choice)
    with pytest.raises(ArgumentError, match="tf32, which the device cpu does not compute in"):
        precision("cpu", "tf32")


def test_tf32_is_on_while_blocks_are_trained_and_off_where_anything_is_measured(
    tiny_encoder, tiny_corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr("layerprobe.adaptation._config.has_tf32", lambda device: True)
    # Counting operations runs single examples forwards and backwards, in any precision.
    monkeypatch.setattr("layerprobe.adaptation._fit.fit_flops", lambda *args, **options: TrainingFlops(0, 0, 0))
    seen = {True: set(), False: set()}
    forward = torch.nn.Linear.forward

    def watched(module, x):
        # The passes of training are those with gradients through the blocks.
        seen[torch.is_grad_enabled()].add(torch.get_float32_matmul_precision())
        return forward(module, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    adapted(tiny_encoder, tiny_corpus, tmp_path / "a", "top:1", precision="tf32", n=32)
    assert seen == {True: {"high"}, False: {"highest"}} and torch.get_float32_matmul_precision() == "highest"
    seen[True].clear()
    adapted(tiny_encoder, tiny_corpus, tmp_path / "b", "top:1", precision="fp32", n=32)
    assert seen[True] == {"highest"}


def test_one_process_trains_on_one_gpu_whatever_the_machine_has(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    """The Trainer would divide among all GPUs, with as many times the batch size."""
    seen = []

    class Watched(_training._Trainer):
        def train(self, *args, **kwargs):
            seen.append((self.args.n_gpu, self._train_batch_size))
            return super().train(*args, **kwargs)

    class Arguments(_training.TrainingArguments):
        def _setup_devices_of_four_gpus(self):
            self._n_gpu = 4

        def __post_init__(self):
            super().__post_init__()
            self._setup_devices_of_four_gpus()

    monkeypatch.setattr(_training, "_Trainer", Watched)
    monkeypatch.setattr(_training, "TrainingArguments", Arguments)
    adapted(tiny_encoder, tiny_corpus, tmp_path / "a", "full", batch_size=8, n=32)
    assert seen == [(1, 8)]
