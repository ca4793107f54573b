"""Figures and sentences about dictionaries, from planted numbers: heights, nulls, intervals, and what is missing."""

import re

import numpy as np
import pandas as pd
import pytest
from fabricated import complete, record
from test_report import EVIL, page, similarity

from layerprobe.report import figure_function
from layerprobe.report.sections.features import SECTION, figures
from layerprobe.report.sections.features.context import context
from layerprobe.report.sections.features.examples import example_latents
from layerprobe.report.sections.features.sentences import (
    against_controls,
    crossing_sentence,
    difference_sentence,
    exclusive_sentence,
    shift_sentence,
    stability_sentence,
    transfer_sentence,
)

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


def quality(method="full", base_on_adapted=0.4, recovered=0.7, frozen=0.2, reach=0.05):
    rows = []
    values = {
        ("base", "base"): 0.8,
        ("base", "adapted"): base_on_adapted,
        ("adapted", "adapted"): 0.9,
        ("adapted", "base"): 0.5,
    }
    for layer in (1, 2):
        for (source, target), value in values.items():
            for kind in ("trained", "untrained", "frozen-decoder"):
                if kind != "trained" and (source, target) == ("adapted", "base"):
                    continue
                ev = {"trained": value, "untrained": 0.0, "frozen-decoder": frozen}[kind]
                excess = values["base", target] - ev
                at_head = target == "adapted" and layer == 2
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
                        "base_excess": excess,
                        "base_excess_low": excess - reach,
                        "base_excess_high": excess + reach,
                        "ev_head_rows": 0.25 if at_head else np.nan,
                        "ev_head_low": 0.2 if at_head else np.nan,
                        "ev_head_high": 0.3 if at_head else np.nan,
                        "head_rows": 30.0 if at_head else np.nan,
                        "rows": 999,
                        "accuracy_recovered": 0.95 if target == "adapted" else np.nan,
                        "accuracy_recovered_low": 0.9 if target == "adapted" else np.nan,
                        "accuracy_recovered_high": 1.0 if target == "adapted" else np.nan,
                        "loss_recovered": recovered if target == "adapted" else np.nan,
                        "loss_recovered_low": recovered - 0.1 if target == "adapted" else np.nan,
                        "loss_recovered_high": recovered + 0.1 if target == "adapted" else np.nan,
                        "task_loss_clean": 0.5,
                        "task_loss_ablated": 0.7 if target == "adapted" else 0.50001,
                        "task_texts": 66.0,
                    }
                )
    plain = {"l0": 8.0, "dead_share": 0.1, "architecture": "batchtopk", "d_sae": 128, "k": 8}
    return pd.DataFrame(rows).assign(**plain, trained_rows=5000, texts="unseen")


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


def aligned(method="full", share=0.65, reach=0.1):
    rows = []
    for layer in (1, 2):
        for kind, lift in (("trained", 0.0), ("frozen-decoder", -0.2)):
            for i, alignment in enumerate(("none", "mean", "scale", "rotation", "ridge")):
                closed = share * i / 3
                ends = {"gap_share_low": closed - reach, "gap_share_high": closed + reach}
                value = 0.4 + 0.5 * closed + lift
                row = {"method": method, "seed": 0, "layer": layer, "n": 77, "kind": kind, "alignment": alignment}
                rows.append({**row, "explained_variance": value, "ev_low": value - 0.01, "ev_high": value + 0.01})
                rows[-1] |= {"gap_share": closed, **ends, "why": "", "home": 0.9}
    return pd.DataFrame(rows)


def difference(method="full", excess=0.2, reach=0.1):
    rows = [
        {"method": method, "seed": 0, "layer": layer, "n": 77, "components": m, "explained_variance": 0.5 + m / 40}
        | {"coefficients": m == 8, "joint": 0.5, "joint_low": 0.4, "joint_high": 0.6, "l0": 8.3, "d_sae": 128}
        | {"excess": excess, "excess_low": excess - reach, "excess_high": excess + reach}
        for layer in (1, 2)
        for m in (1, 4, 8, 16)
    ]
    return pd.DataFrame(rows).assign(ev_low=0.4, ev_high=1.0)


