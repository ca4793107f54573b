"""Seconds and peak memory of each stage of the quickstart, and the cost of capture relative to a bare forward pass.

    python benchmarks/quickstart.py            # everything: about twenty minutes on two cores
    python benchmarks/quickstart.py --capture  # only capture against a bare forward pass

Run it while nothing else runs. The quickstart runs in a new artifact folder, is repeated in it, and runs with two jobs in another one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import psutil

TASK = re.compile(r"\[\d+/\d+\] (.+): ([\d.]+) s$")


class Watch:
    """Seconds and peak memory of a command, with the seconds and the peak of each task that it reports on stderr."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.tasks: list[tuple[str, float, float]] = []
        self.peak = self.recent = 0.0
        self.running = True
        start = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        threading.Thread(target=self._sample, args=(psutil.Process(process.pid),), daemon=True).start()
        for line in process.stderr:
            if task := TASK.match(line.strip()):
                self.tasks.append((task[1], float(task[2]), self.recent))
                self.recent = 0.0
        self.code = process.wait()
        self.running = False
        self.seconds = time.perf_counter() - start

    def _sample(self, process: psutil.Process) -> None:
        while self.running:
            try:
                used = sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
            except psutil.Error:
                return
            self.recent, self.peak = max(self.recent, used), max(self.peak, used)
            time.sleep(0.05)


def quickstart() -> None:
    """The demo in an empty artifact folder with one job, again, with two jobs in another folder, then `--help`."""
    with tempfile.TemporaryDirectory() as folder:

        def demo(home: str, *options: str) -> Watch:
            env = {**os.environ, "LAYERPROBE_HOME": str(Path(folder) / home), "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-m", "layerprobe", "demo", "--out", str(Path(folder) / "run"), *options]
            watch = Watch(command, env)
            assert watch.code == 0, "the quickstart failed"
            return watch

        first = demo("one")
        stages: dict[str, list[float]] = {}
        for name, seconds, peak in first.tasks:
            total = stages.setdefault(name.partition(":")[0], [0.0, 0.0, 0.0])
            total[0], total[1], total[2] = total[0] + 1, total[1] + seconds, max(total[2], peak)
        print(f"{'stage':24} {'tasks':>6} {'seconds':>8} {'peak GB':>8}")
        for stage, (count, seconds, peak) in sorted(stages.items(), key=lambda item: -item[1][1]):
            print(f"{stage:24} {count:6.0f} {seconds:8.1f} {peak / 1e9:8.2f}")
        print(f"{'whole quickstart':31} {first.seconds:8.1f} {first.peak / 1e9:8.2f}")
        second = demo("one")
        print(f"{'repeated':31} {second.seconds:8.1f} {second.peak / 1e9:8.2f}")
        both = demo("two", "--jobs", "2")
        print(f"{'with two jobs':31} {both.seconds:8.1f} {both.peak / 1e9:8.2f}")
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
    options = parser.parse_args()
    if not options.capture:
        quickstart()
    capture()
