"""Where labelled rows come from: a bundled set, a local file or folder, or the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layerprobe import hub
from layerprobe.data._cells import check_columns, missing_column
from layerprobe.data._files import read_file
from layerprobe.errors import DataError, quoted
from layerprobe.files import given_path

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.6
"""Lowest confidence of the annotators at which the label of a bundled tweet is kept."""


@dataclass(frozen=True)
class DataSource:
    """A table of labelled examples, and its columns."""

    name: str
    """`bundled:tweets`, `bundled:bbc-news`, `bundled:icd10`, a CSV, TSV, JSONL or Parquet file, a folder that `save_to_disk`
    of `datasets` wrote, or a `datasets` Hub id."""
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
    test_source: str | None = None
    """A second source of the same columns, whose examples are the test split. A test split of the first one is not used."""
    split_column: str | None = None
    """Column that assigns each row to the training, validation or test split, in place of splits that the source has."""
    group_column: str | None = None
    """Column whose equal values mark examples that stay in one part of the split, such as those of one author."""
    on_missing: Literal["error", "drop"] = "error"
    """Whether a row without text, label or group is an error, or is left out."""


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
    """Column of the coarser label, if there is one."""


def read_rows(source: DataSource) -> Rows:
    """Rows of a source.

    Raises:
        DataError: if it does not exist or cannot be read.
    """
    rows = _read(source)
    if source.split_column is not None:
        rows = split_by_column(rows, source.split_column, source.name)
    return rows if source.test_source is None else _with_test_source(rows, source)


def _read(source: DataSource) -> Rows:
    name = source.name
    if name.startswith("bundled:"):
        return _read_bundled(source, name.removeprefix("bundled:"))
    path = given_path(name)
    if path.is_dir():
        return _read_saved(source, path)
    if path.is_file():
        return Rows(read_file(path, name), *_columns(source), group=source.group)
    if not hub.is_hub_id(name):
        raise DataError(f"There is no data file {hub.described(name)}; check the path.")
    return _read_hub(source)


def _with_test_source(rows: Rows, source: DataSource) -> Rows:
    """Rows of the source and, as its test split, those of its test source."""
    import pandas as pd

    assert source.test_source is not None
    try:
        other = _read(replace(source, name=source.test_source, revision=None))
    except DataError as error:
        raise DataError(f"{{test_source}}: {error}", "test_source") from error
    notes, frame = [*rows.notes, *other.notes], rows.frame
    if rows.is_test is not None and rows.is_test.any():
        notes.append(
            f"The {int(rows.is_test.sum()):,} examples of the test split of {source.name} were left out: the test examples "
            f"are those of {source.test_source}."
        )
        frame = frame[~rows.is_test]
    tested = other.frame if other.is_test is None or not other.is_test.any() else other.frame[other.is_test]
    columns = [*rows.texts, rows.label, *(name for name in (rows.group, source.group_column) if name)]
    check_columns(tested, source.test_source, rows.texts, rows.label, rows.group, source.group_column)
    check_columns(frame, source.name, rows.texts, rows.label, rows.group, source.group_column)
    columns = list(dict.fromkeys(columns))
    return replace(
        rows,
        frame=pd.concat([frame[columns], tested[columns]], ignore_index=True),
        is_test=np.repeat([False, True], [len(frame), len(tested)]),
        notes=tuple(notes),
    )


SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Values of a split column, in lower case, and the splits that they stand for."""


def split_by_column(rows: Rows, column: str, source: str) -> Rows:
    """Rows with their test split marked by a column; the validation split is left out, or tested on if there is no test split.

    Raises:
        DataError: if there is no such column, a value is unknown, or one of the splits is missing.
    """
    if column not in rows.frame.columns:
        raise missing_column(rows.frame, source, "split_column", column)
    values = [str(value).strip().lower() for value in rows.frame[column]]
    for number, value in enumerate(values, 1):
        if value not in SPLITS:
            raise DataError(
                f"{{split_column}}: column {column!r} of {source} has {quoted(rows.frame[column].iloc[number - 1])} in row {number}; "
                "it is train, validation or test in every row.",
                "split_column",
            )
    splits = np.array([SPLITS[value] for value in values])
    test = "test" if (splits == "test").any() else "validation"
    for name, needed in (("train", "to train on"), (test, "to test on")):
        if not (splits == name).any():
            raise DataError(
                f"{{split_column}}: no row of {source} is {name} in column {column!r}; there must be rows {needed}.",
                "split_column",
            )
    kept = (splits == "train") | (splits == test)
    return replace(rows, frame=rows.frame[kept].reset_index(drop=True), is_test=splits[kept] == test)


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
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    commit, offline = None, hub.is_offline()
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
    return rows_of_splits(splits, source, commit)


def _read_saved(source: DataSource, folder: Path) -> Rows:
    """Rows of a folder that `save_to_disk` wrote."""
    name = source.name
    if not any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
        raise DataError(
            f"The data source {name} is a folder that `save_to_disk` of `datasets` did not write; give such a folder, or a "
            "CSV, TSV, JSONL or Parquet file."
        )
    import datasets
    import pyarrow as pa

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"The data set in {name} cannot be loaded ({reason}); save it again with save_to_disk."
        ) from error
    return rows_of_splits(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, source, None)


def rows_of_splits(splits: Mapping[str, Any], source: DataSource, commit: str | None) -> Rows:
    """Rows of the splits of a `datasets.DatasetDict`, classes by their names.

    The test split is `test`, else `validation`, if its rows have labels. Classes without a label (-1) stay -1.
    """
    import datasets
    import pandas as pd

    texts, label = _columns(source)
    # Benchmarks publish their test split without labels (-1): then the validation split takes its place.
    labelled = [name for name, split in splits.items() if label in split.column_names and _any_label(split, label)]
    test = next((name for name in ("test", "validation") if name in labelled), None)
    frames, is_test = [], []
    for name, split in splits.items():
        if name == "validation" and test == "test":
            continue
        frame = split.with_format(None).to_pandas().astype(object)
        for column, feature in split.features.items():
            if isinstance(feature, datasets.ClassLabel):
                frame[column] = [feature.int2str(int(v)) if v is not None and v >= 0 else -1 for v in frame[column]]
        frames.append(frame)
        is_test.append(np.full(len(frame), name == test))
    in_test = np.concatenate(is_test) if test else None
    return Rows(pd.concat(frames, ignore_index=True), texts, label, in_test, commit, group=source.group)


def _any_label(split: Any, label: str) -> bool:
    return any(value is not None and value != -1 for value in split[label])