def exclusive(found=(0, 3), kinds=("noise", "seeds"), method="full"):
    row = {"method": method, "seed": 0, "nulls": 5, "live": 12, "candidates": 4, "null_mean": 0.4, "null_high": 2}
    row |= {"base_only": found[0], "adapted_only": found[1], "found": sum(found), "fewest": 4}
    return pd.DataFrame([{**row, "layer": layer, "null": kind} for layer in (1, 2) for kind in kinds])


def stability(method="full"):
    rows = [
        {"method": method, "seed": 0, "layer": layer, "ablated": name, "latents": latents, "of": of, "n": 66, "why": ""}
        | {"energy_share": 0.2 * (latents > 0), "task_loss": 0.5, "loss_recovered": value}
        | {"loss_recovered_low": value - 0.05, "loss_recovered_high": value + 0.05}
        for layer in (1, 2)
        for name, latents, of, value in (("none", 0, 0, 0.9), ("stable", 30, 70, 0.6), ("unstable", 40, 40, 0.85))
    ]
    return pd.DataFrame(rows)


def subspaces(overlap=0.7, method="full"):
    row = {"method": method, "seed": 0, "latents": 40, "latents_second": 42, "dimensions": 12, "overlap": overlap}
    row |= {"null_mean": 0.5, "null_high": 0.55, "draws": 19}
    return pd.DataFrame([{**row, "layer": layer} for layer in (1, 2)])


def crossing(verdict="onset", **more):
    row = {"method": "full", "quantity": "label_effect", "layer": 2, "after": 1, "after_high": 0.004, "layers": "1, 2"}
    table = pd.DataFrame([{**row, "dictionaries": 2, "runs": 1, "verdict": verdict, "note": "", **more}])
    return table.astype({"layer": "Int64", "after": "Int64"})


def crossing_layers(method="full", differences=(0.001, 0.031)):
    rows = pd.DataFrame({"layer": [1, 2], "base": 0.01, "difference": differences})
    ends = {"low": rows.difference - 0.003, "high": rows.difference + 0.003}
    seeds = {"lowest": rows.difference - 0.001, "highest": rows.difference + 0.001}
    rows = rows.assign(adapted=rows.base + rows.difference, **ends, **seeds)
    return rows.assign(method=method, quantity="label_effect")


def everything(**more):
    """Full fine-tuning and a control, which changed layers, and a head, which did not."""
    tables = {
        "similarity": pd.concat(
            [similarity([1, 0.5]), similarity([1, 0.9], "shuffled-labels"), similarity([1, 1], "head", reach=0)]
        ),
        "latent_shares": pd.concat(
            [shares(), shares(dictionary="second-seed", add=5), shares("shuffled-labels", add=1)]
        ),
        "sae": quality(),
        "matching": matching(),
        "census": census(),
        "crossing": crossing(),
        "crossing_layers": crossing_layers(),
        "aligned_transfer": aligned(),
        "difference_pca": difference(),
    }
    return complete(tables | more, record())


def looked_up():
    """Latents of two layers with texts of 40 tokens, in which the activation peaks at w20 and is half as high before it."""
    table = pd.DataFrame({"latent": range(5), "kind": ["task", "task", "both", "general", "task"], "layer": 1})
    table = table.assign(label=["b", "a", "a", "a", "a"], auroc=[0.2, 0.9, 0.95, 0.99, 0.8], side="adapted")
    table["effect"] = (2 * table.auroc - 1).abs()
    table["nearest_cosine"] = [np.nan, 0.5, 0.9, 0.9, 0.9]
    table = pd.concat([table, table.assign(side="base"), table.assign(layer=0)]).assign(method="full", seed=0)
    texts = [
        {"latent": latent, "layer": layer, "choice": "top", "rank": rank, "example_id": example, "token_index": i}
        | {"token": EVIL if i == 21 else f"w{i}", "special": False, "adapted": value, "base": 9.0, "side": "adapted"}
        for latent in (0, 1, 2, 3)
        for layer in (0, 1)
        for rank, example in ((1, "x"), (0, "y"))
        for i in range(40)
        for value in [4.0 * (i == 20) + 2.0 * (i == 19) if rank == 0 else 1.0]
    ]
    texts = pd.DataFrame(texts).assign(method="full", seed=0, level=1.0)
    examples = pd.DataFrame({"example_id": ["x", "y"], "text": "t", "label": ["a", "b"], "split": "test"})
    latents = table.assign(density=0.1, max_activation=2.0, unmatched=False)
    spans = pd.DataFrame({"example_id": ["x"], "token_index": [50], "start": [0], "end": [1]})
    return everything(latents=latents, latent_examples=texts, examples=examples, tokens=spans)


