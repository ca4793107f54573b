"""One training in several processes of a launcher: on the CPU under gloo, with the losses of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from adapting import adapted
from launched import CASES, results
from tiny import make_encoder, write_csv

from layerprobe.adaptation._ranks import Ranks
from layerprobe.data import load_corpus
from layerprobe.encoder import collate, load_encoder, tokenize
from layerprobe.errors import ArgumentError, StorageError

ROOT = Path(__file__).parent.parent.parent
PATHS = (ROOT, ROOT / "tests", ROOT / "tests" / "adaptation")
SCRIPT = ROOT / "docs" / "examples" / "train_on_several.py"
LAUNCH = (
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """An encoder without dropout, and texts."""
    folder = tmp_path_factory.mktemp("several")
    model = make_encoder(folder / "bert")
    config = json.loads((model / "config.json").read_text())
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
    (model / "config.json").write_text(json.dumps(config))
    return str(model), str(write_csv(folder / "texts.csv", n=120)), folder


def launch(*words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("WORLD_SIZE", "RANK")}
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *LAUNCH,
        "--main_process_port",
        "0",
        *map(str, words),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def launched(inputs):
    """What each of two processes found."""
    *words, folder = inputs
    (out := folder / "two").mkdir()
    done = launch(Path(__file__).parent / "launched.py", *words, out)
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_train_as_one(inputs, launched):
    *words, folder = inputs
    (out := folder / "one").mkdir()
    alone = results(*words, out)
    for method in CASES:
        one, two = alone[method], launched[0]["results"][method]
        pd.testing.assert_frame_equal(pd.DataFrame(two["log"]), pd.DataFrame(one["log"]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(two["predictions"], one["predictions"], atol=1e-4)
        assert (two["rate"], two["steps"], two["files"]) == (one["rate"], one["steps"], one["files"])
        losses = [entry["loss"] for entry in one["log"] if entry["split"] == "train"]
        assert max(losses) - min(losses) > 1e-3  # there is something to differ in
        assert launched[1]["results"][method]["predictions"] == two["predictions"]
    assert any(len(name) > len("full/out") for name in launched[0]["results"]["full"]["files"])


def test_only_the_first_process_writes_and_dropout_differs_while_weights_agree(launched):
    assert launched[1]["written"] == []
    (one, draw), (other, other_draw) = (process["dropout"] for process in launched)
    assert one == other and draw != other_draw


def test_a_batch_that_cannot_be_shared_is_refused_in_one_sentence(launched, inputs):
    for process in launched:
        assert process["error"] == (
            "batch_size is 15, which 2 processes cannot share equally; start as many processes as divide it (1, 3, 5, 15), "
            "since the batch size is part of the method."
        )
    model, data, folder = inputs
    done = launch(SCRIPT, "--model", model, "--data", data, "--device", "cpu", "--batch-size", 15, "--out", folder / "x",
                  "--train", 40, "--test", 30)  # fmt: skip
    assert done.returncode != 0 and not (folder / "x").exists()
    assert done.stderr.count("batch_size is 15, which 2 processes cannot share equally") == 1


def test_the_documented_script_trains_under_accelerate_launch(inputs):
    model, data, folder = inputs
    words = ("--model", model, "--data", data, "--train", 41, "--test", 30, "--device", "cpu", "--precision", "fp32")
    done = launch(SCRIPT, *words, "--learning-rate", 1e-3, "--epochs", 1, "--out", folder / "script")
    assert done.returncode == 0, done.stderr
    corpus = load_corpus(data, train=41, test=30)
    alone = adapted(load_encoder(model), corpus, folder / "alone", "full", precision="fp32")
    header, *table = done.stdout.splitlines()
    assert header == (
        f"{folder / 'script'}: accuracy {alone.before.accuracy:.3f} before, {alone.after.accuracy:.3f} after"
    )
    losses = [float(line.split()[2]) for line in table[1:]]
    np.testing.assert_allclose(losses, alone.log.loss, atol=2e-6)
    assert (folder / "script" / "model.safetensors").is_file()


def test_shares_of_a_batch_weigh_as_the_whole():
    rng = np.random.default_rng(0)
    for count, size in ((2, 7), (3, 6), (4, 2), (4, 1)):
        batch = rng.standard_normal(size).tolist()
        shares = [Ranks(index, count).share(batch) for index in range(count)]
        assert sorted(x for own, weight in shares if weight for x in own) == sorted(batch)
        assert np.mean([np.mean(own) * weight for own, weight in shares]) == pytest.approx(np.mean(batch))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "albert", "modernbert"])
def test_every_parameter_is_used_in_every_step(family, tiny_corpus, tmp_path):
    """Else the processes would wait for its gradient."""
    encoder = load_encoder(str(make_encoder(tmp_path / family, family)))
    encodings = tokenize(encoder, tiny_corpus.train.take(range(4)), 32)
    for pooling in ("model", "mean", "cls"):
        model = encoder.classifier(tiny_corpus.label_names, seed=0, pooling=pooling)
        model(**collate(encoder, encodings, range(4)), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_processes_that_cannot_share_a_device_or_a_folder_are_refused(monkeypatch, inputs, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ArgumentError, match=r"device.* is 'mps', which one process uses alone, but a launcher started 2"
    ):
        Ranks.join("mps")
    monkeypatch.setattr(Ranks, "join", classmethod(lambda cls, device: Ranks(0, 2, several_machines=True)))
    model, data, _ = inputs
    with pytest.raises(ArgumentError, match=r"frozen.* is not set, but the processes run on several machines"):
        adapted(load_encoder(model), load_corpus(data, train=40, test=30), tmp_path / "out", "top:1")


def test_an_error_of_the_first_process_is_raised_by_all(monkeypatch):
    sent = []
    monkeypatch.setattr(
        "accelerate.utils.broadcast_object_list", lambda values, from_process: sent.append(list(values))
    )

    def full():
        raise StorageError("no room")

    with pytest.raises(StorageError, match="no room"):
        Ranks(0, 2).once(full)
    (((_, error),)) = sent
    monkeypatch.setattr(
        "accelerate.utils.broadcast_object_list", lambda values, from_process: values.__setitem__(1, error)
    )
    with pytest.raises(StorageError, match="no room"):
        Ranks(1, 2).once(lambda: pytest.fail("only the first process calls"))
