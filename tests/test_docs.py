"""The documentation: its pages are reached and linked, generated ones hold what the code declares, examples run as shown."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser

import pandas as pd
import pytest
from documented import DOCS, ROOT, anchors, blocks, follow, links, read
from running import no_page
from tiny import make_encoder, write_csv

from layerprobe.adaptation.methods import REGISTRY as METHODS
from layerprobe.cli import app
from layerprobe.report.sections import REGISTRY as SECTIONS
from layerprobe.similarity import MEASURES
from layerprobe.stages import REGISTRY as STAGES
from layerprobe.study import Study

QUICK = ("internals.parts=[]", "similarity.shuffles=3", "similarity.units=['token']", "sae.controls=[]")
OPTIONS = [word for one in (*QUICK, "sae.crosscoder=false", "similarity.random_changes=0") for word in ("--set", one)]
"""Options that leave out what no page of the documentation looks at."""


def generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """The folder of the pages, with the generated ones."""
    pytest.importorskip("latex2mathml")
    folder = tmp_path_factory.mktemp("site") / "docs"
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("reference", "__pycache__"))
    generator().write(folder / "reference")
    return folder


def nav_pages(entries):
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from nav_pages(value) if isinstance(value, list) else [value]


# Pages and links --------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_once():
    project = tomllib.loads(read(ROOT / "zensical.toml"))["project"]
    listed = list(nav_pages(project["nav"]))
    written = [path.name for path in DOCS.glob("*.md")] + [f"reference/{name}.md" for name in generator().PAGES]
    assert sorted(listed) == sorted(written)
    assert project["theme"]["font"] is False


def test_links_lead_to_pages_and_headings(docs):
    pages = {path.relative_to(docs).as_posix(): read(path) for path in docs.rglob("*.md")}
    for name, text in pages.items():
        headings = anchors(text)
        assert len(set(headings)) == len(headings), name
        for link in links(text):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            path = (docs / name).parent / target if target else docs / name
            assert path.is_file(), f"{name}: {link}"
            if anchor:
                assert anchor in anchors(read(path)), f"{name}: {link}"


def test_every_figure_of_the_report_is_explained():
    figures = [name for section in SECTIONS for name in section.figures]
    explained = [heading for heading in anchors(read(DOCS / "reading.md")) if "_" in heading or heading in figures]
    assert sorted(explained) == sorted(figures)


def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(docs):
    """With the flag --strict, a broken link or a page outside the navigation is an error."""
    pytest.importorskip("zensical")
    root = docs.parent
    shutil.copy(ROOT / "zensical.toml", root)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = sorted((root / "build" / "site").rglob("*.html"))
    assert len(built) > 20
    for path in built:
        loaded = Loaded()
        loaded.feed(read(path))
        assert not [url for url in loaded.urls if url.startswith(("http:", "https:", "//"))], path
    measures = read(root / "build" / "site" / "reference" / "measures.html")
    assert measures.count("<math") >= len(MEASURES)


class Loaded(HTMLParser):
    """Collects what a browser fetches for a page."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        is_hint = tag == "link" and given.get("rel") in ("canonical", "next", "prev", "alternate")
        keys = [] if is_hint or tag == "a" else ["src", "href", "data", "poster"]
        self.urls += [given[key] for key in keys if given.get(key)]


# Generated pages --------------------------------------------------------------------------------------------------------


def section(text, anchor):
    """The part of a page under the heading with an anchor."""
    return re.split(r"^## .*$", text.partition(f"{{#{anchor}}}\n")[2], flags=re.M)[0]


def test_every_measure_has_its_formula_and_source(docs):
    text = read(docs / "reference" / "measures.md")
    for measure in MEASURES:
        part = section(text, measure.name)
        assert "<math" in part and measure.citation in part and measure.resampling.interval_method in part
        assert f"layerprobe.similarity.{measure.name}(x, y" in part
    assert "* `kernel`: `linear`, exact without an n x n matrix, or `rbf`" in section(text, "cka")


def test_every_column_of_every_table_has_its_meaning(docs):
    text = read(docs / "reference" / "tables.md")
    escaped = generator().text
    for stage in STAGES:
        for spec in stage.tables:
            part = section(text, spec.name)
            assert spec.columns and all(
                f"| `{name}` | {' '.join(escaped(meaning).split())} |" in part for name, meaning in spec.columns.items()
            ), spec.name
    assert "## examples" in text and "## near_copies" in text


