"""A commented study for a data file, with what can be guessed by looking at the file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layerprobe.errors import StudyError
from layerprobe.files import given_path, write_text
from layerprobe.study import slug

if TYPE_CHECKING:
    from layerprobe.data import ColumnGuess


@dataclass(frozen=True)
class Starter:
    """A study file that was written."""

    path: Path
    summary: tuple[str, ...]
    """What was found in the data, in words."""


def write_starter(data: Path, path: Path, model: str) -> Starter:
    """Write a study for a CSV, TSV, JSONL or Parquet file.

    Args:
        data: the file.
        path: the study file, which must not exist.
        model: `model.name` of the study.

    Raises:
        StudyError: if the study file exists or its folder does not.
        DataError: if the data cannot be read, or no column can be its text or label.
    """
    from layerprobe.data import guess_columns

    if path.exists():
        raise StudyError(f"{path} exists and was not changed; name another file with --out, or delete it first.")
    if not path.parent.is_dir():
        raise StudyError(
            f"There is no folder {path.parent} to write {path.name} to; create it, or name another with --out."
        )
    found = given_path(data)
    guess = guess_columns(found, str(data))
    try:
        write_text(path, _toml(guess, os.path.relpath(found.resolve(), path.parent.resolve()), path, model))
    except OSError as error:
        raise StudyError(f"{path} cannot be written ({error.strerror}); name another file with --out.") from error
    return Starter(path, tuple(_summary(guess)))


def _summary(guess: ColumnGuess) -> list[str]:
    """What was found, one sentence per line."""
    names = [f"{name} ({count:,})" for name, count in guess.classes[:6]]
    more = f" and {len(guess.classes) - 6} more" if len(guess.classes) > 6 else ""
    lines = [
        f"{guess.n_rows:,} rows; text in {' and '.join(map(repr, guess.texts))}, label in {guess.label!r}.",
        f"{len(guess.classes)} classes: {', '.join(names)}{more}.",
    ]
    if guess.split is not None:
        lines.append(f"The column {guess.split!r} assigns rows to train, validation and test.")
    if guess.n_missing:
        lines.append(f"{guess.n_missing:,} rows lack text or label and are left out.")
    return lines


def _quoted(value: object) -> str:
    """A string, or a list of strings, in TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(guess: ColumnGuess, source: str, path: Path, model: str) -> str:
    texts: Sequence[str] | str = guess.texts[0] if len(guess.texts) == 1 else list(guess.texts)
    others = [name for name in guess.columns if name not in (*guess.texts, guess.label, guess.split)]
    comments = [f"# {' '.join(line.split())}" for line in _summary(guess)]
    lines = [
        "# What did fine-tuning do to every layer?",
        *comments,
        f"# Run it with: layerprobe run {path.name}",
        "",
        f"name = {_quoted(slug(path.stem) or 'study')}",
        'question = "What did fine-tuning do to every layer?"',
        "seeds = [0]  # more seeds show what depends on chance: [0, 1, 2]",
        "",
        "[model]",
        f"name = {_quoted(model)}  # or a local folder, or a Hub id",
        "",
        "[data]",
        f"source = {_quoted(source)}  # relative to this file",
        f'text = {_quoted(texts)}  # two columns for pairs: ["premise", "hypothesis"]',
        f"label = {_quoted(guess.label)}",
    ]
    if others:
        shown = " ".join(", ".join(others[:8]).split())
        lines.append(f"# Further columns: {shown}{', ...' if len(others) > 8 else ''}.")
    if guess.split is not None:
        lines.append(f"split_column = {_quoted(guess.split)}  # train, validation or test")
    if guess.n_missing:
        lines.append(f'on_missing = "drop"  # {guess.n_missing:,} rows lack text or label')
    lines += [
        '# group_column = "author"  # examples with equal values stay in one part of the split',
        "# train = 2000  # default: 2,000, or 80% of the examples if that is less",
        "# test = 500  # default: 500, or 20% of the examples if that is less",
        "max_length = 128  # tokens; longer examples are truncated",
        "",
        "[adaptation]",
        'methods = ["head", "full"]  # also top:k, lora:8, lp-ft, bitfit, checkpoint:FOLDER; or "depths" for every depth',
        "epochs = 2",
        "",
        "[sae]",
        "# layers = []  # without sparse autoencoders, which take most of the time",
        "",
    ]
    return "\n".join(lines)
