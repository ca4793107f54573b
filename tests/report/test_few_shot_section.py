"""The few-shot section: planted numbers reach figures, sentences and cards, and missing tables leave no trace."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from fabricated import record
from scipy import stats

from layerprobe.report import answer_lines, cards, findings, write_report
from layerprobe.report import page as pages
from layerprobe.report.sections.few_shot.queries import depths, gains
from layerprobe.runs import Run

DEPTHS = ("head", "top:1", "top:2", "full")
GAIN = {"head": 0.05, "top:1": 0.05, "top:2": 0.06, "full": 0.06}
"""What meta-training adds to the accuracy of the pretrained body's inner loop."""
READERS = ("logistic", "centroid", "nil")


def episodes(inner, seeds, n=60, groups=6, mixed=False, gain=GAIN):
    rng, rows = np.random.default_rng(0), []
    hardness, noise = rng.normal(0, 0.1, n), rng.normal(0, 0.01, (n, 2, 3, 4))
    noise -= noise.mean(0)  # so that planted gains are exact
    for method, depth in itertools.product(("meta-trained", "pretrained"), inner):
        for seed in range(seeds if method == "meta-trained" else 1):
            for reader in ("inner", *READERS):
                if method == "pretrained" and reader != "inner" and depth != inner[0]:
                    continue
                for episode in range(n):
                    value = 0.7 + hardness[episode] + gain[depth] * (method == "meta-trained")
                    value += noise[episode, int(method == "pretrained"), seed, DEPTHS.index(depth)]
                    value += 0.02 * (reader == "logistic")
                    named = "" if method == "pretrained" and reader != "inner" else depth
                    group = "" if mixed else f"g{episode % groups}"
                    rows.append((method, seed, named, reader, episode, group, value, 0.5))
    names = ["method", "seed", "inner", "reader", "episode", "group", "accuracy", "loss"]
    return pd.DataFrame(rows, columns=names)


def accuracies(few_shot, by_group):
    rows = []
    for (method, inner, reader), part in few_shot.groupby(["method", "inner", "reader"], sort=False):
        value = part.groupby("episode").accuracy.mean()
        row = {"method": method, "inner": inner, "reader": reader, "n": len(value), "seeds": part.seed.nunique()}
        row |= {"accuracy": value.mean(), "ci_low": value.mean() - 0.02, "ci_high": value.mean() + 0.02}
        row |= {"group_low": value.mean() - 0.04, "group_high": value.mean() + 0.04, "groups": 6}
        rows.append(row if by_group else row | {"group_low": np.nan, "group_high": np.nan, "groups": None})
    return pd.DataFrame(rows).astype({"groups": "Int64"})


def differences(inner, seeds, outcome="sufficient", by_group=False):
    rows = [
        {"inner": depth, "reference": inner[-1], "n": 6 if by_group else 60, "seeds": seeds, "difference": -0.004}
        | {"ci_low": -0.012, "ci_high": 0.004, "margin": 0.02, "p": 0.01, "order": order, "outcome": outcome}
        | {"covers": "groups" if by_group else "episodes"}
        for order, depth in enumerate(reversed(inner[:-1]), 1)
    ]
    return pd.DataFrame(rows)


def layers(inner, seeds, half=0.004):
    rows = []
    for number, depth in enumerate(inner):
        for seed, layer, measure in itertools.product(range(seeds), (*range(7), None), ("cka", "svcca")):
            same = layer is not None and layer <= 6 - {"head": 0, "top:1": 1, "top:2": 2, "full": 7}[depth]
            value = 0.4 if layer is None else 1.0 if same else 1 - 0.01 * layer
            undefined = measure == "svcca" and not same and layer is not None
            rows.append(
                {"method": "meta-trained", "seed": seed, "inner": depth, "comparison": "inner loop", "other": "after"}
                | {"part": "head" if layer is None else "layer", "layer": layer, "measure": measure}
                | {"value": None if undefined else value, "ci_low": value - half, "ci_high": min(1, value + half)}
                | {"n": 2000, "episodes": 10}
                | {"note": "identical by construction" if same else "few rows" if undefined else ""}
            )
        for other in inner[number + 1 :]:
            named = {
                "method": "meta-trained",
                "seed": 0,
                "inner": depth,
                "comparison": "between models",
                "other": other,
            }
            values = {"measure": "cka", "value": 0.9, "ci_low": 0.88, "ci_high": 0.92, "n": 2000, "note": ""}
            rows += [named | values | {"part": "layer", "layer": layer, "episodes": None} for layer in range(7)]
    table = pd.DataFrame(rows)
    return table.astype({"layer": "Int64", "episodes": "Int64", "value": float})


