"""Seconds and peak memory of each stage of the quickstart, each with a lower bound measured in the same run.

    python benchmarks/quickstart.py                    # everything: about twenty minutes on two cores
    python benchmarks/quickstart.py --markdown         # the same, as a table for the docs
    python benchmarks/quickstart.py --precision fp32   # as on a processor without bf16
    python benchmarks/quickstart.py --capture          # only capture against a bare forward pass

Run it while nothing else runs. The quickstart runs in a new artifact folder, is repeated in it, and runs with two jobs in another
one. A bound is the time of what a stage cannot do without (`BOUNDS`): bare forward passes over the same batches, or bare products
of matrices of the same sizes. AVX2 without bf16 is imitated by `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
MKL_ENABLE_INSTRUCTIONS=AVX2` and `--precision fp32`.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import psutil

TASK = re.compile(r"\[\d+/\d+\] (.+): ([\d.]+) s$")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS")
"""Variables that limit the instructions or the threads."""


class Watch:
    """Seconds, CPU seconds and peak memory of a command, with those of each task that it reports on stderr."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.tasks: list[tuple[str, float, float]] = []
        self.peak = self.recent = 0.0
        self.running = True
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        threading.Thread(target=self._sample, args=(psutil.Process(process.pid),), daemon=True).start()
        lines = []
        for line in process.stderr:
            lines.append(line)
            if task := TASK.match(line.strip()):
                self.tasks.append((task[1], float(task[2]), self.recent))
                self.recent = 0.0
        code = process.wait()
        self.running = False
        if code:
            raise SystemExit(f"{' '.join(command)} failed:\n{''.join(lines[-20:])}")
        self.seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def _sample(self, process: psutil.Process) -> None:
        while self.running:
            try:
                used = sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
            except psutil.Error:
                return
            self.recent, self.peak = max(self.recent, used), max(self.peak, used)
            time.sleep(0.05)


# Lower bounds ----------------------------------------------------------------------------------------------------------


class Machine:
    """The sizes of the quickstart, and the time of bare passes and products of these sizes on this machine."""

    def __init__(self, tasks: list[str], precision: str) -> None:
        from layerprobe import Study, sae
        from layerprobe.cli import analyses
        from layerprobe.resolve import resolve

        self.tasks = tasks
        self.context = resolve(Study.load(analyses() / "quickstart.toml"), "cpu", precision)
        resolved, self.study = self.context.resolved, self.context.study
        self.layers, self.L, self.d = resolved.sae_layers, resolved.n_layers, resolved.width
        self.tokens, self.rows = resolved.captured_tokens, self.study.sae.rows
        self.latents = sae.default_width(self.rows, self.d, self.study.sae.expansion)
        self.batch = sae.SaeConfig().batch_size
        self.steps = sae.training_steps(sae.SaeConfig(), self.rows)

    def count(self, stage: str, without: str = "\0") -> int:
        """Tasks of a stage that were computed, without those whose name contains a word."""
        return sum(name.partition(":")[0] == stage and without not in name for name in self.tasks)

    @cache  # noqa: B019  one machine lives as long as the benchmark
    def passes(self, part: str) -> float:
        """Seconds of a bare forward pass over texts: `train`, `test`, `shown` (those with tokens), `unseen` or `rerun`."""
        import torch

        from layerprobe.encoder import collate, length_sorted_batches, tokenize

        context, encoder = self.context, self.context.encoder
        test = context.corpus.test
        examples = {
            "train": lambda: context.corpus.train,
            "test": lambda: test,
            "shown": lambda: test.take(range(self.study.activations.examples)),
            "unseen": lambda: context.sae_examples,
            "rerun": lambda: context.rerun_examples,
        }[part]()
        encodings = tokenize(encoder, examples, self.study.data.max_length)
        batches = length_sorted_batches([len(e["input_ids"]) for e in encodings], 32)
        inputs = [collate(encoder, encodings, indices) for indices in batches]
        model = context.base_model()
        with torch.inference_mode():
            model(**inputs[-1])
            start = time.perf_counter()
            for one in inputs:
                model(**one)
            return time.perf_counter() - start

    @cache  # noqa: B019
    def training(self, sample: int = 24) -> float:
        """Seconds of forward and backward passes over all training batches, from a sample of random ones."""
        import numpy as np
        import torch

        from layerprobe.encoder import collate, tokenize

        context, size = self.context, self.study.adaptation.batch_size
        train, model = context.corpus.train, context.base_model().train()
        encodings = tokenize(context.encoder, train, self.study.data.max_length)
        order = np.random.default_rng(0).permutation(len(train))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=context.resolved.precision == "bf16")

        def step(indices: Any) -> None:
            inputs, labels = collate(context.encoder, encodings, indices), torch.from_numpy(train.labels[indices])
            with autocast:
                loss = model(**inputs, labels=labels).loss
            loss.backward()
            model.zero_grad()

        step(batches[0])
        start = time.perf_counter()
        for indices in batches[:sample]:
            step(indices)
        return (time.perf_counter() - start) * len(batches) / min(sample, len(batches))

    @cache  # noqa: B019
    def product(self, n: int, k: int, m: int, dtype: str = "float32") -> float:
        """Seconds of one product of an n x k and a k x m matrix."""
        import torch

        kind = getattr(torch, dtype)
        a, b = torch.randn(n, k, dtype=kind), torch.randn(k, m, dtype=kind)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            torch.matmul(a, b)
            seconds.append(time.perf_counter() - start)
        return median(seconds[1:])

    def scores(self, n: int) -> float:
        """Seconds of the product of n rows with the encoder of a dictionary."""
        return self.product(n, self.d, self.latents)

    def cross(self, n: int) -> float:
        """Seconds of the float64 cross product of two layers' n rows."""
        return self.product(self.d, n, self.d, "float64")

    def above(self, runs: int) -> float:
        """Passes that start at a dictionary's layer, as whole passes, over all layers with dictionaries."""
        return sum(runs * (self.L - layer) / self.L for layer in self.layers)


