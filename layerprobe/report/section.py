"""A section of the page: its figures, its sentences and its template, as functions of tables and the run's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from layerprobe.record import Finding

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Tables = Mapping[str, "pd.DataFrame"]
FigureFunction = Callable[..., "go.Figure | None"]
"""`(tables, record, **options)` to a figure, or None if there is nothing to draw."""


Record = TypeVar("Record")
"""What a section reads besides tables: the `RunRecord` of a run, or the `Comparison` of several."""


def no_context(tables: Tables, record: object) -> Mapping[str, Any]:
    """Context of a template that reads only the record."""
    return {}


def no_sentences(tables: Tables, record: object) -> Sequence[Finding]:
    """Sentences of a section that adds nothing to the answer."""
    return ()


@dataclass(frozen=True)
class Section(Generic[Record]):
    """One section of the page; its files are in `report/sections/<id>/`."""

    id: str
    """Anchor on the page and, for a section of a run's page, name of the folder."""
    title: str
    """Heading and entry in the contents list."""
    requires: tuple[str, ...] = ()
    """Tables without which the section is left out."""
    missing: str = "The run has no numbers for this section."
    """Sentence that the page shows instead if a required table is missing or empty."""
    optional: tuple[str, ...] = ()
    """Other tables that the section reads."""
    figures: Mapping[str, FigureFunction] = field(default_factory=dict)
    """Figures by name; names are unique over all sections, since `Run.figure` takes them."""
    context: Callable[[Tables, Record], Mapping[str, Any]] = no_context
    """Variables of the template. The value of `data` is embedded as JSON with the id `data-<section id>`."""
    sentences: Callable[[Tables, Record], Sequence[Finding]] = no_sentences
    """Sentences of the answer."""
    studies: Literal["adaptation", "few-shot", "all"] = "adaptation"
    """Studies whose page has the section."""
    priority: int = 1
    """Order of its sentences in the answer, low first; sections of one priority follow the order of the page."""
    template: str | None = None
    """Name of the jinja2 template; by default `<id>/template.html.j2`."""
    scripts: tuple[str, ...] = ()
    """Names of JavaScript files in the folder of the template, which run in one block after `plots.js`."""
