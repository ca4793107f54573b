"""Trials of inputs: changed at random, or hostile. Each is accepted or refused in one line, and nothing of it is run."""

import contextlib
import html
import io
import json
import random
import resource
import shutil
import struct
from pathlib import Path

import children  # noqa: F401  it lets helpers of other tests be found
import hypothesis
from hypothesis import strategies as st
from running import STUDY

from layerprobe.errors import CombinedError, LayerprobeError

MOST_BYTES = 4 * 2**30
"""Memory that fuzzed inputs may take."""
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), -0.0, 1e308])
VALUES = (
    JSON_VALUES
    | NUMBERS
    | st.sampled_from(["", " ", "\x00", "~nosuchuser", "x" * 5000, "../../etc", "\ud800", "[" * 2000])
)


def places(value, path=()):
    """The path of every value inside of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def changed(draw, content):
    """A copy of nested dictionaries and lists with one to three values replaced, removed or added."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        every = list(places(content))
        if not every:
            break
        where = draw(st.sampled_from(every))
        table = content
        for key in where[:-1]:
            table = table[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "remove":
            del table[where[-1]]
        elif action == "add" and isinstance(table, dict):
            table[draw(st.text(max_size=12))] = draw(VALUES)
        else:
            table[where[-1]] = draw(VALUES)
    return content


@st.composite
def edited(draw, content: bytes):
    """Bytes with some replaced, removed or added."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        data[start:end] = draw(st.binary(max_size=40))
    return bytes(data)


def dumped(value) -> str:
    """JSON with whatever a value holds; lone surrogates are escaped."""
    return json.dumps(value, ensure_ascii=True)


def toml(value) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(one)}" for key, one in value.items()) + "}"
    return repr(value) if value is not None else '"none"'


def one_line(action) -> list[str]:
    """What is wrong with how an action ends: it succeeds, or raises user errors of one line each."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            action()
    except CombinedError as error:
        return [f"several lines: {one}" for one in error.errors if not is_line(one)]
    except LayerprobeError as error:
        return [] if is_line(error) else [f"several lines or none: {error}"]
    except Exception as error:
        import traceback

        return [f"{type(error).__name__}: {error} at {traceback.format_exc()[-700:]}"]
    return []


def is_line(error) -> bool:
    """As the command line shows it, which joins lines."""
    text = " ".join(str(error).split())
    return 0 < len(text) < 3000


# Fuzzed inputs ---------------------------------------------------------------------------------------------------------


def fuzz_study(folder: Path):
    """Study files and `--set`: values, keys and bytes."""
    from layerprobe import Study
    from layerprobe.study import read_content

    path = folder / "study.toml"
    path.write_text(STUDY.format(model=str(folder / "model"), source=str(folder / "texts.csv")))
    content = read_content(path)
    content["data"]["ood"] = [{"name": "other", "source": str(folder / "texts.csv")}]
    as_toml = changed(content).map(
        lambda value: "\n".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()).encode(
            "utf-8", "replace"
        )
    )
    sets = st.lists(
        st.tuples(
            st.sampled_from(["data.train", "sae.k", "sae.layers", "name", "x.y", "", "."]),
            VALUES.map(toml) | st.text(max_size=30),
        ),
        max_size=2,
    )

    def check(raw, overrides):
        path.write_bytes(raw)
        return one_line(lambda: Study.load(path, [f"{key}={value}" for key, value in overrides]))

    return check, (as_toml | edited(path.read_bytes()), sets)


def fuzz_data(ending):
    """Data files: bytes, and for JSONL values."""

    def prepare(folder: Path):
        import pandas as pd

        from layerprobe.data import DataSource, read_examples

        path = folder / f"fuzzed{ending}"
        frame = pd.read_csv(folder / "texts.csv").head(12)
        if ending == ".parquet":
            frame.to_parquet(path)
        elif ending == ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_csv(path, index=False)
        raw = edited(path.read_bytes())
        if ending == ".jsonl":
            raw |= st.lists(st.fixed_dictionaries({"text": VALUES, "label": VALUES}), min_size=1, max_size=6).map(
                lambda rows: "\n".join(map(dumped, rows)).encode()
            )

        def check(content):
            path.write_bytes(content)
            return one_line(lambda: read_examples(DataSource(str(path))))

        return check, (raw,)

    return prepare


