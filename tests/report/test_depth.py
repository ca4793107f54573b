"""Quality, cost and inside: sentences follow planted tables, figures hold their numbers, and what is missing is named."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from fabricated import METHODS, complete, depth_study, record
from test_report import EVIL, adaptation, page

from layerprobe.record import Conclusion
from layerprobe.report import figure_function, findings
from layerprobe.report.costs import costs_by_method, format_cost, timed_costs
from layerprobe.report.sections import cost, inside, quality
from layerprobe.report.sections.inside.sentences import probe_sentence
from layerprobe.report.sections.quality.sentences import recommendation, sentences
from layerprobe.report.theme import method_colours
from layerprobe.runs import Run


@pytest.fixture(scope="module")
def study():
    tables, kept = depth_study(n=1500)
    return complete(tables, record(sufficiency=kept))


def drawn(name, study, **options):
    """A figure of the page by its name."""
    return figure_function(name)(*study, **options)


def differences(difference, low, high, **more):
    row = {"method": "head", "reference": "full", "accuracy": 0.7, "reference_accuracy": 0.7 - difference}
    row |= {"difference": difference, "ci_low": low, "ci_high": high, "band_low": low, "band_high": high}
    return pd.DataFrame([row | {"n": 400, "seeds": 1, "disagreement": 0.1} | more])


def quality_sentences(tables):
    return " ".join(finding.text for finding in sentences(*complete(tables, record())))


def recommended(tables, conclusion):
    tables, about = complete(tables, record())
    about.sufficiency = conclusion
    return recommendation(tables, about)


def test_what_the_head_gives_up_has_its_paired_interval():
    tables = {"adaptation": adaptation(head=0.7, full=0.8, majority=0.5)}
    text = quality_sentences(tables | {"differences": differences(-0.1, -0.12, -0.08)})
    assert "reaches accuracy 0.700, full fine-tuning 0.800, on the same 400 test examples" in text
    assert "Without training any block, the head alone reaches" in text
    assert "a difference of -10.0 points (head - full, 95% interval -12.0 to -8.0, more than chance explains)" in text
    assert "the majority baseline reaches 0.500" in text and "seeds" not in text
    text = quality_sentences(tables | {"differences": differences(-0.01, -0.03, 0.01, seeds=3)})
    assert "-3.0 to +1.0, 0 is within it)" in text and "means of 3 seeds" in text
    assert "a difference of +2.0 points" in quality_sentences(tables | {"differences": differences(0.02, 0.01, 0.03)})


def test_without_paired_answers_no_interval_of_the_difference_is_claimed():
    text = quality_sentences({"adaptation": adaptation(head=0.7, full=0.8)})
    assert "a difference of -10.0 points; this run has no paired comparison of the two" in text
    assert "head - full" not in text
    alone = quality_sentences({"adaptation": adaptation(full=0.8)})
    assert alone == "full reaches accuracy 0.800 (95% interval 0.750 to 0.850) on 50 test examples."
    other = {"adaptation": adaptation(head=0.7, full=0.8), "differences": differences(0, 0, 0, reference="top:2")}
    assert "no paired comparison" in quality_sentences(other)


def concluded(**more):
    plain = {"reference": "full", "margin": 0.01, "alpha": 0.05, "smallest": None, "undecided": None, "needed": None}
    rest = {"sentence": "S.", "n": 400, "seeds": 1, "conditional_on_seeds": True, "left_out": {}}
    return Conclusion(**plain | rest | more)


def test_the_recommendation_says_what_is_saved_and_how_sure_it_is():
    table = adaptation(head=0.79, full=0.8).assign(flops=[1e9, 1e9, 4e9, 4e9], seconds=[3.0, 3.0, 10.0, 10.0])
    holm = pd.DataFrame({"method": ["head", "lora:8"], "family": ["sequence", "holm"], "outcome": "sufficient"})
    crossed = {"seeds": 3, "conditional_on_seeds": False, "critical_value": 2.92, "df": 2}
    text = recommended({"adaptation": table, "sufficiency": holm}, concluded(smallest="head", **crossed))
    assert text.startswith(
        "On this evidence train no block: the head alone is enough, at 25% of the training FLOPs, 30% of the training seconds"
    )
    assert "outside the sequence of depths, also sufficient: lora:8" in text
    assert "in at most 5% of studies with other test examples and other seeds" in text
    # One seed says nothing of other trainings, so that no share of studies is claimed.
    assert recommended({}, concluded(smallest="top:1")) == "On this evidence train top:1."


def test_nothing_shallower_is_recommended_without_evidence():
    nothing = recommended({}, concluded())
    assert nothing == "These data are inconclusive: no depth below full was shown to lose less than the margin."
    inferior = {"differences": differences(-0.1, -0.12, -0.08)}
    assert recommended(inferior, concluded()) == (
        "On this evidence keep full: every alternative loses more than 0.01 of accuracy."
    )
    ahead = recommended({"differences": differences(0.04, -0.01, 0.09)}, concluded())
    assert "keep" not in ahead and "the head alone was ahead of full here (+4.0 points" in ahead
    more = recommended({}, concluded(undecided="head", needed=9000))
    assert more.startswith(
        "These data are inconclusive: they show neither that the head alone loses less than the margin"
    )
    assert "nor that full is more accurate. Evaluate the head alone on more test examples." in more
    assert "keep" not in more
    assert recommended({}, concluded(undecided="head")).endswith("more accurate.")
    seeds = pd.DataFrame({"method": ["head"], "family": "sequence", "outcome": "undecidable"})
    assert "Only more seeds could decide." in recommended({"sufficiency": seeds}, concluded(undecided="head"))
    worse = {"differences": differences(-0.008, -0.012, -0.004)}
    text = recommended(worse, concluded(undecided="head", needed=9000))
    assert text.startswith(
        "full is more accurate than the head alone (-0.8 points, simultaneous 95% band -1.2 to -0.4)"
    )
    assert "whether by more than the margin is undecided" in text


def test_a_method_that_did_better_is_named_although_the_sequence_stopped_before_it():
    tables = {"differences": differences(0.085, 0.012, 0.158)}
    text = recommended(tables, concluded(undecided="top:2", needed=900))
    assert text.startswith("On this evidence full is not the best choice. By the 95% bands")
    assert "better than full: the head alone by +0.0850 (+0.0120 to +0.1580)" in text and "keep" not in text
    assert "bands" not in recommended({"differences": differences(0.085, -0.01, 0.158)}, concluded())
    passed = pd.DataFrame({"method": ["head"], "family": "sequence", "outcome": "sufficient"})
    assert "bands" not in recommended(tables | {"sufficiency": passed}, concluded(smallest="head"))


def test_a_method_outside_the_sequence_is_advised_where_no_depth_is():
    holm = pd.DataFrame({"method": ["head", "lora:8"], "family": ["sequence", "holm"]})
    holm["outcome"] = ["undecided", "sufficient"]
    text = recommended({"sufficiency": holm}, concluded(undecided="head", needed=9000))
    assert text == "On this evidence train lora:8, which was shown to be sufficient; no depth was."


def frozen_run():
    """The head as full has it loses two points, logistic regression on the mean none: a difference of pooling."""
    table = adaptation(**{"reference:logistic-mean": 0.776, "head": 0.754, "full": 0.774}, majority=0.5)
    table["candidates"] = table.method.map({"reference:logistic-mean": 3, "head": 8, "full": 1})
    rows = [
        differences(d, d - 0.03, d + 0.03, method=name, accuracy=0.774 + d, reference_accuracy=0.774)
        for name, d in (("reference:logistic-mean", 0.002), ("head", -0.02))
    ]
    frozen = {"frozen": "reference:logistic-mean", "order": ["reference:logistic-mean", "head"]}
    return {"adaptation": table, "differences": pd.concat(rows)}, concluded(
        undecided="reference:logistic-mean", **frozen
    )


def test_the_frozen_model_that_is_best_on_validation_data_is_named_first():
    tables, about = complete(frozen_run()[0], record())
    about.sufficiency = frozen_run()[1]
    text = sentences(tables, about)[0].text
    assert text.startswith(
        "Without training any block, logistic regression on the mean over tokens, the best frozen model on held-out training "
        "examples, reaches accuracy 0.776, full fine-tuning 0.774"
    )
    assert "also without training a block: the head alone 0.754;" in text
    assert "logistic regression on the mean over tokens was chosen from 3 settings, full from 1." in text
    equal = tables | {"adaptation": tables["adaptation"].assign(candidates=3)}
    assert "Tuning was unequal" not in sentences(equal, about)[0].text
    # Without a conclusion, the methods of the study are named in their order.
    about.sufficiency = None
    assert sentences(tables, about)[0].text.startswith("Without training any block, the head alone reaches")


def test_the_order_of_tests_and_the_tuning_are_on_the_page(tmp_path):
    tables, conclusion = frozen_run()
    html = page(tmp_path / "run", tables, record(sufficiency=conclusion.model_dump()))
    assert "Order: reference:logistic-mean, head." in html and "no test example decides the order" in html
    assert "Settings compared:" in html and "methods were not tuned alike" in html


def test_a_study_of_every_depth_is_answered_in_a_few_sentences(study):
    tables, about = study
    found = findings(tables, about)
    assert len(found) <= 6
    text = " ".join(finding.text for finding in found)
    assert about.sufficiency.sentence in text
    assert "Under head" in text and "Under full" in text and "Under top:3" not in text
    assert {finding.figure for finding in found} <= {"drift", "quality", "differences", "shipping"}


def traces(figure, name):
    return [trace for trace in figure.data if trace.name == name and trace.mode != "lines"]


def test_quality_shows_each_seed_with_its_interval_and_each_set_of_examples(study):
    tables, _ = study
    assert quality.SECTION.context(*study)["splits"] == ["test", "reviews"]
    rows = tables["adaptation"].query("method == 'top:2' and split == 'test'")
    figure = drawn("quality", study)
    (trace,) = traces(figure, "top:2")
    assert np.array_equal(trace.x, rows.accuracy) and len(set(trace.y)) == 3
    assert np.allclose(trace.x + trace.error_x.array, rows.accuracy_high)
    assert figure.layout.yaxis.ticktext[-2:] == ("logistic-mean", "logistic-cls")
    assert "logistic-mean" not in drawn("quality", study, split="reviews").layout.yaxis.ticktext
    assert drawn("quality", study, split="nowhere") is None
    before = complete({"adaptation": adaptation(head=0.7, full=0.8)}, record())
    assert list(traces(drawn("quality", before), "full")[0].x) == [0.8]  # nothing of before


def test_scores_are_means_over_seeds_and_baselines_come_last(study):
    tables, _ = study
    context = quality.SECTION.context(*study)
    rows = tables["adaptation"].query("method == 'top:2' and split == 'reviews'")
    (mean,) = [row for row in context["means"] if (row["method"], row["split"]) == ("top:2", "reviews")]
    assert (mean["seeds"], mean["n"]) == (3, 500) and mean["accuracy"] == pytest.approx(rows.accuracy.mean())
    assert (mean["low"], mean["high"]) == (rows.accuracy.min(), rows.accuracy.max())
    assert mean["scores"][0] == f"{rows.macro_f1.mean():.3f}" and len(mean["scores"]) == len(context["scores"]) == 4
    order = [(row["split"], row["method"]) for row in context["means"]]
    assert order[: len(METHODS)] == [("test", method) for method in METHODS]
    assert [row["is_reference"] for row in context["means"]] == [False] * 8 + [True] * 3 + [False] * 8
    assert len(context["rows"]) == len(tables["adaptation"])


def test_differences_show_bands_seeds_and_the_margin(study):
    tables, _ = study
    figure = drawn("differences", study)
    row = tables["differences"].set_index("method").loc["top:1"]
    spans = [tuple(trace.x) for trace in figure.data if trace.mode == "lines"]
    assert (row.band_low, row.band_high) in spans and (row.ci_low, row.ci_high) in spans
    single = traces(figure, "one seed")
    assert len(single) == len(METHODS) - 1 and all(len(trace.x) == 3 for trace in single)
    assert sum(bool(trace.showlegend) for trace in single) == 1
    assert any(shape.x0 == -0.01 for shape in figure.layout.shapes)
    outcomes = {trace.name for trace in figure.data if trace.mode == "markers"} - {"one seed"}
    assert outcomes <= {"sufficient", "inferior", "undecided", "undecidable", "not tested"}
    assert list(figure.layout.yaxis.ticktext) == [name for name in METHODS if name != "full"]


@pytest.mark.parametrize(("low", "high"), [(-0.012, 0.03), (-0.3, -0.1), (-0.002, 0.001), (0.2, 0.5)])
def test_zones_of_the_margin_have_room_and_the_axis_is_wider_than_every_interval(study, low, high):
    _, about = study
    tests = pd.DataFrame({"method": ["head"], "outcome": ["undecided"], "margin": 0.01})
    tables, _ = complete({"differences": differences((low + high) / 2, low, high), "sufficiency": tests}, about)
    shown = drawn("differences", (tables, about))
    left, right = shown.layout.xaxis.range
    assert left < low and right > high
    ends = sorted((shape.x0, shape.x1) for shape in shown.layout.shapes if shape.type == "rect")
    (worse, equivalent, better) = ends
    assert worse[0] < left and worse[1] == equivalent[0] == -0.01 and equivalent[1] == better[0] == 0.01
    assert better[1] > right
    assert min(-0.01 - left, right - 0.01) >= 0.22 * (right - left)  # room for the names of the outer zones
    assert {note.text: note.x for note in shown.layout.annotations} == {"worse": -0.01, "equivalent": 0, "better": 0.01}
    assert "margin 0.01" in shown.layout.xaxis.title.text
    alone = drawn("differences", ({"differences": tables["differences"]}, about))
    assert not [shape for shape in alone.layout.shapes if shape.type == "rect"]  # without tests there is no margin


def test_costs_of_two_methods_are_a_table_and_of_three_a_figure_too(study, tmp_path):
    tables, about = study
    for methods in (("head", "full"), ("head", "top:1", "full")):
        few = {name: table[table.method.isin(methods)] for name, table in tables.items() if "method" in table}
        html = page(tmp_path / str(len(methods)), few, about)
        cost_section = re.search(r'<section id="cost">(.*?)</section>', html, flags=re.S).group(1)
        assert cost_section.count("<tr>") == 1 + len(methods) and "--share: 100.0%" in cost_section
        assert ("data-figure" in cost_section) == (len(methods) > 2)


def with_probes(study, layer, low, seeds=(0, 1, 2)):
    """The study with one probe of full at a layer whose interval begins `low` above the model's under some seeds."""
    tables, about = study
    own = tables["adaptation"].query("split == 'test'").set_index(["method", "seed"]).accuracy_high
    probes = tables["probes"].copy()
    for seed in seeds:
        at = (probes.method == "full") & (probes.seed == seed) & (probes.layer == layer) & (probes.side == "adapted")
        value = own["full", seed] + low
        probes.loc[at, ["accuracy", "accuracy_low", "accuracy_high"]] = [value + 0.01, value, value + 0.02]
    return tables | {"probes": probes}, about


