"""Was it needed? The sentences follow planted tables, figures hold the tables' numbers, and what is missing is said."""

import base64
import json
import re

import numpy as np
import pandas as pd
import pytest
from fabricated import METHODS, complete, depth_study, record
from test_report import adaptation, page

from layerprobe.record import Conclusion
from layerprobe.report import findings
from layerprobe.report._depth import depth_context
from layerprobe.report._depth_figures import colours, drift_by_depth, spoken
from layerprobe.report._depth_words import depth_findings, recommendation


@pytest.fixture(scope="module")
def study():
    tables, kept = depth_study(n=1500)
    return complete(tables, record(sufficiency=kept))


@pytest.fixture(scope="module")
def context(study):
    return depth_context(*study)


def differences(difference, low, high, **more):
    row = {"method": "head", "reference": "full", "accuracy": 0.7, "reference_accuracy": 0.7 - difference}
    row |= {"difference": difference, "ci_low": low, "ci_high": high, "band_low": low, "band_high": high}
    return pd.DataFrame([row | {"n": 400, "seeds": 1, "disagreement": 0.1} | more])


def said(tables, about=None):
    return " ".join(finding.text for finding in depth_findings(tables, about or record()))


def test_what_the_head_gives_up_is_told_with_its_paired_interval():
    tables = {"adaptation": adaptation(head=0.7, full=0.8, majority=0.5)}
    text = said(tables | {"differences": differences(-0.1, -0.12, -0.08)})
    assert "reaches accuracy 0.700, full fine-tuning 0.800, on the same 400 test texts" in text
    assert (
        "gives up 10.0 points (difference head - full -10.0, 95% interval -12.0 to -8.0, more than chance gives)"
        in text
    )
    assert "the commonest label gets 0.500" in text and "seeds" not in text
    text = said(tables | {"differences": differences(-0.01, -0.03, 0.01, seeds=3)})
    assert "which chance alone could give" in text and "means of 3 seeds" in text
    assert "gains 2.0 points" in said(tables | {"differences": differences(0.02, 0.01, 0.03)})


def test_without_paired_answers_no_interval_of_the_difference_is_claimed():
    text = said({"adaptation": adaptation(head=0.7, full=0.8)})
    assert "gives up 10.0 points; the two were not compared text by text in this run" in text
    assert "difference head" not in text
    assert said({"adaptation": adaptation(full=0.8)}) == ""
    other = {"adaptation": adaptation(head=0.7, full=0.8), "differences": differences(0, 0, 0, reference="top:2")}
    assert "not compared text by text" in said(other)


def concluded(**more):
    plain = {"reference": "full", "margin": 0.01, "alpha": 0.05, "smallest": None, "undecided": None, "needed": None}
    rest = {"sentence": "S.", "n": 400, "seeds": 1, "conditional_on_seeds": True, "left_out": {}}
    return Conclusion(**plain | rest | more)


def test_the_recommendation_says_what_is_saved_and_how_sure_it_is():
    table = adaptation(head=0.79, full=0.8).assign(flops=[1e9, 1e9, 4e9, 4e9], seconds=[3.0, 3.0, 10.0, 10.0])
    holm = pd.DataFrame({"method": ["head", "lora:8"], "family": ["sequence", "holm"], "outcome": "sufficient"})
    text = recommendation({"adaptation": table, "sufficiency": holm}, concluded(smallest="head"))
    assert text.startswith("On this evidence train head, at 25% of the training FLOPs, 30% of the seconds and 100% of")
    assert "outside the sequence of depths lora:8 does as well" in text and "in at most 5% of studies" in text
    assert recommendation({}, concluded(smallest="top:1")).startswith("On this evidence train top:1. This")


def test_nothing_shallower_is_recommended_without_evidence():
    assert "keep full: no shallower depth was shown to lose less than 0.01" in recommendation({}, concluded())
    more = recommendation({}, concluded(undecided="head", needed=9000))
    assert "keep full, or judge head on more test texts" in more and "cannot tell" in more
    assert "neither to do nor to fail" in recommendation({}, concluded(undecided="head"))


def test_a_method_that_did_better_is_told_although_the_sequence_stopped_before_it():
    tables = {"differences": differences(0.085, 0.012, 0.158)}
    text = recommendation(tables, concluded(undecided="top:2", needed=900))
    assert text.startswith("On this evidence keep full, or judge top:2")
    assert "But better than full in the 95% bands" in text and "head by +0.0850 (+0.0120 to +0.1580)" in text
    assert "But better" not in recommendation({"differences": differences(0.085, -0.01, 0.158)}, concluded())
    passed = pd.DataFrame({"method": ["head"], "family": "sequence", "outcome": "sufficient"})
    assert "But better" not in recommendation(tables | {"sufficiency": passed}, concluded(smallest="head"))


