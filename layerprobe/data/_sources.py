"""Where labelled rows come from: what is bundled, a local file, or the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.data._files import READERS, read_file
from layerprobe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.6
"""Share of annotators' trust from which a bundled tweet's label is kept."""

Columns = str | tuple[str, str] | None


@dataclass(frozen=True)
class Rows:
    """A source's rows, before any of them is looked at."""

    frame: pd.DataFrame
    texts: tuple[str, ...]
    """Columns of the text: one, or two for pairs."""
    label: str
    """Column of the label."""
    is_test: np.ndarray | None = None
    """Which rows are the source's own test split, where it has one."""
    commit: str | None = None
    notes: tuple[str, ...] = ()


def read_rows(source: str, text: Columns, label: str | None, config: str | None, revision: str | None) -> Rows:
    """Rows of a source.

    Raises:
        DataError: if it cannot be found or read.
    """
    texts = (text,) if isinstance(text, str) else text
    if source.startswith("bundled:"):
        frame, notes, own = _bundled(source.removeprefix("bundled:"))
        return Rows(frame, texts or own[:1], label or own[1], notes=notes)
    texts, label = texts or ("text",), label or "label"
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"The data source {source} is a folder; name a CSV, TSV, JSONL or Parquet file.")
    if path.is_file():
        return Rows(read_file(path, source), texts, label)
    if path.suffix.lower() in (*READERS, ".txt") or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise DataError(f"There is no data file {source}; check the path (it is relative to the study's folder).")
    frame, is_test, commit = _hub(source, label, config, revision)
    return Rows(frame, texts, label, is_test, commit)


def _bundled(name: str) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, str]]:
    import pandas as pd

    from layerprobe.bundled import data_files

    files = data_files(name)
    if name == "tweets":
        frame = pd.read_csv(files[0], encoding="latin-1", dtype=str, keep_default_na=False)
        trusted = pd.to_numeric(frame["confidence"], errors="coerce") >= CONFIDENCE
        note = f"{(~trusted).sum():,} tweets whose label has a confidence below {CONFIDENCE} or none were left out."
        return frame[trusted].reset_index(drop=True), (note,), ("text", "sentiment")
    # One article is not UTF-8; latin-1 reads any byte, so nothing is lost.
    rows = [(path.parent.name, _decode(path.read_bytes())) for path in files]
    return pd.DataFrame(rows, columns=["topic", "text"]), (), ("text", "topic")


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _hub(
    source: str, label: str, config: str | None, revision: str | None
) -> tuple[pd.DataFrame, np.ndarray | None, str | None]:
    import pandas as pd

    offline = os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True")
    way = (
        "the Hub was not asked, since HF_HUB_OFFLINE is set"
        if offline
        else "the Hub does not have it or is out of reach"
    )
    unreachable = DataError(
        f"The data source {source!r} is no file here, and {way}; check the id and the network, or give a local file."
    )
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    commit = None
    if not offline:
        try:  # one short question first: the loader itself would retry for minutes
            commit = HfApi().dataset_info(source, revision=revision, timeout=10).sha
        except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
            raise unreachable from error
    try:
        splits = datasets.load_dataset(source, config, revision=commit or revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise (
            unreachable
            if offline
            else DataError(f"The Hub data set {source!r} cannot be loaded ({' '.join(str(error).split())[:200]}).")
        ) from error
    # Benchmarks keep the labels of their test split to themselves (-1): then the validation split is the test.
    labelled = [name for name, split in splits.items() if label in split.column_names and _any_label(split, label)]
    test = next((name for name in ("test", "validation") if name in labelled), None)
    frames, is_test = [], []
    for name, split in splits.items():
        if name == "validation" and test == "test":
            continue
        named = {
            column: feature for column, feature in split.features.items() if isinstance(feature, datasets.ClassLabel)
        }
        frame = split.to_pandas().astype(object)
        for column, feature in named.items():
            frame[column] = [feature.int2str(int(v)) if v is not None and v >= 0 else -1 for v in frame[column]]
        frames.append(frame)
        is_test.append(np.full(len(frame), name == test))
    return pd.concat(frames, ignore_index=True), np.concatenate(is_test) if test else None, commit


def _any_label(split: Any, label: str) -> bool:
    return any(value is not None and value != -1 for value in split[label])
