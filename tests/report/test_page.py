"""The shell of the page: its policy, vendored plotly, ids and links, strings as data, sizes, and every kind of study."""

import base64
import hashlib
import itertools
import json
import re
from importlib import resources

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from fabricated import METHODS, complete, depth_study, record, tokens_of
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs_version
from test_features import everything
from test_report import EVIL, adaptation, similarity

from layerprobe.record import Conclusion, Finding
from layerprobe.report import figure_function
from layerprobe.report.literal import literal
from layerprobe.report.page import render_page, with_ids
from layerprobe.report.plots import Plots, compact
from layerprobe.report.section import Section
from layerprobe.report.theme import SCALE, ink_on, styled

LINK = '<a href="https://example.org">%{x} $y$ &amp; {z}</a>'
RIGHT_TO_LEFT, EMOJI = "שלום עולם", "🎉👩‍👩‍👧 naïve"
CARTESIAN = {"bar", "box", "contour", "heatmap", "histogram", "image", "scatter", "violin"}
"""Traces of the cartesian bundle that need no WebGL."""


def study(methods=METHODS, seeds=(0,), **options):
    """Tables of a fabricated study and its record."""
    tables, conclusion = depth_study(methods=methods, seeds=seeds, n=600, **options)
    tables, about = complete(tables, record())
    if conclusion:
        about = about.model_copy(update={"sufficiency": Conclusion.model_validate(conclusion)})
    return tables, about


def token_tables(texts, labels):
    """Examples with these texts and labels, shown token by token."""
    ids = [f"e{i}" for i in range(len(texts))]
    examples = pd.DataFrame({"example_id": ids, "text": texts, "label": labels, "split": "test"})
    tokens = tokens_of(dict(zip(ids, texts, strict=True)))
    layers = [tokens.drop(columns=["start", "end"]).assign(layer=layer, change=0.1 * layer) for layer in (0, 1)]
    sentences = pd.concat(layers, ignore_index=True).assign(method="full", seed=0)
    return {"examples": examples, "tokens": tokens, "sentences": sentences}


def checkpoint():
    """A study of a finished checkpoint alone, without dictionaries."""
    tables = {
        "adaptation": adaptation(checkpoint=0.8, majority=0.5),
        "similarity": similarity([1, 0.9, 0.5], "checkpoint"),
    }
    return complete(tables | token_tables(["w1 w2", "w3"], ["a", "b"]), record())


def twenty_classes():
    """A study of 20 labels with awkward names, and texts in other scripts."""
    labels = [
        f"class {i} {name}"
        for i, name in enumerate(itertools.islice(itertools.cycle((LINK, RIGHT_TO_LEFT, EMOJI, EVIL)), 20))
    ]
    tables, about = study(("head", "full"))
    texts = [f"{RIGHT_TO_LEFT} {EMOJI} {i}" for i in range(20)]
    about.data.label_names = labels
    about.data.name = about.name = LINK
    return tables | token_tables(texts, labels), about


def features():
    """A study with dictionaries."""
    return everything()


STUDIES = {
    "one method": lambda: study(("full",)),
    "two methods": lambda: study(("head", "full")),
    "eight methods": lambda: study(),
    "five seeds": lambda: study(("head", "top:2", "full"), seeds=range(5)),
    "eight methods, five seeds": lambda: study(seeds=range(5)),
    "checkpoint": checkpoint,
    "twenty classes": twenty_classes,
    "dictionaries": features,
    "nothing": lambda: ({}, record()),
}


@pytest.fixture(scope="module")
def pages():
    """The page of each study, drawn once."""
    return {name: render_page(*make()) for name, make in STUDIES.items()}


def embedded(html):
    """JSON values of a page by id."""
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', html, flags=re.S)
    return {name: json.loads(content) for name, content in found}


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_whole_page(name, pages):
    html = pages[name]
    visible = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", html, flags=re.S)
    assert not re.findall(r"\b(?:nan|NaN|None|undefined|Infinity|inf)\b", visible), name
    assert len(html.encode()) < 3_000_000
    ids = re.findall(r' id="([^"]+)"', re.sub(r"<script>.*?</script>", "", html, flags=re.S))
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert all(" id=" in heading for heading in re.findall(r"<h[2-4][^>]*>", html))