def test_a_study_of_every_depth_is_told_in_a_few_sentences(study):
    tables, about = study
    found = findings(tables, about)
    assert len(found) <= 6
    text = " ".join(finding.text for finding in found)
    assert about.sufficiency.sentence in text
    assert "Under head" in text and "Under full" in text and "Under top:3" not in text
    assert {finding.figure for finding in found} <= {"drift", "quality", "cost"}


def numbers(value):
    """A trace's values, which plotly may pack as bytes."""
    if isinstance(value, dict):
        return np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
    return np.asarray(value)


def points(figure, name):
    return next(trace for trace in figure["data"] if trace.get("name") == name and trace.get("mode") != "lines")


def test_quality_shows_each_seed_with_its_interval_and_each_set_of_texts(study, context):
    tables, _ = study
    assert context["choices"]["quality"] == ["test", "reviews"]
    figure = context["figures"]["groups"]["quality"]["test"]
    rows = tables["adaptation"].query("method == 'top:2' and split == 'test'")
    trace = points(figure, "top:2")
    assert np.array_equal(numbers(trace["x"]), rows.accuracy) and len(set(trace["y"])) == 3
    assert np.allclose(numbers(trace["x"]) + numbers(trace["error_x"]["array"]), rows.accuracy_high)
    assert figure["layout"]["yaxis"]["ticktext"][-2:] == ["logistic-mean", "logistic-cls"]
    outside = context["figures"]["groups"]["quality"]["reviews"]
    assert "logistic-mean" not in outside["layout"]["yaxis"]["ticktext"]
    before = adaptation(head=0.7, full=0.8)
    figure = depth_context({"adaptation": before}, record())["figures"]["groups"]["quality"]["test"]
    assert list(numbers(points(figure, "full")["x"])) == [0.8]  # nothing of before


def test_differences_show_bands_seeds_and_the_margin(study, context):
    tables, _ = study
    figure = context["figures"]["groups"]["differences"]["all"]
    row = tables["differences"].set_index("method").loc["top:1"]
    spans = [tuple(numbers(t["x"])) for t in figure["data"] if t["mode"] == "lines"]
    assert (row.band_low, row.band_high) in spans and (row.ci_low, row.ci_high) in spans
    single = [t for t in figure["data"] if t.get("name") == "one seed"]
    assert len(single) == len(METHODS) - 1 and all(len(numbers(t["x"])) == 3 for t in single)
    assert sum(bool(t["showlegend"]) for t in single) == 1
    assert any(shape["x0"] == -0.01 for shape in figure["layout"]["shapes"])
    assert {t["name"] for t in figure["data"] if t["mode"] == "markers"} - {"one seed"} <= {
        "sufficient",
        "inferior",
        "undecided",
        "not tested",
    }


def test_costs_are_means_in_words_and_shares_of_full(study, context):
    costs = context["costs"]
    assert costs["columns"][:3] == ["trained parameters", "training FLOPs", "training seconds"]
    rows = {row["method"]: row["cells"] for row in costs["rows"]}
    assert list(rows) == list(METHODS)
    assert rows["head"][0]["words"] == "1,155" and rows["full"][2]["words"] == "59.2 s"
    assert rows["full"][1]["share"] == pytest.approx(100)
    assert any("estimated" in note for note in costs["notes"])
    figure = context["figures"]["groups"]["cost"]["all"]
    flops = next(t for t in figure["data"] if t["name"] == "training FLOPs")
    assert numbers(flops["y"])[-1] == 1 and numbers(flops["y"])[0] == pytest.approx(3.1 / 44.1)


def test_costs_are_spoken_with_their_units():
    assert spoken(4.41e13, "flops") == "44.1T" and spoken(8.1e8, "peak_bytes") == "810 MB"
    assert spoken(1234567, "trainable_parameters") == "1,234,567" and spoken(0.0773, "energy_wh") == "0.0773 Wh"
    assert spoken(float("nan"), "seconds") == "not measured" and spoken(312.4, "seconds") == "312 s"


def test_the_pareto_front_goes_through_the_efficient_methods(study, context):
    tables, _ = study
    group = context["figures"]["groups"]["pareto"]
    assert list(group) == [
        "training FLOPs",
        "training seconds",
        "trained parameters",
        "drift (1 – CKA, mean over layers)",
    ]
    rows = tables["pareto"].query("cost == 'flops'").sort_values("value")
    line = group["training FLOPs"]["data"][0]
    assert list(numbers(line["x"])) == list(rows[rows.efficient].value)
    beaten = rows[~rows.efficient].iloc[0]
    trace = next(t for t in group["training FLOPs"]["data"] if t.get("name") == beaten.method)
    assert beaten.dominated_by in trace["hovertemplate"] and trace["marker"]["symbol"] == "circle-open"


