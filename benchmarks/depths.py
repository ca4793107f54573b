"""What adapting at each depth costs beside a bare forward pass, the plain Trainer, and what its FLOPs predict.

    python benchmarks/depths.py                    # 2,000 tweets, 2 epochs: about a quarter of an hour on two cores
    python benchmarks/depths.py --texts 400        # a quick look

Run it while nothing else runs. All ratios are of times measured in this one run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainingArguments

from layerprobe import load_corpus, load_encoder
from layerprobe.adaptation import adapt, cached_layers, expand_methods, parse_method, precision
from layerprobe.adaptation._frozen import frozen_values
from layerprobe.encoder import collate, length_sorted_batches, tokenize
from layerprobe.layers import forward, resumed, skipping

EPOCHS, BATCH, RATE, LENGTH = 2, 16, 5e-5, 128


class Bench:
    """One encoder and one corpus, and the seconds of what is done with them."""

    def __init__(self, texts: int) -> None:
        self.encoder = load_encoder("bundled:minilm-l6")
        self.corpus = load_corpus("bundled:tweets", train=texts, test=200)
        self.encodings = tokenize(self.encoder, self.corpus.train, LENGTH)

    def model(self) -> Any:
        return self.encoder.classifier(self.corpus.label_names, seed=0)

    def adapted(self, method: str, cache: Path | None = None) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return adapt(
                self.encoder,
                self.corpus.train,
                self.corpus.test,
                self.corpus.label_names,
                folder,
                method=parse_method(method),
                seed=0,
                epochs=EPOCHS,
                batch_size=BATCH,
                learning_rate=RATE,
                cache=cache,
                progress=False,
            )

    def bare(self) -> float:
        """A forward pass over the training texts in float32, in batches of like length."""
        model = self.model()
        start = time.perf_counter()
        with torch.inference_mode():
            for indices in length_sorted_batches([len(e["input_ids"]) for e in self.encodings], 32):
                model(**collate(self.encoder, self.encodings, indices))
        return time.perf_counter() - start

    def frozen_pass(self, methods: Any, cache: Path) -> float:
        """One pass that keeps all that these methods need."""
        layers = cached_layers(methods, self.encoder.n_layers)
        options: dict[str, Any] = {"max_length": LENGTH, "device": "cpu", "progress": False}
        model = self.model()
        start = time.perf_counter()
        frozen_values(model, self.encoder, self.corpus.train, self.encodings, layers, cache, **options)
        return time.perf_counter() - start

    def trainer(self, *, as_people_do: bool) -> float:
        """The Trainer on the whole model: on our length-grouped batches, or padded to 128 in random order in float32."""
        rows = [{**e, "labels": int(y)} for e, y in zip(self.encodings, self.corpus.train.labels, strict=True)]
        if as_people_do:
            pad = self.encoder.tokenizer.pad_token_id
            for row in rows:
                for key, fill in (("input_ids", pad), ("attention_mask", 0), ("token_type_ids", 0)):
                    row[key] = row[key] + [fill] * (LENGTH - len(row[key]))
                row.pop("special_tokens_mask", None)

        def collated(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            labels = torch.tensor([row["labels"] for row in batch])
            if as_people_do:
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
            if not as_people_do:
                arguments |= {"train_sampling_strategy": "group_by_length", "bf16": precision("cpu") == "bf16"}
            model = self.model().train()
            start = time.perf_counter()
            trainer = Trainer(
                model=model,
                args=TrainingArguments(output_dir=folder, per_device_train_batch_size=BATCH, **arguments),
                train_dataset=rows,  # type: ignore[arg-type]
                data_collator=collated,
            )
            trainer.train()
            return time.perf_counter() - start

    def flops(self, k: int | None) -> float:
        """FLOPs of training the top k blocks (None: everything), counted on every tenth batch of like length."""
        model = self.model()
        model.set_attn_implementation("eager")  # the counter sees nothing of fused attention on a CPU
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
                    FlopCounterMode(display=False) as seen,
                ):
                    state = forward(model, inputs)[0][frozen]
                once += seen.get_total_flops()
            with FlopCounterMode(display=False) as seen:
                if state is None:
                    model(**inputs).logits.sum().backward()
                else:
                    with resumed(model, frozen, lambda state=state: state):
                        model(**inputs).logits.sum().backward()
            each += seen.get_total_flops()
        return once + EPOCHS * each


def main(texts: int) -> None:
    bench = Bench(texts)
    last = bench.encoder.n_layers
    print(f"{texts} texts, {EPOCHS} epochs, {torch.get_num_threads()} threads, {precision('cpu')}")
    bench.bare(), bench.adapted("head")  # imports, and the first touch of everything
    pairs = []
    for _ in range(5):
        bare = bench.bare()
        pairs.append((bare, bench.adapted("head").seconds))
    print(f"bare forward pass {median(b for b, _ in pairs):.1f} s, head {median(h for _, h in pairs):.1f} s")
    ratios = sorted(h / b for b, h in pairs)
    print(f"head / bare pass: {median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} (goal: at most 1.3)")

    turns = [(bench.adapted("full").seconds, bench.trainer(as_people_do=False)) for _ in range(3)]
    full = median(ours for ours, _ in turns)
    plain = median(ours / theirs for ours, theirs in turns)
    usual = bench.trainer(as_people_do=True)
    print(f"full {full:.1f} s; full / plain Trainer on equal batches: {plain:.2f} (goal: at most 1)")
    print(f"Trainer as people use it {usual:.1f} s, / full: {usual / full:.2f} (goal: at least 2)")

    whole = bench.flops(None)
    print(f"{'method':8} {'seconds':>8} {'by FLOPs':>9} {'ratio':>6} {'accuracy':>9}")
    for k in range(1, last + 1):
        found, predicted = bench.adapted(f"top:{k}"), full * bench.flops(k) / whole
        ratio = found.seconds / predicted
        print(f"top:{k:<4} {found.seconds:8.1f} {predicted:9.1f} {ratio:6.2f} {found.after.accuracy:9.3f}")
    print("(goal: each ratio at most 1.3)")

    depths = expand_methods("depths", last)
    with tempfile.TemporaryDirectory() as folder:
        spent = bench.frozen_pass(depths, Path(folder))
        print(f"one pass that keeps what all depths need: {spent:.1f} s")
        for method in depths:
            result = bench.adapted(method.name, Path(folder))
            spent += result.seconds - result.settings["frozen_seconds"]
            if method.kind == "full":
                alone = result.seconds
    print(f"all depths: training {spent:.1f} s, / full alone: {spent / alone:.2f} (goal: at most 5.5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000)
    main(parser.parse_args().texts)