def without(name):
    tables, about = everything()
    return {key: table for key, table in tables.items() if key != name}, about


def figure(name, study, **options):
    return figure_function(name)(*study, **options)


def named(figure):
    return {trace.name: trace for trace in figure.data}


def section(html):
    return re.search(r'<section id="features">(.*?)</section>', html, flags=re.S).group(1)


def test_bars_of_kinds_are_shares_of_judged_latents_and_add_up():
    traces = named(figure("latent_kinds", everything(), method="full"))
    heights = np.array([list(traces[kind].y) for kind in KINDS])
    assert np.allclose(heights.sum(0), 1)
    assert list(traces["task"].x[0]) == ["layer 1", "layer 1", "layer 2", "layer 2"]
    assert list(traces["task"].x[1]) == ["base", "adapted"] * 2
    assert heights[0].tolist() == [0.02, 0.04, 0.05, 0.3]
    points = traces["task share, 95% interval"]
    assert list(points.y) == pytest.approx((heights[0] + heights[1]).tolist())  # at the top of the first two bars
    assert np.allclose(points.error_y.array, 0.03) and np.allclose(points.error_y.arrayminus, 0.02)
    assert list(traces["95th percentile with labels permuted"].y) == [0.01] * 4
    assert list(named(figure("latent_kinds", everything()))) == list(traces)  # the main method is the default


def test_other_seeds_and_the_control_are_in_a_table():
    panels = {panel["method"]: panel["by_seed"] for panel in context(*everything())["panels"]}
    assert panels["full"]["columns"] == [(1, "base"), (1, "adapted"), (2, "base"), (2, "adapted")]
    rows = dict(panels["full"]["rows"])
    assert list(rows) == ["first dictionary", "second dictionary seed", "under the control shuffled-labels"]
    assert rows["second dictionary seed"][3] == pytest.approx(55 / 105)
    assert rows["under the control shuffled-labels"] == [None, pytest.approx(11 / 101), None, pytest.approx(51 / 101)]
    assert panels["shuffled-labels"] is None  # one dictionary, and no control of its own
    study = everything(latent_shares=pd.concat([shares(), shares(seed=3, add=2)]))
    assert "first dictionary, training seed 3" in dict(context(*study)["panels"][0]["by_seed"]["rows"])


def test_mass_has_base_once_and_each_method_that_changed_a_layer():
    traces = named(figure("task_mass", everything()))
    assert list(traces["base"].y) == pytest.approx([0.025, 0.05])
    assert np.allclose(traces["base"].error_y.array, 0.01)
    assert list(traces["full: adapted"].y) == pytest.approx([0.05, 0.25])
    assert set(traces) == {"base", "full: adapted", "shuffled-labels: adapted"}
    assert {trace.mode for trace in traces.values()} == {"markers"}  # two layers: a line would suggest a course
    more = pd.concat([shares(), shares().query("layer == 2").assign(layer=3)])
    assert named(figure("task_mass", everything(latent_shares=more)))["base"].mode == "lines+markers"