def test_the_slider_has_a_step_and_words_a_method(study, context):
    slider = context["figures"]["slider"]
    assert [step["name"] for step in slider["steps"]] == list(METHODS) and slider["first"] == 7
    assert slider["steps"][0]["words"].startswith("head: every layer untouched")
    assert "top:2: layers 0 to 4 untouched" in slider["steps"][2]["words"]
    assert "no layer untouched" in slider["steps"][7]["words"]
    places = [trace["meta"]["place"] for trace in slider["figure"]["data"] if trace["meta"]["role"] == "line"]
    assert places == list(range(8))
    seeds = [trace for trace in slider["figure"]["data"] if trace["meta"]["role"] == "seed"]
    assert len(seeds) == 16 and {trace["mode"] for trace in seeds} == {"markers"}
    assert drift_by_depth(study[0]["similarity"], ["full"], "cka", "token") is None


def luminance(colour):
    numbers = (
        re.findall(r"\d+", colour) if colour.startswith("rgb") else [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    )
    linear = [(c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4) for c in (int(n) / 255 for n in numbers)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_depth_has_a_colour_of_its_own_that_both_pages_show():
    names = ["head", *(f"top:{k}" for k in range(1, 13)), "full", "lora:8", "bitfit"]
    chosen = colours(names)
    assert len(set(chosen.values())) == len(names)
    for colour in chosen.values():
        assert 1.05 / (luminance(colour) + 0.05) >= 3  # on white
        assert (luminance(colour) + 0.05) / (luminance("#12161c") + 0.05) >= 3  # on the dark page


def test_the_inside_is_drawn_for_every_method_and_each(study, context):
    tables, _ = study
    groups = context["figures"]["groups"]
    assert list(groups["probes"]) == list(groups["interventions"]) == ["every method", *METHODS]
    grid = groups["probes"]["every method"]["data"][0]
    assert list(grid["y"]) == ["base", *METHODS]
    assert grid["z"][0][6] == pytest.approx(0.55 + 0.022 * 6)
    blocks = groups["interventions"]["every method"]["data"][0]
    expected = tables["interventions"].query("method == 'full' and kind == 'weights' and layer == 6").difference.mean()
    assert blocks["z"][-1][6] == pytest.approx(expected) and blocks["zmin"] == -blocks["zmax"]
    weights = groups["weights"]
    assert next(iter(weights)) == "full|relative change" and len(weights) == 3 * len(METHODS)
    cell = weights["full|relative change"]["data"][0]
    rows = tables["weights"].query("method == 'full' and role == 'embeddings'")
    assert cell["z"][0][0] == pytest.approx(rows.groupby("seed").relative_change.max().mean())
    assert weights["head|stable rank of the change"]["data"][0]["z"][1][1] is None  # nothing changed
    assert "most intruder dimensions" in context["weights"]


def test_the_page_says_what_was_judged_and_on_what(study, tmp_path):
    tables, about = study
    about = about.model_copy(deep=True)
    about.study.resolved |= {"adaptation": {"pooling": "mean"}}
    html = page(tmp_path / "run", tables, about)
    assert "a linear head on the mean over a text&#39;s tokens" in html
    assert "logistic regression on the pretrained last layer reaches 0.701" in html and "on the first token" in html
    assert "train with dropout throughout" in html and "frozen blocks are in eval mode" in html
    assert "never resampled" in html and "speak of these seeds only" in html
    assert '<input type="range" id="depth-slider"' in html and 'aria-live="polite"' in html
    for figure in re.findall(r'data-figure="([^"]+)"', html):
        chooses = re.findall(rf'<select id="([^"]+)" data-chooses="{figure}"', html)
        assert all(f'<label for="{name}">' in html for name in chooses)
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, flags=re.S):
        json.loads(data)


def test_crossed_seeds_and_what_was_left_out_are_said(study, tmp_path):
    tables, about = study
    kept = about.sufficiency.model_dump() | {
        "conditional_on_seeds": False,
        "seeds": 5,
        "left_out": {"shuffled-labels": "it is a control"},
    }
    html = page(tmp_path / "run", tables, record(sufficiency=kept))
    assert "the 5 seeds are both taken as samples (crossed)" in html
    assert "shuffled-labels is left out of these comparisons: it is a control." in html


def test_an_older_run_says_what_it_did_not_measure(tmp_path):
    html = page(tmp_path / "run", {"adaptation": adaptation(head=0.7, full=0.8)})
    assert "Nothing was concluded about depth in this run" in html
    assert "Costs not measured in this run: training FLOPs, peak memory, stored for this task, energy." in html
    assert "Scores not measured in this run: Brier score, calibration error." in html
    for words in ("Probes were not measured", "Interventions on blocks were not measured", "Weights were not compared"):
        assert words in html
    assert "Out-of-domain sets: none" in html


def test_one_method_is_a_whole_page(tmp_path):
    tables, kept = depth_study(methods=("full",), seeds=(0,), n=200, ood=False)
    assert kept is None
    html = page(tmp_path / "run", tables)
    assert "no drift of several methods" in html and 'data-figure="weights"' in html