def test_a_probe_that_beats_the_models_own_head_is_reported_where_intervals_are_apart(study):
    tables, about = study
    assert probe_sentence(tables, about) == ""
    ahead, _ = with_probes(study, 5, 0.001)
    own = tables["adaptation"].query("method == 'full' and split == 'test'").accuracy.mean()
    text = probe_sentence(ahead, about)
    read = ahead["probes"].query("method == 'full' and layer == 5 and side == 'adapted'").accuracy.mean()
    assert text.startswith(
        f"Under full, a linear probe on layer 5's mean vector reaches accuracy {read:.3f}, the model's own head {own:.3f} "
        "(means of 3 seeds, in each of which it is ahead)."
    )
    assert probe_sentence(with_probes(study, 5, -0.001)[0], about) == ""  # the intervals touch
    assert probe_sentence(with_probes(study, 5, 0.001, seeds=(0, 2))[0], about) == ""  # not under every seed
    assert text in inside.SECTION.context(ahead, about)["ahead"] and probe_sentence({}, about) == ""


def test_costs_are_means_in_words_and_shares_of_full(study):
    context = cost.SECTION.context(*study)
    assert context["columns"][:3] == ["trained parameters", "training FLOPs", "training seconds"]
    rows = {row["method"]: row["cells"] for row in context["rows"]}
    assert list(rows) == list(METHODS)
    assert rows["head"][0]["words"] == "1,155" and rows["full"][2]["words"] == "59.2 s"
    assert rows["full"][1]["share"] == pytest.approx(100)
    assert "Energy: estimated." in context["notes"] and not any("compared" in note for note in context["notes"])
    flops = traces(drawn("cost", study), "training FLOPs")[0]
    assert flops.y[-1] == 1 and flops.y[0] == pytest.approx(3.1 / 44.1)


