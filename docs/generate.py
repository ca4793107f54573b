"""Write the reference pages of the documentation, which follow from the code: `python docs/generate.py [FOLDER]`.

`make docs` runs it before it builds the site. The pages are written to `docs/reference/`, which git ignores.
"""

from __future__ import annotations

import inspect
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
PICTURE = ROOT / "reports" / "quickstart.png"
SYMBOLS = (
    ("X, Y", "the two representations: matrices with $n$ rows and $d_x$ and $d_y$ columns, centred unless stated"),
    ("x_i, y_i", "row $i$ of $X$ and of $Y$, of the same token or example"),
    (
        r"\mathrm{HSIC}(K, L)",
        "the unbiased estimate of Song et al. (2012), which leaves out the pairs of a row with itself; on token rows also the "
        "pairs of two tokens of one example",
    ),
    (r"\rho_i", r"canonical correlations: the singular values of $(X^\top X)^{-1/2} X^\top Y (Y^\top Y)^{-1/2}$"),
    ("h_i", r"the canonical variate of $X$ that belongs to $\rho_i$, of length 1"),
    ("V_x", "the $k_x$ leading principal directions of $X$, which account for 99% of its variance"),
    (r"\lVert A \rVert_F, \lVert A \rVert_*", "Frobenius norm and nuclear norm (the sum of the singular values)"),
    ("r, r_s", "Pearson's correlation over features, and Spearman's rank correlation over pairs of rows"),
    ("N_k(x_i)", "the $k$ nearest other rows of row $i$ in $X$ by cosine; $k = 10$ by default"),
    (
        r"\hat{y}_i, \bar{y}_{(i)}",
        "prediction of row $i$ by ridge regression, and mean row, both without the fold of row $i$",
    ),
)
NOTICE = "<!-- Written by docs/generate.py from the code. -->\n\n"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for path in write(folder):
        print(path)