def test_transfer_shows_the_dictionaries_on_the_rows_of_each_side():
    shown = {(trace.name, trace.xaxis): trace for trace in figure("transfer", everything()).data}
    values = {key: trace.y[0] for key, trace in shown.items() if trace.type == "scatter"}
    assert values == {
        ("base's dictionary", "x"): 0.8,
        ("adapted's dictionary", "x"): 0.5,
        ("base's dictionary", "x2"): 0.4,
        ("adapted's dictionary", "x2"): 0.9,
    }
    assert np.allclose(shown["base's dictionary", "x2"].error_y.array, 0.02)
    # The band runs from the untrained to the frozen dictionary, on the rows of either side.
    for axis in ("x", "x2"):
        band = shown["controls: directions not learned", axis]
        assert list(band.x) == ["layer 1", "layer 2"] and list(band.base) == [0, 0] and np.allclose(band.y, 0.2)
        assert "frozen-decoder, base: 0.200" in band.customdata[0] and "untrained, base: 0.000" in band.customdata[0]
    alone = everything(sae=quality().query("kind in ('trained', 'untrained')"))
    (band,) = [trace for trace in figure("transfer", alone).data if trace.type == "bar" and trace.xaxis == "x"]
    assert list(band.y) == [0, 0] and band.marker.line.width > 0  # one control is a line
    without = everything(sae=quality().query("kind == 'trained'"))
    assert {trace.type for trace in figure("transfer", without).data} == {"scatter"}


def test_transfer_cuts_values_that_would_flatten_the_others():
    shown = figure("transfer", everything(sae=quality(base_on_adapted=-15.0)))
    (far,) = [trace for trace in shown.data if (trace.name, trace.xaxis) == ("base's dictionary", "x2")]
    assert list(far.y) == [figures.SHOWN[0]] * 2 and list(far.text) == ["-15.0"] * 2  # written out at the edge
    assert list(far.customdata[0]) == pytest.approx([-15.0, -15.02, -14.98])
    assert np.isnan(far.error_y.array).all()  # its interval is beyond the edge too


@pytest.mark.parametrize(
    ("quantity", "value", "reach"), [("loss_recovered", 0.7, 0.1), ("accuracy_recovered", 0.95, 0.05)]
)
def test_recovered_shares_are_drawn_where_they_are_defined(quantity, value, reach):
    lost = figure("transfer", everything(), quantity=quantity)
    # Undefined values on base rows have no diagram.
    assert {trace.xaxis for trace in lost.data} == {"x"} and lost.layout.annotations[0].text == "adapted rows"
    assert list(named(lost)["base's dictionary"].y) == [value] * 2
    assert np.allclose(named(lost)["base's dictionary"].error_y.arrayminus, reach)
    assert lost.layout.yaxis.range == pytest.approx((-0.1, 1.06))


@pytest.mark.parametrize("pairs", figures.PAIRS)
def test_matches_are_drawn_with_their_null(pairs):
    traces = named(figure("matching", everything(), pairs=pairs))
    assert len(traces) == 6
    assert list(traces["base / adapted"].y) == [0.5] * 2 and list(traces["base / adapted: null"].y) == [0.8] * 2
    assert np.allclose(traces["base / adapted: null"].error_y.array, 0.1)
    assert list(traces["lost from base"].y) == [0.3] * 2 and list(traces["lost from base: null"].y) == [0.05] * 2
    assert list(traces["new in adapted: null"].y) == [0.06] * 2
    assert traces["new in adapted"].xaxis == "x2" and list(traces["new in adapted"].error_y.array) == pytest.approx(
        [0.05] * 2
    )
    alone = matching().query("start == 'same start' and on == 'cosine'")
    assert (figure("matching", everything(matching=alone), pairs=pairs) is None) == (pairs != "cosine")