@dataclass(frozen=True)
class Bound:
    """What a stage cannot do without."""

    counted: str
    """What is counted; or why there is no bound."""
    seconds: Callable[[Machine], float] | None = None


BOUNDS: Mapping[str, Bound] = {
    "adapt": Bound(
        "forward and backward passes over the training texts in each epoch of `full`; two evaluations of each method on the test texts",
        lambda m: m.study.adaptation.epochs * m.training() + 2 * m.count("adapt") * m.passes("test"),
    ),
    "frozen": Bound("one pass over the training texts", lambda m: m.passes("train")),
    "capture": Bound("one pass over the test texts per model", lambda m: m.count("capture") * m.passes("test")),
    "capture-train": Bound("one pass over the training texts for base and for `full`", lambda m: 2 * m.passes("train")),
    "capture-sae": Bound("one pass over the unseen texts for base and for `full`", lambda m: 2 * m.passes("unseen")),
    "random-change": Bound(
        "one pass over the shown texts per random change",
        lambda m: m.study.similarity.random_changes * m.passes("shown"),
    ),
    "interventions": Bound(
        "the blocks that each case runs: L + 3 passes over the texts for repeated runs, and one for `head`",
        lambda m: (m.L + 4) * m.passes("rerun"),
    ),
    "transfer": Bound(
        "three passes over the same texts per layer, and the blocks above it for four variants of two classifiers",
        lambda m: (3 * len(m.layers) + m.above(8)) * m.passes("rerun"),
    ),
    "stability": Bound(
        "one pass over the same texts per layer, and the blocks above it for four variants",
        lambda m: (len(m.layers) + m.above(4)) * m.passes("rerun"),
    ),
    "sae": Bound(
        "2 batch d m: the dense product that scores the latents, per step of each trained dictionary; none of the sparse ones",
        lambda m: m.count("sae", without="untrained") * m.steps * m.scores(m.batch),
    ),
    "crosscoder": Bound(
        "4 batch d m: the dense product of both sides, per step, in each layer that changes; none of the sparse ones",
        lambda m: 2 * len(m.layers) * m.steps * m.scores(m.batch),
    ),
    "encode": Bound(
        "2 n d m per dictionary and side: the scores of n test tokens", lambda m: m.count("encode") * m.scores(m.tokens)
    ),
    "basis-controls": Bound(
        "2 n d m for each of 22 bases per layer (5 untrained; half as many directions in 3 random ones; dictionaries), n tokens "
        "and 4,096 training rows",
        lambda m: 22 * len(m.layers) * m.scores(m.tokens + 4096),
    ),
    "similarity": Bound(
        "2 n d^2 in float64 per pair of the layer grid of `full` and of `head`, and three per layer in three further sets of rows",
        lambda m: ((2 * m.L + 2) * (2 * m.L + 3) / 2 + (m.L + 1) * (m.L + 2) / 2 + 9 * (m.L + 1)) * m.cross(m.tokens),
    ),
    "nulls": Bound(
        "2 n d^2 in float64 per shuffle and layer",
        lambda m: m.study.similarity.shuffles * (m.L + 1) * m.cross(m.tokens),
    ),
    "aligned": Bound(
        "2 n d^2 in float64 for three cross products of the dictionary rows per layer",
        lambda m: 3 * len(m.layers) * m.cross(m.rows),
    ),
    "match": Bound("correlations of sparse activations and an assignment"),
    "geometry": Bound("eigenvalues and neighbours, not products"),
    "probes": Bound("the number of steps of L-BFGS follows from the data"),
    "weights": Bound("singular values of every weight matrix"),
    "latents": Bound("ranks and sorting, no products"),
    "associations": Bound("ranks and sorting, no products"),
    "label-variance": Bound("ranks and sorting, no products"),
}
"""What is counted for each stage, for L blocks of width d, dictionaries of m latents, and n rows."""
NO_BOUND = Bound("tables of other stages, no products")