def write(folder: Path) -> list[Path]:
    """Write every page and the picture of the first page into a folder, which is made or emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = []
    for name, page in PAGES.items():
        paths.append(folder / f"{name}.md")
        paths[-1].write_text(NOTICE + page().rstrip() + "\n", encoding="utf-8")
    shutil.copyfile(PICTURE, folder / PICTURE.name)
    return paths


# Pages ------------------------------------------------------------------------------------------------------------------


def measures() -> str:
    """Every measure: formula, properties, interval, source and signature."""
    from layerprobe.similarity import MEASURES

    overview = table(
        ("measure", "kind", "range", "symmetric", "unchanged by", "rows"),
        [
            (
                f"[`{one.name}`](#{one.name})",
                one.kind,
                extent(one.range),
                yes(one.symmetric),
                ", ".join(sorted(one.invariances)) or "nothing",
                f"{one.min_rows} or more",
            )
            for one in MEASURES
        ],
    )
    parts = [
        "# Measures of similarity",
        "Each measure is a function `layerprobe.similarity.NAME(x, y)` of two arrays of rows x features, and a value of "
        "`similarity.measures` in a [study](study.md). `layerprobe measures` prints this table.",
        overview,
        'The column "unchanged by" lists changes of one side alone that leave the value unchanged: rotation, scale (one '
        "factor for all features), shift, and linear (any invertible linear map).",
        "## Symbols",
        table(
            ("symbol", "meaning"),
            [(with_formulas(f"${symbol}$"), with_formulas(meaning)) for symbol, meaning in SYMBOLS],
        ),
    ]
    for one in MEASURES:
        interval = one.resampling.interval_method
        sample = one.resampling.max_rows
        facts = [
            f"**Source:** {text(one.citation)}",
            f"**Interval:** {interval}" + (f", on a sample of at most {sample:,} rows" if sample else ""),
            f"**Null:** {'whole examples shuffled' if one.resampling.null else 'none'}",
        ]
        if one.sensitivity:
            facts.append(f"**Sensitivity:** {text(one.sensitivity)}")
        if one.baseline_of:
            facts.append(f"**Baseline of:** [`{one.baseline_of}`](#{one.baseline_of})")
        parts += [
            f"## {one.name} {{#{one.name}}}",
            text(one.label) + ".",
            formula(one.formula),
            bullets(facts),
            *function(one.function, f"layerprobe.similarity.{one.name}"),
        ]
    return page(parts)


def methods() -> str:
    """Every adaptation method: how it is written, what it trains, its defaults."""
    from layerprobe.adaptation.methods import REGISTRY, parse_method
    from layerprobe.study import AdaptationSection

    default = AdaptationSection().learning_rate
    phases = {
        (): "nothing",
        ("head",): "the head to convergence",
        ("blocks",): "by gradient descent",
        ("head", "blocks"): "the head to convergence, then by gradient descent",
    }
    rows = []
    for method in REGISTRY:
        rate = method.default_rate or default
        rows.append(
            (
                ", ".join(f"`{one}`" for one in written(method.syntax)),
                phases[tuple(method.phases)],
                f"{rate:g}" if "blocks" in method.phases else "–",
                yes(method.changes_body),
                yes(method.uses_seed),
                f"of `{method.control_of}`" if method.is_control else "no",
            )
        )
    parts = [
        "# Adaptation methods",
        "A method says how a model is adapted. Name methods in `adaptation.methods` of a [study](study.md#adaptation); "
        '`methods = "depths"` stands for `head`, `top:1` ... `top:L` and `full`. L is the number of blocks, r a rank, k a '
        "number of blocks.",
        table(
            ("written as", "trains", "learning rate", "changes the body", "depends on the seed", "control"),
            rows,
        ),
        "`adaptation.learning_rate` sets the learning rate of the methods that have no rate of their own, "
        "`adaptation.learning_rates` that of a single method.",
    ]
    for method in REGISTRY:
        parts += [f"## {heading_of(method.syntax)}", text(inspect.cleandoc(method.__doc__ or ""))]
        first = written(method.syntax)[0]
        depth = parse_method({"top:k": "top:2", "lora:r": "lora:8"}.get(first, first), 6).depth(6)
        if depth is not None:
            words = {0: "0", 6: "L, the number of blocks"}.get(depth, "k")
            parts.append(f"Its depth, the number of top blocks that it trains, is {words}.")
    parts.append("A new method is one class: see [Extending layerprobe](../extending.md#an-adaptation-method).")
    return page(parts)


def tables() -> str:
    """Every table of a run: the stage that writes it, what one row is, and its columns."""
    from layerprobe.description import ADDED_TABLES
    from layerprobe.stages import REGISTRY

    specs, writers = {}, {}
    for spec, writer in [
        *((spec, f"`{stage.name}`") for stage in REGISTRY for spec in stage.tables),
        *((spec, "the pipeline") for spec in ADDED_TABLES),
    ]:
        specs[spec.name] = spec
        writers.setdefault(spec.name, []).append(writer)
    parts = [
        "# Tables and columns",
        "`Run.table(name)` reads a table of a run as a pandas DataFrame; the files are `tables/NAME.parquet` in the run "
        "folder. All tables are tidy: one row per observation, one column per variable. `Run.tables` lists the tables of a "
        "run with their columns.",
        "Every number of the report is in one of them.",
        table(
            ("table", "content", "written by"),
            [
                (f"[`{name}`](#{name})", text(spec.description), ", ".join(writers[name]))
                for name, spec in specs.items()
            ],
        ),
    ]
    for name, spec in specs.items():
        columns = [(f"`{column}`", text(meaning)) for column, meaning in spec.columns.items()]
        parts += [f"## {name} {{#{name}}}", text(spec.description), table(("column", "meaning"), columns)]
    return page(parts)


def stages() -> str:
    """Every stage: what it does, the tables that it writes, whether it computes on an accelerator."""
    from layerprobe.stages import REGISTRY

    rows = [
        (
            f"`{stage.name}`",
            text(first_sentence(stage)),
            ", ".join(f"[`{spec.name}`](tables.md#{spec.name})" for spec in stage.tables) or "–",
            "few-shot" if stage.few_shot else "adaptation",
        )
        for stage in REGISTRY
    ]
    parts = [
        "# Stages",
        "A study is a list of tasks; a task is a stage applied to particular parameters (method, seed, layer), and writes "
        "one artifact. `layerprobe plan STUDY.toml` lists the tasks of a study. [Running on a GPU](../accelerators.md) "
        "lists what each stage computes on the device.",
        table(("stage", "what it does", "tables", "studies"), rows),
    ]
    return page(parts)


def study() -> str:
    """Every key of a study: meaning and default."""
    from pydantic import BaseModel

    from layerprobe.study import Study

    sections: dict[str, type[BaseModel]] = {}
    top = []
    for name, field in Study.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        section = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if section is None:
            top.append(key_row(name, field))
        else:
            sections[name] = section
    parts = [
        "# Study keys",
        "A study is a TOML file. `model.name` and `data.source` are required; every other key has a default. A single word "
        "or number stands for a list of one. Paths are relative to the file. `--set SECTION.KEY=VALUE` changes a key for "
        "one run, and the same keys are accepted by `Study.parse` in Python.",
        table(("key", "default", "meaning"), top),
    ]
    for name, section in sections.items():
        rows = []
        for key, field in section.model_fields.items():
            nested = [kind for kind in nested_types(field.annotation) if issubclass(kind, BaseModel)]
            rows.append(key_row(f"{name}.{key}", field))
            for kind in nested:
                rows += [key_row(f"{name}.{key}.{inner}", one) for inner, one in kind.model_fields.items()]
        parts += [f"## `[{name}]` {{#{name}}}"]
        if section.__doc__ and section.__doc__ != BaseModel.__doc__:
            parts.append(text(inspect.cleandoc(section.__doc__)))
        parts.append(table(("key", "default", "meaning"), rows))
    return page(parts)


def commands() -> str:
    """Every command of `layerprobe` with its arguments and options."""
    import typer.main

    from layerprobe.cli import app

    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands",
        "Exit codes: 0 success, 1 unexpected error, 2 user error (one sentence on stderr), 130 interrupted.",
        table(
            ("command", "what it does"),
            [(f"[`layerprobe {name}`](#{name})", text(command.help or "")) for name, command in group.commands.items()],
        ),
    ]
    for name, command in group.commands.items():
        shown = [one for one in command.params if one.name != "help"]
        arguments = [one.metavar or one.name for one in shown if one.param_type_name == "argument"]
        usage = " ".join(["layerprobe", name, *arguments, "[OPTIONS]"])
        rows = []
        for one in shown:
            is_option = one.param_type_name == "option"
            names = ", ".join(one.opts) if is_option else one.metavar or one.name
            value = f" {one.metavar}" if is_option and one.metavar else ""
            rows.append((f"`{names}{value}`", text(one.help or "")))
        parts += [f"## {name} {{#{name}}}", text(command.help or ""), f"```text\n{usage}\n```"]
        parts.append(table(("argument or option", "meaning"), rows))
    return page(parts)


PAGES: Mapping[str, Callable[[], str]] = {
    "study": study,
    "commands": commands,
    "methods": methods,
    "measures": measures,
    "tables": tables,
    "stages": stages,
}
"""Pages by file name, each a function that returns Markdown."""


# Markdown ---------------------------------------------------------------------------------------------------------------


def page(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown on one line."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"* {item}" for item in items)


def text(words: str) -> str:
    """Prose of the code as Markdown: outside code spans, characters with a meaning in Markdown, HTML or tables are escaped."""
    parts = re.split(r"(`[^`]*`)", words)
    return "".join(
        part
        if part.startswith("`")
        else re.sub(r"([\\*_\[\]])", r"\\\1", part.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;"))
        for part in parts
    )


def formula(latex: str) -> str:
    """A formula on a line of its own, as MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    return f'<div class="formula">{convert(latex, display="block")}</div>'