def training(inner, seeds):
    rows = [
        {"method": method, "seed": seed, "inner": depth, "step": step, "loss": 1.0, "best": step == 10}
        | {"validation_loss": 1 - 0.01 * step if step % 10 == 0 else None, "validation_accuracy": 0.6}
        for method, depths in (("meta-trained", inner), ("multitask", ("",)))
        for depth, seed, step in itertools.product(depths, range(seeds), (0, 1, 10))
    ]
    return pd.DataFrame(rows).astype({"validation_loss": float})


def counts(inner):
    names = ("inner_gradients", "outer_gradients", "second_order_products", "body_forward_passes")
    rows = []
    for depth in inner:
        row = {"inner": depth, "inner_steps": 5, "first_order": False, "seconds": 0.5, "peak_bytes": 3e8}
        row |= {f"{name}{suffix}": 5 for name in (*names, "body_backward_passes") for suffix in ("", "_theory")}
        rows.append(row | {"body_backward_passes_theory": 6})
    return pd.DataFrame(rows)


def rates(inner, best=1.0):
    rows = [
        {"method": method, "seed": 0, "inner": depth, "rate": rate, "n": 20, "chosen": rate == best, "note": ""}
        | {"loss": np.nan if rate == 3.0 != best else 1 - 0.1 * (rate == best), "accuracy": 0.5}
        for method in ("pretrained", "random")
        for depth in inner
        for rate in (0.1, 1.0, 3.0)
    ]
    return pd.DataFrame(rows)


def study(inner=DEPTHS, seeds=1, by_group=False, outcome="sufficient", without=(), gain=GAIN):
    few = episodes(inner, seeds, mixed=not by_group, gain=gain)
    tables = {
        "few_shot": few,
        "few_shot_accuracy": accuracies(few, by_group),
        "few_shot_layers": layers(inner, seeds),
        "few_shot_training": training(inner, seeds),
        "few_shot_counts": counts(inner),
        "few_shot_rates": rates(inner),
    }
    if len(inner) > 1:
        tables["few_shot_differences"] = differences(inner, seeds, outcome, by_group)
    resolved = {"few_shot": {"inner": list(inner), "ways": 5, "shots": 5, "queries": 10}, "data": {"group": "chapter"}}
    about = record(study={"given": None, "resolved": resolved})
    return {name: table for name, table in tables.items() if name not in without}, about


def page_of(folder, tables, about):
    run = Run.create(folder, about)
    run.save_tables(tables)
    run.record.findings = findings(tables, run.record)
    run.save()
    return write_report(run, folder / "index.html").read_text(encoding="utf-8")


def figure(name, tables, about, **options):
    return pages.figure_function(name)(tables, about, **options)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("inner", [("head",), DEPTHS])
@pytest.mark.parametrize("by_group", [False, True])
def test_the_page_has_the_sections_of_its_study_alone(inner, seeds, by_group, tmp_path):
    html = page_of(tmp_path / "run", *study(inner, seeds, by_group))
    assert re.findall(r'<section id="(\w+)">', html) == ["answer", "few_shot", "energy", "made"]
    assert "the study has no section [energy]" in html
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', html, flags=re.S).group(1))
    expected = {"few_shot_accuracy", "few_shot_layers", "few_shot_validation"}
    assert set(drawn) == expected | ({"few_shot_differences"} if len(inner) > 1 else set())
    assert "5 (theory: 6)" in html
    assert ("95% interval over groups" in html) == by_group


