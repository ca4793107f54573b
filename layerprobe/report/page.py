"""The page: sections rendered in order into one self-contained HTML file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import StorageError
from layerprobe.files import write_text
from layerprobe.record import Finding
from layerprobe.report.queries import having
from layerprobe.report.section import FigureFunction, Record, Section, Tables
from layerprobe.report.sections import REGISTRY

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

    from layerprobe.runs import Run

Values = Sequence[str] | Mapping[str, str]
"""Values of an option, or values with the words that are shown for them."""


def write_report(run: Run, path: str | Path) -> Path:
    """Write a run as one self-contained HTML page, which needs no network.

    Args:
        run: tables and record; what is missing is named on the page.
        path: the file to write, atomically.

    Raises:
        StorageError: if it cannot be written, or a table of the run is damaged.
    """
    path = Path(path)
    html = render_page({name: run.table(name) for name in run.tables}, run.record)
    try:
        write_text(path, html)
    except OSError as error:
        raise StorageError(
            f"The report {path} cannot be written ({error.strerror}); the run's tables are kept: free some space or "
            "copy the folder to where it can be written, and give the same command again."
        ) from error
    return path


def findings(tables: Tables, record: Any, sections: Sequence[Section[Any]] = REGISTRY) -> list[Finding]:
    """Sentences made from the numbers, each with an interval and the id of the section that it comes from."""
    ordered = sorted(sections_of(record, sections), key=lambda section: section.priority)
    return [sentence for section in ordered for sentence in section.sentences(tables, record)]


def sections_of(record: Any, sections: Sequence[Section[Any]]) -> list[Section[Any]]:
    """The sections that belong to a run's kind of study; a comparison is of adaptation studies."""
    study = getattr(record, "study", None)
    kind = "few-shot" if study is not None and study.resolved.get("few_shot") is not None else "adaptation"
    return [section for section in sections if section.studies in (kind, "all")]


def figure_function(name: str, sections: Sequence[Section[Any]] = REGISTRY) -> FigureFunction:
    """The function that draws a figure of the report.

    Raises:
        KeyError: if there is none of this name; the message lists those there are.
    """
    known = {name: function for section in sections for name, function in section.figures.items()}
    if name not in known:
        raise KeyError(f"there is no figure {name!r}; the figures are {', '.join(sorted(known))}")
    return known[name]


def render_page(tables: Tables, record: Any, sections: Sequence[Section[Any]] = REGISTRY) -> str:
    """A page as HTML.

    Args:
        tables: those that the sections read.
        record: a run's record or a comparison, whichever the sections take; its `name` is the title of the page.
        sections: in the order of the page.
    """
    environment, plots = make_environment(), Plots()
    sections = sections_of(record, sections)
    answer = findings(tables, record, sections)
    parts, data = [], {}
    for section in sections:
        absent = [name for name in section.requires if having(tables, name) is None]
        if absent:
            html = environment.get_template("missing.html.j2").render(section=section, absent=absent)
        else:
            context = dict(section.context(tables, record))
            if "data" in context:
                data[f"data-{section.id}"] = context.pop("data")
            template = environment.get_template(section.template or f"{section.id}/template.html.j2")
            plot = plots.placer(section, tables, record)
            html = template.render(section=section, record=record, findings=answer, plot=plot, **context)
        parts.append((section, html, not absent))
    scripts = {
        section.id: [f"{section.id}/{name}" for name in section.scripts] for section, _, present in parts if present
    }
    return environment.get_template("page.html.j2").render(
        record=record, sections=parts, figures=plots.drawn, json_data=data, scripts=scripts
    )


@dataclass(frozen=True)
class Plot:
    """A place for a figure on the page, and the controls that choose among its variants."""

    controls: Markup
    """Labelled select elements; empty if there is nothing to choose."""
    place: Markup

    def __html__(self) -> str:
        return self.place


class Plots:
    """Figures of a page: `drawn[id][variant]` as plotly JSON, where a figure without variants has the variant ''."""

    def __init__(self) -> None:
        self.drawn: dict[str, dict[str, Any]] = {}

    def placer(self, section: Section[Record], tables: Tables, record: Record) -> Callable[..., Plot | None]:
        """The function `plot` of a section's template."""

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
                label: description for screen readers.
                css: further classes of the element.
                choices: options of the figure that the reader chooses: option -> (label of the control, values), where
                    the values may map to the words that are shown for them.
                options: fixed options of the figure.
            """
            chosen = choices or {}
            variants = {}
            for values in itertools.product(*(values for _, values in chosen.values())):
                figure = section.figures[name](tables, record, **options, **dict(zip(chosen, values, strict=True)))
                if figure is not None:
                    variants["|".join(values)] = figure
            controls = {key: choice for key, choice in chosen.items() if len(choice[1]) > 1 or len(chosen) > 1}
            return self.add(name, label, variants, css=css, controls=controls)

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
        identity = name if name not in self.drawn else f"{name}-{len(self.drawn)}"
        self.drawn[identity] = {key: figure.to_plotly_json() for key, figure in variants.items()}
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
        place = Markup('<div class="{}" data-figure="{}" role="img" aria-label="{}"></div>').format(
            f"plot {css}".strip(), identity, label
        )
        return Plot(
            Markup('<div class="controls">{}</div>').format(Markup().join(selects)) if selects else Markup(), place
        )


def make_environment() -> jinja2.Environment:
    """Templates of the pages and of their sections, with plotly and `json`, which embeds a value into a script element."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    shared, sections, comparison = (
        jinja2.PackageLoader("layerprobe.report", folder)
        for folder in ("templates", "sections", "comparison/templates")
    )
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([shared, sections, jinja2.PrefixLoader({"comparison": comparison})]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["json"] = lambda value: Markup(_json(value))
    environment.globals["plotly"] = Markup(get_plotlyjs().replace("</script", "<\\/script"))
    return environment


def _json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(value, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
