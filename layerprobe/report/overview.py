"""What an index of runs shows of each: question, cards and layer strip; and the page that lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from pydantic import BaseModel, ConfigDict

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.decisions import Badge
from layerprobe.report.labels import label_warning
from layerprobe.report.page import make_environment
from layerprobe.report.section import Tables
from layerprobe.report.sections.answer.cards import cards
from layerprobe.report.sections.answer.context import BADGES
from layerprobe.report.sections.answer.figures import drifts_by_method
from layerprobe.report.sections.answer.needed import advice


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Claim(_Model):
    """A card without its details."""

    title: str
    claim: str
    number: str
    badge: Badge


class Strip(_Model):
    """How much each layer changed under one method."""

    method: str
    layers: tuple[int, ...]
    change: tuple[float, ...]
    """1 less the similarity of base and adapted, mean over seeds."""
    changed: tuple[bool, ...]
    """Whether a layer is shown to have changed."""

    def __str__(self) -> str:
        values = ", ".join(f"{value:.2f}" for value in self.change)
        shown = [str(layer) for layer, changed in zip(self.layers, self.changed, strict=True) if changed]
        words = f"shown for layers {', '.join(shown)}" if shown else "shown for no layer"
        return f"{self.method}: change of layers {self.layers[0]} to {self.layers[-1]}: {values}; {words}"


class Overview(_Model):
    """What an index shows of a run besides its record."""

    claims: tuple[Claim, ...] = ()
    advice: str | None = None
    warning: str | None = None
    strips: tuple[Strip, ...] = ()


def overview(tables: Tables, record: RunRecord) -> Overview:
    """The cards, the advice and the layer strip of a run; nothing of an unfinished one."""
    if record.status != "complete":
        return Overview()
    claims = [
        Claim(title=one.title, claim=one.claim, number=one.number, badge=one.badge) for one in cards(tables, record)
    ]
    strips = []
    for name, drift in drifts_by_method(tables, record).items():
        change = [max(0.0, round(1 - float(value), 6)) + 0.0 for value in drift.value]
        changed = [verdict == "changed" for verdict in drift.verdicts]
        label = queries.label(name, record)
        strips.append(Strip(method=label, layers=drift.layers, change=tuple(change), changed=tuple(changed)))
    return Overview(
        claims=tuple(claims),
        advice=advice(tables, record),
        warning=label_warning(tables, record),
        strips=tuple(strips),
    )


@dataclass(frozen=True)
class IndexedRun:
    """A run of the index."""

    folder: str
    """Its folder below that of the index, as it is shown."""
    link: str | None
    """Address of its page relative to the index; None if it has no page."""
    record: RunRecord
    overview: Overview

    @property
    def when(self) -> str:
        """When it ended, or began."""
        return self.record.provenance.finished or self.record.provenance.started


@dataclass(frozen=True)
class IndexedComparison:
    """The folder of a comparison or sweep."""

    folder: str
    link: str
    labels: tuple[str, ...]
    """Labels of its runs."""


def render_index(
    folder: str, runs: Sequence[IndexedRun], comparisons: Sequence[IndexedComparison] = (), problems: Sequence[str] = ()
) -> str:
    """The page that lists runs, the newest first. It has no script and loads nothing.

    Args:
        folder: name of the folder of the runs.
        runs: in any order.
        comparisons: pages that compare runs.
        problems: folders that are not shown, each with the reason.
    """
    template = make_environment().get_template("index.html.j2")
    ordered = sorted(runs, key=lambda run: (run.when, run.folder), reverse=True)
    text = template.render(
        folder=folder,
        runs=ordered,
        comparisons=comparisons,
        problems=problems,
        badges=BADGES,
        colour=lambda value: _colour(round(value, 2)),
    )
    # A name of a file need not be text.
    return text.encode("utf-8", "replace").decode("utf-8")


@cache
def _colour(change: float) -> str:
    """Colour of a cell of the layer strip."""
    from plotly.colors import sample_colorscale

    from layerprobe.report.theme import SCALE

    (colour,) = sample_colorscale(SCALE, [min(1.0, change)])
    return str(colour)
