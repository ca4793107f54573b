"""Where labelled rows come from: a bundled set, a local file, or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe import hub
from layerprobe.data._files import read_file
from layerprobe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.6
"""Lowest confidence of the annotators at which the label of a bundled tweet is kept."""


@dataclass(frozen=True)
class DataSource:
    """A table of labelled examples, and its columns."""

    name: str
    """`bundled:tweets`, `bundled:bbc-news`, `bundled:icd10`, a CSV, TSV, JSONL or Parquet file, or a `datasets` Hub id."""
    text: str | tuple[str, str] | None = None
    """Column of the text, or two columns for pairs; by default that of the bundled set, else `text`."""
    label: str | None = None
    """Column of the label; by default that of the bundled set, else `label`."""
    config: str | None = None
    """Configuration of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    group: str | None = None
    """Column of the group, a coarser label, for few-shot tasks; by default that of the bundled set, else none."""


@dataclass(frozen=True)
class Rows:
    """The rows of a source, as they were read."""

    frame: pd.DataFrame
    texts: tuple[str, ...]
    """Columns of the text: one, or two for pairs."""
    label: str
    """Column of the label."""
    is_test: np.ndarray | None = None
    """Which rows are in the test split of the source, if it has one."""
    commit: str | None = None
    notes: tuple[str, ...] = ()
    group: str | None = None
    """Column of the group, if there is one."""


def read_rows(source: DataSource) -> Rows:
    """Rows of a source.

    Raises:
        DataError: if it does not exist or cannot be read.
    """
    name = source.name
    if name.startswith("bundled:"):
        return _read_bundled(source, name.removeprefix("bundled:"))
    path = Path(name).expanduser()
    if path.is_dir():
        raise DataError(f"The data source {name} is a folder; give a CSV, TSV, JSONL or Parquet file.")
    if path.is_file():
        return Rows(read_file(path, name), *_columns(source), group=source.group)
    if not hub.is_hub_id(name):
        raise DataError(f"There is no data file {name}; check the path.")
    return _read_hub(source)


def _columns(source: DataSource, text: str = "text", label: str = "label") -> tuple[tuple[str, ...], str]:
    """Columns of the text and of the label, with these defaults."""
    texts = source.text or text
    return (texts,) if isinstance(texts, str) else texts, source.label or label


def _read_bundled(source: DataSource, name: str) -> Rows:
    import pandas as pd

    from layerprobe.bundled import data_files

    files = data_files(name)
    if name == "tweets":
        frame = pd.read_csv(files[0], encoding="latin-1", dtype=str, keep_default_na=False)
        trusted = pd.to_numeric(frame["confidence"], errors="coerce") >= CONFIDENCE
        note = f"{(~trusted).sum():,} tweets were left out because the confidence in their label is below {CONFIDENCE} or missing."
        return Rows(
            frame[trusted].reset_index(drop=True),
            *_columns(source, label="sentiment"),
            notes=(note,),
            group=source.group,
        )
    if name == "icd10":
        return _read_icd10(source, files[0])
    rows = [(path.parent.name, _decode(path.read_bytes())) for path in files]
    return Rows(pd.DataFrame(rows, columns=["topic", "text"]), *_columns(source, label="topic"), group=source.group)


def _read_icd10(source: DataSource, path: Path) -> Rows:
    """Descriptions and inclusion terms of ICD-10-CM, with their section and chapter."""
    from xml.etree import ElementTree  # the file's checksum has been verified

    import pandas as pd

    rows = [
        (term.text, section.findtext("desc"), chapter.findtext("desc"))
        for chapter in ElementTree.parse(path).getroot().iter("chapter")
        for section in chapter.iter("section")
        for diagnosis in section.iter("diag")
        for term in (diagnosis.find("desc"), *diagnosis.findall("inclusionTerm/note"))
        if term is not None
    ]
    frame = pd.DataFrame(rows, columns=["text", "section", "chapter"])
    return Rows(frame, *_columns(source, label="section"), group=source.group or "chapter")


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:  # one article; latin-1 decodes any byte
        return content.decode("latin-1")


def _read_hub(source: DataSource) -> Rows:
    import datasets
    import pandas as pd
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    commit, offline, (texts, label) = None, hub.is_offline(), _columns(source)
    unreachable = DataError(hub.unreachable("data file", source.name))
    if not offline:
        try:  # one short request first: the loader would retry for minutes
            commit = HfApi().dataset_info(source.name, revision=source.revision, timeout=10).sha
        except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
            raise unreachable from error
    try:
        splits = datasets.load_dataset(source.name, source.config, revision=commit or source.revision)
    except (OSError, ValueError, RuntimeError) as error:
        if offline:
            raise unreachable from error
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"The Hub data set {source.name!r} cannot be loaded ({reason}).") from error
    # Benchmarks publish their test split without labels (-1): then the validation split takes its place.
    labelled = [name for name, split in splits.items() if label in split.column_names and _any_label(split, label)]
    test = next((name for name in ("test", "validation") if name in labelled), None)
    frames, is_test = [], []
    for name, split in splits.items():
        if name == "validation" and test == "test":
            continue
        frame = split.to_pandas().astype(object)
        for column, feature in split.features.items():
            if isinstance(feature, datasets.ClassLabel):
                frame[column] = [feature.int2str(int(v)) if v is not None and v >= 0 else -1 for v in frame[column]]
        frames.append(frame)
        is_test.append(np.full(len(frame), name == test))
    in_test = np.concatenate(is_test) if test else None
    return Rows(pd.concat(frames, ignore_index=True), texts, label, in_test, commit, group=source.group)


def _any_label(split: Any, label: str) -> bool:
    return any(value is not None and value != -1 for value in split[label])
