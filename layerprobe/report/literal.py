"""Strings of data for plotly, which reads tags, entities and templates in every text that it shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from layerprobe.report.section import FigureFunction

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Value = TypeVar("Value")

# `%{...}` is a placeholder in hover texts, `$...$` is mathematics where a page has MathJax, as notebooks have.
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "$": "&#36;"})


def literal(value: Value) -> Value:
    """A value whose strings plotly shows as they are: as neither a link nor markup nor a placeholder.

    Args:
        value: a string, a data frame, a record, or a mapping or sequence of these; what is none of them is returned as
            it is. Keys of mappings and names of columns are kept.
    """
    import pandas as pd
    from pydantic import BaseModel

    result: Any = value
    if isinstance(value, str):
        result = value.translate(ENTITIES)
    elif isinstance(value, pd.DataFrame):
        result = _frame(value)
    elif isinstance(value, BaseModel):
        result = value.model_copy(update={name: literal(part) for name, part in value})
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: literal(getattr(value, part.name)) for part in dataclasses.fields(value) if part.init}
        result = dataclasses.replace(value, **parts)
    elif isinstance(value, Mapping):
        result = LiteralTables(value)
    elif isinstance(value, list):
        result = [literal(part) for part in value]
    elif isinstance(value, tuple):
        result = tuple(literal(part) for part in value)
    return result


def _frame(table: pd.DataFrame) -> pd.DataFrame:
    """A data frame whose strings are shown as they are; the same one if nothing in it needs a change."""
    columns = {}
    for name in table.columns[table.dtypes.map(lambda kind: kind.kind == "O")]:
        texts = {value for value in table[name] if isinstance(value, str)}
        changed = {value: shown for value in texts if (shown := literal(value)) != value}
        if changed:
            columns[name] = [changed.get(value, value) if isinstance(value, str) else value for value in table[name]]
    return table.assign(**columns) if columns else table


class LiteralTables(Mapping[str, Any]):
    """A mapping whose values are made literal when they are first read, since figures read few of a run's tables."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = literal(self._values[name])
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def draws_literally(function: FigureFunction) -> FigureFunction:
    """A figure function that gets tables, record and options whose strings plotly shows as they are."""

    def draw(tables: Mapping[str, pd.DataFrame], record: Any, **options: Any) -> go.Figure | None:
        return function(literal(tables), literal(record), **{key: literal(option) for key, option in options.items()})

    return draw
