"""The framework of the page, and its first sections: planted numbers reach figures, tables of nulls and captions."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, measure_record, record
from test_report import EVIL, adaptation, page, similarity

from layerprobe.report import page as pages
from layerprobe.report import queries
from layerprobe.report.section import Section
from layerprobe.report.sections import REGISTRY, answer, drift, made, sure
from layerprobe.report.sections.drift.context import agreement, beyond
from layerprobe.report.sections.drift.figures import NULLS, drift_by_unit, geometry, layer_grid, row_sets
from layerprobe.report.sections.drift.sentences import control_sentence, equal_step_sentence, layer_ranges
from layerprobe.report.theme import COLOURS
from layerprobe.runs import Run

DRIFT = [1.0, 0.97, 0.6]


def nulls(method="full", seed=0, kind="shuffled-texts", values=(0.1, 0.1, 0.1), reach=0.05, measure="cka"):
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "unit": "token",
            "measure": measure,
            "layer": range(len(values)),
            "null": "seed-1" if kind == "seed" else kind,
            "null_kind": kind,
            "value": values,
            "low": np.array(values) - reach,
            "high": np.array(values) + reach,
            "draws": 20,
        }
    )


def controls(name, values, covers=True, reach=0.02, models=3, drift=(1.0, 0.965, 0.55)):
    gap = np.array(values) - np.array(drift)
    return pd.DataFrame(
        {
            "method": "full",
            "unit": "token",
            "measure": "cka",
            "layer": range(len(values)),
            "control": name,
            "similarity": drift,
            "control_similarity": values,
            "difference": gap,
            "band_low": gap - reach,
            "band_high": gap + reach,
            "control_models": models,
            "covers_training": covers,
        }
    )


def study(**more):
    """Two seeds of full, a head, a control, and the baseline of the cosine."""
    tables = {
        "adaptation": adaptation(head=0.7, full=0.8),
        "similarity": pd.concat(
            [
                similarity(DRIFT),
                similarity([1.0, 0.96, 0.5]).assign(seed=1),
                similarity([1.0, 1.0, 1.0], "head", reach=0),
                similarity([1.0, 0.99, 0.7], "shuffled-labels"),
                similarity([1.0, 0.9, 0.8], measure="paired_cosine"),
                similarity([0.4, 0.3, 0.2], measure="paired_cosine_baseline"),
                similarity([0.0, 0.5, 0.1], measure="cka_angle"),
            ]
        ),
        "similarity_nulls": pd.concat(
            [
                nulls().assign(calibrated=[1.0, 0.9, 0.5]),
                nulls(kind="seed", values=(1.0, 0.98, 0.9)),
                nulls(kind="norm-matched", values=(1.0, 0.999, 0.99)),
            ]
        ),
        "drift_controls": pd.concat(
            [controls("norm-matched", [1.0, 0.999, 0.99]), controls("shuffled-labels", [1.0, 0.99, 0.7])]
        ),
    }
    return complete(tables | more, record())


def figure(name, tables, about, **options):
    return pages.figure_function(name)(tables, about, **options)


def traces(figure):
    return {(trace.name, trace.mode): trace for trace in figure.data if trace.name}


# The framework --------------------------------------------------------------------------------------------------------


def test_figures_have_unique_names_and_sections_unique_ids():
    names = [name for section in REGISTRY for name in section.figures]
    assert len(names) == len(set(names)) and len({section.id for section in REGISTRY}) == len(REGISTRY)
    assert {"layer_strip", "drift", "layer_grid"} <= set(names)


def test_the_contents_list_follows_the_registry(tmp_path):
    html = page(tmp_path / "run", {"adaptation": adaptation(full=0.8), "similarity": similarity(DRIFT)})
    links = re.findall(r'<li><a href="#(\w+)">', html)
    assert links == re.findall(r'<section id="(\w+)">', html)
    assert links == [section.id for section in REGISTRY if section.studies != "few-shot"]


def test_a_section_without_its_table_is_one_line_that_says_why(tmp_path):
    html = page(tmp_path / "run", {"adaptation": adaptation(full=0.8)})
    body = re.search(r'<section id="drift">(.*?)</section>', html, flags=re.S).group(1)
    assert "No similarity was measured in this run." in body and body.count("<p") == 1
    assert "data-figure" not in body


def test_a_new_section_is_its_folder_and_a_line_of_the_registry(tmp_path, monkeypatch):
    import jinja2

    def toy(tables, record, *, layer=0):
        import plotly.graph_objects as go

        return go.Figure(go.Scatter(y=[layer])) if layer < 2 else None

    source = (
        '{% set one = plot("toy", "Toy", css="grid", choices={"layer": ("Layer", ["0", "1"])}) %}'
        "{{ one.controls }}{{ one }}{{ evil }}{{ record.question }}"
    )
    section = Section(
        id="toy",
        title="Toy",
        figures={"toy": lambda tables, record, layer="0": toy(tables, record, layer=int(layer))},
        context=lambda tables, record: {"evil": EVIL, "data": {"evil": EVIL}},
        sentences=lambda tables, record: [pages.Finding(text="Toys changed.", figure="toy")],
        scripts=("script.js",),
    )
    files = {"toy/template.html.j2": source, "toy/script.js": 'const toy = read("data-toy");'}
    make = pages.make_environment

    def environment():
        made = make()
        made.loader = jinja2.ChoiceLoader([made.loader, jinja2.DictLoader(files)])
        return made

    monkeypatch.setattr(pages, "make_environment", environment)
    html = pages.render_page(*study(), [*REGISTRY, section])
    assert "Toys changed. <a href" in html and '<li><a href="#toy">Toy</a>' in html
    assert "<script>alert" not in html and html.count("&lt;script&gt;alert") == 1
    assert '<label for="toy-layer">Layer</label><select id="toy-layer" data-chooses="toy">' in html
    assert 'class="plot grid" data-figure="toy" role="group" aria-label="Toy" id="figure-toy"' in html
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', html, flags=re.S).group(1))
    assert list(drawn["toy"]) == ["0", "1"]
    assert json.loads(re.search(r'id="data-toy">(.*?)</script>', html, flags=re.S).group(1)) == {"evil": EVIL}
    assert 'const toy = read("data-toy");' in html


def test_every_figure_of_the_page_has_its_data_and_its_label(tmp_path):
    html = page(tmp_path / "run", study()[0])
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', html, flags=re.S).group(1))
    places = re.findall(r'<div class="plot[^"]*" data-figure="([^"]+)" role="group" aria-label="[^"]+"', html)
    assert len(places) == len(set(places)) == html.count("data-figure=") and set(places) == set(drawn)


def test_a_run_gives_figures_by_name(tmp_path):
    page(tmp_path / "run", study()[0])
    run = Run.load(tmp_path / "run")
    shown = run.figure("drift", measure="cka")
    assert shown.to_dict()["data"] and "label of cka" in shown.layout.yaxis.title.text
    assert run.figure("layer_strip").data[0].type == "heatmap"
    with pytest.raises(KeyError, match=r"there is no figure 'drfit'; the figures are .*drift.*layer_strip"):
        run.figure("drfit")
    with pytest.raises(KeyError, match="no measure 'rsa'; it has cka"):
        run.figure("drift", measure="rsa", unit="token")
    with pytest.raises(ValueError, match="'geometry' has nothing to draw in this run with method='full'"):
        run.figure("geometry", method="full")


def test_findings_follow_the_priority_of_their_sections():
    def section(name, priority):
        say = lambda tables, record: [pages.Finding(text=name, figure=name)]  # noqa: E731
        return Section(id=name, title=name, sentences=say, priority=priority)

    found = pages.findings({}, record(), [section("b", 2), section("c", 1), section("a", 1)])
    assert [finding.text for finding in found] == ["c", "a", "b"]


# Queries --------------------------------------------------------------------------------------------------------------


def test_methods_are_ordered_by_depth_and_controls_come_last():
    names = ["shuffled-labels", "full", "top:6", "lora:8", "top:2", "head", "bitfit"]
    tables, about = complete({"adaptation": adaptation(**dict.fromkeys(names, 0.7), majority=0.5)}, record())
    assert queries.methods(tables, about) == ["head", "top:2", "top:6", "full", "bitfit", "lora:8", "shuffled-labels"]
    assert queries.main_method(queries.methods(tables, about), about) == "full"
    assert queries.main_method(["head", "lora:8", "shuffled-labels"], about) == "lora:8"
    assert queries.main_method(["shuffled-labels"], about) == "shuffled-labels"
    assert queries.label("reference:logistic-cls", about) == "logistic-cls" and queries.label("full", about) == "full"


def test_a_method_changed_if_any_exact_measure_did():
    tables, about = study()
    assert queries.changed(tables, about) == ["full", "shuffled-labels"]
    assert queries.unchanged(tables, about) == ["head"]
    fitted = similarity([0.8, 0.9, 0.9], "head", measure="linear_predictivity")
    other = {"similarity": pd.concat([tables["similarity"], fitted])}
    about.measures.append(measure_record("linear_predictivity"))
    assert queries.unchanged(tables | other, about) == ["head"]


# Drift ----------------------------------------------------------------------------------------------------------------


def test_the_strip_is_one_less_the_similarity_and_outlines_what_is_reliably_changed():
    shown = figure("layer_strip", *study())
    grid = shown.data[0]
    assert list(grid.y) == ["head", "full", "shuffled-labels"] and list(grid.x) == [0, 1, 2]
    assert grid.z[1] == pytest.approx([0.0, 0.035, 0.45])  # means of two seeds
    outlined = [(round((s.x0 + s.x1) / 2), round((s.y0 + s.y1) / 2)) for s in shown.layout.shapes]
    assert outlined == [(2, 1), (2, 2)]
    assert [note.text for note in shown.layout.annotations][3:6] == ["0.00", "0.04", "0.45"]


def test_a_measure_is_drawn_with_its_seeds_interval_and_nulls():
    tables, about = study()
    shown = figure("drift", tables, about, measure="cka")
    full = [trace for trace in shown.data if trace.name == "full"]
    assert [list(trace.y) for trace in full] == [DRIFT, [1.0, 0.96, 0.5]]
    assert [trace.line.dash for trace in full] == ["solid", "dash"]
    for kind in NULLS:
        symbol, words = NULLS[kind]
        (null,) = [trace for trace in shown.data if trace.name == words]
        planted = tables["similarity_nulls"].query("null_kind == @kind")
        assert list(null.y) == list(planted.value) and null.marker.symbol == symbol
        assert np.allclose(null.error_y.array, 0.05) and np.allclose(null.error_y.arrayminus, 0.05)
    assert "lower = more changed" in shown.layout.yaxis.title.text
    assert "higher = more changed" in figure("drift", tables, about, measure="cka_angle").layout.yaxis.title.text
    cosine = traces(figure("drift", tables, about, measure="paired_cosine"))
    assert list(cosine["unrelated rows", "lines"].y) == [0.4, 0.3, 0.2]
    assert "unrelated rows" not in {trace.name for trace in shown.data}
    assert queries.measures(tables["similarity"], about) == ["cka", "paired_cosine", "cka_angle"]
    assert figure("drift", tables, about, measure="cka", unit="cls") is None


def test_units_and_sets_of_rows_are_drawn_only_where_there_are_several():
    tables, about = study()
    assert drift_by_unit(tables, about) is None and row_sets(tables, about, method="full") is None
    rows = [
        tables["similarity"],
        similarity([1, 0.9, 0.3], unit="mean"),
        similarity([1, 0.98, 0.9]).assign(rows="no-special"),
        similarity([1, 0.99, 0.95]).assign(rows="no-outliers"),
    ]
    tables = {"similarity": pd.concat(rows)}
    units = traces(drift_by_unit(tables, about, method="full"))
    assert list(units[queries.UNITS["mean"], "lines+markers"].y) == [1, 0.9, 0.3]
    sets = traces(row_sets(tables, about, method="full"))
    assert list(sets["without special tokens", "lines+markers"].y) == [1, 0.98, 0.9]
    assert len(sets) == 3


def test_geometry_and_grids_show_both_sides():
    tables, about = study()
    shape = pd.DataFrame(
        [
            {"measure": name, "side": side, "layer": layer, "value": layer + bonus}
            for name in ("anisotropy", "effective_rank", "intrinsic_dimension", "participation_ratio")
            for side, bonus in (("base", 0.0), ("adapted", 0.5))
            for layer in (0, 1)
        ]
    ).assign(method="full", seed=0, unit="token", ci_low=0.0, ci_high=2.0)
    shown = geometry({"geometry": shape}, about, method="full")
    assert len(shown.data) == 6 and list(shown.data[1].y) == [0.5, 1.5]
    assert {trace.line.color for trace in shown.data} == set(COLOURS[:2])
    grid = pd.DataFrame(
        [
            {"side_a": a, "side_b": b, "layer_a": i, "layer_b": j, "value": i / 2 + j / 10}
            for a, b in (("base", "base"), ("base", "adapted"), ("adapted", "adapted"))
            for i in (0, 1)
            for j in (0, 1)
        ]
    ).assign(method="full", seed=0, unit="token", measure="cka")
    shown = layer_grid({"similarity_grid": grid}, about, method="full")
    assert [list(row) for row in shown.data[1].z] == [[0.0, 0.1], [0.5, 0.6]]
    assert shown.layout.coloraxis.cmax == 1
    assert layer_grid(tables, about, method="full") is None


def test_drift_is_compared_with_each_null():
    tables, about = study()
    table = beyond(tables, about, "full")
    assert (table["measure"], table["draws"], table["seeds"], table["trained"]) == ("cka", 20, True, True)
    assert [control.name for control in table["controls"]] == ["norm-matched", "shuffled-labels"]
    last = table["rows"][2]
    assert last["value"] == 0.6 and last["similar"]  # .59 is above the shuffles' .15
    assert last["seeds"] == pytest.approx((0.9, 0.85, 0.95)) and last["beyond_seeds"]
    assert last["controls"] == [{"value": 0.99, "beyond": True}, {"value": 0.7, "beyond": True}]
    assert last["calibrated"] == 0.5 and table["calibrated"]
    assert [cell["beyond"] for cell in table["rows"][1]["controls"]] == [True, True]
    assert not table["rows"][0]["beyond_seeds"] and not table["rows"][0]["controls"][0]["beyond"]
    control = beyond(tables, about, "shuffled-labels")
    assert not control["controls"] and not control["seeds"] and control["draws"] == 0
    assert beyond({"similarity": tables["similarity"]}, about, "full") is None


def test_a_distance_exceeds_its_null_upwards():
    rows = [similarity([0.0, 1.2], measure="cka_angle", reach=0.02).assign(ci_high=lambda t: t.value + 0.02)]
    rows.append(similarity([0.0, 1.0], "shuffled-labels", measure="cka_angle", reach=0.02).assign(ci_high=1.02))
    tables, about = complete(
        {"similarity": pd.concat(rows), "similarity_nulls": nulls(values=(1.5, 1.5), measure="cka_angle")}, record()
    )
    assert beyond(tables, about, "full")["rows"][1]["similar"]


def test_one_training_of_a_control_decides_nothing_about_it():
    one = controls("shuffled-labels", [1.0, 0.99, 0.7], covers=False, models=1)
    tables, about = study(drift_controls=one)
    assert [row["controls"][0]["beyond"] for row in beyond(tables, about, "full")["rows"]] == [None] * 3
    text = control_sentence(tables, about, "full")
    assert "shuffled-labels (1 seed) leaves CKA at 0.700 at layer 2" in text and "The first layer" not in text
    assert "Whether it exceeds shuffled-labels beyond chance in training is undecided with one seed." in text


def test_drift_is_said_to_exceed_controls_from_the_first_layer_beyond_all_of_them():
    tables, about = study()
    text = control_sentence(tables, about, "full")
    assert "3 random changes of the weights with the norms of full leave CKA at 0.990 at layer 2" in text
    assert "The first layer at which the drift of full is shown to exceed that of both is 1." in text
    assert control_sentence(tables, about, "shuffled-labels") is None
    late = pd.concat([controls("norm-matched", [1.0, 0.98, 0.9]), controls("shuffled-labels", [1.0, 0.97, 0.7])])
    assert "both is 2." in control_sentence(tables | {"drift_controls": late}, about, "full")
    random = controls("norm-matched", [1.0, 0.999, 0.99], covers=False)
    text = control_sentence(tables | {"drift_controls": random}, about, "full")
    assert "shown to exceed that of the random changes is 1, given this one training." in text
    assert "No model was trained like full on shuffled labels" in text
    none = controls("norm-matched", [1.0, 0.97, 0.55])
    text = control_sentence(tables | {"drift_controls": none}, about, "full")
    assert "At no layer is the drift of full shown to exceed that of the random changes." in text


def test_equal_steps_qualify_the_slope_over_layers():
    name = "full:equal-step"
    text = equal_step_sentence(similarity([1, 0.95, 0.6], name))
    assert "0.950 at layer 1 and 0.600 at layer 2: later layers change more also without larger steps" in text
    assert "is undecided" in equal_step_sentence(similarity([1, 0.61, 0.6], name))
    assert equal_step_sentence(similarity([1, 0.9, 0.6])) is None


def test_measures_that_disagree_are_named_with_the_layer_of_each():
    tables, about = study()
    found = agreement(tables, about, "full")
    rows = {row["measure"]: row for row in found["rows"]}
    assert list(rows) == ["cka", "paired_cosine", "cka_angle"]  # the baseline is none of its own
    assert (rows["cka"]["layer"], rows["cka"]["value"], rows["cka"]["first"]) == (2, 0.6, 2)
    assert (rows["cka_angle"]["layer"], rows["cka_angle"]["first"]) == (1, 1)
    assert rows["cka"]["tied"] == [2]
    assert "layer 2: cka, paired_cosine; layer 1: cka_angle" in found["text"]
    wide = {"similarity": pd.concat([similarity([1, 0.9, 0.88], reach=0.05), similarity([1, 0.7, 0.5], measure="rsa")])}
    found = agreement(*complete(wide, record()), "full")
    assert (
        found["rows"][0]["tied"] == [1, 2]
        and found["rows"][0]["first"] is None
        and "All 2 measures have their largest estimated change at layer 2." in found["text"]
    )
    assert agreement(*complete({"similarity": similarity(DRIFT)}, record()), "full") is None


def test_layer_numbers_are_shortened():
    assert layer_ranges([4, 0, 1, 2]) == "0-2, 4" and layer_ranges([3]) == "3"


def test_the_caption_counts_and_the_other_sections_read_the_record(tmp_path):
    tables, about = study()
    assert answer.context(tables, about)["rows"].n == 50
    left = pd.DataFrame({"measure": ["rsa"], "unit": ["cls"], "why": ["constant rows"]})
    context = sure.context(tables | {"similarity_left_out": left}, about)
    assert context["seeds"] == 1  # the last method has one
    assert context["left_out"] == [f"rsa was left out of {queries.UNITS['cls']}: constant rows"]
    links = {
        item["name"]: item for item in made.context({"big": pd.DataFrame({"x": ["y" * 700_000]})}, about)["downloads"]
    }
    assert links["big"]["link"] is None and links["big"]["rows"] == 1
    assert drift.SECTION.requires == ("similarity",)