@pytest.mark.parametrize(
    "missing",
    [
        "few_shot",
        "few_shot_accuracy",
        "few_shot_layers",
        "few_shot_training",
        "few_shot_counts",
        "few_shot_rates",
        "few_shot_differences",
    ],
)
def test_a_missing_table_leaves_the_rest(missing, tmp_path):
    tables, about = study(without=(missing,))
    html = page_of(tmp_path / "run", tables, about)
    body = re.search(r'<section id="few_shot">(.*?)</section>', html, flags=re.S).group(1)
    assert ("This run measured no accuracy on few-shot episodes." in body) == (missing == "few_shot_accuracy")
    assert len(cards(tables, about)) == 3 and all(answer_lines(tables, about))


def test_no_table_at_all_is_a_page(tmp_path):
    _, about = study()
    html = page_of(tmp_path / "run", {}, about)
    assert html.count("Not measured") == 3
    assert [card.badge for card in cards({}, about)] == ["undecided"] * 3


def test_gains_are_paired_differences_over_episodes():
    tables, _ = study(seeds=3)
    (gain,) = gains(tables, ["full"])
    few = tables["few_shot"]
    few = few[(few.reader == "inner") & (few.inner == "full")]
    means = few.groupby(["method", "episode"]).accuracy.mean()
    paired = (means["meta-trained"] - means["pretrained"]).to_numpy()
    found = stats.ttest_1samp(paired, 0).confidence_interval(0.95)
    assert (gain.value, gain.low, gain.high) == pytest.approx((paired.mean(), found.low, found.high))
    assert gain.value == pytest.approx(GAIN["full"]) and gain.decided
    assert (gain.n, gain.seeds, gain.groups) == (60, 3, None)


def test_gains_within_groups_have_the_interval_of_group_means():
    """With groups of equal size the jackknife over groups is Student's t of the group means."""
    tables, _ = study(by_group=True)
    (gain,) = gains(tables, ["head"])
    few = tables["few_shot"]
    few = few[(few.reader == "inner") & (few.inner == "head")]
    wide = few.pivot_table(index=["group", "episode"], columns="method", values="accuracy")
    by_group = (wide["meta-trained"] - wide["pretrained"]).groupby("group").mean()
    found = stats.ttest_1samp(by_group, 0).confidence_interval(0.95)
    assert (gain.low, gain.high) == pytest.approx((found.low, found.high))
    assert gain.groups == 6


@pytest.mark.parametrize(
    ("outcome", "words", "badge"),
    [
        ("sufficient", "is enough compared with", "one seed only"),
        ("inferior", "is not enough compared with", "one seed only"),
        ("undecided", "is not shown to be enough, nor to be too little", "undecided"),
        ("not tested", "was not tested", "undecided"),
    ],
)
def test_each_outcome_is_said_as_it_is(outcome, words, badge):
    tables, about = study(outcome=outcome)
    (text,) = [one.text for one in findings(tables, about) if one.text.startswith("Adapting only the head")]
    assert words in text and "-0.4 points (95% interval -1.2 to +0.4; margin 2 points" in text
    assert ("one-sided test against a loss of the margin: p = 0.01)" in text) == (outcome != "not tested")
    assert "further episodes of these test groups only, not further trainings (1 seed)" in text
    first = cards(tables, about)[0]
    assert (first.title, first.badge) == ("Is the head enough?", badge)
    assert first.claim.startswith({"sufficient": "Yes", "inferior": "No"}.get(outcome, "Undecided"))


@pytest.mark.parametrize(
    ("gain", "words"), [(0.05, " beats "), (-0.05, "is less accurate than"), (0.0, "is not shown to beat")]
)
def test_gains_are_reported_in_either_direction(gain, words):
    tables, about = study(("head", "full"), seeds=2, gain={"head": gain, "full": gain})
    texts = [one.text for one in findings(tables, about) if one.text.startswith("Meta-trained, ")]
    assert len(texts) == 2 and all(words in text for text in texts)
    card = cards(tables, about)[1]
    assert card.badge == ("undecided" if gain == 0 else "shown")
    assert card.claim.split(":")[0] == {0.05: "Yes", -0.05: "No, it lowered accuracy", 0.0: "Undecided"}[gain]


