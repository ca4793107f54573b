"""What several stages read from and write to artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.store import Artifact

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.activations import ActivationStore
    from layerprobe.sae import Dictionary


def save(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Write one table of an artifact."""
    (folder / "tables").mkdir(exist_ok=True)
    table.to_parquet(folder / "tables" / f"{name}.parquet", index=False)


def save_left_out(
    folder: Path, name: str, left_out: Iterable[Any], columns: list[str], named: Mapping[str, Any]
) -> None:
    """Write what could not be measured, and why, as a table; none if everything could."""
    import pandas as pd

    if rows := list(left_out):
        save(folder, f"{name}_left_out", pd.DataFrame(rows, columns=columns).assign(**named))


def rows_of(capture: Artifact) -> ActivationStore:
    """The activations of a capture."""
    from layerprobe.activations import ActivationStore

    return ActivationStore.open(capture.folder / "rows")


def paired_rows(parents: Mapping[str, Artifact], base: str = "base", adapted: str = "adapted") -> tuple[Any, Any]:
    """Two captures, checked to hold the same rows of the same examples."""
    from layerprobe.activations import check_paired

    stores = rows_of(parents[base]), rows_of(parents[adapted])
    check_paired(*stores)
    return stores


def dictionary_of(sae: Artifact, device: str = "cpu") -> Dictionary:
    """A trained dictionary."""
    from layerprobe import sae as library

    return library.load(sae.folder / "dictionary", device=device)
