"""Figures of a page: their places, the controls that choose among their variants, and their data as compact JSON."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerprobe.report.literal import LiteralTables, literal
from layerprobe.report.section import Record, Section, Tables

if TYPE_CHECKING:
    from markupsafe import Markup

Values = Sequence[str] | Mapping[str, str]
"""Values of an option, or values with the words that are shown for them."""
DIGITS = 6
"""Significant digits of numbers that are not whole: more than any axis or hover text shows."""


@dataclass(frozen=True)
class Plot:
    """A place for a figure on the page, and the controls that choose among its variants."""

    controls: Markup
    """Labelled select elements; empty if there is nothing to choose."""
    place: Markup

    def __html__(self) -> str:
        return self.place


class Plots:
    """Figures of a page by identity: the figure's name, with a number from its second place on.

    Attributes:
        drawn: `drawn[identity][variant]` as plotly JSON, where a figure without variants has the variant ''.
        template: of the layout of all figures, which the page holds once.
        contents: section id -> identity -> description, the first place of each figure only.
    """

    def __init__(self) -> None:
        self.drawn: dict[str, dict[str, Any]] = {}
        self.template: dict[str, Any] = {}
        self.contents: dict[str, dict[str, str]] = {}
        self._places: dict[str, int] = {}

    def placer(self, section: Section[Record], tables: Tables, record: Record) -> Callable[..., Plot | None]:
        """The function `plot` of a section's template."""
        tables, record = LiteralTables(tables), literal(record)

        def plot(
            name: str,
            label: str,
            *,
            css: str = "",
            choices: Mapping[str, tuple[str, Values]] | None = None,
            **options: Any,
        ) -> Plot | None:
            """Draw one of the section's figures; None, which is false in a template, if there is nothing to draw.

            Args:
                name: of the figure.
                label: description for screen readers and the contents list.
                css: further classes of the element.
                choices: options of the figure that the reader chooses: option -> (label of the control, values), where
                    the values may map to the words that are shown for them.
                options: fixed options of the figure.
            """
            chosen = choices or {}
            drawn = {}
            for values in itertools.product(*(values for _, values in chosen.values())):
                selected = {**options, **dict(zip(chosen, values, strict=True))}
                selected = {key: literal(value) for key, value in selected.items()}
                figure = section.figures[name](tables, record, **selected)
                if figure is not None:
                    drawn[values] = figure
            # A value for which there is nothing to draw is no choice.
            some = [set(values) for values in zip(*drawn, strict=True)] or [set()] * len(chosen)
            chosen = {
                key: (title, _restricted(values, kept))
                for (key, (title, values)), kept in zip(chosen.items(), some, strict=True)
            }
            controls = {key: choice for key, choice in chosen.items() if len(choice[1]) > 1 or len(chosen) > 1}
            variants = {"|".join(values): figure for values, figure in drawn.items()}
            placed = self.add(name, label, variants, css=css, controls=controls)
            if placed is not None:
                self.contents.setdefault(section.id, {}).setdefault(name, label)
            return placed

        return plot

    def add(
        self,
        name: str,
        label: str,
        variants: Mapping[str, Any],
        *,
        css: str = "",
        controls: Mapping[str, tuple[str, Values]] | None = None,
    ) -> Plot | None:
        """Keep a figure's variants for the page and return its place."""
        from markupsafe import Markup

        if not variants:
            return None
        self._places[name] = number = self._places.get(name, 0) + 1
        identity = name if number == 1 else f"{name}-{number}"
        self.drawn[identity] = {key: self._compact_figure(figure) for key, figure in variants.items()}
        selects = [
            Markup('<div><label for="{0}">{1}</label><select id="{0}" data-chooses="{2}">{3}</select></div>').format(
                f"{identity}-{key}",
                title,
                identity,
                Markup().join(
                    Markup('<option value="{}">{}</option>').format(value, words)
                    for value, words in (
                        values.items() if isinstance(values, Mapping) else zip(values, values, strict=True)
                    )
                ),
            )
            for key, (title, values) in (controls or {}).items()
        ]
        # Diagrams next to each other need some width: on a narrow screen they are scrolled.
        several = "grid" not in css and any(_columns(figure) > 1 for figure in self.drawn[identity].values())
        css = f"grid {css}" if several else css
        place = Markup('<div class="{}" data-figure="{}" role="group" aria-label="{}" id="{}"></div>').format(
            f"plot {css}".strip(), identity, label, anchor(identity)
        )
        place = Markup('<div class="wide">{}</div>').format(place) if several else place
        return Plot(
            Markup('<div class="controls">{}</div>').format(Markup().join(selects)) if selects else Markup(), place
        )

    def _compact_figure(self, figure: Any) -> dict[str, Any]:
        """A figure as JSON values without its template, which is that of every figure."""
        content = compact(figure.to_plotly_json())
        self.template = content["layout"].pop("template", self.template)
        return content


def _restricted(values: Values, kept: set[str]) -> Values:
    """The values that are kept, in their order."""
    if isinstance(values, Mapping):
        return {value: words for value, words in values.items() if value in kept}
    return [value for value in values if value in kept]


def _columns(figure: Mapping[str, Any]) -> int:
    """Number of diagrams of a figure next to each other."""
    axes = [axis for name, axis in figure["layout"].items() if name.startswith("xaxis")]
    return len({tuple(axis.get("domain", (0, 1))) for axis in axes})


def anchor(identity: str) -> str:
    """Id of a figure's element on the page."""
    return f"figure-{identity}"


def compact(value: Any) -> Any:
    """JSON values of a plotly figure: arrays as lists, numbers with `DIGITS` significant digits, None for what is none.

    Rounded decimals take less space than base64 of binary numbers, and a hover text never shows more digits of them.
    """
    if isinstance(value, Mapping):
        if set(value) <= {"dtype", "bdata", "shape"} and "bdata" in value:
            return compact(_decoded(value))
        return {key: compact(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return compact(value.tolist())
    if isinstance(value, (list, tuple)):
        return [compact(part) for part in value]
    if isinstance(value, np.generic):
        return compact(value.item())
    if isinstance(value, float):
        return _rounded(value)
    return None if value is pd.NA else value


def _decoded(array: Mapping[str, Any]) -> np.ndarray:
    """An array that plotly encoded as base64."""
    import base64

    flat = np.frombuffer(base64.b64decode(array["bdata"]), dtype=np.dtype(array["dtype"]).newbyteorder("<"))
    return flat.reshape([int(n) for n in str(array["shape"]).split(",")]) if "shape" in array else flat


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")
