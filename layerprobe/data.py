"""Labelled texts with stable ids, split once so that nothing in the test set was trained on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_TRAIN, DEFAULT_TEST = 2000, 500
CONFIDENCE = 0.6
"""Share of annotators' trust from which a bundled tweet's label is kept."""

Columns = str | tuple[str, str] | None


@dataclass(frozen=True)
class Examples:
    """Labelled texts in a fixed order."""

    ids: tuple[str, ...]
    """Stable ids: the first 16 hex digits of the sha256 of the text, or of both texts of a pair."""
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """Second text of each example, where the task is about pairs."""
    labels: np.ndarray
    """int64, one class number an example."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | range | np.ndarray) -> Examples:
        """The examples at these positions, in this order."""
        chosen = [int(i) for i in indices]
        return Examples(
            tuple(self.ids[i] for i in chosen),
            tuple(self.texts[i] for i in chosen),
            None if self.pairs is None else tuple(self.pairs[i] for i in chosen),
            self.labels[chosen] if chosen else np.zeros(0, dtype=np.int64),
        )


@dataclass(frozen=True)
class Corpus:
    """A data set, split. No text stands in two of its parts."""

    name: str
    label_names: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    train: Examples
    test: Examples
    unseen: Examples
    """What is left of the source: texts that fine-tuning never sees. Their labels may be -1 (unknown)."""
    fingerprint: str
    """sha256 over the ids and labels of the whole source, in its order."""
    revision: str | None
    notes: tuple[str, ...]
    """What was left out, in words."""


def load_corpus(
    source: str,
    *,
    text: Columns = None,
    label: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Read labelled texts and split them by seed, stratified by label, without duplicates.

    Args:
        source: `bundled:tweets`, `bundled:bbc-news`, a CSV, TSV, JSONL or Parquet file, or a `datasets` Hub id.
        text: column of the text, or two columns for pairs; by default the bundled set's own, else `text`.
        label: column of the label; by default the bundled set's own, else `label`. String labels are numbered in
            sorted order, whole numbers in theirs.
        config: configuration of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        train: training texts; by default 2,000, or 80% of what there is if less.
        test: test texts; by default 500, or 20% of what there is if less.
        seed: decides the split.

    Raises:
        DataError: naming what is missing, empty, mixed, or fewer than asked for.
    """
    frame, given_test, commit, notes, (texts, label) = _read(source, text, label, config, revision)
    _check_columns(frame, source, texts, label)
    labels, names = _labels(frame[label], source, label)
    columns = [_texts(frame[column], source, column) for column in texts]
    kept, dropped = _distinct(columns, given_test, labels)
    labels, names = _used(labels, names, kept)
    notes = [*notes, *dropped]
    columns = [[column[i] for i in kept] for column in columns]
    examples = Examples(
        ids=tuple(_example_id([column[i] for column in columns]) for i in range(len(kept))),
        texts=tuple(columns[0]),
        pairs=tuple(columns[1]) if len(columns) == 2 else None,
        labels=labels[kept],
    )
    known = examples.labels >= 0
    classes = np.unique(examples.labels[known])
    if len(classes) < 2:
        only = f" ({names[int(classes[0])]!r})" if len(classes) else ""
        raise DataError(
            f"{source} has {len(classes)} class{only} in column {label!r}; a classifier needs at least two."
        )
    rng = np.random.default_rng(seed)
    if given_test is None:
        pool = np.flatnonzero(known)
        n_train, n_test = _sizes(source, len(pool), len(pool), train, test, split=False)
        part = _stratified(examples.labels, pool, n_test, rng)
        rest = np.setdiff1d(pool, part)
        chosen = _stratified(examples.labels, rest, n_train, rng)
    else:
        is_test = given_test[kept]
        pool, test_pool = np.flatnonzero(known & ~is_test), np.flatnonzero(known & is_test)
        n_train, n_test = _sizes(source, len(pool), len(test_pool), train, test, split=True)
        part = _stratified(examples.labels, test_pool, n_test, rng)
        chosen = _stratified(examples.labels, pool, n_train, rng)
    left = rng.permutation(np.setdiff1d(np.arange(len(examples)), np.concatenate([part, chosen])))
    missing = [names[int(c)] for c in classes if c not in examples.labels[chosen]]
    if missing:
        raise DataError(
            f"With {n_train} training texts of {source}, the class {missing[0]!r} has none; ask for more with data.train."
        )
    content = json.dumps([list(examples.ids), examples.labels.tolist(), list(names)])
    return Corpus(
        name=source,
        label_names=tuple(names),
        train=examples.take(chosen),
        test=examples.take(part),
        unseen=examples.take(left),
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        revision=commit,
        notes=tuple(notes),
    )


# Reading --------------------------------------------------------------------------------------------------------------

_Read = tuple["pd.DataFrame", "np.ndarray | None", "str | None", list[str], tuple[tuple[str, ...], str]]


def _read(source: str, text: Columns, label: str | None, config: str | None, revision: str | None) -> _Read:
    """Rows, which of them are the source's own test split, the commit, notes, and the columns."""
    texts = (text,) if isinstance(text, str) else text
    if source.startswith("bundled:"):
        frame, notes, own = _bundled(source.removeprefix("bundled:"))
        return frame, None, None, notes, (texts or own[:1], label or own[1])
    columns = (texts or ("text",), label or "label")
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"The data source {source} is a folder; name a CSV, TSV, JSONL or Parquet file.")
    if path.is_file():
        return _file(path, source), None, None, [], columns
    if path.suffix.lower() in (*_READERS, ".txt") or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise DataError(f"There is no data file {source}; check the path (it is relative to the study's folder).")
    frame, given_test, commit = _hub(source, config, revision)
    return frame, given_test, commit, [], columns