def figures_of(pages):
    """Every figure of every page: (study, identity, variant, figure)."""
    for study_name, html in pages.items():
        for identity, variants in embedded(html)["figures"].items():
            for variant, figure in variants.items():
                yield f"{study_name}: {identity} {variant}", figure


def test_every_figure_is_drawn_by_the_cartesian_bundle(pages):
    drawn = list(figures_of(pages))
    assert len(drawn) > 100
    for where, figure in drawn:
        assert {trace["type"] for trace in figure["data"]} <= CARTESIAN, where
        assert not {"geo", "mapbox", "map", "scene", "polar", "ternary"} & set(figure["layout"]), where


def test_hover_texts_show_no_raw_floats(pages):
    for where, figure in figures_of(pages):
        for trace in figure["data"]:
            if trace.get("hoverinfo") in ("skip", "none"):
                continue
            if trace.get("hoverinfo") == "text":
                words = trace.get("text") or trace.get("hovertext")
            else:
                words = trace.get("hovertemplate")
            axes = [axis for name, axis in figure["layout"].items() if name[1:5] == "axis"]
            assert all(axis["hoverformat"] for axis in axes)
            # Without a template, plotly shows x and y in the format of their axes.
            assert words or trace["type"] in ("scatter", "bar"), f"{where}: {trace.get('name')}"
            texts = np.ravel(np.array(words or "", dtype=object))
            assert not [text for text in texts if text and re.search(r"\d\.\d{5,}", str(text))], where
            for text in map(str, texts):
                for key, index in re.findall(r"%\{(z|customdata)(?:\[(\d+)\])?\}", text):
                    values = trace.get(key) or []
                    values = [value[int(index)] for value in values] if index else values
                    flat = np.ravel(np.array(values, dtype=object))
                    assert not [value for value in flat if isinstance(value, float)], f"{where}: {text}"


def test_the_vendored_plotly_is_that_of_the_python_package():
    folder = resources.files("layerprobe.report").joinpath("vendor")
    notice = dict(line.split(": ", 1) for line in folder.joinpath("NOTICE").read_text().splitlines())
    content = folder.joinpath("plotly-cartesian.min.js").read_bytes()
    assert notice["version"] == get_plotlyjs_version()
    assert notice["sha256"] == hashlib.sha256(content).hexdigest()
    assert f"v{notice['version']}".encode() in content[:200] and b"cartesian" in content[:200]
    assert "MIT License" in folder.joinpath("LICENSE").read_text()


def test_the_policy_names_the_hash_of_every_script_and_allows_nothing_else(pages):
    for html in pages.values():
        head, rest = html.split('<meta http-equiv="Content-Security-Policy" content="', 1)
        assert "<script" not in head and "<style" not in head
        policy = dict(part.strip().split(" ", 1) for part in rest.split('"', 1)[0].split(";"))
        hashes = {
            f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
            for script in re.findall(r"<script>(.*?)</script>", html, flags=re.S)
        }
        assert set(policy.pop("script-src").split()) == hashes and len(hashes) == 2
        assert policy == {
            "default-src": "'none'",
            "style-src": "'unsafe-inline'",
            "img-src": "data: blob:",
            "base-uri": "'none'",
            "form-action": "'none'",
        }
        markup = re.sub(r"<script.*?</script>|<style.*?</style>", "", html, flags=re.S)
        assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r'"[^"]*"', '""', markup))
        assert not re.search(r'href="javascript:', markup)


