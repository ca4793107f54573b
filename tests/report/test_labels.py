"""The section of label variance: planted tables reach its sentence, its figure and its table of onsets."""

import re

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, record
from test_report import page, similarity

from layerprobe.report.sections import labels
from layerprobe.report.sections.labels.figures import label_variance
from layerprobe.report.sections.labels.sentences import label_sentence, onset, shown_method


def rows(side, excess, exceeds=None, method="full", seed=0, unit="token", reach=0.02):
    excess = np.array(excess)
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "unit": unit,
            "side": side,
            "layer": range(len(excess)),
            "share": excess + 0.006,
            "expected": 0.006,
            "excess": excess,
            "ci_low": excess - reach,
            "ci_high": excess + reach,
            "p": np.where(excess > 0.005, 0.001, 0.4),
            "p_simultaneous": np.where(excess > 0.005, 0.004, 0.9),
            "critical": 0.005,
            "lower_simultaneous": excess - reach,
            "exceeds": excess > 0.005 if exceeds is None else exceeds,
            "permutations": 1000,
            "n": 300,
        }
    )


BASE, ADAPTED = [0.0, 0.001, 0.006], [0.0, 0.03, 0.156]
CHANGE = [0.0, 0.029, 0.15]


def study(**more):
    """One seed of full, which changes layers 1 and 2, and a head, which changes none."""
    tables = {
        "similarity": pd.concat([similarity([1.0, 0.9, 0.6]), similarity([1.0, 1.0, 1.0], "head", reach=0)]),
        "label_variance": pd.concat(
            [
                *(
                    rows(side, values)
                    for side, values in zip(labels.figures.SIDES, (BASE, ADAPTED, CHANGE), strict=True)
                ),
                *(rows(side, values, method="head") for side, values in (("base", BASE), ("adapted", BASE))),
                rows("difference", [0.0, 0.0, 0.0], method="head", reach=0),
                *(rows(side, np.array(v) / 2, unit="mean") for side, v in (("base", BASE), ("adapted", ADAPTED))),
                rows("difference", np.array(CHANGE) / 2, unit="mean"),
            ]
        ),
    }
    return complete(tables | more, record())


def test_the_sentence_states_both_sides_the_interval_and_the_onset():
    (finding,) = labels.SECTION.sentences(*study())
    assert finding.figure == "label_variance"
    assert finding.text == (
        "Under full, 15.6% of the variance of token vectors at layer 2 lies between labels, and 0.6% in base (each minus its "
        "mean under permuted labels): a difference of 15.0 percentage points (95% interval 13.0 to 17.0). The first layer "
        "whose difference is shown to be above 0 is 1 (2.9 percentage points), above 1 percentage point 2, above 5 percentage "
        "points 2 (5% for any false layer)."
    )


def test_without_a_layer_beyond_chance_the_sentence_names_none():
    tables, _ = study()
    table = tables["label_variance"].assign(exceeds=False)
    text = label_sentence(table, "full", "token")
    assert text.endswith("No layer's difference is shown to be above 0.") and "first layer" not in text


def test_no_sentence_where_no_layer_changed():
    tables, about = study()
    table = tables["label_variance"]
    same = {**tables, "label_variance": table[table.method == "head"]}
    assert shown_method(same, about) is None and labels.SECTION.sentences(same, about) == []
    assert labels.SECTION.sentences({}, about) == []


def test_several_seeds_give_mean_range_and_what_every_seed_shows():
    tables, about = study()
    second = [rows("base", BASE, seed=1), rows("adapted", ADAPTED, seed=1)]
    second.append(rows("difference", [0.0, 0.003, 0.13], seed=1))
    table = pd.concat([tables["label_variance"], *second])
    text = label_sentence(table, "full", "token")
    assert (
        "14.0 percentage points on average over 2 seeds (13.0 to 15.0; all 95% intervals lie within 11.0 to 17.0)"
        in text
    )
    assert "above 0 in every seed is 2 (14 percentage points)" in text  # layer 1 exceeds in the first seed alone
    assert onset(table, "full", "token", "adapted") == 1 and onset(table, "full", "mean", "base") is None
    shown = label_variance(tables | {"label_variance": table}, about)
    assert [trace.name for trace in shown.data].count("difference") == 2
    assert [trace.name for trace in shown.data].count("base") == 1


def test_the_figure_shows_excess_intervals_and_critical_values():
    tables, about = study()
    shown = label_variance(tables, about)
    drawn = {trace.name: trace for trace in shown.data}
    assert list(drawn["adapted"].y) == ADAPTED and list(drawn["difference"].y) == CHANGE
    assert list(drawn["difference"].marker.symbol) == ["circle-open", "circle", "circle"]
    assert drawn["difference"].error_y.array == pytest.approx([0.02] * 3)
    assert list(drawn["base: critical value"].y) == [0.005] * 3
    assert drawn["difference"].yaxis == "y2" and drawn["base"].yaxis == "y"
    mean = {trace.name: trace for trace in label_variance(tables, about, method="full", unit="mean").data}
    assert list(mean["adapted"].y) == [0.0, 0.015, 0.078]
    assert label_variance(tables, about, method="lora:8") is None


def test_the_page_has_choices_and_a_table_of_onsets(tmp_path):
    tables, about = study()
    context = labels.SECTION.context(tables, about)
    assert context["methods"] == ["full", "head"] and list(context["units"]) == ["token", "mean"]
    html = page(tmp_path / "run", tables, about)
    body = re.search(r'<section id="labels">(.*?)</section>', html, flags=re.S).group(1)
    cells = [re.findall("<td>(.*?)</td>", line) for line in re.findall("<tr><td>.*?</tr>", body)]
    assert cells == [["head", "1", "2", "2", "none", "none", "none"], ["full", "1", "2", "1", "1", "2", "2"]]
    assert "1,000 permutations" in body and "300 test examples" in body
    missing = page(tmp_path / "other", {"similarity": tables["similarity"]}, about)
    assert "Label variance was not measured in this run." in missing