def _bundled(name: str) -> tuple[pd.DataFrame, list[str], tuple[str, str]]:
    import pandas as pd

    from layerprobe.bundled import data_files

    files = data_files(name)
    if name == "tweets":
        frame = pd.read_csv(files[0], encoding="latin-1", dtype=str, keep_default_na=False)
        trusted = pd.to_numeric(frame["confidence"], errors="coerce") >= CONFIDENCE
        note = f"{(~trusted).sum():,} tweets whose label has a confidence below {CONFIDENCE} or none were left out."
        return frame[trusted].reset_index(drop=True), [note], ("text", "sentiment")
    # One article is not UTF-8; latin-1 reads any byte, so nothing is lost.
    rows = [(path.parent.name, _decode(path.read_bytes())) for path in files]
    return pd.DataFrame(rows, columns=["topic", "text"]), [], ("text", "topic")


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _csv(path: Path, separator: str = ",") -> pd.DataFrame:
    import pandas as pd

    # "NA", "null" and "None" are words like any other.
    return pd.read_csv(
        path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", on_bad_lines="error"
    )


def _tsv(path: Path) -> pd.DataFrame:
    return _csv(path, "\t")


def _jsonl(path: Path) -> pd.DataFrame:
    import pandas as pd

    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"Line {number} of {path} is not JSON ({error}); write one object a line.") from None
            if not isinstance(row, dict):
                raise DataError(f"Line {number} of {path} is not a JSON object; write one object a line.")
            rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pandas(types_mapper=None).astype(object)