def fuzz_model(name):
    """One JSON file of a model, or the header of its weights."""

    def prepare(folder: Path):
        from layerprobe.encoder import load_encoder

        copy = folder / "fuzzed-model"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "model", copy)
        path = copy / name
        original = path.read_bytes()

        if name.endswith(".json"):
            raw = changed(json.loads(original)).map(lambda value: dumped(value).encode()) | edited(original)
        else:
            size = struct.unpack("<Q", original[:8])[0]
            header = json.loads(original[8 : 8 + size])

            def with_header(value):
                text = dumped(value).encode()
                return struct.pack("<Q", len(text)) + text + original[8 + size :]

            raw = changed(header).map(with_header) | edited(original[: 8 + size]).map(
                lambda start: start + original[8 + size :]
            )

        def check(content):
            path.write_bytes(content)
            return one_line(lambda: load_encoder(str(copy)))

        return check, (raw,)

    return prepare


def fuzz_record(folder: Path):
    """`run.json`, with and without a checksum that fits, as `report` reads it."""
    from layerprobe.cli import _readable
    from layerprobe.files import digest
    from layerprobe.report import write_report
    from layerprobe.runs import Run

    run = folder / "least" / "out"
    copy = folder / "fuzzed-run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    path = copy / "run.json"
    original = path.read_bytes()

    def sealed(value):
        value.pop("checksum", None)
        with contextlib.suppress(ValueError, TypeError):
            value["checksum"] = digest(value)
        return dumped(value).encode()

    content = json.loads(original)
    raw = changed(content).map(sealed) | changed(content).map(lambda value: dumped(value).encode()) | edited(original)

    def read():
        with _readable(copy):
            write_report(Run.load(copy), copy / "index.html")

    def check(data):
        path.write_bytes(data)
        return one_line(read)

    return check, (raw,)


FUZZED = {
    "study": fuzz_study,
    "CSV": fuzz_data(".csv"),
    "JSONL": fuzz_data(".jsonl"),
    "Parquet": fuzz_data(".parquet"),
    "config.json": fuzz_model("config.json"),
    "tokenizer.json": fuzz_model("tokenizer.json"),
    "tokenizer_config.json": fuzz_model("tokenizer_config.json"),
    "safetensors header": fuzz_model("model.safetensors"),
    "run.json": fuzz_record,
}


def fuzz(kind: str, folder: Path, number: int, examples: int) -> list[str]:
    """So many examples of one kind, drawn by a seed."""
    check, strategies = FUZZED[kind](folder)
    problems: list[str] = []
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, limits[1]))

    def example(drawn):
        found = check(*drawn)
        if found:
            problems.extend(f"{one}, for {str(drawn)[:400]}" for one in found)

    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    try:
        hypothesis.seed(number)(settings(hypothesis.given(st.tuples(*strategies))(example)))()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return problems


# Hostile strings -------------------------------------------------------------------------------------------------------

PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '<a href="https://example.org">x</a>',
    "<a href='javascript:alert(1)'>x</a>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "${alert(1)}",
    "%{x} %{customdata[0]}",
    "$\\href{https://example.org}{x}$",
    "<b>bold</b><br><i>i</i>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<iframe src=https://example.org></iframe>",
    "<link rel=stylesheet href=https://example.org/x.css>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "<base href=https://example.org>",
    "<style>@import 'https://example.org/x.css'</style>",
    "<form action=https://example.org><input type=submit>",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(A1:A9)",
    "-2+3",
    "<!-- comment",
    "-->",
    "]]>",
    "__proto__",
    "constructor",
    "\u202egnirts desrever",
    "\u2028line\u2029separators",
    "a\u0301\u0300 combined",
    "🎉👩‍👩‍👧",
    "\ufeffmark",
    "x" * 300,
    "<math><mtext></table><mglyph><style><img src=x onerror=alert(1)>",
    "<object data=https://example.org></object>",
    "<video src=https://example.org/x.mp4 autoplay>",
    "url(https://example.org/x.png)",
)


def hostile_texts(rng: random.Random, count: int) -> list[str]:
    """Payloads, alone and joined."""
    drawn = [
        rng.choice(PAYLOADS) if rng.random() < 0.6 else rng.choice(PAYLOADS) + rng.choice(PAYLOADS)
        for _ in range(count)
    ]
    return [f"{text} {number}" for number, text in enumerate(drawn)]