def test_example_latents_are_the_strongest_of_different_labels_with_their_top_text():
    found = example_latents(*looked_up(), "full")
    assert [(one.layer, one.latent, one.label) for one in found] == [(1, 2, "a"), (1, 0, "b"), (1, 1, "a")]
    assert [round(one.auroc, 2) for one in found] == [0.95, 0.2, 0.9]
    assert found[0].address == "latent-1-2" and found[0].nearest == 0.9 and found[1].nearest is None
    tokens = dict(found[0].tokens)
    assert tokens["w20"] == 1 and tokens["w19"] == 0.5 and len(tokens) == 17  # around the highest activation
    assert "w11" not in tokens and "w29" not in tokens
    tables, about = looked_up()
    other = {name: tables[name].assign(method="top:2") for name in ("latents", "latent_examples")}
    assert (
        example_latents(tables | other, about, "top:2")[0].address == "latent-1-2-adapted-top%3A2%20%C2%B7%20seed%200"
    )
    spans = pd.DataFrame({"example_id": "y", "token_index": [20, 21], "start": [2, None], "end": [6, None]})
    texts = tables["examples"].assign(text="A \N{PARTY POPPER}ole")
    found = example_latents(tables | {"tokens": spans, "examples": texts}, about, "full")
    assert dict(found[0].tokens)["\N{PARTY POPPER}ole"] == 1 and dict(found[0].tokens)["w19"] == 0.5
    assert example_latents({name: tables[name] for name in ("latents", "similarity")}, about, "full") == []


def test_example_latents_link_to_what_can_be_looked_up_and_are_escaped(tmp_path):
    tables, about = looked_up()
    html = section(page(tmp_path / "one", tables, about))
    assert "Example latents of the adapted model: full" in html
    assert re.findall(r'href="#(latent-\d-\d)"', html) == ["latent-1-2", "latent-1-0", "latent-1-1"]
    assert 'style="--value: 1.00">w20</span>' in html and "more active for a (AUROC 0.95)" in html
    assert "less active for b" in html and "<script>alert" not in html and "&lt;script&gt;alert" in html
    alone = section(page(tmp_path / "two", {key: table for key, table in tables.items() if key != "examples"}, about))
    assert "Latent 2 of layer 1" in alone and 'href="#latent-' not in alone


def test_the_census_counts_live_latents_and_their_energy():
    shown = {(trace.name, trace.xaxis): list(trace.y) for trace in figure("census", everything()).data}
    assert shown["adapted-only", "x"] == pytest.approx([3 / 12] * 2)
    assert shown["adapted-only", "x2"] == pytest.approx([0.24] * 2)
    assert sum(values[0] for (_, axis), values in shown.items() if axis == "x") == pytest.approx(1)


def test_the_answer_reports_shift_and_transfer_with_their_nulls():
    shift, transfer = (finding.text for finding in SECTION.sentences(*everything()))
    assert "has its largest estimated change at layer 2: 10% (95% interval 8.0% to 13%) of 100" in shift
    assert "50% (95% interval 48% to 53%) of 100 in the adapted model's" in shift
    assert "with permuted labels: at most about 1.0%" in shift
    assert "a second dictionary seed gives 14% and 52%" in shift and "under the control shuffled-labels, 50%" in shift
    assert "first shown to be larger in adapted than in base at layer 2, by +0.0310 (+0.0280 to +0.0340)" in shift
    assert (
        "explains 0.80 (95% interval 0.78 to 0.82) of the base's variance and 0.40 (95% interval 0.38 to 0.42)"
        in transfer
    )
    assert (
        "compared with 0.90 by the adapted model's dictionary, and 0.00 by an untrained one and 0.20 by one with frozen "
        "random directions: the base's dictionary explains more than either" in transfer
    )
    assert (
        "With the base's reconstruction in place of that layer, 70% (95% interval 60% to 80%) of its contribution to the "
        "loss and 95% (95% interval 90% to 100%) of its contribution to the accuracy of the adapted classifier survive"
        in transfer
    )
    assert "With a control's reconstruction, at most 70% for the loss and 95% for the accuracy." in transfer
    assert (
        "reads only the first token of each example there (3.0% of the rows), of whose variance the base's dictionary "
        "explains 0.25 (95% interval 0.20 to 0.30)" in transfer
    )
    assert "joint" not in shift + transfer  # the census has no null
    unbounded = quality().assign(loss_recovered_low=np.nan, loss_recovered_high=np.nan)
    assert "(no interval: this cost may be 0)" in SECTION.sentences(*everything(sae=unbounded))[1].text


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"frozen": 0.5}, "directions that were never learned explain more than the base's dictionary does"),
        ({"frozen": 0.38}, "that the base's dictionary explains more than these controls is not shown"),
        ({"frozen": 0.3, "reach": 0.2}, "more than these controls is not shown"),
        ({"frozen": 0.3}, "explains more than either"),
    ],
)
def test_the_base_dictionary_is_compared_with_its_controls_on_adapted_rows(study, words):
    assert words in transfer_sentence(*everything(sae=quality(**study)), "full")


