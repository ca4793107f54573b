"""The cost of adapting at each depth, compared with a bare forward pass, the plain Trainer, and its FLOPs.

    python benchmarks/depths.py                    # 2,000 tweets, 2 epochs: about a quarter of an hour on two cores
    python benchmarks/depths.py --examples 400     # a quick look

Run it on an idle machine. All ratios are of times measured in this one run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainingArguments

from layerprobe import load_corpus, load_encoder
from layerprobe.adaptation import (
    Adaptation,
    AdaptConfig,
    FrozenValues,
    Method,
    adapt,
    cached_layers,
    compute_frozen,
    expand_methods,
    open_frozen,
    parse_method,
    precision,
)
from layerprobe.encoder import collate, length_sorted_batches, tokenize
from layerprobe.layers import forward, resumed, skipping

EPOCHS, BATCH, RATE, LENGTH = 2, 16, 5e-5, 128
CONFIG = AdaptConfig(epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, max_length=LENGTH)


class Bench:
    """One encoder and one corpus, and the seconds of operations on them."""

    def __init__(self, examples: int) -> None:
        self.encoder = load_encoder("bundled:minilm-l6")
        self.corpus = load_corpus("bundled:tweets", train=examples, test=200)
        self.encodings = tokenize(self.encoder, self.corpus.train, LENGTH)

    def model(self) -> Any:
        return self.encoder.classifier(self.corpus.label_names, seed=0)

    def adapted(self, method: str, frozen: FrozenValues | None = None) -> Adaptation:
        with tempfile.TemporaryDirectory() as folder:
            return adapt(
                self.encoder, self.corpus, folder, method=parse_method(method), seed=0, config=CONFIG, frozen=frozen
            )

    def bare(self) -> float:
        """A forward pass over the training examples in float32, in batches of similar length."""
        model = self.model()
        start = time.perf_counter()
        with torch.inference_mode():
            for indices in length_sorted_batches([len(e["input_ids"]) for e in self.encodings], 32):
                model(**collate(self.encoder, self.encodings, indices))
        return time.perf_counter() - start

    def frozen_pass(self, methods: Collection[Method], folder: Path) -> float:
        """One pass over the training examples that keeps everything these methods need."""
        layers = cached_layers(methods, self.encoder.n_layers)
        start = time.perf_counter()
        compute_frozen(self.encoder, self.corpus.train, layers, folder, CONFIG)
        return time.perf_counter() - start

    def trainer(self, *, as_usual: bool) -> float:
        """The Trainer on the whole model: on our length-grouped batches, or padded to 128 in random order in float32."""
        rows = [{**e, "labels": int(y)} for e, y in zip(self.encodings, self.corpus.train.labels, strict=True)]
        if as_usual:
            pad = self.encoder.tokenizer.pad_token_id
            for row in rows:
                for key, fill in (("input_ids", pad), ("attention_mask", 0), ("token_type_ids", 0)):
                    row[key] = row[key] + [fill] * (LENGTH - len(row[key]))
                row.pop("special_tokens_mask", None)

        def collated(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            labels = torch.tensor([row["labels"] for row in batch])
            if as_usual:
                keys = ("input_ids", "attention_mask", "token_type_ids")
                return {key: torch.tensor([row[key] for row in batch]) for key in keys} | {"labels": labels}
            return {**collate(self.encoder, batch, range(len(batch))), "labels": labels}

        with tempfile.TemporaryDirectory() as folder:
            arguments: dict[str, Any] = {
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": True,
            }
            arguments |= {"remove_unused_columns": False, "seed": 0, "learning_rate": RATE, "num_train_epochs": EPOCHS}
            if not as_usual:
                arguments |= {"train_sampling_strategy": "group_by_length", "bf16": precision("cpu") == "bf16"}
            model = self.model().train()
            start = time.perf_counter()
            trainer = Trainer(
                model=model,
                args=TrainingArguments(output_dir=folder, per_device_train_batch_size=BATCH, **arguments),
                train_dataset=rows,
                data_collator=collated,
            )
            trainer.train()
            return time.perf_counter() - start

    def flops(self, k: int | None) -> float:
        """FLOPs of training the top k blocks (None: everything), counted on every tenth batch of similar length."""
        model = self.model()
        model.set_attn_implementation("eager")  # the counter does not see fused attention on a CPU
        last = self.encoder.n_layers
        frozen = -1 if k is None else last - k
        if k is not None:
            for name, parameter in model.named_parameters():
                part = name.split("encoder.layer.")
                below = int(part[1].split(".")[0]) < frozen if len(part) > 1 else "embeddings" in name
                parameter.requires_grad_(not below)
        once, each = 0.0, 0.0
        for indices in length_sorted_batches([len(e["input_ids"]) for e in self.encodings], BATCH)[::10]:
            inputs = collate(self.encoder, self.encodings, indices)
            state = None
            if frozen > 0:
                with (
                    torch.no_grad(),
                    skipping(model, range(frozen + 1, last + 1)),
                    FlopCounterMode(display=False) as counter,
                ):
                    state = forward(model, inputs)[0][frozen]
                once += counter.get_total_flops()
            with FlopCounterMode(display=False) as counter:
                if state is None:
                    model(**inputs).logits.sum().backward()
                else:
                    with resumed(model, frozen, lambda state=state: state):
                        model(**inputs).logits.sum().backward()
            each += counter.get_total_flops()
        return once + EPOCHS * each


def main(examples: int) -> None:
    bench = Bench(examples)
    last = bench.encoder.n_layers
    print(f"{examples} examples, {EPOCHS} epochs, {torch.get_num_threads()} threads, {precision('cpu')}")
    bench.bare(), bench.adapted("head")  # imports and warm-up
    pairs = []
    for _ in range(5):
        bare = bench.bare()
        pairs.append((bare, bench.adapted("head").seconds))
    print(f"bare forward pass {median(b for b, _ in pairs):.1f} s, head {median(h for _, h in pairs):.1f} s")
    ratios = sorted(h / b for b, h in pairs)
    print(f"head / bare pass: {median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} (goal: at most 1.3)")

    turns = [(bench.adapted("full").seconds, bench.trainer(as_usual=False)) for _ in range(3)]
    full = median(ours for ours, _ in turns)
    plain = median(ours / theirs for ours, theirs in turns)
    usual = bench.trainer(as_usual=True)
    print(f"full {full:.1f} s; full / plain Trainer on equal batches: {plain:.2f} (goal: at most 1)")
    print(f"Trainer with its defaults {usual:.1f} s, / full: {usual / full:.2f} (goal: at least 2)")

    whole = bench.flops(None)
    print(f"{'method':8} {'seconds':>8} {'by FLOPs':>9} {'ratio':>6} {'accuracy':>9}")
    for k in range(1, last + 1):
        result, predicted = bench.adapted(f"top:{k}"), full * bench.flops(k) / whole
        ratio = result.seconds / predicted
        print(f"top:{k:<4} {result.seconds:8.1f} {predicted:9.1f} {ratio:6.2f} {result.after.accuracy:9.3f}")
    print("(goal: each ratio at most 1.3)")

    depths = expand_methods("depths", last)
    with tempfile.TemporaryDirectory() as folder:
        spent = bench.frozen_pass(depths, Path(folder))
        print(f"one pass that keeps the values that all depths need: {spent:.1f} s")
        for method in depths:
            result = bench.adapted(method.name, open_frozen(folder))
            spent += result.seconds - result.settings["frozen_seconds"]
    # The last depth is full, which has no frozen blocks.
    print(f"all depths: training {spent:.1f} s, / full alone: {spent / result.seconds:.2f} (goal: at most 5.5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000)
    main(parser.parse_args().examples)