def test_a_finding_links_to_its_figure_or_else_to_its_section():
    toy = Section(
        id="toy",
        title="Toy",
        figures={"curve": lambda tables, record: go.Figure(go.Scatter(y=[1]))},
        template="toy",
        sentences=lambda tables, record: [Finding(text="a", figure="curve"), Finding(text="b", figure="toy")],
    )
    from layerprobe.report import page as module
    from layerprobe.report.sections import answer

    make = module.make_environment

    def environment():
        import jinja2

        made = make()
        made.loader = jinja2.ChoiceLoader([made.loader, jinja2.DictLoader({"toy": '{{ plot("curve", "Curve") }}'})])
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_environment", environment)
        html = render_page({}, record(), [answer.SECTION, toy])
    assert re.search(r'a <a href="#figure-curve">', html) and re.search(r'b <a href="#toy">', html)
    assert '<li><a href="#figure-curve">Curve</a></li>' in html and 'id="figure-curve"' in html


def test_headings_get_ids_of_their_words_once():
    html = with_ids(
        '<h3>Is it &lt;b&gt;? <em>full</em></h3><h3>Is it b full</h3><h3 id="own">Own</h3><h4>?</h4>', "drift"
    )
    assert re.findall(r' id="([^"]+)"', html) == ["drift-is-it-b-full", "drift-is-it-b-full-2", "own", "drift-heading"]


def test_figures_of_one_name_are_numbered():
    plots = Plots()
    for _ in range(3):
        plots.add("a", "A", {"": go.Figure()})
    assert list(plots.drawn) == ["a", "a-2", "a-3"]
    assert plots.add("b", "B", {}) is None


def test_compact_figures_hold_the_same_numbers_in_six_digits():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 3)) * 10.0 ** rng.integers(-8, 8, (5, 3))
    figure = go.Figure(go.Heatmap(z=values, x=np.arange(3), customdata=np.array([[1_774_464, np.nan]])))
    content = compact(figure.to_plotly_json())["data"][0]
    np.testing.assert_allclose(content["z"], values, rtol=5e-6)
    assert content["x"] == [0, 1, 2] and content["customdata"] == [[1_774_464, None]]
    assert "bdata" not in json.dumps(content)
    assert compact([float("inf"), pd.NA, None, True, "a", 2.0]) == [None, None, None, True, "a", 2]


def test_strings_of_the_data_are_literal_for_plotly():
    shown = literal(LINK)
    assert not set("<>${") & set(shown)
    import html

    assert html.unescape(shown) == LINK  # what a reader sees is what the data says
    table = pd.DataFrame({"label": [LINK, "plain", None], "n": [1, 2, 3], "list": [[1], [2], [3]]})
    made = literal({"t": table})["t"]
    assert made.label.tolist()[:2] == [shown, "plain"] and made.n.tolist() == [1, 2, 3] and table.label[0] == LINK
    assert literal(record(name=LINK)).name == shown
    plain = pd.DataFrame({"label": ["a", "b"]})
    assert literal(plain) is plain


def test_a_name_with_markup_reaches_plotly_as_text():
    tables = {"adaptation": adaptation(full=0.8), "similarity": similarity([1, 0.5])}
    tables = {name: table.assign(method=table.method.replace("full", "full" + LINK)) for name, table in tables.items()}
    tables, about = complete(tables, record())
    figure = figure_function("drift")(tables, about, measure="cka")
    assert "&lt;a href" in json.dumps(figure.to_plotly_json()["data"], default=str)
    for html in (render_page(tables, about),):
        assert "\\u003ca href" not in json.dumps(embedded(html)["figures"]).replace("<", "\\u003c")


@pytest.mark.parametrize("value", np.linspace(0, 1, 41))
def test_numbers_on_a_heatmap_have_a_contrast_of_four_and_a_half(value):
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    ground = luminance(sample_colorscale(SCALE, [value], colortype="tuple")[0])
    ink = luminance([{"#000": 0.0, "#fff": 1.0}[ink_on(value)]] * 3)
    high, low = max(ground, ink), min(ground, ink)
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_long_titles_of_vertical_axes_are_broken():
    figure = go.Figure(go.Scatter(y=[1])).update_yaxes(
        title="explained variance of adapted minus base, in percent of all"
    )
    lines = styled(figure, height=300).layout.yaxis.title.text.split("<br>")
    assert len(lines) > 1 and all(len(line) <= 24 for line in lines)
