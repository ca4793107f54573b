"""Sparse autoencoders: training compared with plain sae-lens, crosscoders with dense gradients, and analysing latents.

    python benchmarks/sae.py                  # everything: about three minutes on two cores
    python benchmarks/sae.py --steps 100      # longer measurements
    python benchmarks/sae.py --only training  # or: steps, analysis, selection, crosscoder
    python benchmarks/sae.py --threads 1

Rows have 384 features, dictionaries 1,536 latents of which 32 are active, batches 1,024 rows. Run it while nothing else
runs. Ratios are of rows per second within one run, those of single steps of CPU time; the alternatives take turns, so that
load affects all alike. The bound of a step is the products of matrices that it needs, on their own: the encoder on all
latents, and over active latents the decoder, the gradient of the activations and those of both matrices.
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
from sae_lens import TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.training.sae_trainer import SAETrainer
from torch.nn.functional import embedding_bag

from layerprobe import sae
from layerprobe.sae import CrosscoderConfig, SaeConfig
from layerprobe.sae._config import plan
from layerprobe.sae._rows import measure
from layerprobe.sae._selection import largest_of_batch
from layerprobe.sae._sparse import Weights, by_latent
from layerprobe.sae._trainer import Trainer, initialise, trainer_settings
from layerprobe.sae.architectures import ARCHITECTURES

D, D_SAE, K, BATCH, ROWS = 384, 1536, 32, 1024, 20_000
LAYERS = 7


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
    config = ARCHITECTURES[architecture].build(d_in=D, d_sae=D_SAE, k=K, steps=steps).cfg
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
        SAETrainer(settings, TrainingSAE.from_dict(config.to_dict()), batches(rows)).fit()


def ours(architecture: str, rows: np.ndarray, steps: int) -> None:
    config = SaeConfig(architecture, D_SAE / D, K, samples=steps * BATCH, batch_size=BATCH, learning_rate=3e-3)
    with tempfile.TemporaryDirectory() as folder:
        sae.train(rows, folder, config)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def selection(repeats: int = 9) -> None:
    """The activation function alone, forwards, on what a trained encoder gives and on noise."""
    for name, scale in {"noise": 1.0, "noise, few positive": 0.3}.items():
        x = torch.randn(BATCH, D_SAE, generator=torch.Generator().manual_seed(0)) + (scale - 1.0) * 3
        theirs = BatchTopK(K)
        assert torch.equal(theirs(x).flatten().nonzero()[:, 0], largest_of_batch(x, K * BATCH))
        times = [
            (seconds(lambda: theirs(x)), seconds(lambda: largest_of_batch(x, K * BATCH)))  # noqa: B023
            for _ in range(repeats)
        ]
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


def bare_products(width: int) -> Callable[[], None]:
    """The products of a step on rows of this width, with K random active latents per row, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    x, errors = (torch.randn(BATCH, width, generator=generator) for _ in range(2))
    encoder = by_latent(torch.randn(width, D_SAE, generator=generator))
    decoder, bias = torch.randn(D_SAE, width, generator=generator), torch.zeros(D_SAE)
    latents = torch.rand(BATCH, D_SAE, generator=generator).topk(K).indices.sort(1).values.reshape(-1)
    by_row, rows = torch.arange(BATCH + 1) * K, torch.arange(BATCH).repeat_interleave(K)
    order = latents.argsort(stable=True)
    runs, codes = torch.searchsorted(latents[order], torch.arange(D_SAE)), torch.ones(len(latents))
    pattern = torch.sparse_csr_tensor(by_row, latents, codes, (BATCH, D_SAE), check_invariants=False)

    def products() -> None:
        torch.addmm(bias, x, encoder)
        embedding_bag(latents, decoder, by_row[:-1], mode="sum", per_sample_weights=codes)
        torch.sparse.sampled_addmm(pattern, errors, decoder.T, beta=0)
        for table in (x, errors):
            embedding_bag(rows[order], table, runs, mode="sum", per_sample_weights=codes)

    return products


def cpu_seconds(function: Callable[[], object], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - start) / times


def steps(repeats: int = 7, times: int = 5, first: int = 25) -> None:
    """CPU time of one training step, of sae-lens' own and of the products that it needs, in turns."""
    rows = planted()
    for architecture in ("topk", "batchtopk", "matryoshka_batchtopk"):
        total = first + repeats * times
        config = SaeConfig(architecture, D_SAE / D, K, samples=total * BATCH, batch_size=BATCH, learning_rate=3e-3)
        sizes, scale = plan(config, rows.shape), measure(rows)
        trainer = Trainer(sizes, initialise(sizes, scale), rows, scale)
        theirs = TrainingSAE.from_dict(trainer.sae.cfg.to_dict())
        reference = SAETrainer(cfg=trainer_settings(sizes), sae=theirs, data_provider=batches(rows))
        reference.activation_scaler.scaling_factor = scale.factor

        def step(reference: SAETrainer = reference) -> None:
            reference.step(next(reference.data_provider))
            reference.n_training_steps += 1

        for advance in (trainer.advance, step):
            cpu_seconds(advance, first)
        report(architecture, bare_products(D), trainer.advance, step, repeats, times)
    config = CrosscoderConfig(d_sae=D_SAE, k=K, steps=repeats * times)
    crosscoder_step = steps_of_a_crosscoder(rows, config)
    report("crosscoder", bare_products(2 * D), crosscoder_step, None, repeats, times)


