"""Work in a process of its own, with its seconds and its peak memory, apart from those of imports and preparation."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

MARK = "RESULT "


class Watch:
    """Seconds, CPU seconds and peak resident memory of the work in a `with` block.

    Memory is sampled every 10 ms and, where the system keeps it, taken from the highest value since the block began, of
    this process and its children. Pages of memory-mapped files that are resident count.
    """

    def __enter__(self) -> Watch:
        self._process, self._running = psutil.Process(), True
        self.before = self.peak = self._process.memory_info().rss
        _reset_high_water()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        self._times = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._times[0]
        self._running = False
        self._thread.join()
        self.cpu_seconds = _cpu_seconds() - self._times[1]
        self.peak = max(self.peak, _high_water())

    def _sample(self) -> None:
        while self._running:
            try:
                family = [self._process, *self._process.children(recursive=True)]
                self.peak = max(self.peak, sum(one.memory_info().rss for one in family))
            except psutil.Error:  # a child ended meanwhile
                pass
            time.sleep(0.01)

    @property
    def measured(self) -> dict[str, float]:
        """Seconds, CPU seconds (with those of ended children), and bytes: before the work, and at the peak."""
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "before_bytes": self.before,
            "peak_bytes": self.peak,
        }


def report(**values: Any) -> None:
    """Hand results from a child to `run`."""
    print(MARK + json.dumps(values), flush=True)


def run(script: str | Path, arguments: Sequence[object], **environment: str) -> dict[str, Any]:
    """Run a script in a new process and return what it reported; its output is shown if it fails."""
    command = [sys.executable, str(script), *map(str, arguments)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    done = subprocess.run(command, env={**env, **environment}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return json.loads(lines[-1].removeprefix(MARK))


def _cpu_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def _reset_high_water() -> None:
    with contextlib.suppress(OSError):  # another system, or not permitted: samples alone
        Path("/proc/self/clear_refs").write_text("5")


def _high_water() -> int:
    status = Path("/proc/self/status")
    if not status.is_file() or not os.access("/proc/self/clear_refs", os.W_OK):
        return 0
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