def test_the_comparison_with_controls_follows_the_paired_intervals():
    def verdict(*intervals):
        return against_controls(pd.DataFrame(intervals, columns=["base_excess_low", "base_excess_high"]))

    assert verdict((0.1, 0.2), (0.01, 0.3)) == "more"
    assert verdict((0.1, 0.2), (-0.01, 0.3)) == "undecided"
    assert verdict((0.1, 0.2), (-0.3, -0.01)) == "less"
    assert verdict() == "undecided"
    older = quality().drop(columns=["base_excess", "base_excess_low", "base_excess_high", "ev_head_rows"])
    assert "no control was read on the adapted model's rows." in transfer_sentence(*everything(sae=older), "full")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (aligned(), r"fitted on other examples, close 65% \(95% interval 55% to 75%\) of the gap"),
        (aligned(reach=0.7), r"close any of this gap is not shown \(65% \(95% interval -5% to 135%\)\)"),
        (aligned().assign(gap_share=np.nan, gap_share_low=np.nan), "more than either, for these dictionaries[.] With"),
    ],
)
def test_the_gap_is_split_where_there_is_one(table, words):
    assert re.search(words, transfer_sentence(*everything(aligned_transfer=table), "full"))


def test_alignments_end_at_the_adapted_dictionary():
    traces = named(figure("aligned", everything()))
    assert set(traces) == {"layer 1", "layer 1, frozen-decoder", "layer 2", "layer 2, frozen-decoder"}
    assert list(traces["layer 2"].x) == list(figures.ALIGNMENTS.values())
    assert traces["layer 2"].y[0] == 0.4 and traces["layer 2"].y[-1] == 0.9
    assert list(traces["layer 2"].error_y.array) == pytest.approx([0.01] * 5 + [0])
    assert list(traces["layer 2, frozen-decoder"].y) == pytest.approx([y - 0.2 for y in traces["layer 2"].y[:-1]])


@pytest.mark.parametrize(
    ("excess", "words"),
    [(0.2, "the components explain more"), (-0.2, "the joint dictionary explains more"), (0.05, "neither is shown")],
)
def test_the_joint_dictionary_is_compared_with_components_of_the_difference(excess, words):
    text = difference_sentence(*everything(difference_pca=difference(excess=excess)), "full")
    assert words in text and "at layer 2, the joint dictionary explains 0.50 (95% interval 0.40 to 0.60)" in text
    assert "8.3 active latents per token, and 8 principal components of the difference 0.70" in text


def test_components_are_drawn_with_the_joint_dictionary_at_its_number_of_coefficients():
    traces = named(figure("difference_pca", everything()))
    assert list(traces["layer 1: components"].x) == [1, 4, 8, 16]
    assert list(traces["layer 1: joint dictionary"].x) == [8.3] and list(traces["layer 1: joint dictionary"].y) == [0.5]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            {},
            "4 look exclusive to one side; no null was trained .* not known whether any is a feature of one side alone",
        ),
        (
            {"exclusive": exclusive()},
            r"compared with 0.4 in joint dictionaries of sides that differ by noise alone \(5 trained; 95th percentile 2\) "
            "and 0.4 in joint dictionaries of two training seeds .*: 0 of base and 3 of the adapted model are exclusive",
        ),
        (
            {"exclusive": exclusive(found=(0, 0), kinds=("noise",))},
            "none is shown to be a feature of one side alone .with so many null dictionaries, fewer than 4 cannot be",
        ),
    ],
)
def test_exclusive_latents_are_claimed_beyond_their_nulls_only(tables, words):
    text = exclusive_sentence(*everything(**tables), "full")
    assert re.search(words, text) and text.startswith("Of 12 live latents of a joint dictionary at layer 2")


