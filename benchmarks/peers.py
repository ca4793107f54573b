"""The same work with public tools as a user would otherwise combine them, compared with layerprobe.

    python benchmarks/peers.py                             # 400 texts, layers 3 and 6: about five minutes on two cores
    python benchmarks/peers.py --texts 2000 --layers 1 2 3 4 5 6 --markdown

| part | public tools | layerprobe |
|---|---|---|
| fine-tuning | Trainer, texts padded to 128 tokens | `adaptation.adapt` |
| activations | `output_hidden_states` into a list, base and adapted | `activations.capture` |
| CKA of all layers | `cka_from_features` of pytorch-cka | `similarity.grid` |
| dictionaries | `SAETrainer` of sae-lens per layer and side | `sae.train` |

Both sides get the same texts, epochs, batch size, precision (float32), layers, rows, latents and steps. Each runs in a
process of its own; imports and reading the texts are not counted. layerprobe's activations, CKA and dictionaries are of the
model that the Trainer fine-tuned, so that results can be compared: the exit code is 1 if activations or CKA differ by more
than rounding. Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import _child
import _machine

LENGTH, RATE, CLASSIFIED, EPOCHS = 128, 5e-5, 16, 2
EXPANSION, K, SAE_BATCH, SAE_RATE = 4, 32, 1024, 3e-3
PARTS = {
    "adapt": "fine-tuning",
    "activations": "activations, base and adapted",
    "similarity": "CKA of all layers",
    "sae": "dictionaries",
}
TOLERANCE = {"activations": 1e-4, "cka": 2e-3}
"""Largest differences by rounding: of float32 activations under different padding, and of float32 Gram matrices."""


class Parts:
    """Seconds, CPU seconds and peak memory of each part."""

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        with _child.Watch() as watch:
            yield
        self.measured[name] = watch.measured


def prepared(texts: int) -> tuple[Any, Any]:
    """The encoder and the texts of both sides."""
    from layerprobe import load_corpus, load_encoder

    return load_encoder("bundled:minilm-l6"), load_corpus("bundled:tweets", train=texts, test=texts)


def save_results(folder: Path, side: str, means: dict[str, list[np.ndarray]], variances: dict[str, float]) -> None:
    """Pooled activations and explained variances, for the comparison of results."""
    np.savez(folder / f"{side}.npz", **{key: np.stack(layers) for key, layers in means.items()})
    (folder / f"{side}.json").write_text(json.dumps(variances))


# What a user would otherwise write ------------------------------------------------------------------------------------


def public_tools(options: argparse.Namespace, folder: Path) -> None:
    import torch
    from cka import cka_from_features
    from sae_lens import TopKTrainingSAEConfig, TrainingSAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    encoder, corpus = prepared(options.texts)
    tokenizer, parts = encoder.tokenizer, Parts()

    def new_model() -> Any:
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(encoder.folder, num_labels=len(corpus.label_names))

    def encode(examples: Any) -> Any:
        return tokenizer(
            list(examples.texts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )

    with parts.measure("adapt"):
        train, test = encode(corpus.train), encode(corpus.test)
        data = [
            {**{key: value[i] for key, value in train.items()}, "labels": int(label)}
            for i, label in enumerate(corpus.train.labels)
        ]
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=CLASSIFIED,
            learning_rate=RATE,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        model = new_model()
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train()
        held = [{key: value[i] for key, value in test.items()} for i in range(len(corpus.test))]
        accuracy = float((trainer.predict(held).predictions.argmax(1) == corpus.test.labels).mean())
        trainer.save_model(str(folder / "adapted"))

    @torch.no_grad()
    def hidden_states(model: Any) -> list[torch.Tensor]:
        collected = []
        for start in range(0, len(corpus.test), 32):
            batch = {key: value[start : start + 32] for key, value in test.items()}
            collected.append(model(**batch, output_hidden_states=True).hidden_states)
        return [torch.cat(layer) for layer in zip(*collected, strict=True)]

    with parts.measure("activations"):
        states = {"base": hidden_states(new_model().eval()), "adapted": hidden_states(model.eval())}
    mask = test["attention_mask"]
    with parts.measure("similarity"):
        weights = mask[:, :, None].float()
        means = {
            side: [(layer * weights).sum(1) / weights.sum(1) for layer in layers] for side, layers in states.items()
        }
        pairs = [("base", "base"), ("base", "adapted"), ("adapted", "adapted")]
        cka = [cka_from_features(means[one], means[other]).tolist() for one, other in pairs]
    width, variances = encoder.width, {}
    with parts.measure("sae"):
        for layer in options.layers:
            for side in states:
                rows = states[side][layer][mask.bool()]

                def batches(rows: torch.Tensor = rows) -> Iterator[torch.Tensor]:
                    while True:
                        order = torch.randperm(len(rows))
                        for start in range(0, len(rows) - SAE_BATCH + 1, SAE_BATCH):
                            yield rows[order[start : start + SAE_BATCH]]

                settings = SAETrainerConfig(
                    total_training_samples=options.steps * SAE_BATCH,
                    train_batch_size_samples=SAE_BATCH,
                    lr=SAE_RATE,
                    lr_end=SAE_RATE / 10,
                    lr_warm_up_steps=options.steps // 20,
                    lr_decay_steps=options.steps // 5,
                    n_batches_for_norm_estimate=max(1, len(rows) // SAE_BATCH),
                )
                config = TopKTrainingSAEConfig(
                    d_in=width, d_sae=EXPANSION * width, k=K, normalize_activations="expected_average_only_in"
                )
                sae = TrainingSAE.from_dict(config.to_dict())
                with contextlib.redirect_stderr(io.StringIO()):
                    sae = SAETrainer(settings, sae, batches()).fit()
                with torch.no_grad():
                    errors = (sae.decode(sae.encode(rows)) - rows).pow(2).sum()
                    spread = (rows - rows.mean(0)).pow(2).sum()
                variances[f"layer {layer}, {side}"] = float(1 - errors / spread)
    save_results(folder, "public", {side: [m.numpy() for m in layers] for side, layers in means.items()}, variances)
    _child.report(parts=parts.measured, accuracy=accuracy, cka=cka, token_rows=int(mask.sum()))


# layerprobe -----------------------------------------------------------------------------------------------------------


def layerprobe_side(options: argparse.Namespace, folder: Path) -> None:
    import peft  # noqa: F401, imports are not counted on either side
    import sae_lens  # noqa: F401
    import transformers  # noqa: F401

    from layerprobe import sae
    from layerprobe.activations import CaptureConfig, capture
    from layerprobe.adaptation import AdaptConfig, adapt, parse_method
    from layerprobe.encoder import load_classifier
    from layerprobe.similarity import grid

    encoder, corpus = prepared(options.texts)
    parts = Parts()
    with parts.measure("adapt"):
        config = AdaptConfig(
            epochs=EPOCHS, batch_size=CLASSIFIED, learning_rate=RATE, max_length=LENGTH, precision="fp32"
        )
        result = adapt(encoder, corpus, folder / "ours", method=parse_method("full"), seed=0, config=config)
    with parts.measure("activations"):
        models = {
            "base": encoder.classifier(corpus.label_names, seed=0),
            "adapted": load_classifier(folder / "adapted", encoder),
        }
        stores = {
            side: capture(model, encoder, corpus.test, folder / f"rows-{side}", CaptureConfig(max_length=LENGTH))
            for side, model in models.items()
        }
    with parts.measure("similarity"):
        sides = {side: {layer: store.mean(layer) for layer in store.layers} for side, store in stores.items()}
        table = grid(sides)
    squares = [
        part.pivot(index="layer_a", columns="layer_b", values="value").to_numpy().tolist()
        for part in (
            table[(table.side_a == a) & (table.side_b == b)]
            for a, b in (("base", "base"), ("base", "adapted"), ("adapted", "adapted"))
        )
    ]
    variances = {}
    with parts.measure("sae"):
        settings = sae.SaeConfig(
            "topk", EXPANSION, K, samples=options.steps * SAE_BATCH, batch_size=SAE_BATCH, learning_rate=SAE_RATE
        )
        for layer in options.layers:
            for side, store in stores.items():
                rows = store.tokens(layer)
                dictionary = sae.train(rows, folder / f"sae-{layer}-{side}", settings)
                quality = sae.evaluate(dictionary, rows, sae.encode(dictionary, rows), store.groups("token"))
                variances[f"layer {layer}, {side}"] = quality.explained_variance
    means = {side: [np.asarray(rows) for rows in layers.values()] for side, layers in sides.items()}
    save_results(folder, "layerprobe", means, variances)
    _child.report(parts=parts.measured, accuracy=result.after.accuracy, cka=squares, token_rows=stores["base"].n_rows)


SIDES = {"public": public_tools, "layerprobe": layerprobe_side}


# Comparison -----------------------------------------------------------------------------------------------------------


def costs(results: dict[str, Any]) -> list[list[str]]:
    """One line per part: seconds and peak memory of both sides, and their ratios."""
    theirs, ours = (results[side]["parts"] for side in SIDES)
    lines = []
    for part, title in PARTS.items():
        lines.append([title, *_pair(theirs[part]["seconds"], ours[part]["seconds"], 1.0, ".1f")])
        lines[-1] += _pair(theirs[part]["peak_bytes"], ours[part]["peak_bytes"], 1e9, ".2f")
    seconds = [sum(parts[part]["seconds"] for part in PARTS) for parts in (theirs, ours)]
    peaks = [max(parts[part]["peak_bytes"] for part in PARTS) for parts in (theirs, ours)]
    return [*lines, ["in all", *_pair(*seconds, 1.0, ".1f"), *_pair(*peaks, 1e9, ".2f")]]


def _pair(theirs: float, ours: float, unit: float, form: str) -> list[str]:
    return [f"{theirs / unit:{form}}", f"{ours / unit:{form}}", f"{theirs / ours:.2f}"]


COLUMNS = ("part", "s, public", "s, here", "ratio", "GB, public", "GB, here", "ratio")


def agreement(results: dict[str, Any], folder: Path, texts: int) -> list[tuple[str, str, bool | None]]:
    """What was compared, the values, and whether they agree; None where they need not."""
    theirs, ours = (results[side] for side in SIDES)
    lines: list[tuple[str, str, bool | None]] = []
    rows = theirs["token_rows"], ours["token_rows"]
    lines.append(("token rows", f"{rows[0]:,} and {rows[1]:,}", rows[0] == rows[1]))
    with np.load(folder / "public.npz") as one, np.load(folder / "layerprobe.npz") as other:
        largest = max(float(np.abs(one[side] - other[side]).max()) for side in one.files)
    lines.append(
        ("mean activations of all layers", f"differ by at most {largest:.1e}", largest < TOLERANCE["activations"])
    )
    difference = float(np.abs(np.array(theirs["cka"]) - np.array(ours["cka"])).max())
    lines.append(("CKA of all layers", f"differs by at most {difference:.1e}", difference < TOLERANCE["cka"]))
    accuracies = theirs["accuracy"], ours["accuracy"]
    # Two trainings with other batches: within three standard errors of a difference of independent proportions.
    error = (sum(p * (1 - p) for p in accuracies) / texts) ** 0.5
    lines.append(
        (
            "test accuracy",
            f"{accuracies[0]:.3f} and {accuracies[1]:.3f}",
            abs(accuracies[0] - accuracies[1]) <= 3 * error,
        )
    )
    explained = [json.loads((folder / f"{side}.json").read_text()) for side in SIDES]
    for name, value in explained[0].items():
        lines.append((f"explained variance, {name}", f"{value:.3f} and {explained[1][name]:.3f}", None))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=400, help="training texts, and as many captured test texts")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6], help="layers that get dictionaries")
    parser.add_argument("--steps", type=int, default=100, help="training steps of a dictionary")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        SIDES[options.side[0]](options, Path(options.side[1]))
        return 0
    if options.texts < 80:
        parser.error(f"--texts is {options.texts}; it must be at least 80, to have more token rows than latents.")
    machine = _machine.describe()
    given = ["--texts", options.texts, "--steps", options.steps, "--layers", *options.layers]
    with tempfile.TemporaryDirectory() as folder:
        results = {side: _child.run(__file__, [*given, "--side", side, folder]) for side in SIDES}
        lines, agreed = costs(results), agreement(results, Path(folder), options.texts)
    print(table(COLUMNS, lines, markdown=options.markdown))
    print()
    words = {True: "agrees", False: "DIFFERS", None: "public, here"}
    print(table(("result", "values", ""), [[what, value, words[ok]] for what, value, ok in agreed], options.markdown))
    print(
        f"\n{options.texts} texts for training and as many captured, {EPOCHS} epochs, layers "
        f"{', '.join(map(str, options.layers))}, {options.steps} steps per dictionary. Ratio: public / here. "
        f"Machine: {_machine.line(machine)}."
    )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results, "agreement": agreed}, indent=1))
    return int(any(ok is False for _, _, ok in agreed))


def table(header: tuple[str, ...], lines: list[list[str]], markdown: bool = False) -> str:
    """Text in columns, or a Markdown table."""
    if markdown:
        rules = ["|" + "---|" * len(header)]
        return "\n".join([f"| {' | '.join(header)} |", *rules, *(f"| {' | '.join(line)} |" for line in lines)])
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(line))
        for line in (header, *lines)
    )


if __name__ == "__main__":
    sys.exit(main())
