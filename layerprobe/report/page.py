"""The page: sections rendered in order into one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import StorageError
from layerprobe.files import is_disk_full, os_problem, write_text
from layerprobe.record import Finding
from layerprobe.report.literal import draws_literally
from layerprobe.report.plots import Plots, anchor
from layerprobe.report.queries import having
from layerprobe.report.section import FigureFunction, Section, Tables
from layerprobe.report.sections import REGISTRY

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

    from layerprobe.runs import Run

POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
"""Content security policy: only the page's own scripts run, named by their hashes, and nothing is loaded or sent."""


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
        way_out = "free some space" if is_disk_full(error) else "put that right"
        raise StorageError(
            f"The report {path} cannot be written: {os_problem(error, path)}. The run's tables are kept; {way_out} or copy the "
            "folder to where it can be written, and give the same command again."
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
    return draws_literally(known[name])


def render_page(tables: Tables, record: Any, sections: Sequence[Section[Any]] = REGISTRY) -> str:
    """A page as HTML.

    Args:
        tables: those that the sections read.
        record: a run's record or a comparison, whichever the sections take; its `name` is the title of the page.
        sections: in the order of the page.
    """
    environment, plots = make_environment(), Plots()
    sections = sections_of(record, sections)
    found = findings(tables, record, sections)
    html, data, scripts = {}, {}, []
    # The first section links to figures of the others, so it is rendered last.
    for section in (*sections[1:], *sections[:1]):
        absent = [name for name in section.requires if having(tables, name) is None]
        if absent:
            text = environment.get_template("missing.html.j2").render(section=section, absent=absent)
        else:
            context = dict(section.context(tables, record))
            if "data" in context:
                data[f"data-{section.id}"] = context.pop("data")
            source = section.template or f"{section.id}/template.html.j2"
            template = environment.get_template(source)
            link, plot = partial(_target, plots, sections), plots.placer(section, tables, record)
            text = template.render(section=section, record=record, findings=found, link=link, plot=plot, **context)
            if section.scripts:
                scripts.append([f"{source.rpartition('/')[0]}/{name}" for name in section.scripts])
        html[section.id] = with_ids(text, section.id)
    code = _script(environment, scripts)
    return environment.get_template("page.html.j2").render(
        record=record,
        run=re.sub(r"[^\w.-]+", "-", record.name).strip("-")[:80] or "run",
        sections=[(section, html[section.id], plots.contents.get(section.id, {})) for section in sections],
        anchor=anchor,
        json_data={"figures": plots.drawn, "template": plots.template, **data},
        scripts=code,
        policy=POLICY.format(scripts=" ".join(f"'sha256-{_sha256(text)}'" for text in code)),
    )


def _target(plots: Plots, sections: Sequence[Section[Any]], name: str) -> str:
    """Id of what a finding or a card links to: its figure if the page shows it, else the section that it belongs to."""
    if name in plots.drawn:
        return anchor(name)
    return next((section.id for section in sections if name in section.figures), name)


def with_ids(html: str, section: str) -> str:
    """The HTML of a section in which each heading has an id, made of the section's and the heading's words."""
    taken: dict[str, int] = {}

    def opened(match: re.Match[str]) -> str:
        level, attributes, content = match.groups()
        if " id=" in attributes:
            return match.group()
        words = re.sub(r"<[^>]*>|&[#\w]+;", "", content).lower()
        name = f"{section}-{re.sub(r'[^a-z0-9]+', '-', words).strip('-')[:60] or 'heading'}"
        taken[name] = taken.get(name, 0) + 1
        number = f"-{taken[name]}" if taken[name] > 1 else ""
        return f'<h{level}{attributes} id="{name}{number}">{content}</h{level}>'

    return re.sub(r"<h([2-4])([^>]*)>(.*?)</h\1>", opened, html, flags=re.S)


def _script(environment: jinja2.Environment, sections: Iterable[Sequence[str]]) -> list[Markup]:
    """The scripts of a page: plotly's, and one of the page's own and its sections', each of these in a block."""
    from markupsafe import Markup

    def source(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    parts = [
        source("plots.js"),
        *("{\n" + "\n".join(map(source, names)) + "\n}" for names in sections),
        source("shell.js"),
    ]
    plotly = resources.files("layerprobe.report").joinpath("vendor", "plotly-cartesian.min.js").read_text("utf-8")
    return [Markup(text.replace("</script", "<\\/script")) for text in (plotly, "\n".join(parts))]


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def make_environment() -> jinja2.Environment:
    """Templates of the pages and of their sections, with `json`, which embeds a value into a script element."""
    import jinja2
    from markupsafe import Markup

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
    environment.filters["code"] = _code
    return environment


def _code(text: str) -> Markup:
    """A sentence, escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
