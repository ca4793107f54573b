"""The page: a run's record, tables and figures put together as one HTML file."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe.errors import StorageError
from layerprobe.report import _features as features
from layerprobe.report import _figures as figures
from layerprobe.report._compared import panels
from layerprobe.report._depth import depth_context
from layerprobe.report._explorer import explorer, texts
from layerprobe.report._feature_words import panels as feature_panels
from layerprobe.report._findings import findings, methods, moved, seeds_of, unit_of

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.runs import Run

LARGEST_DOWNLOAD = 400_000
"""Bytes of a table that the page carries itself; larger ones are named with their place in the run folder."""


def write_report(run: Run, path: str | Path) -> Path:
    """Write a run as one self-contained HTML page, which needs no network.

    Args:
        run: tables and record; what is missing is named on the page.
        path: the file to write; replaced whole or not at all.

    Raises:
        StorageError: if it cannot be written.
    """
    path = Path(path)
    tables = {name: run.table(name) for name in run.tables}
    drawn = _drawn(tables)
    html = rendered(
        "page.html.j2",
        record=run.record,
        findings=findings(tables, run.record),
        figures={name: figure.to_plotly_json() for name, figure in drawn.items()},
        grids=_grids(tables),
        measures=_measures(tables),
        panels=panels(tables),
        depth=depth_context(tables, run.record),
        dictionaries=_dictionary_rows(tables),
        facts=_facts(tables, run.record),
        features=feature_panels(tables, moved(tables), _unmoved(tables), list(drawn)),
        tokens=texts(tables),
        explorer=explorer(tables),
        downloads=downloads(tables),
        settings=json.dumps(run.record["study"]["resolved"], indent=1, ensure_ascii=False),
    )
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(html, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StorageError(
            f"The report {path} cannot be written ({error.strerror}); the run's tables are kept: free some space or "
            "copy the folder to where it can be written, and give the same command again."
        ) from error
    return path


def rendered(template: str, **context: Any) -> str:
    """A page from one of the templates, with plotly and `data`, which puts a value into a script element."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("layerprobe.report"),
        autoescape=True,
        extensions=["jinja2.ext.do"],
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["data"] = lambda value: Markup(_json(value))
    plotly = Markup(get_plotlyjs().replace("</script", "<\\/script"))
    return environment.get_template(template).render(plotly=plotly, **context)


def _drawn(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Every figure that the tables allow."""
    drawn: dict[str, Any] = {}
    names = methods(tables)
    similarity = tables.get("similarity")
    if similarity is not None and len(similarity):
        drawn["strip"] = figures.layer_strip(similarity, names)
        unit = unit_of(similarity)
        for measure in _measures(tables):
            drawn[f"drift-{measure}"] = figures.drift(similarity, names, measure, unit, tables.get("similarity_nulls"))
        if similarity.unit.nunique() > 1 and "cka" in set(similarity.measure):
            drawn["units"] = figures.by_unit(similarity, moved(tables)[-1], "cka")
    drawn |= features.drawn(tables, moved(tables))
    return drawn


def _measures(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Measures that a drift curve is drawn of, CKA first; the cosine's baseline stands in the cosine's own figure."""
    table = tables.get("similarity")
    there = [] if table is None else [m for m in dict.fromkeys(table.measure) if m != "paired_cosine_baseline"]
    return sorted(there, key=lambda name: (name != "cka", there.index(name)))


def _grids(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    table = tables.get("similarity_grid")
    if table is None:
        return []
    unit = unit_of(table)
    names = sorted(dict.fromkeys(table.measure), key=lambda name: name != "cka")
    return [
        {
            "method": method,
            "figures": {name: figures.grids(table, method, unit, name).to_plotly_json() for name in names},
        }
        for method in moved(tables)
    ]


def _dictionary_rows(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    table = tables.get("sae")
    records = [] if table is None else table.to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in records]


def _facts(tables: Mapping[str, pd.DataFrame], record: Mapping[str, Any]) -> dict[str, Any]:
    """What the captions say of a run."""
    similarity = tables.get("similarity")
    names = methods(tables)
    unit, n, seeds = "", 0, []
    if similarity is not None and len(similarity) and names:
        shown = similarity[similarity["unit"] == unit_of(similarity)]
        unit, n = figures.NAMES[unit_of(similarity)], int(shown["n"].max())
        seeds = seeds_of(similarity, names[-1])
    return {
        "moved": moved(tables),
        "left_out": _left_out(tables),
        "nulls": "similarity_nulls" in tables and len(tables["similarity_nulls"]) > 0,
        "unmoved": _unmoved(tables),
        "unit": unit,
        "n": n,
        "seeds": seeds,
    }


def _unmoved(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    return [name for name in methods(tables) if name not in moved(tables)]


def _left_out(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Which measures were undefined where, and why."""
    table = tables.get("similarity_left_out")
    if table is None:
        return []
    return [
        f"{measure} was left out of {figures.NAMES[str(unit)]}: {rows.why.iloc[0]}"
        for (measure, unit), rows in table.groupby(["measure", "unit"], sort=False)
    ]


def downloads(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    found = []
    for name, table in sorted(tables.items()):
        content = table.to_csv(index=False).encode()
        small = len(content) <= LARGEST_DOWNLOAD
        link = "data:text/csv;base64," + base64.b64encode(content).decode() if small else None
        found.append({"name": name, "rows": len(table), "link": link})
    return found


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(value, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