_READERS: dict[str, Any] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def _file(path: Path, source: str) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{source} ends in {path.suffix or 'nothing'!r}; the files read are {', '.join(_READERS)}.")
    try:
        frame = reader(path)
    except pd.errors.EmptyDataError:
        raise DataError(f"{source} is empty; it needs a header and rows.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except PermissionError:
        raise DataError(f"{source} cannot be read: permission denied.") from None
    except (pd.errors.ParserError, pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{source} cannot be read as {path.suffix[1:].upper()} ({' '.join(str(error).split())[:160]})."
        ) from None
    if not len(frame):
        raise DataError(f"{source} has no rows; it needs labelled texts.")
    return frame


def _hub(source: str, config: str | None, revision: str | None) -> tuple[pd.DataFrame, np.ndarray | None, str | None]:
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
    test = next((name for name in ("test", "validation") if name in splits), None)
    frames, is_test = [], []
    for name, split in splits.items():
        if name == "validation" and test != "validation":
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


# Checking -------------------------------------------------------------------------------------------------------------


def _check_columns(frame: pd.DataFrame, source: str, texts: tuple[str, ...], label: str) -> None:
    for role, column in (*(("text", t) for t in texts), ("label", label)):
        if column not in frame.columns:
            there = ", ".join(map(str, frame.columns))
            raise DataError(
                f"{source} has no column {column!r}; its columns are {there}; set data.{role} to one of them."
            )


def _rows(numbers: Any) -> str:
    numbers = [int(n) + 1 for n in numbers]
    return f"row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:5]))}" + (
        f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    )


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _texts(column: pd.Series, source: str, name: str) -> list[str]:
    bad = [i for i, value in enumerate(column) if not isinstance(value, str)]
    if bad:
        kind = "nothing" if _missing(column.iloc[bad[0]]) else type(column.iloc[bad[0]]).__name__
        raise DataError(
            f"Column {name!r} of {source} holds {kind} instead of text in {_rows(bad)}; correct these rows or leave them out."
        )
    return [str(value) for value in column]


def _labels(column: pd.Series, source: str, name: str) -> tuple[np.ndarray, list[str]]:
    values = list(column)
    empty = [i for i, v in enumerate(values) if _missing(v) or (isinstance(v, str) and not v.strip())]
    if empty:
        raise DataError(
            f"Column {name!r} of {source} has no label in {_rows(empty)}; label these rows or leave them out."
        )
    unknown = np.array([not isinstance(v, str) and not isinstance(v, bool) and v == -1 for v in values])
    kinds = {_kind(v) for v, skip in zip(values, unknown, strict=True) if not skip}
    if len(kinds) > 1:
        examples = {kind: next(v for v in values if _kind(v) == kind) for kind in sorted(kinds)}
        shown = " and ".join(f"{kind} ({value!r})" for kind, value in examples.items())
        raise DataError(f"Column {name!r} of {source} mixes {shown}; give all labels in one way.")
    kind = next(iter(kinds), "text")
    if kind not in ("text", "whole numbers", "true/false"):
        raise DataError(f"Column {name!r} of {source} holds {kind}; labels are words or whole numbers, one a class.")
    strings = [str(v) if kind != "whole numbers" else str(int(v)) for v in values]
    whole = kind == "whole numbers" or all(s.lstrip("-").isdigit() for s in strings)
    names = sorted({s for s, skip in zip(strings, unknown, strict=True) if not skip}, key=int if whole else None)
    numbers = {s: i for i, s in enumerate(names)}
    return np.array(
        [-1 if skip else numbers[s] for s, skip in zip(strings, unknown, strict=True)], dtype=np.int64
    ), names


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "true/false"
    if isinstance(value, int | np.integer) or (isinstance(value, float) and value.is_integer()):
        return "whole numbers"
    if isinstance(value, float | np.floating):
        return "fractions"
    return type(value).__name__


def _example_id(texts: Sequence[str]) -> str:
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _distinct(
    columns: list[list[str]], given_test: np.ndarray | None, labels: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Positions of the first of each text, a test split's own before all others; blank texts are left out."""
    order = np.arange(len(labels))
    if given_test is not None:
        order = np.concatenate([order[given_test], order[~given_test]])
    first: dict[tuple[str, ...], int] = {}
    blank = conflicting = duplicates = 0
    for i in order:
        key = tuple(column[i] for column in columns)
        if not any(part.strip() for part in key):
            blank += 1
        elif key in first:
            duplicates += 1
            conflicting += labels[first[key]] != labels[i] and labels[i] >= 0
        else:
            first[key] = int(i)
    notes = []
    if blank:
        notes.append(f"{blank:,} rows without text were left out.")
    if duplicates:
        also = f" ({conflicting:,} of them under another label)" if conflicting else ""
        notes.append(
            f"{duplicates:,} repetitions of an earlier text were left out{also}; the first one's label was kept."
        )
    return np.array(sorted(first.values()), dtype=np.int64), notes


def _used(labels: np.ndarray, names: list[str], kept: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Labels numbered anew without the classes that no kept text has."""
    present = set(labels[kept].tolist())
    used = [number for number in range(len(names)) if number in present]
    new = {old: number for number, old in enumerate(used)}
    return np.array([new.get(int(label), -1) for label in labels], dtype=np.int64), [names[old] for old in used]


# Splitting ------------------------------------------------------------------------------------------------------------


def _sizes(
    source: str, n_train_pool: int, n_test_pool: int, train: int | None, test: int | None, *, split: bool
) -> tuple[int, int]:
    """How many texts to train and test on; `split` tells that the source has a test split of its own."""
    if split:
        for key, asked, there in (("train", train, n_train_pool), ("test", test, n_test_pool)):
            if asked is not None and asked > there:
                raise DataError(
                    f"data.{key} = {asked:,}, but {source} has {there:,} distinct labelled texts in that split."
                )
        return train or min(DEFAULT_TRAIN, n_train_pool), test or min(DEFAULT_TEST, n_test_pool)
    there = n_train_pool
    n_test = test or min(DEFAULT_TEST, max(1, there // 5), *([there - train] if train and there > train else []))
    n_train = train or min(DEFAULT_TRAIN, there - n_test)
    if n_train + n_test > there or n_train < 1:
        wanted = ", ".join(f"data.{k} = {v:,}" for k, v in (("train", train), ("test", test)) if v) or "a split"
        raise DataError(
            f"{wanted} was asked for, but {source} has {there:,} distinct labelled texts in all; "
            "ask for fewer (train and test share no text)."
        )
    return n_train, n_test


def _stratified(labels: np.ndarray, pool: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` positions of the pool with its class shares (largest remainders), in seeded order."""
    shuffled = rng.permutation(pool)
    classes, counts = np.unique(labels[shuffled], return_counts=True)
    exact = counts * (size / max(1, len(shuffled)))
    quota = np.floor(exact).astype(int)
    for i in np.argsort(-(exact - quota), kind="stable")[: size - quota.sum()]:
        quota[i] += 1
    parts = [shuffled[labels[shuffled] == c][:q] for c, q in zip(classes, quota, strict=True)]
    return rng.permutation(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