def test_costs_are_written_with_their_units():
    assert format_cost(4.41e13, "flops") == "44.1T" and format_cost(8.1e8, "peak_bytes") == "810 MB"
    assert (
        format_cost(1234567, "trainable_parameters") == "1,234,567" and format_cost(0.0773, "energy_wh") == "0.0773 Wh"
    )
    assert format_cost(float("nan"), "seconds") == "not measured" and format_cost(312.4, "seconds") == "312 s"
    assert format_cost(2e21, "flops") == "2e+03E"


@pytest.mark.parametrize(
    ("method", "split", "comparable"), [("top:2", "test", False), ("reference:majority", "test", True)]
)
def test_seconds_are_compared_only_if_nothing_else_ran(study, tmp_path, method, split, comparable):
    tables, about = study
    table = tables["adaptation"]
    rows = (table.method == method) & (table["split"] == split)
    shared = tables | {"adaptation": table.assign(concurrent_tasks=np.where(rows, 2, 1))}
    assert timed_costs(shared) == ([] if comparable else ["seconds", "energy_wh"])
    assert ("seconds" in costs_by_method(shared, about)) == comparable
    context = cost.SECTION.context(shared, about)
    names = {trace.name for trace in drawn("cost", (shared, about)).data}
    assert ("training seconds" in context["columns"]) == ("seconds" in context["fronts"]) == comparable
    assert ("training seconds" in names) == ("energy" in names) == comparable
    assert "training FLOPs" in context["columns"] and "training FLOPs" in names
    conclusion = concluded(smallest="top:4")
    advice = recommendation(shared, about.model_copy(update={"sufficiency": conclusion}))
    assert "of the training FLOPs" in advice and ("of the training seconds" in advice) == comparable
    html = page(tmp_path / "run", shared, about)
    note = "Training FLOPs are compared, but not training seconds or energy, because other tasks ran at the same time"
    assert html.count(note) == (0 if comparable else 1)


