"""Figures and sentences about dictionaries, from planted numbers: heights, nulls, intervals, and what is missing."""

import numpy as np
import pandas as pd
import pytest

from layerprobe.report._feature_words import crossing_sentence, exclusive_sentence, feature_sentences, panels
from layerprobe.report._features import SHOWN, drawn, transfer

KINDS = ("task", "both", "general", "unexplained")
COUNTS = {
    ("base", 1): (2, 3, 45, 50),
    ("adapted", 1): (4, 6, 40, 50),
    ("base", 2): (5, 5, 60, 30),
    ("adapted", 2): (30, 20, 20, 30),
}


def shares(method="full", seed=0, dictionary="first", counts=COUNTS, add=0):
    rows = []
    for (side, layer), numbers in counts.items():
        numbers = (numbers[0] + add, *numbers[1:])
        live = sum(numbers)
        share = (numbers[0] + numbers[1]) / live
        rows.append(
            {
                "method": method,
                "seed": seed,
                "layer": layer,
                "side": side,
                "dictionary": dictionary,
                **dict(zip(KINDS, numbers, strict=True)),
                "latents": 128,
                "live": live,
                "share_task": share,
                "share_low": share - 0.02,
                "share_high": share + 0.03,
                "share_permuted": 0.0,
                "share_permuted_high": 0.01,
                "mass_task": share / 2,
                "mass_low": share / 2 - 0.01,
                "mass_high": share / 2 + 0.01,
                "n": 77,
            }
        )
    return pd.DataFrame(rows)


def quality(method="full", base_on_adapted=0.4, recovered=0.7):
    rows = []
    values = {
        ("base", "base"): 0.8,
        ("base", "adapted"): base_on_adapted,
        ("adapted", "adapted"): 0.9,
        ("adapted", "base"): 0.5,
    }
    for layer in (1, 2):
        for (source, target), value in values.items():
            for kind in ("trained", "untrained"):
                ev = value if kind == "trained" else 0.0
                rows.append(
                    {
                        "method": method,
                        "seed": 0,
                        "layer": layer,
                        "trained_on": source,
                        "evaluated_on": target,
                        "kind": kind,
                        "explained_variance": ev,
                        "ev_low": ev - 0.02,
                        "ev_high": ev + 0.02,
                        "rows": 999,
                        "loss_recovered": recovered if target == "adapted" else np.nan,
                        "loss_recovered_low": recovered - 0.1 if target == "adapted" else np.nan,
                        "loss_recovered_high": recovered + 0.1 if target == "adapted" else np.nan,
                        "task_texts": 66.0,
                        "why": ""
                        if target == "adapted"
                        else "No loss to recover: mean ablation costs 1e-05 nats, less than 0.0001.",
                    }
                )
    return pd.DataFrame(rows)


def census(method="full"):
    kinds = ["shared"] * 6 + ["shifted"] * 2 + ["base_only"] + ["adapted_only"] * 3 + ["dead"] * 4
    energy = [0.1] * 6 + [0.05] * 2 + [0.06] + [0.08] * 3 + [0.0] * 4
    frame = pd.DataFrame({"latent": range(len(kinds)), "kind": kinds, "energy_share": energy, "delta": 0.5})
    return pd.concat([frame.assign(method=method, seed=0, layer=layer) for layer in (1, 2)], ignore_index=True)


def matching(method="full"):
    rows = []
    for layer in (1, 2):
        for start in ("same start", "different starts"):
            for on in ("cosine", "correlation"):
                rows.append(
                    {
                        "method": method,
                        "seed": 0,
                        "layer": layer,
                        "start": start,
                        "on": on,
                        "mean": 0.5,
                        "mean_low": 0.4,
                        "mean_high": 0.6,
                        "null_mean": 0.8,
                        "null_low": 0.7,
                        "null_high": 0.9,
                        "lost_share": 0.3,
                        "lost_low": 0.2,
                        "lost_high": 0.4,
                        "new_share": 0.25,
                        "new_low": 0.2,
                        "new_high": 0.3,
                        "null_lost_share": 0.05,
                        "null_new_share": 0.06,
                    }
                )
    return pd.DataFrame(rows)


def crossing(verdict="crosses", **more):
    row = {
        "method": "full",
        "quantity": "share_task",
        "layer": 2,
        "layer_low": 2,
        "layer_high": 2,
        "crossed": 2,
        "runs": 2,
    }
    return pd.DataFrame([{**row, "verdict": verdict, "note": "only one training seed", **more}])


def everything():
    return {
        "latent_shares": pd.concat(
            [shares(), shares(dictionary="second-seed", add=5), shares("shuffled-labels", add=1)]
        ),
        "sae": quality(),
        "matching": matching(),
        "census": census(),
        "crossing": crossing(),
    }


