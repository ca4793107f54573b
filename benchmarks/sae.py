"""Dictionaries: training beside plain sae-lens on the same rows, layers in one pass or one by one, and reading latents.

    python benchmarks/sae.py                  # everything: about four minutes on two cores
    python benchmarks/sae.py --steps 100      # longer measurements
    python benchmarks/sae.py --only training  # or: selection, passes, reading

Rows are 384 wide, dictionaries have 1,536 latents of which 32 are active, batches 1,024 rows. Run it while nothing else
runs. Ratios are of rows per second within this one run; contestants take turns, so that a drift of the machine hits all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

os.environ["WANDB_MODE"] = "disabled"

import numpy as np
import torch
from layerprobe.sae._selection import LargestOfBatch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.training.sae_trainer import SAETrainer

from layerprobe import sae

D, D_SAE, K, BATCH, ROWS = 384, 1536, 32, 1024, 20_000
LAYERS, SIDES = 7, 2


def line(what: str, value: str) -> None:
    print(f"{what:58} {value}", flush=True)


def planted(n: int = ROWS, seed: int = 0) -> np.ndarray:
    """Rows of 40 out of 2,000 sparse directions with a mean and some noise, float32: about what a layer looks like."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((2000, D)).astype(np.float32) / D**0.5
    active = rng.integers(0, len(directions), (n, 40))
    weights = rng.exponential(1, (n, 40)).astype(np.float32)
    rows = np.einsum("nk,nkd->nd", weights[:, :1], directions[active[:, :1]])
    for j in range(1, 40):
        rows += weights[:, j, None] * directions[active[:, j]]
    return rows + rng.standard_normal((n, D)).astype(np.float32) * 0.05 + 0.1


def batches(rows: np.ndarray) -> Iterator[torch.Tensor]:
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            yield torch.from_numpy(rows[np.sort(order[start : start + BATCH])])


def plain(architecture: str, rows: np.ndarray, steps: int) -> None:
    """sae-lens as its documentation shows it."""
    about = {"d_in": D, "d_sae": D_SAE, "k": K, "normalize_activations": "expected_average_only_in"}
    configs = {
        "topk": lambda: TopKTrainingSAEConfig(**about),
        "batchtopk": lambda: BatchTopKTrainingSAEConfig(**about),
        "matryoshka_batchtopk": lambda: MatryoshkaBatchTopKTrainingSAEConfig(
            **about, matryoshka_widths=[D_SAE // 8, D_SAE // 4, D_SAE // 2, D_SAE]
        ),
    }
    settings = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=3e-3,
        lr_end=3e-4,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        n_batches_for_norm_estimate=1,
    )
    with contextlib.redirect_stderr(io.StringIO()):
        SAETrainer(settings, TrainingSAE.from_dict(configs[architecture]().to_dict()), batches(rows)).fit()