def test_without_a_count_of_concurrent_tasks_seconds_are_compared(study):
    tables, _ = study
    assert "concurrent_tasks" in tables["adaptation"] and not timed_costs(tables)
    missing = {"adaptation": tables["adaptation"].drop(columns="concurrent_tasks")}
    assert not timed_costs(missing) and not timed_costs({})


def test_the_pareto_front_goes_through_the_efficient_methods(study):
    tables, _ = study
    assert cost.SECTION.context(*study)["fronts"] == {
        "flops": "training FLOPs",
        "seconds": "training seconds",
        "trainable_parameters": "trained parameters",
        "drift": "drift (1 – CKA, mean over layers)",
    }
    rows = tables["pareto"].query("cost == 'flops'").sort_values("value")
    figure = drawn("pareto", study, cost="flops")
    assert list(figure.data[0].x) == list(rows[rows.efficient].value)
    beaten = rows[~rows.efficient].iloc[0]
    (trace,) = traces(figure, beaten.method)
    assert beaten.dominated_by in trace.hovertemplate and trace.marker.symbol == "circle-open"


def test_the_slider_has_a_step_with_words_per_method(study):
    tables, about = study
    context = inside.SECTION.context(*study)
    steps = context["data"]["steps"]
    assert (context["steps"], context["first"], context["seeds"]) == (8, 7, 3)
    assert [step.partition(": ")[0] + ":" for step in steps if "top" not in step] == ["head:", "full:"]
    assert steps[0].startswith("head: every layer untouched") and "no layer untouched" in steps[7]
    assert steps[2].startswith("top:2: layers 0 to 4 untouched; last layer ")
    figure = drawn("drift_by_depth", study)
    assert [trace.meta["place"] for trace in figure.data if trace.meta["role"] == "line"] == list(range(8))
    seeds = [trace for trace in figure.data if trace.meta["role"] == "seed"]
    assert len(seeds) == 16 and {trace.mode for trace in seeds} == {"markers"}
    one = tables["similarity"][tables["similarity"].method == "full"]
    assert drawn("drift_by_depth", ({"similarity": one}, about)) is None