def table(header: list[str], rows: list[list[str]], *, markdown: bool) -> str:
    """Rows of a table: the first column to the left, numbers to the right."""
    if markdown:
        lines = [header, ["---", *["---:"] * (len(header) - 2), "---"], *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 0 < i < len(line) - 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *rows)
    )


def machine_line(precision: str) -> str:
    """The processor, its instructions, limits that are set, and the precision of fine-tuning."""
    import torch

    from layerprobe.adaptation import precision as resolve_precision

    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    flags = next((set(line.split()) for line in text.splitlines() if line.startswith(("flags", "Features"))), set())
    known = ", ".join(flag for flag in FLAGS if flag in flags) or "unknown instructions"
    limits = " ".join(f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ)
    return (
        f"{os.cpu_count()} cores ({known}){f', limited by {limits}' if limits else ''}; torch uses "
        f"{torch.backends.cpu.get_cpu_capability()} on {torch.get_num_threads()} threads; fine-tuning in "
        f"{resolve_precision('cpu', precision)}."
    )


def quickstart(precision: str, *, markdown: bool) -> None:
    """The demo in an empty artifact folder with one job, again, with two jobs in another folder, then `--help`."""
    with tempfile.TemporaryDirectory() as folder:

        def demo(home: str, *options: str) -> Watch:
            env = {**os.environ, "LAYERPROBE_HOME": str(Path(folder) / home), "HF_HUB_OFFLINE": "1"}
            words = ["demo", "--out", str(Path(folder) / "run"), "--precision", precision, *options]
            return Watch([sys.executable, "-m", "layerprobe", *words], env)

        first = demo("one")
        second = demo("one")
        both = demo("two", "--jobs", "2")
    stages: dict[str, list[float]] = {}
    for name, seconds, peak in first.tasks:
        total = stages.setdefault(name.partition(":")[0], [0.0, 0.0, 0.0])
        total[0], total[1], total[2] = total[0] + 1, total[1] + seconds, max(total[2], peak)
    machine = Machine([name for name, _, _ in first.tasks], precision)
    rows = []
    for stage, (count, seconds, peak) in sorted(stages.items(), key=lambda item: -item[1][1]):
        bound = BOUNDS.get(stage, NO_BOUND)
        least = bound.seconds(machine) if bound.seconds else None
        numbers = ["–", "–"] if least is None else [f"{least:.1f}", f"{seconds / least:.1f}"]
        rows.append([stage, f"{count:.0f}", f"{seconds:.1f}", f"{peak / 1e9:.2f}", *numbers, bound.counted])
    print(machine_line(precision), end="\n\n")
    header = ["stage", "tasks", "seconds", "peak GB", "bound s", "ratio", "counted in the bound, or why there is none"]
    print(table(header, rows, markdown=markdown), end="\n\n")
    whole = [
        [name, f"{watch.seconds:.1f}", f"{watch.cpu:.1f}", f"{watch.peak / 1e9:.2f}", ""]
        for name, watch in (("whole quickstart", first), ("repeated", second), ("with two jobs", both))
    ]
    print(table(["run", "seconds", "CPU seconds", "peak GB", ""], whole, markdown=markdown), end="\n\n")
    print(f"one job on all cores / two jobs: {first.seconds / both.seconds:.2f}")
    runs = [Watch([sys.executable, "-m", "layerprobe", "--help"], dict(os.environ)).seconds for _ in range(5)]
    print(f"layerprobe --help: {median(runs):.2f} s")


def capture() -> None:
    """Capture of every layer against a bare forward pass over the same length-sorted batches, in turns."""
    import torch

    from layerprobe import load_corpus, load_encoder
    from layerprobe.activations import capture
    from layerprobe.encoder import collate, length_sorted_batches, tokenize

    encoder = load_encoder("bundled:minilm-l6")
    corpus = load_corpus("bundled:tweets")
    model = encoder.classifier(corpus.label_names, seed=0)

    def bare() -> float:
        start = time.perf_counter()
        encodings = tokenize(encoder, corpus.test, 128)
        with torch.inference_mode():
            for indices in length_sorted_batches([len(e["input_ids"]) for e in encodings], 32):
                model(**collate(encoder, encodings, indices))
        return time.perf_counter() - start

    def full() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            capture(model, encoder, corpus.test, Path(folder) / "rows")
            return time.perf_counter() - start

    bare(), full()
    pairs = [(bare(), full()) for _ in range(7)]
    print(f"bare forward pass {median(b for b, _ in pairs):.2f} s, capture {median(c for _, c in pairs):.2f} s")
    ratios = sorted(c / b for b, c in pairs)
    print(f"capture / bare: median {median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} (goal: 1.25)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capture", action="store_true", help="only capture against a bare forward pass")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of fine-tuning")
    options = parser.parse_args()
    if not options.capture:
        quickstart(options.precision, markdown=options.markdown)
    capture()