def ours(architecture: str, rows: np.ndarray, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sae.train(
            rows,
            folder,
            architecture=architecture,
            expansion=D_SAE / D,
            k=K,
            samples=steps * BATCH,
            batch_size=BATCH,
            learning_rate=3e-3,
            progress=False,
        )


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def selection(repeats: int = 9) -> None:
    """The activation function alone, forwards, on what a trained encoder gives and on noise."""
    for name, scale in {"noise": 1.0, "noise, few positive": 0.3}.items():
        x = torch.randn(BATCH, D_SAE, generator=torch.Generator().manual_seed(0)) + (scale - 1.0) * 3
        theirs, own = BatchTopK(K), LargestOfBatch(K)
        assert torch.equal(theirs(x), own(x))
        times = [(seconds(lambda: theirs(x)), seconds(lambda: own(x))) for _ in range(repeats)]  # noqa: B023
        slow, quick = (median(t) for t in zip(*times, strict=True))
        line(
            f"BatchTopK selection, {BATCH} x {D_SAE}, {name}",
            f"{1e3 * slow:7.1f} ms sae-lens, {1e3 * quick:6.1f} ms here   {slow / quick:.1f}x (goal 5)",
        )


def training(steps: int, repeats: int = 3) -> None:
    rows = planted()
    for architecture, goal in {"topk": 1.0, "batchtopk": 5.0, "matryoshka_batchtopk": None}.items():
        ours(architecture, rows, 3)
        times = [
            (seconds(lambda: plain(architecture, rows, steps)), seconds(lambda: ours(architecture, rows, steps)))  # noqa: B023
            for _ in range(repeats)
        ]
        slow, quick = (median(t) for t in zip(*times, strict=True))
        done = steps * BATCH
        line(
            f"{architecture}, {D} -> {D_SAE}, whole training of {steps} steps",
            f"{done / slow:8,.0f} rows/s SAETrainer, {done / quick:8,.0f} here   {slow / quick:.1f}x"
            + (f" (goal {goal:.1f})" if goal else ""),
        )


def passes(steps: int) -> None:
    """All layers of both sides in one pass against one by one, rows memory-mapped from disk."""
    names = [f"side {side} layer {layer}" for side in range(SIDES) for layer in range(LAYERS)]
    options = {"expansion": D_SAE / D, "k": K, "samples": steps * BATCH, "batch_size": BATCH, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for number, name in enumerate(names):
            np.save(Path(folder) / f"{number}.npy", planted(seed=number))
            rows[name] = np.load(Path(folder) / f"{number}.npy", mmap_mode="r")
        homes = {name: Path(folder) / f"one-{number}" for number, name in enumerate(names)}
        pass_homes = {name: Path(folder) / f"pass-{number}" for number, name in enumerate(names)}
        alone = seconds(lambda: [sae.train(rows[name], homes[name], **options) for name in names])
        together = seconds(lambda: sae.train_many(rows, pass_homes, **options))
        same = all(
            (homes[n] / "sae_weights.safetensors").read_bytes()
            == (pass_homes[n] / "sae_weights.safetensors").read_bytes()
            for n in names
        )
    line(
        f"{len(names)} dictionaries, {steps} steps each",
        f"{alone:6.1f} s one by one, {together:6.1f} s in one pass   {alone / together:.2f}x, "
        + ("equal weights" if same else "DIFFERENT weights"),
    )


def reading(n: int = 60_000) -> None:
    """Associations of a layer's latents on both sides, with their null, and the joint census, for seven layers.

    One layer is timed and counted seven times: layers have equal sizes, and nothing is kept between them.
    """
    import resource

    import pandas as pd

    base, rng = planted(n), np.random.default_rng(1)
    adapted = base + 0.3 * planted(n, seed=1)
    example = np.repeat(np.arange(n // 25), 25)
    words = np.array([f"word{i}" for i in range(3000)], dtype=object)
    tokens = pd.DataFrame(
        {
            "example": example,
            "token_index": np.tile(np.arange(25, dtype=np.int32), n // 25),
            "token": words[np.minimum(rng.zipf(1.3, n), 3000) - 1],
            "special": False,
        }
    )
    labels = rng.integers(0, 3, n // 25)
    with tempfile.TemporaryDirectory() as folder:
        dictionary = sae.train(base, Path(folder) / "d", expansion=D_SAE / D, k=K, samples=20 * BATCH, progress=False)
    joint = sae.crosscoder.train(base, adapted, d_sae=D_SAE, k=K, steps=20, progress=False)
    start = time.perf_counter()
    for rows in (base, adapted):
        codes = sae.sparse_codes(dictionary, rows, progress=False)
        table = sae.associations(dictionary, rows, tokens, labels, ["a", "b", "c"], codes=codes, progress=False)
        null = sae.label_null(codes, example, labels)
        sae.latent_shares(table, codes, example, null)
    middle = time.perf_counter()
    sae.census(joint, base, adapted)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line(f"associations of both sides of a layer, {n:,} rows", f"{middle - start:6.1f} s")
    line("census of the layer", f"{end - middle:6.1f} s")
    line(f"both, times {LAYERS} layers (goal: 60 s)", f"{LAYERS * (end - start):6.1f} s")
    line("peak memory of the process, training included (goal: 2 GB)", f"{peak / 1e9:6.2f} GB")


def main() -> None:
    measured = {
        "reading": lambda steps: reading(),
        "selection": lambda steps: selection(),
        "training": training,
        "passes": lambda steps: passes(max(5, steps // 2)),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", choices=measured)
    asked = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for name, measure in measured.items():
        if asked.only in (None, name):
            measure(asked.steps)


if __name__ == "__main__":
    main()