def test_stable_and_unstable_latents_are_compared_at_equal_energy_and_subspaces_with_their_null():
    text = stability_sentence(*everything(stability=stability(), subspace_overlap=subspaces()), "full")
    assert "At layer 2, 70 of 110 live latents of the adapted model's dictionary have a partner" in text
    assert (
        "90% (95% interval 85% to 95%) of the layer's contribution to the loss survives; 60% (95% interval 55% to 65%) "
        "without 30" in text
    )
    assert "85% (95% interval 80% to 90%) without 40 unstable ones of about equal energy (20% of all)" in text
    assert "overlap by 0.70, more than directions drawn from the rows' covariance do (mean 0.50, at most 0.55" in text
    assert "no more than directions" in stability_sentence(*everything(subspace_overlap=subspaces(0.54)), "full")
    assert stability_sentence(*everything(), "full") is None


def test_a_census_without_exclusive_latents_has_none():
    study = everything(census=census().query("kind in ('shared', 'dead')"))
    expected = "Of 6 live latents of a joint dictionary at layer 2, none is shown to be exclusive to one side."
    assert exclusive_sentence(*study, "full") == expected


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (crossing("flat"), "base and adapted have the same latents"),
        (
            crossing("none"),
            r"At no layer .* difference is \+0.0310 \(\+0.0280 to \+0.0340\) at layer 2 \(95% .* layers 1, 2; 2 dic",
        ),
        (crossing("undefined"), "too few latents"),
        (
            crossing(),
            "2 dictionary seeds, 1 training run.* between layers 1 and 2, but for at most 0.0040 that layer 1 may",
        ),
        (crossing(after=None, layers="2", runs=3), "dictionaries at layer 2; .*3 training runs.* at layer 2 or below"),
        (crossing(after_high=-0.001), "between layers 1 and 2[.]$"),
        (crossing("conditional"), "With one dictionary seed, .*no layer is named at which it begins"),
    ],
)
def test_the_crossing_in_words(table, words):
    assert re.search(words, crossing_sentence({"crossing": table, "crossing_layers": crossing_layers()}, "full"))


def test_differences_of_label_effects_have_intervals_where_the_variance_between_dictionaries_is_known():
    seeds, points = figure("crossing", everything()).data
    assert list(points.y) == [0.001, 0.031] and np.allclose(points.error_y.array, 0.003)
    assert np.allclose(seeds.error_y.arrayminus, 0.001)
    unknown = crossing_layers().assign(low=np.nan, high=np.nan)
    assert figure("crossing", everything(crossing_layers=unknown)).data[1].error_y.array is None