def test_the_card_on_meta_training_is_about_the_deepest_inner_loop_whatever_is_best():
    tables, about = study(seeds=2, gain={"head": 0.2, "top:1": 0.1, "top:2": 0.0, "full": -0.05})
    card = cards(tables, about)[1]
    assert card.claim.startswith("No, it lowered accuracy") and "inner loop `full`" in card.claim
    assert "-5.0 points" in card.number
    tables["few_shot"] = tables["few_shot"].query("method != 'pretrained' or inner != 'full'")
    assert "Not measured" in cards(tables, about)[1].claim


def test_on_icd10_the_page_says_whether_anil_beats_the_pretrained_inner_loop():
    tables, about = study(("head", "full"), by_group=True, gain={"head": 0.0, "full": 0.0})
    about.study.resolved["data"] = {"source": "bundled:icd10"}
    text = next(one.text for one in findings(tables, about) if one.text.startswith("Meta-trained, "))
    assert (
        "the inner loop `head` (ANIL) is not shown to beat that of the pretrained body on meta-test chapters: " in text
    )
    assert "the interval covers further chapters (6 groups)" in text


def test_intervals_over_groups_say_so():
    tables, about = study(by_group=True)
    text = " ".join(one.text for one in findings(tables, about))
    assert "the interval covers further groups of classes (6 groups)" in text and "only, not" not in text


def test_layers_before_and_after_name_the_head_and_what_is_by_construction():
    tables, about = study()
    texts = {
        depth: text
        for depth in DEPTHS
        for text in [one.text for one in findings(tables, about)]
        if f"loop `{depth}`, " in text
    }
    assert "identical by construction, which was checked and is not a finding" in texts["head"]
    assert "layer 6 changed most: CKA 0.940 (0.936 to 0.944) over 10 episodes and 2,000 probe examples" in texts["full"]
    assert "layer 6 is the only one that can change" in texts["top:1"]
    assert "the head's logits have a CKA of 0.400" in texts["full"]
    card = cards(tables, about)[2]
    assert card.claim == ("Under `full`, layer 6 changed most; the head's logits 0.400, less similar than every layer")
    assert card.number == "CKA 0.940 (layer 6)"
    drawn = figure("few_shot_layers", tables, about)
    heads = [trace for trace in drawn.data if list(trace.x) == [7.0]]
    assert len(heads) == len(DEPTHS) and all(list(trace.y) == [0.4] for trace in heads)
    assert [*drawn.layout.xaxis.ticktext] == [*map(str, range(7)), "head"]
    (body,) = [trace for trace in drawn.data if trace.name == "head" and len(trace.x) == 7]
    assert set(body.marker.symbol) == {"circle-open"} and set(body.y) == {1.0}
    between = figure("few_shot_layers", tables, about, comparison="between models")
    assert len({trace.name for trace in between.data}) == 6
    assert figure("few_shot_layers", tables, about, measure="rsa") is None


def test_a_layer_changed_most_only_where_its_interval_is_apart():
    tables, about = study(("head", "full"), seeds=2)
    tables["few_shot_layers"] = layers(("head", "full"), 2, half=0.011)  # layers are .01 apart: 4 and 5 overlap with 6
    (text,) = [one.text for one in findings(tables, about) if "loop `full`, layer" in one.text]
    assert "layer 6 is the least similar: CKA 0.940" in text
    assert "not shown to have changed more than layers 4 and 5, whose intervals overlap its own" in text
    card = cards(tables, about)[2]
    assert "not shown to have changed more than layers 4 and 5" in card.claim and card.badge == "undecided"
    tables["few_shot_layers"] = layers(("head", "full"), 2, half=0.006)
    (text,) = [one.text for one in findings(tables, about) if "loop `full`, layer" in one.text]
    assert "more than layer 5, whose interval overlaps its own" in text


def test_undefined_values_say_why(tmp_path):
    html = page_of(tmp_path / "run", *study())
    assert (
        "SVCCA (99% of the variance) is undefined in 10 rows of the comparison <code>inner loop</code>: few rows"
        in html
    )