def hostile_page(rng: random.Random, count: int) -> tuple[str, list[str]]:
    """A page in which labels, texts, names and the study are hostile."""
    from test_page import study, token_tables

    from layerprobe.report.page import render_page

    texts = hostile_texts(rng, count)
    tables, about = study(("head", "full"))
    about.data.label_names = texts
    about.data.name, about.name, about.question, about.command = texts[0], texts[1], texts[-1], texts[-2]
    about.study.resolved |= {"name": texts[0], "data": {"source": texts[1]}}
    tables |= token_tables(
        [f"{text} {word}" for text in texts for word in ("w1", "w2")], [text for text in texts for _ in range(2)]
    )
    tables = {
        name: table.assign(method=table.method.replace("full", f"checkpoint:{texts[2]}"))
        if "method" in table
        else table
        for name, table in tables.items()
    }
    for one in about.methods:
        if one.name == "full":
            one.name = f"checkpoint:{texts[2]}"
    return render_page(tables, about), texts


def hostile_run(folder: Path, rng: random.Random, columns: int = 3) -> tuple[Path | None, list[str]]:
    """The page of a run folder from elsewhere, some of whose text columns are hostile; None if it is refused, and problems."""
    from whole import whole

    from layerprobe.cli import _readable
    from layerprobe.report import write_report
    from layerprobe.runs import Run

    tables, about = whole()
    texts = [
        (name, column)
        for name, table in tables.items()
        for column in table
        if table[column].map(lambda value: isinstance(value, str)).any()
    ]
    for name, column in rng.sample(texts, columns):
        values = dict(
            zip(tables[name][column].unique(), hostile_texts(rng, tables[name][column].nunique()), strict=False)
        )
        tables[name] = tables[name].assign(**{column: tables[name][column].map(values).astype(object)})
    about.question, about.name, about.command = hostile_texts(rng, 3)
    run = Run.create(folder, about)
    run.save_tables(tables)
    run.save()

    def read():
        with _readable(folder):
            write_report(Run.load(folder), folder / "index.html")

    problems = one_line(read)
    page = folder / "index.html"
    if not page.exists():
        return None, problems
    return page, [*problems, *in_source(page.read_text(encoding="utf-8"))]


def in_source(page: str) -> list[str]:
    """Elements of a page's source that a payload has made."""
    before, _, rest = page.partition('<script type="application/json"')
    body = before.partition("<body")[2]
    marks = (
        "<img src=x",
        "<svg onload",
        "<iframe",
        "<link rel",
        "<object",
        "<video",
        "<base ",
        "<form",
        "<script>alert",
        "@import 'https",
    )
    found = [mark for mark in marks if mark in body]
    data = rest.partition("<script>")[0]
    return found + (["a script that ends the data"] if "</script><script>alert" in data else [])


def in_browser(browser, path: Path) -> list[str]:
    """What a page does in a browser besides being shown: dialogs, errors, requests, links that leave it."""
    seen: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    try:
        page = context.new_page()
        page.on("dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "blob:", "data:")) or seen.append(f"request: {request.url}")
            ),
        )
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        for number in range(min(12, page.locator("select").count())):
            control = page.locator("select").nth(number)
            if control.is_visible():
                options = control.locator("option").count()
                control.select_option(index=options - 1)
        for number in range(min(4, page.locator("input").count())):
            field = page.locator("input").nth(number)
            if field.is_visible() and field.get_attribute("type") in (None, "text", "search"):
                field.fill("<img src=x onerror=alert(1)>")
        for number in range(min(6, page.locator(".plot").count())):
            plot = page.locator(".plot").nth(number)
            if plot.is_visible():
                plot.hover()
        if page.locator("svg a").count():
            seen.append("a link in a figure")
        if not page.evaluate("[...document.links].every(link => link.hash || link.download)"):
            seen.append("a link that leaves the page")
        if page.evaluate(
            "document.querySelectorAll('main script, main iframe, main object, main video, main img[onerror], main form').length"
        ):
            seen.append("an element of a payload")
    finally:
        context.close()
    return [html.escape(one)[:300] for one in seen]