def test_the_page_reports_methods_that_changed_nothing_and_why_values_are_undefined(tmp_path):
    same = {key: COUNTS["base", key[1]] for key in COUNTS}
    tables, about = everything(
        latent_shares=pd.concat([shares(), shares("head", counts=same)]),
        crossing=pd.concat([crossing(), crossing("flat", method="head")]),
        crossing_layers=pd.concat([crossing_layers(), crossing_layers("head", (0.0, 0.0))]),
    )
    variables = context(tables, about)
    assert variables["open"] == "full"
    assert [panel["method"] for panel in variables["panels"]] == ["full", "shuffled-labels"]
    ((method, sentence, same_kinds),) = variables["unchanged"]
    assert method == "head" and "same latents" in sentence and same_kinds
    panel = variables["panels"][0]
    assert panel["different_starts"] and panel["deltas"] == {1: 0.5, 2: 0.5} and len(panel["live"]) == 24
    assert panel["undefined"] == ["No loss to recover: mean ablation costs 1e-05 nats. (layer 1, base; layer 2, base)"]
    assert not context(*everything())["unchanged"]  # the crossing of head is not known
    html = section(page(tmp_path, tables, about))
    assert "Both sides have the same number of latents of each kind" in html
    assert "Explained variance of 999 held-out rows of each side" in html and "66 test examples" in html
    assert "77 test examples, at least 100 judged latents per bar, only one training seed" in html
    assert "0.50 at layer 1, 0.50 at layer 2" in html and panel["undefined"][0] in html
    shown = set(re.findall(r'data-figure="([^"]+)"', html))
    every = {"task_mass", "latent_kinds", "crossing", "transfer", "matching", "census", "aligned", "difference_pca"}
    assert shown == every | {name for name in shown if re.fullmatch(r"transfer-\d+", name)}
    assert "shuffled-labels: no joint dictionary was trained" in html


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("latent_shares", {"task_mass", "latent_kinds"}),
        ("sae", {"transfer"}),
        ("matching", {"matching"}),
        ("census", {"census"}),
        ("aligned_transfer", {"aligned"}),
        ("difference_pca", {"difference_pca"}),
        ("crossing", set()),
        ("crossing_layers", {"crossing"}),
    ],
)
def test_a_missing_table_leaves_out_its_figures_only(name, gone, tmp_path):
    study = without(name)
    drawn = {name for name in SECTION.figures if figure(name, study) is not None}
    every = {"task_mass", "latent_kinds", "crossing", "transfer", "matching", "census", "aligned", "difference_pca"}
    assert drawn == every - gone
    assert SECTION.sentences(*study) and context(*study)["panels"]
    html = section(page(tmp_path, *study))
    if name == "sae":
        assert "No sparse autoencoder was trained (sae.layers = [])" in html and html.count("<p") == 1
    else:
        assert 'data-figure="transfer"' in html


def test_names_from_outside_are_escaped(tmp_path):
    tables, _ = everything()
    tables = {
        name: table.assign(method=table.method.replace("full", EVIL)) if "method" in table else table
        for name, table in tables.items()
    }
    html = page(tmp_path, {name: table.drop(columns="depth", errors="ignore") for name, table in tables.items()})
    assert "<script>alert" not in html and "<img src=x" not in html
    assert "Features by kind: &lt;/script&gt;" in section(html)


def test_nothing_is_claimed_without_tables_or_methods():
    assert SECTION.sentences({}, record()) == []
    assert all(draw({}, record()) is None for draw in SECTION.figures.values())


def test_too_few_latents_give_no_share_of_zero():
    table = shares()
    table[["share_task", "share_low", "share_high"]] = np.nan
    assert "too few latents are active" in SECTION.sentences(*everything(latent_shares=table))[0].text


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
    study = everything(transfer_steps=steps, sae_densities=bins)
    line = named(figure("transfer_steps", study))["base's dictionary, layer 2"]
    assert list(line.x) == [0, 5] and list(line.y) == [0.9, 0.5]
    density = named(figure("latent_densities", study))["base, layer 1"]
    assert list(density.x) == [-1.75, -0.75] and list(density.y) == [7, 2]  # inactive ones have no place on the axis


def test_several_training_seeds_are_named_with_their_mean_and_range():
    tables, about = everything(
        latent_shares=pd.concat([shares(), shares(seed=1, add=10)]),
        sae=pd.concat([quality(), quality(base_on_adapted=0.6).assign(seed=1)]),
    )
    first, second = (
        row.share_task for row in tables["latent_shares"].query("layer == 2 and side == 'adapted'").itertuples()
    )
    shift = shift_sentence(tables, about, "full")
    mean = f"{100 * (first + second) / 2:.0f}%"
    assert (
        f"training seed 0; over 2 training seeds the mean is {mean}, the range {100 * first:.0f}% to {100 * second:.0f}%"
        in shift
    )
    transfer = transfer_sentence(tables, about, "full")
    assert "over 2 training seeds the mean is 0.50, the range 0.40 to 0.60 by the base's dictionary" in transfer
    single = everything()
    assert "training seeds the mean" not in shift_sentence(*single, "full")
    assert "training seeds the mean" not in transfer_sentence(*single, "full")