def with_formulas(words: str) -> str:
    """Prose in which dollar signs enclose formulas."""
    from latex2mathml.converter import convert

    parts = words.split("$")
    return "".join(convert(part).replace("|", "&#124;") if i % 2 else text(part) for i, part in enumerate(parts))


def yes(value: bool) -> str:
    return "yes" if value else "no"


def extent(ends: tuple[float, float]) -> str:
    """A range in words: open ends are infinite."""
    names = {math.inf: "∞", -math.inf: "−∞", math.pi / 2: "π/2"}
    return " to ".join(names.get(end, f"{end:g}") for end in ends)


def written(syntax: str) -> list[str]:
    """The ways to write a method, from its syntax, which may explain a parameter in brackets."""
    return re.sub(r" \(.*?\)", "", syntax).split(", ")


def heading_of(syntax: str) -> str:
    """The first way to write a method, with an anchor of its letters."""
    first = written(syntax)[0]
    return f"`{first}` {{#{re.sub(r'[^a-z0-9]+', '-', first.lower()).strip('-')}}}"


def first_sentence(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())


def function(one: Callable[..., Any], name: str) -> list[str]:
    """Signature and docstring of a function."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(one).parameters.values()
    ]
    shown = str(inspect.Signature(parameters))
    body, _, rest = inspect.cleandoc(one.__doc__ or "").partition("\nArgs:\n")
    arguments, _, errors = rest.partition("\nRaises:\n")
    parts = [f"```python\n{name}{shown}\n```", *(text(part) for part in body.strip().split("\n\n"))]
    entries = re.split(r"\n(?=\S)", textwrap.dedent(arguments))
    named = [entry.strip().partition(":") for entry in entries if entry.strip()]
    if named:
        parts.append(bullets(f"`{names}`: {text(' '.join(meaning.split()))}" for names, _, meaning in named))
    if errors:
        parts.append(f"Raises {text(' '.join(errors.split()))}")
    return parts


def nested_types(annotation: Any) -> list[type]:
    """The classes that an annotation names at any depth."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in nested_types(part)]


def key_row(name: str, field: Any) -> tuple[str, str, str]:
    """A study key as a row: name, default and meaning, which is the string under it."""
    return f"`{name}`", "required" if field.is_required() else default_of(field.default), text(field.description or "")


def default_of(value: Any) -> str:
    """A default as TOML writes it; none where it is chosen at run time."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(default_of(one).strip('`') for one in value)}]`"
    if isinstance(value, dict):
        return "`{}`" if not value else f"`{value}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    main()
