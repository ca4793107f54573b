"""What each process of a launcher runs in `test_several.py`: several trainings, their results written per process."""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from adapting import adapted

from layerprobe.adaptation import AdaptConfig, _adapt, parse_method
from layerprobe.adaptation._fit import Training, new_model
from layerprobe.adaptation._training import train_blocks
from layerprobe.data import load_corpus
from layerprobe.encoder import load_encoder, tokenize
from layerprobe.errors import ArgumentError

CASES = {
    # 33 examples in batches of 4: the last one has a single example, and none for the second process.
    "full": {"n": 33, "batch_size": 4, "epochs": 2},
    "top:1": {"n": 30, "batch_size": 4, "search": True, "checkpoints": 1},
    "lora:2": {"n": 30, "batch_size": 4, "pooling": "mean"},
    "lp-ft": {"n": 30, "batch_size": 4},
    "full:equal-step": {"n": 30, "batch_size": 4},
}


def results(model, data, folder):
    """What each case gives, as JSON."""
    encoder, corpus = load_encoder(model), load_corpus(data, train=40, test=30)
    found = {}
    for method, config in CASES.items():
        result = adapted(
            encoder,
            corpus,
            folder / method.replace(":", "-") / "out",
            method,
            precision="fp32",
            max_length=32,
            **config,
        )
        found[method] = {
            "log": result.log.to_dict("records"),
            "predictions": result.predictions.tolist(),
            "rate": result.settings["learning_rate"],
            "steps": list(result.steps),
            "files": sorted(str(path.relative_to(folder)) for path in (folder / method.replace(":", "-")).rglob("*")),
        }
    return found


def weights_with_dropout(model, data):
    """Digest of the weights that this process has after training with dropout, and a number from its random state."""
    encoder, corpus = load_encoder(model), load_corpus(data, train=40, test=30)
    training = Training(
        encoder=encoder,
        corpus=corpus,
        method=parse_method("full"),
        seed=0,
        config=replace(AdaptConfig(), epochs=2, batch_size=4, precision="fp32", max_length=32),
        encodings=tokenize(encoder, corpus.train, 32),
        labels=corpus.train.labels,
        frozen={},
    )
    classifier = new_model(training)
    classifier.dropout.p = 0.5
    train_blocks(training, classifier, range(len(corpus.train)), 1e-3)
    parts = b"".join(value.numpy().tobytes() for value in classifier.state_dict().values())
    return hashlib.sha256(parts).hexdigest(), float(torch.rand(()))


def main():
    model, data, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    rank, written = int(os.environ["RANK"]), []
    if rank:

        def refuse(*args):
            raise AssertionError("only the first process may write")

        _adapt._save = _adapt.compute_frozen = refuse

        def watch(event, args):
            if event == "open" and isinstance(args[0], str) and set(str(args[1])) & set("wax+"):
                written.append(args[0])

        sys.addaudithook(watch)
    found = results(model, data, folder)
    by_rank = {"results": found, "written": list(written), "dropout": weights_with_dropout(model, data)}
    try:
        adapted(load_encoder(model), load_corpus(data, train=40, test=30), folder / "odd", "full", batch_size=15)
    except ArgumentError as error:
        by_rank["error"] = str(error)
    (folder / f"rank-{rank}.json").write_text(json.dumps(by_rank))


if __name__ == "__main__":
    main()
