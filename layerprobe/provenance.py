"""How a run came about: versions, commit, machine and time."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "layerprobe",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "datasketch",
    "sae-lens",
    "plotly",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Versions of the packages that a run's numbers depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def provenance(device: str) -> dict[str, Any]:
    commit, dirty = _git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
        "device": device,
        "precision": None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "seconds": None,
    }


@cache
def source_digest() -> str:
    """sha256 over the files of this package, templates and scripts included."""
    folder, total = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            total.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from and whether it was changed; None for an installed wheel."""
    source = Path(__file__).resolve().parent
    if not (source.parent / ".git").exists():
        return None, None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", source, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
