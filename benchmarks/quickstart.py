"""Seconds and peak memory of each stage of the quickstart, and what capture costs beside a bare forward pass.

    python benchmarks/quickstart.py            # everything: about eight minutes on two cores
    python benchmarks/quickstart.py --capture  # only capture against a bare forward pass

Run it while nothing else runs. The run is made in a new, empty artifact folder, then repeated in it.
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

TASK = re.compile(r"\[\d+/\d+\] ([^:]+): (.+)")


class Watch:
    """A command's seconds and peak memory, split at the tasks that it names on stderr."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.spans: list[tuple[str, float, float]] = []
        self.peak = 0.0
        start = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        sampler = threading.Thread(target=self._sample, args=(psutil.Process(process.pid),), daemon=True)
        self.highest, self.running = 0.0, True
        sampler.start()
        name, began = "start: imports, data, model", start
        for line in process.stderr:
            found = TASK.search(line)
            if found:
                name, began = self._close(name, began, f"{found[1]}: {found[2].strip()}")
        self._close(name, began, "")
        self.code = process.wait()
        self.running = False
        self.seconds = time.perf_counter() - start

    def _close(self, name: str, began: float, following: str) -> tuple[str, float]:
        now = time.perf_counter()
        self.spans.append((name, now - began, self.highest))
        self.highest = 0.0
        return following, now

    def _sample(self, process: psutil.Process) -> None:
        while self.running:
            try:
                used = sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
            except psutil.Error:
                return
            self.highest, self.peak = max(self.highest, used), max(self.peak, used)
            time.sleep(0.05)


def quickstart() -> None:
    """The whole demo in an empty artifact folder, then again, then `--help`."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "LAYERPROBE_HOME": str(Path(folder) / "home"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "layerprobe", "demo", "--out", str(Path(folder) / "run")]
        first = Watch(command, env)
        print(f"{'task':44} {'seconds':>8} {'peak GB':>8}")
        for name, seconds, peak in first.spans:
            print(f"{name:44} {seconds:8.1f} {peak / 1e9:8.2f}")
        print(f"{'whole quickstart (goal: 300 s, 3 GB)':44} {first.seconds:8.1f} {first.peak / 1e9:8.2f}")
        second = Watch(command, env)
        print(f"{'repeated (goal: 10 s)':44} {second.seconds:8.1f} {second.peak / 1e9:8.2f}")
        assert first.code == second.code == 0, "the quickstart failed"
    runs = [Watch([sys.executable, "-m", "layerprobe", "--help"], dict(os.environ)).seconds for _ in range(5)]
    print(f"{'layerprobe --help (goal: 0.5 s)':44} {median(runs):8.2f}")


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
            capture(model, encoder, corpus.test, Path(folder) / "rows", progress=False)
            return time.perf_counter() - start

    bare(), full()
    pairs = [(bare(), full()) for _ in range(7)]
    print(f"bare forward pass {median(b for b, _ in pairs):.2f} s, capture {median(c for _, c in pairs):.2f} s")
    ratios = sorted(c / b for b, c in pairs)
    print(f"capture / bare: median {median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} (goal: 1.25)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capture", action="store_true", help="only capture against a bare forward pass")
    asked = parser.parse_args()
    if not asked.capture:
        quickstart()
    capture()