def named(figure):
    return {trace.name: trace for trace in figure.data}


def test_bars_of_kinds_are_shares_of_judged_latents_and_add_up():
    traces = named(drawn(everything(), ["full", "shuffled-labels"])["kinds-0"])
    heights = np.array([list(traces[kind].y) for kind in KINDS])
    assert np.allclose(heights.sum(0), 1)
    assert list(traces["task"].x[0]) == ["layer 1", "layer 1", "layer 2", "layer 2"]
    assert list(traces["task"].x[1]) == ["base", "adapted"] * 2
    assert heights[0].tolist() == [0.02, 0.04, 0.05, 0.3]
    points = traces["task share, 95% interval"]
    assert list(points.y) == pytest.approx((heights[0] + heights[1]).tolist())  # at the top of the first two bars
    assert np.allclose(points.error_y.array, 0.03) and np.allclose(points.error_y.arrayminus, 0.02)
    assert list(traces["95th percentile with labels permuted"].y) == [0.01] * 4
    assert list(traces["second dictionary seed, training seed 0"].y)[3] == pytest.approx(55 / 105)
    control = traces["adapted on shuffled labels"]
    assert list(control.x[1]) == ["adapted"] * 2 and list(control.y) == pytest.approx([11 / 101, 51 / 101])


def test_another_training_seed_stands_among_the_points():
    tables = {"latent_shares": pd.concat([shares(), shares(seed=3, add=2)])}
    assert "first dictionary, training seed 3" in named(drawn(tables, ["full"])["kinds-0"])


def test_mass_has_base_once_and_each_method():
    traces = named(drawn(everything(), ["full", "shuffled-labels"])["mass"])
    assert list(traces["base"].y) == pytest.approx([0.025, 0.05])
    assert list(traces["full: adapted"].y) == pytest.approx([0.05, 0.25])
    assert "shuffled-labels: adapted" in traces and "full: base" not in traces


def test_transfer_shows_all_four_pairs_and_cuts_what_would_flatten_them():
    traces = named(transfer(quality(base_on_adapted=-15.0), "full"))
    assert {"base's dictionary on base", "base's dictionary on adapted", "adapted's dictionary on adapted"} <= set(
        traces
    )
    assert list(traces["control: untrained, on base"].y) == [0, 0]
    far = traces["base's dictionary on adapted"]
    assert list(far.y) == [SHOWN[0]] * 2 and list(far.text) == ["-15.0"] * 2  # written out at the edge
    assert list(far.customdata[0]) == pytest.approx([-15.0, -15.02, -14.98])
    near = traces["base's dictionary on base"]
    assert list(near.text) == ["", ""] and np.allclose(near.error_y.array, 0.02)
    # What is undefined has no point.
    assert "base's dictionary on base" not in named(transfer(quality(), "full", "loss_recovered"))


def test_matches_stand_beside_their_own_null():
    figure = drawn(everything(), ["full"])["matching-0"]
    traces = named(figure)
    for name in ("cosine", "correlation of activations", "cosine, different starts"):
        assert list(traces[f"{name}: base / adapted"].y) == [0.5] * 2 and list(traces[f"{name}: null"].y) == [0.8] * 2
    assert list(traces["lost from base"].y) == [0.3] * 2 and list(traces["lost from base: null"].y) == [0.05] * 2
    assert list(traces["new in adapted: null"].y) == [0.06] * 2


def test_the_census_counts_live_latents_and_their_energy():
    figure = drawn(everything(), ["full"])["census-0"]
    shown = {(trace.name, trace.xaxis): list(trace.y) for trace in figure.data}
    assert shown["adapted-only", "x"] == pytest.approx([3 / 12] * 2)
    assert shown["adapted-only", "x2"] == pytest.approx([0.24] * 2)
    assert sum(values[0] for (_, axis), values in shown.items() if axis == "x") == pytest.approx(1)


def test_the_answer_says_shift_transfer_and_exclusives_with_their_nulls():
    shift, shared = feature_sentences(everything(), ["full", "shuffled-labels"])
    assert "changes most at layer 2: 10% (95% interval 8.0% to 13%) of 100" in shift
    assert "50% (95% interval 48% to 53%) of 100 in the adapted model's" in shift
    assert "with labels permuted, at most 1.0% in 95% of draws" in shift
    assert "a second dictionary seed gives 14% and 52%" in shift and "shuffled labels, 50%" in shift
    assert "at layer 2 (2 of 2 pairs of seeds cross, all at layer 2; only one training seed)" in shift
    assert (
        "explain 0.80 (95% interval 0.78 to 0.82) of the base's variance and 0.40 (95% interval 0.38 to 0.42)" in shared
    )
    assert "its own 0.90" in shared and "keeps 0.70" in shared and "(95% interval 0.60 to 0.80)" in shared
    assert "joint" not in shared  # the census has no null beside it, so it stays out of the answer
    told = exclusive_sentence(everything(), "full")
    assert "Of 12 live latents" in told and "1 are base-only (6.0%" in told and "3 are adapted-only (24%" in told