def test_every_method_stage_key_and_command_is_listed(docs):
    pages = {path.stem: read(path) for path in (docs / "reference").glob("*.md")}
    for method in METHODS:
        assert f"`{re.split('[, ]', method.syntax)[0]}`" in pages["methods"]
    for stage in STAGES:
        assert f"| `{stage.name}` |" in pages["stages"]
    keys = [
        f"{section}.{key}"
        for section, values in Study.parse({"model": {"name": "m"}, "data": {"source": "d"}}).resolved().items()
        if isinstance(values, dict)
        for key in values
    ]
    assert len(keys) > 40 and all(f"| `{key}` |" in pages["study"] for key in keys)
    for command in app.registered_commands:
        assert f"## {command.callback.__name__} " in pages["commands"]


def test_the_folder_of_generated_pages_is_not_committed():
    assert "/docs/reference/" in read(ROOT / ".gitignore").splitlines()


# Examples ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the models and data that the pages name; small ones in place of the bundled model and tweets."""
    folder = tmp_path_factory.mktemp("reader")
    make_encoder(folder / "models" / "base", positions=130)
    make_encoder(folder / "models" / "fine-tuned", positions=130, seed=1, labels=["class a", "class b"])
    bundled = make_encoder(folder / "minilm", n_layers=6, positions=130)
    tweets = folder / "tweets.csv"
    made_up = pd.read_csv(write_csv(tweets, n=1200, classes=3)).rename(columns={"label": "sentiment"})
    made_up.assign(confidence=1).to_csv(tweets, index=False)
    for name, seed in (("reviews.csv", 0), ("other.csv", 1)):
        data = write_csv(folder / name, n=200, seed=seed)
        data.write_text(data.read_text().replace("text,label", "review,verdict"))
    with no_page(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("layerprobe.bundled.model_folder", lambda name: bundled)
        patch.setattr("layerprobe.bundled.data_files", lambda name: [tweets])
        patch.setenv("LAYERPROBE_HOME", str(folder / "home"))
        patch.chdir(folder)
        yield folder


def test_the_tutorial_and_the_comparison_of_its_runs(place, capsys):
    outputs = follow(DOCS / "tutorial.md", OPTIONS)
    plan, first, top2, seeds = outputs.values()
    assert "To be added" in plan
    assert first.splitlines()[-1] == "reports/first/index.html" and "Was it needed?" in first
    assert "reports/first-top2/index.html" in top2 and "reports/first-seeds/index.html" in seeds
    shown = capsys.readouterr().out
    assert "lower end of its 95% interval" in shown and ", 32) " in shown
    assert (place / "drift.html").is_file()
    compared, swept = follow(DOCS / "comparing.md").values()
    assert compared.strip() == "reports/comparison/index.html" and (place / compared.strip()).is_file()
    assert "4 combinations" in swept
    assert "first-top2" in capsys.readouterr().out


def test_one_s_own_checkpoint(place, capsys):
    plan, *_ = follow(DOCS / "own-checkpoint.md", [*OPTIONS, "--set", "sae.layers=[]"]).values()
    assert "To be added" in plan
    assert "class a" in capsys.readouterr().out
    (labels,) = [tomllib.loads(code) for code in blocks(DOCS / "own-checkpoint.md", "toml")[1:]]
    assert Study.parse({"model": {"name": "m"}, "data": {"source": "d", **labels["data"]}}).data.labels["LABEL_1"]


def test_one_s_own_data(place, capsys):
    started, *_ = follow(DOCS / "own-data.md").values()
    assert "text in 'review', label in 'verdict'" in started
    assert " tasks" in capsys.readouterr().out


def test_a_study_of_depth(place, capsys):
    follow(DOCS / "depth-study.md", [*OPTIONS, "--seed", "0"])
    shown = capsys.readouterr().out
    assert "full" in shown and shown.splitlines()[-1] == "7420"


def test_the_libraries(place, capsys):
    follow(DOCS / "libraries.md")
    shown = capsys.readouterr().out.splitlines()
    # CKA leaves out pairs of tokens of one example; with normal rows the accumulator, which has no groups, is close to it.
    assert float(shown[0]) == pytest.approx(float(shown[5]), abs=0.05)
    assert shown[6].startswith("(0, 1, 2) (") and shown[-1] == "32 64"


def test_commands_that_install_are_targets_and_extras():
    extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    text = read(DOCS / "install.md")
    assert set(re.findall(r"^\| `(\w+)` \|", text, flags=re.M)) == set(extras)
    makefile = read(ROOT / "Makefile")
    for target in {words.split()[1] for words in re.findall(r"make \w+", text)}:
        assert f"\n{target}: " in makefile