def steps_of_a_crosscoder(rows: np.ndarray, config: CrosscoderConfig) -> Callable[[], None]:
    """A step as `sae.crosscoder.train` makes it, without dead latents."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((D_SAE, 2 * D), (D_SAE,), (D_SAE, 2 * D), (2 * D,))
    start = [torch.randn(shape, generator=generator).div(28) for shape in shapes]
    weights = Weights(*(weight.requires_grad_() for weight in (start[0].T, *start[1:])))
    optimizer = torch.optim.Adam(weights, lr=1e-3, fused=True)
    both, dead = np.concatenate([rows, rows], axis=1), torch.zeros(D_SAE, dtype=torch.bool)
    source = batches(both)

    def step() -> None:
        optimizer.zero_grad()
        sae.crosscoder.loss(weights, next(source), config, dead)[0].backward()
        optimizer.step()

    return step


def report(
    name: str,
    bound: Callable[[], None],
    here: Callable[[], None],
    theirs: Callable[[], None] | None,
    repeats: int,
    times: int,
) -> None:
    bound()
    taken = [[cpu_seconds(f, times) for f in (bound, here, theirs) if f is not None] for _ in range(repeats)]
    least, ours, *plain = (1e3 * median(t) for t in zip(*taken, strict=True))
    line(
        f"{name}, CPU time of a step",
        f"{least:6.1f} ms products alone, {ours:6.1f} here ({ours / least:.2f}x; goal 1.5)"
        + "".join(f", {t:6.1f} sae-lens ({t / least:.2f}x)" for t in plain),
    )


def crosscoder(repeats: int = 9) -> None:
    """One loss and its gradients, by sums over active latents and by dense automatic differentiation."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2 * D, D_SAE), (D_SAE,), (D_SAE, 2 * D), (2 * D,))
    weights = Weights(*(torch.randn(shape, generator=generator).div(28).requires_grad_() for shape in shapes))
    rows = torch.randn(BATCH, 2 * D, generator=generator)
    config, dead = CrosscoderConfig(k=K), torch.zeros(D_SAE, dtype=torch.bool)

    def sparse() -> None:
        sae.crosscoder.loss(weights, rows, config, dead)[0].backward()

    def dense() -> None:
        hidden = torch.addmm(weights.b_enc, rows, weights.w_enc)
        norms = weights.w_dec.view(D_SAE, 2, D).norm(dim=2).sum(1)
        chosen = largest_of_batch((hidden * norms).detach(), K * BATCH)
        kept = hidden.new_zeros(hidden.numel()).index_fill(0, chosen, 1.0).view_as(hidden)
        error = (hidden * kept) @ weights.w_dec + weights.b_dec - rows
        (error.square().sum() / BATCH).backward()

    gradients = []
    for step in (sparse, dense):
        for weight in weights:
            weight.grad = None
        step()
        gradients.append([weight.grad.clone() for weight in weights])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    times = [(seconds(dense), seconds(sparse)) for _ in range(repeats)]
    slow, quick = (median(t) for t in zip(*times, strict=True))
    line(
        f"crosscoder, loss and gradients, {BATCH} x 2 x {D}",
        f"{1e3 * slow:7.1f} ms dense, {1e3 * quick:6.1f} ms here   {slow / quick:.1f}x",
    )


def analysis(n: int = 60_000) -> None:
    """Associations of a layer's latents on both sides, with their null, and the joint census.

    One layer is timed and multiplied by seven: layers have equal sizes, and nothing is kept between them.
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
        config = SaeConfig(expansion=D_SAE / D, k=K, samples=20 * BATCH)
        dictionary = sae.train(base, Path(folder) / "d", config)
    config = CrosscoderConfig(d_sae=D_SAE, k=K, steps=20)
    joint = sae.crosscoder.train(base, adapted, config)
    start = time.perf_counter()
    for rows in (base, adapted):
        codes = sae.encode(dictionary, rows)
        table = sae.associations(codes, tokens, labels, ["a", "b", "c"])
        null = sae.label_null(codes, example, labels)
        sae.latent_shares(table, codes, example, null)
    middle = time.perf_counter()
    sae.census(joint, base, adapted, joint.encode(base, adapted))
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line(f"associations of both sides of a layer, {n:,} rows", f"{middle - start:6.1f} s")
    line("census of the layer", f"{end - middle:6.1f} s")
    line(f"both, times {LAYERS} layers (goal: 60 s)", f"{LAYERS * (end - start):6.1f} s")
    line("peak memory of the process, training included (goal: 2 GB)", f"{peak / 1e9:6.2f} GB")


def main() -> None:
    measured = {
        "steps": lambda count: steps(),
        "analysis": lambda count: analysis(),
        "selection": lambda count: selection(),
        "crosscoder": lambda count: crosscoder(),
        "training": training,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", choices=measured)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"python {sys.version.split()[0]}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        flush=True,
    )
    for name, run in measured.items():
        if options.only in (None, name):
            run(options.steps)


if __name__ == "__main__":
    main()