def test_controls_have_no_step_on_the_slider(study):
    tables, about = study
    similarity = tables["similarity"].replace({"method": {"top:6": "shuffled-labels"}}).drop(columns="is_control")
    context = inside.SECTION.context(*complete({"similarity": similarity}, about))
    assert not any("shuffled-labels" in step for step in context["data"]["steps"]) and context["steps"] == 7


def luminance(colour):
    numbers = (
        re.findall(r"\d+", colour) if colour.startswith("rgb") else [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    )
    linear = [(c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4) for c in (int(n) / 255 for n in numbers)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_depth_has_its_colour_with_contrast_on_a_light_and_a_dark_page():
    names = ["head", *(f"top:{k}" for k in range(1, 13)), "full", "lora:8", "bitfit"]
    _, about = complete({"adaptation": adaptation(**dict.fromkeys(names, 0.7))}, record())
    chosen = method_colours(names, about)
    assert len(set(chosen.values())) == len(names)
    for colour in chosen.values():
        assert 1.05 / (luminance(colour) + 0.05) >= 3  # on white
        assert (luminance(colour) + 0.05) / (luminance("#12161c") + 0.05) >= 3  # on the dark page


def test_the_inside_is_drawn_for_every_method_and_each(study):
    tables, _ = study
    context = inside.SECTION.context(*study)
    for name in ("probes", "interventions"):
        assert context[name]["methods"] == {"": "every method"} | {method: method for method in METHODS}
        assert all(drawn(name, study, method=method).data for method in METHODS)
    grid = drawn("probes", study).data[0]
    assert list(grid.y) == ["base", *METHODS]
    assert grid.z[0][6] == pytest.approx(0.55 + 0.022 * 6)
    adapted = drawn("probes", study, method="top:2")
    (accuracy, selectivity) = [t for t in adapted.data if t.name == "adapted" and t.mode == "lines+markers"]
    rows = tables["probes"].query("method == 'top:2' and side == 'adapted' and seed == 0")
    assert list(accuracy.y) == list(rows.accuracy) and list(selectivity.y) == list(rows.selectivity)
    assert [t.name for t in adapted.data].count("base") == 2 and len(
        [t for t in adapted.data if "control task" in t.name]
    ) == 4
    balanced = drawn("probes", study, method="top:2", quality="balanced_accuracy")
    (shown, selectivity) = [t for t in balanced.data if t.name == "adapted" and t.mode == "lines+markers"]
    assert list(shown.y) == list(rows.balanced_accuracy) and list(selectivity.y) == list(rows.selectivity)
    assert not [t for t in balanced.data if "control task" in t.name]  # they have an accuracy alone
    assert balanced.layout.shapes[0].y0 == 1 / len(study[1].data.label_names)
    assert drawn("probes", study, quality="auroc").data[0].z[0][6] == pytest.approx(0.65 + 0.022 * 6)
    blocks = drawn("interventions", study).data[0]
    expected = tables["interventions"].query("method == 'full' and kind == 'weights' and layer == 6").difference.mean()
    assert blocks.z[-1][6] == pytest.approx(expected) and blocks.zmin == -blocks.zmax
    skipped = next(t for t in drawn("interventions", study, method="full").data if "skipped" in t.name)
    rows = tables["interventions"].query("method == 'full' and kind == 'skipped' and seed == 0")
    assert list(skipped.y) == list(rows.accuracy)
    assert context["weights"][0] == "full" and sorted(context["weights"]) == sorted(METHODS)
    assert list(context["quantities"]) == ["relative_change", "intruder_dimensions", "stable_rank_change"]
    cells = drawn("weights", study, method="full").data[0]
    rows = tables["weights"].query("method == 'full' and role == 'embeddings'")
    assert cells.y[0] == "embeddings" and cells.z[0][0] == pytest.approx(
        rows.groupby("seed").relative_change.max().mean()
    )
    head = drawn("weights", study, method="head", quantity="stable_rank_change").data[0]
    assert head.z[1][1] is None  # nothing changed
    assert "most intruder dimensions" in context["intruders"]


def test_the_page_says_what_was_evaluated_and_on_what(study, tmp_path):
    tables, about = study
    about = about.model_copy(deep=True)
    about.study.resolved |= {"adaptation": {"pooling": "mean"}}
    html = page(tmp_path / "run", tables, about)
    assert "a linear head on the mean over an example&#39;s tokens" in html
    assert "logistic regression on the pretrained last layer reaches 0.701" in html and "on the first token" in html
    assert "train with dropout throughout" in html and "frozen blocks are in eval mode" in html
    assert "3 seeds are both treated as samples (crossed)" in html
    assert "is 2.92, that of t with 2 degrees of freedom, instead of 1.64" in html
    assert '<input type="range" id="depth-slider"' in html and 'aria-live="polite"' in html
    for figure in re.findall(r'data-figure="([^"]+)"', html):
        chooses = re.findall(rf'<select id="([^"]+)" data-chooses="{figure}"', html)
        assert all(f'<label for="{name}">' in html for name in chooses)
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, flags=re.S):
        json.loads(data)


def test_crossed_seeds_and_methods_left_out_are_stated(study, tmp_path):
    tables, about = study
    kept = about.sufficiency.model_dump() | {
        "conditional_on_seeds": False,
        "seeds": 5,
        "left_out": {"shuffled-labels": "it is a control"},
    }
    html = page(tmp_path / "run", tables, record(sufficiency=kept))
    assert "the 5 seeds are both treated as samples (crossed)" in html
    assert "shuffled-labels is left out of these comparisons: it is a control." in html


def test_the_page_lists_what_was_not_measured(tmp_path):
    html = page(tmp_path / "run", {"adaptation": adaptation(head=0.7, full=0.8)})
    assert "There is no conclusion about depth in this run" in html
    assert "Costs not measured in this run: training FLOPs, peak memory, stored for this task, energy." in html
    assert "Scores not measured in this run: Brier score, calibration error." in html
    assert "Probes, interventions on blocks and weights were not measured in this run (internals.parts)." in html
    assert "Out-of-domain sets: none" in html


def test_one_method_is_a_whole_page(tmp_path):
    tables, kept = depth_study(methods=("full",), seeds=(0,), n=200, ood=False)
    assert kept is None
    html = page(tmp_path / "run", tables)
    assert "no drift of several methods" not in html and 'data-figure="weights"' in html
    assert "no conclusion about depth" not in html and "full reaches accuracy" in html


@pytest.mark.parametrize("section", ["quality", "cost"])
def test_a_section_without_its_table_is_one_line_that_says_why(study, tmp_path, section):
    tables, about = study
    html = page(tmp_path / "run", {"similarity": tables["similarity"]}, about)
    body = re.search(rf'<section id="{section}">(.*?)</section>', html, flags=re.S).group(1)
    assert f"No {section} was measured in this run." in body and body.count("<p") == 1
    assert "data-figure" not in body


@pytest.mark.parametrize("table", ["similarity", "probes", "interventions", "weights"])
def test_a_part_of_the_inside_without_its_table_is_one_line_that_says_why(study, tmp_path, table):
    tables, about = study
    html = page(tmp_path / "run", {name: rows for name, rows in tables.items() if name != table}, about)
    body = re.search(r'<section id="inside">(.*?)</section>', html, flags=re.S).group(1)
    assert body.count('<p class="note">') == 1 and body.count("data-figure") == 3
    figure = {"similarity": "drift_by_depth"}.get(table, table)
    assert f'data-figure="{figure}"' not in body
    with pytest.raises(ValueError, match="nothing to draw"):
        Run.load(tmp_path / "run").figure(figure)


def test_every_figure_can_be_drawn_by_name_and_has_its_choices(study, tmp_path):
    html = page(tmp_path / "run", *study)
    run = Run.load(tmp_path / "run")
    names = [name for part in (quality, cost, inside) for name in part.SECTION.figures]
    assert all(run.figure(name).data for name in names)
    assert all(f'data-figure="{name}"' in html for name in names)
    drawings = json.loads(re.search(r'id="figures">(.*?)</script>', html, flags=re.S).group(1))
    assert len(drawings["weights"]) == 3 * len(METHODS) and "full|relative_change" in drawings["weights"]
    assert list(drawings["probes"])[:4] == ["|accuracy", "|balanced_accuracy", "|auroc", f"{METHODS[0]}|accuracy"]
    assert len(drawings["probes"]) == 3 * (1 + len(METHODS)) and list(drawings["quality"]) == ["test", "reviews"]
    for figure, variants in drawings.items():
        selects = re.findall(rf'data-chooses="{figure}">(.*?)</select>', html)
        values = [re.findall(r'<option value="([^"]*)">', select) for select in selects]
        if values:
            assert set(map("|".join, itertools.product(*values))) == set(variants)


def test_hostile_names_and_reasons_are_escaped(study, tmp_path):
    tables, about = study
    tables = {name: table.replace({"method": {"top:1": f"checkpoint:{EVIL}"}}) for name, table in tables.items()}
    tables = {name: table.drop(columns=["is_control"], errors="ignore") for name, table in tables.items()}
    tables["adaptation"] = tables["adaptation"].assign(energy_note=EVIL)
    kept = about.sufficiency.model_dump() | {"sentence": EVIL, "smallest": EVIL, "left_out": {EVIL: EVIL}}
    about = record(sufficiency=kept)
    about.study.resolved |= {"adaptation": {"pooling": EVIL}}
    html = page(tmp_path / "run", tables, about)
    assert "<script>alert" not in html and "<img src=x" not in html
    assert html.count("</script>") == html.count("<script") and "&lt;script&gt;alert" in html
