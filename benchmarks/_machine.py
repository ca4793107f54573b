"""What a benchmark ran on, for the line above its table."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets that decide the speed of matrix products."""


def describe() -> dict[str, str]:
    """Processor, its instruction sets, cores, versions, and the load before the benchmark."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            flags.update(value.split())
    return {
        "processor": name,
        "instructions": " ".join(flag for flag in FLAGS if flag in flags) or "unknown",
        "cores": str(os.cpu_count()),
        "threads": os.environ.get("OMP_NUM_THREADS", "all cores"),
        "python": sys.version.split()[0],
        **{package: version(package) for package in ("torch", "transformers", "sae-lens", "layerprobe")},
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def line(machine: dict[str, str]) -> str:
    """The description on one line."""
    return ", ".join(f"{key} {value}" for key, value in machine.items())