def test_accuracy_has_one_row_per_body_and_one_marker_per_reader():
    tables, about = study()
    drawn = figure("few_shot_accuracy", tables, about)
    assert [*drawn.layout.yaxis.ticktext] == [*(f"meta-trained ({depth})" for depth in DEPTHS), "pretrained"]
    assert [trace.name for trace in drawn.data][:4] == [f"inner loop {depth}" for depth in DEPTHS]
    assert [len(trace.x) for trace in drawn.data] == [2, 2, 2, 2, 5, 5, 5]
    np.testing.assert_allclose(drawn.data[0].error_x.array, 0.02)


def test_within_groups_the_intervals_shown_are_over_groups():
    tables, about = study(by_group=True)
    drawn = figure("few_shot_accuracy", tables, about)
    np.testing.assert_allclose(drawn.data[0].error_x.array, 0.04)
    (text,) = [one.text for one in findings(tables, about) if one.text.startswith("Without meta-training")]
    row = accuracies(tables["few_shot"], True).query("method == 'pretrained' and reader == 'logistic'").iloc[0]
    assert f"{row.accuracy:.1%} ({row.group_low:.1%} to {row.group_high:.1%}) by logistic regression, " in text
    assert text.endswith("(95% intervals over groups).")


def test_differences_show_the_margin_and_validation_marks_the_best_step():
    tables, about = study(seeds=3)
    drawn = figure("few_shot_differences", tables, about)
    assert [*drawn.layout.yaxis.ticktext] == ["head", "top:1", "top:2"]
    assert any(shape.x0 == shape.x1 == -0.02 for shape in drawn.layout.shapes)
    curves = figure("few_shot_validation", tables, about)
    assert len(curves.data) == 3 * (len(DEPTHS) + 1)
    assert all([*trace.marker.symbol] == ["circle", "star"] and [*trace.x] == [0, 10] for trace in curves.data)


def test_depths_are_in_the_order_of_the_tests_or_of_the_study():
    tables, about = study()
    assert depths(tables, about) == list(DEPTHS)
    del tables["few_shot_differences"]
    assert depths(tables, about) == list(DEPTHS)
    assert depths({}, record()) == []


def test_inner_rates_say_how_they_were_chosen(tmp_path):
    def text(tables, about):
        return next(one.text for one in findings(tables, about) if "nner rates" in one.text)

    tables, about = study(("head", "full"))
    assert text(tables, about) == (
        "Inner rates: 1 for `head`, 1 for `full`; 3 rates were tried at each depth on the meta-validation episodes before meta-training."
    )
    html = page_of(tmp_path / "run", tables, about)
    assert "<td>random, seed 0</td><td>full</td><td>1</td><td>0.1: 1.000; 1: 0.900; 3: diverged</td>" in html
    tables["few_shot_rates"] = rates(("head", "full"), best=3.0)
    assert "3 is the largest that was tried for `head`; 3 is the largest" in text(tables, about)
    tables["few_shot_rates"] = tables["few_shot_rates"].query("chosen").assign(n=0)
    assert text(tables, about) == "The study gives the inner rates: 3 for `head`, 3 for `full`."


def test_dictionaries_are_reported_with_their_null(tmp_path):
    tables, about = study(("head", "full"))
    row = {
        "method": "meta-trained",
        "seed": 0,
        "inner": "full",
        "ev_pretrained": 0.8,
        "ev_transferred": 0.7,
        "ev_own": 0.79,
    }
    row |= {
        "lost_share": 0.3,
        "lost_low": 0.25,
        "lost_high": 0.35,
        "null_lost_share": 0.05,
        "mean": 0.8,
        "null_mean": 0.95,
    }
    tables["few_shot_dictionaries"] = pd.DataFrame(
        [row | {"layer": 3, "note": "identical by construction"}, row | {"layer": 6, "note": ""}]
    )
    (text,) = [one.text for one in findings(tables, about) if "dictionar" in one.text]
    assert (
        "At layer 6, 30% of the latents" in text and "(95% interval 25% to 35% over latents), more than the 5%" in text
    )
    html = page_of(tmp_path / "run", tables, about)
    assert '<td colspan="7">identical by construction</td>' in html and "<td>0.700</td>" in html
    tables["few_shot_dictionaries"]["null_lost_share"] = 0.28
    assert "not shown to be more than the 28%" in " ".join(one.text for one in findings(tables, about))