def test_a_census_without_exclusives_says_none():
    table = census().query("kind in ('shared', 'dead')")
    told = "Of 6 live latents of a joint dictionary at layer 2, none is one side's own."
    assert exclusive_sentence({"census": table}, "full") == told


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (crossing("flat"), "the line is flat"),
        (crossing("never", layer=None), "In no layer .* beyond the base's interval .only one training seed"),
        (crossing("undefined", layer=None), "too few latents"),
        (crossing(layer_low=1, crossed=2, runs=4, note=""), "2 of 4 pairs of seeds cross, from layer 1 to 2"),
        (crossing(runs=1, crossed=1, note="only one seed"), "at layer 2 .only one seed."),
    ],
)
def test_the_crossing_in_words(table, words):
    import re

    assert re.search(words, crossing_sentence({"crossing": table}, "full"))


def test_flat_methods_and_reasons_are_told():
    same = {key: COUNTS["base", key[1]] for key in COUNTS}
    tables = everything() | {"latent_shares": pd.concat([shares(), shares("head", counts=same)])}
    tables["crossing"] = pd.concat([crossing(), crossing("flat", method="head")])
    told = panels(tables, ["full"], ["head"], list(drawn(tables, ["full"])))
    assert told["flat"][0]["exact"] and "flat" in told["flat"][0]["text"]
    (panel,) = told["panels"]
    absent = {name for name, there in panel["has"].items() if not there}
    assert panel["main"] and panel["different"] and absent == {"steps", "densities"}  # these tables are not there
    assert panel["why"] == [
        "No loss to recover: mean ablation costs 1e-05 nats, less than 0.0001. (layer 1, base; layer 2, base)"
    ]
    assert panel["delta"] == "0.50 at layer 1, 0.50 at layer 2" and panel["latents"] == 24
    assert not panels(everything(), ["full"], ["shuffled-labels"], [])["flat"]  # nothing is known of its crossing


@pytest.mark.parametrize("left", ["latent_shares", "sae", "matching", "census", "crossing"])
def test_what_is_missing_is_left_out_alone(left):
    tables = {name: table for name, table in everything().items() if name != left}
    figures = drawn(tables, ["full"])
    gone = {
        "latent_shares": "kinds-0",
        "sae": "transfer-0",
        "matching": "matching-0",
        "census": "census-0",
        "crossing": None,
    }
    assert gone[left] not in figures and len(figures) >= 4
    assert feature_sentences(tables, ["full"])
    assert panels(tables, ["full"], [], list(figures))["panels"]


def test_tables_of_an_earlier_version_are_told_from_none():
    old = pd.DataFrame({"method": ["full"], "seed": 0, "layer": 1, "side": "base", "share": 0.1, "live": 5})
    told = panels({"latent_shares": old}, ["full"], [], [])
    assert told["old"] and told["any"] and not drawn({"latent_shares": old}, ["full"])
    assert not panels({}, ["full"], [], [])["any"]
    assert feature_sentences({"latent_shares": old}, ["full"]) == feature_sentences({}, []) == []


def test_too_few_latents_are_no_share_of_nought():
    table = shares()
    table[["share_task", "share_low", "share_high"]] = np.nan
    assert "too few latents fire" in feature_sentences({"latent_shares": table}, ["full"])[0]


def test_transfer_along_training_and_densities_are_drawn_from_their_tables():
    steps = pd.DataFrame(
        [
            {
                "step": step,
                "layer": layer,
                "trained_on": side,
                "explained_variance": value,
                "ev_low": value,
                "ev_high": value,
            }
            for step, value in ((0, 0.9), (5, 0.5))
            for layer in (1, 2)
            for side in ("base", "adapted")
        ]
    ).assign(method="full", seed=0)
    bins = pd.DataFrame({"low": [-np.inf, -2.0, -1.0], "high": [-np.inf, -1.5, -0.5], "latents": [3, 7, 2]})
    bins = bins.assign(method="full", seed=0, layer=1, trained_on="base", evaluated_on="base", kind="trained")
    figures = drawn({"transfer_steps": steps, "sae_densities": bins}, ["full"])
    line = named(figures["steps-0"])["base's dictionary, layer 2"]
    assert list(line.x) == [0, 5] and list(line.y) == [0.9, 0.5]
    density = named(figures["densities-0"])["base, layer 1"]
    assert list(density.x) == [-1.75, -0.75] and list(density.y) == [7, 2]  # the silent ones have no place on the axis