def convergence(seeds=3, slope=0.01):
    rows = [
        {"geometry": geometry, "algorithm": algorithm, "inner_steps": n, "rate_choice": choice, "inner_rate": 0.1}
        | {
            "seed": seed,
            "step": step,
            "loss": 1 - sign * slope * n + 0.001 * seed * n - 0.01 * step if step % 10 == 0 else None,
        }
        | {
            "gradient_norm": 1.0 if step else None,
            "head_gradient_norm": 0.5,
            "seconds": 1.0 * step,
            "flops": 1e9 * step,
        }
        | {"note": ""}
        for geometry, algorithm, sign in (("strongly convex", "ANIL", 1), ("nonconvex", "top:1", -1))
        for n, choice, seed, step in itertools.product((1, 10), ("own", "equal"), range(seeds), (0, 5, 10))
    ]
    return pd.DataFrame(rows).astype({"loss": float, "gradient_norm": float})


def theory():
    rows = [
        {"geometry": geometry, "inner_steps": n, "step": step, "gradient": 1 / n, "bound": 2.0}
        | {"excess_loss": 1.0 * n if step == 2 else 9.0, "distance": 0.5}
        for geometry, n, step in itertools.product(("strongly convex", "nonconvex"), (1, 3), range(3))
    ]
    return pd.DataFrame(rows)


def test_the_bounds_of_theory_are_drawn_with_the_gradients(tmp_path):
    tables, about = study()
    tables["few_shot_theory"] = theory()
    drawn = figure("few_shot_theory", tables, about)
    assert [trace.name for trace in drawn.data] == [
        *("strongly convex", "strongly convex, bound", "nonconvex", "nonconvex, bound")
    ]
    np.testing.assert_allclose(drawn.data[0].y, [1, 1 / 9])
    np.testing.assert_allclose(drawn.data[1].y, [4, 4])
    assert drawn.data[1].line.dash == "dash"
    ends = figure("few_shot_theory", tables, about, value="excess_loss")
    assert len(ends.data) == 2 and [*ends.data[0].y] == [1, 3]
    assert "What does theory bound?" in page_of(tmp_path / "run", tables, about)


def test_convergence_is_reported_in_either_direction_with_seeds():
    tables, about = study()
    tables["few_shot_convergence"] = convergence()
    texts = [one.text for one in findings(tables, about) if "inner loss" in one.text]
    assert len(texts) == 4
    # Seeds differ by 9 (.001 seed): the mean is -.09 + .009 and +.09 + .009.
    assert "is lower with 10 inner steps than with 1: -0.081 nats (95% interval" in texts[0]
    assert any("nonconvex" in text and "is higher" in text and "+0.099 nats" in text for text in texts)
    tables["few_shot_convergence"] = convergence(slope=0)
    assert "is not shown to be lower or higher" in " ".join(one.text for one in findings(tables, about))
    tables["few_shot_convergence"] = convergence(seeds=1)
    assert "one seed, so that nothing is shown" in " ".join(one.text for one in findings(tables, about))


def test_convergence_has_both_algorithms_in_one_figure(tmp_path):
    tables, about = study()
    tables["few_shot_convergence"] = convergence()
    drawn = figure("few_shot_convergence", tables, about)
    assert [trace.line.dash for trace in drawn.data] == ["solid", "solid", "dash", "dash"]
    assert all([*trace.x] == [0, 10] for trace in drawn.data)
    by_flops = figure("few_shot_convergence", tables, about, against="flops", value="gradient_norm", rates="equal")
    assert [*by_flops.data[0].x] == [5e9, 1e10]
    assert "How fast does the outer loop converge?" in page_of(tmp_path / "run", tables, about)
