"""Differences, their intervals and the pairing of results, compared with slow implementations and planted truth."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway, norm, t

from layerprobe.errors import LayerprobeError
from layerprobe.sufficiency import correctness, differences, seed_differences
from layerprobe.sufficiency._results import paired
from layerprobe.sufficiency._spread import critical_value, spread, variance_over_seeds

spec = importlib.util.spec_from_file_location(
    "bench_sufficiency", Path(__file__).parents[2] / "benchmarks" / "sufficiency.py"
)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


def study(n=200, seeds=1, methods=("head", "top:1", "full"), seed=0):
    rng = np.random.default_rng(seed)
    ease = rng.standard_normal(n)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "method": method,
                    "seed": s,
                    "example_id": [f"text-{i}" for i in range(n)],
                    "correct": ease + rng.standard_normal(n) + 0.2 * k + 0.2 * rng.standard_normal() > 0,
                }
            )
            for k, method in enumerate(methods)
            for s in range(seeds)
        ],
        ignore_index=True,
    )


def bonett_price(lost, won, n):
    """Their closed form (2012): one more example lost and one more won."""
    p, q = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = norm.ppf(0.975) * np.sqrt((p + q - (q - p) ** 2) / (n + 2))
    return q - p - half, q - p + half


def test_one_seed_is_the_interval_of_bonett_and_price():
    results = study()
    wide = results.pivot(index="example_id", columns="method", values="correct").astype(float)
    # The order of rows does not matter: everything is joined by id.
    table = differences(results.sample(frac=1, random_state=1)).set_index("method")
    for method in ("head", "top:1"):
        gap = wide[method] - wide["full"]
        row = table.loc[method]
        assert row.difference == pytest.approx(gap.mean())
        assert (row.ci_low, row.ci_high) == pytest.approx(bonett_price((gap < 0).sum(), (gap > 0).sum(), 200))
        assert row.disagreement == pytest.approx((wide[method] != wide["full"]).mean())
        assert row.accuracy == pytest.approx(wide[method].mean())
        assert row.reference_accuracy == pytest.approx(wide["full"].mean())
        assert row.n == 200 and row.seeds == 1 and row.conditional_on_seeds and not row.identical
        assert row.band_low < row.ci_low < row.difference < row.ci_high < row.band_high and pd.isna(row.df)


@pytest.mark.parametrize("disagreement", [0.002, 0.01, 0.1])
def test_intervals_cover_at_small_disagreement_where_the_plain_one_has_no_width(disagreement):
    """20,000 studies of 500 examples, true difference 0, from their multinomial counts."""
    share = disagreement / 2
    lost, won, _ = np.random.default_rng(1).multinomial(500, [share, share, 1 - disagreement], size=20_000).T
    low, high = bonett_price(lost, won, 500)
    assert ((low <= 0) & (high >= 0)).mean() >= 0.945
    error = np.sqrt((won + lost) / 500 - ((won - lost) / 500) ** 2) / np.sqrt(500)
    plain = (np.abs(won - lost) / 500 <= 1.96 * error) & (error > 0)
    if disagreement == 0.002:
        assert plain.mean() < 0.7


def test_two_seeds_are_averaged_and_move_with_their_example():
    results = study(seeds=2)
    mean = results.groupby(["method", "example_id"])["correct"].mean().unstack("method")
    gap = np.append(mean["head"] - mean["full"], [-1, 1])
    row = differences(results).set_index("method").loc["head"]
    half = norm.ppf(0.975) * gap.std() / np.sqrt(202)
    assert (row.ci_low, row.ci_high) == pytest.approx((gap.mean() - half, gap.mean() + half))
    assert row.conditional_on_seeds
    points = seed_differences(results)
    head = points[points.method == "head"]
    assert head.seed.tolist() == [0, 1]
    assert head.difference.mean() == pytest.approx(row.difference)
    assert head.disagreement.mean() == pytest.approx(row.disagreement)
    one = differences(results[results.seed == 1]).set_index("method").loc["head"]
    assert head.difference.iloc[1] == pytest.approx(one.difference)


@pytest.mark.parametrize("seeds", [3, 6])
def test_three_seeds_are_crossed_with_examples_by_analysis_of_variance(seeds):
    """With loops: mean squares of columns and rest, and the variance component of seeds."""
    results = study(n=30, seeds=seeds)
    joined = paired(results, "full")
    table = differences(results)
    for k, method in enumerate(joined.methods):
        x = joined.gaps[k]
        n, m = x.shape
        grand = sum(x[i, s] for i in range(n) for s in range(m)) / (n * m)
        rows, columns = [sum(x[i]) / m for i in range(n)], [sum(x[:, s]) / n for s in range(m)]
        ms_columns = n * sum((b - grand) ** 2 for b in columns) / (m - 1)
        ms_rest = sum((x[i, s] - rows[i] - columns[s] + grand) ** 2 for i in range(n) for s in range(m))
        ms_rest /= (n - 1) * (m - 1)
        assert ms_columns == pytest.approx(
            # f_oneway's F is MS_columns over the mean square within columns.
            f_oneway(*x.T).statistic * np.mean([np.var(column, ddof=1) for column in x.T])
        )
        part = max(0.0, (ms_columns - ms_rest) / n) / m
        assert variance_over_seeds(joined.gaps)[k] == pytest.approx(part)
        floored = np.var([*rows, -1, 1]) / (n + 2)
        row = table[table.method == method].iloc[0]
        assert row.se == pytest.approx(np.sqrt(floored + part))
        assert row.df == m - 1 and not row.conditional_on_seeds
        assert row.ci_high - sum(rows) / (n + 2) == pytest.approx(t.ppf(0.975, m - 1) * row.se)
    assert differences(study(seeds=2)).conditional_on_seeds.all()


def test_bands_are_the_multiplier_bootstrap_of_the_largest_difference():
    results = study(n=400, methods=("head", "top:1", "top:2", "full"))
    gaps = paired(results, "full").gaps[:, :, 0]
    centred = gaps - gaps.mean(1, keepdims=True)
    drawn = np.random.default_rng(1).standard_normal((20_000, 400)) @ centred.T
    largest = (np.abs(drawn) / (np.sqrt(400) * gaps.std(1, ddof=1))).max(axis=1)
    table = differences(results)
    ours = (table.band_high - table.band_low) / 2 / table.se
    assert ours.to_numpy() == pytest.approx(np.quantile(largest, 0.95), rel=0.03)
    assert (differences(results).band_low == differences(results).band_low).all()


def test_critical_values_at_the_ends():
    """Independent: (1 - a)^(1/k). Equal methods: no correction."""
    free = critical_value(np.eye(5), alpha=0.05, draws=200_000)
    assert free == pytest.approx(norm.ppf((1 + 0.95**0.2) / 2), rel=0.01)
    same = critical_value(np.ones((5, 5)), alpha=0.05, draws=200_000)
    assert same == pytest.approx(norm.ppf(0.975), rel=0.01)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_an_identical_method_has_an_interval_around_zero(seeds):
    results = study(seeds=seeds)
    twin = results[results.method == "full"].assign(method="twin")
    with np.errstate(all="raise"):
        table = differences(pd.concat([results, twin])).set_index("method")
        only = differences(pd.concat([results[results.method == "full"], twin]))
    row = table.loc["twin"]
    assert row.identical and row.difference == 0 and not table.loc["head"].identical
    assert row.se == pytest.approx(np.sqrt(2) / 202) and row.ci_low == -row.ci_high < 0
    assert only.identical.all() and 0 < only.ci_high.item() <= only.band_high.item() * (1 + 1e-2)


@pytest.mark.parametrize(("m", "wobble", "low"), [(1, 0.0, 0.925), (2, 0.1, 0.925), (3, 0.1, 0.925), (5, 0.1, 0.925)])
def test_bands_cover_planted_truth(m, wobble, low):
    """400 studies: 92.5% is 2.3 Monte Carlo errors below 95%."""
    held, alone, _ = bench.coverage(300, m, 400, seed=m, wobble=wobble, draws=2000)
    assert held >= low
    assert alone >= low


def test_intervals_conditional_on_seeds_miss_the_truth_over_all_seeds():
    """Why seeds are crossed: averaged, a pointwise interval covers far less than 95%."""
    held = 0
    for gaps, everywhere, _ in bench.crossed(1000, 3, 150, 3, gap=0.0, wobble=0.2):
        averaged = gaps.mean(axis=2)
        error = averaged.std(axis=1, ddof=1) / np.sqrt(averaged.shape[1])
        held += bool(abs(averaged[0].mean() - everywhere[0]) <= 1.96 * error[0])
        assert not spread(gaps).conditional_on_seeds
    assert held / 150 < 0.8


def test_correctness_of_predictions():
    predictions = pd.DataFrame(
        {
            "method": "full",
            "seed": 0,
            "example_id": ["a", "b"],
            "label": pd.Categorical(["x", "y"]),
            "predicted": pd.Categorical(["x", "x"]),
            "probability": 0.5,
        }
    )
    table = correctness(predictions)
    assert table.columns.tolist() == ["method", "seed", "example_id", "correct"]
    assert table.correct.tolist() == [True, False]
    assert correctness(predictions.assign(split=["elsewhere", "test"])).example_id.tolist() == ["b"]
    with pytest.raises(LayerprobeError, match="predictions lacks predicted; it needs method"):
        correctness(predictions.drop(columns="predicted"))


def test_what_cannot_be_paired_is_refused_by_name():
    results = study(n=4, seeds=2)
    refused = {
        r"results lacks seed, correct; it needs": results.drop(columns=["seed", "correct"]),
        r"reference is 'full', which is not among the methods: head, top:1": results[results.method != "full"],
        r"has only 'full'": results[results.method == "full"],
        r"'head' lacks 4 of 8 predictions, the first for example 'text-0' with seed 1": results[
            ~((results.method == "head") & (results.seed == 1))
        ],
        r"'top:1' lacks 1 of 8 predictions, the first for example 'text-2' with seed 1": results[
            ~((results.method == "top:1") & (results.seed == 1) & (results.example_id == "text-2"))
        ],
        r"'head' lacks 1 of 8 predictions, the first for example 'text-2' with seed 1": results[
            ~((results.seed == 1) & (results.example_id == "text-2"))
        ],
        r"'head' with seed 0 on example 'text-0' twice": pd.concat([results, results.head(1)]),
        r"column correct of results has 0.5": results.assign(correct=0.5),
        r"column correct of results has nan": results.assign(correct=np.nan),
        r"a single example": results[results.example_id == "text-0"],
    }
    for message, table in refused.items():
        with pytest.raises(LayerprobeError, match=message):
            differences(table)
    as_numbers = results.assign(correct=results.correct.astype(int))
    pd.testing.assert_frame_equal(differences(as_numbers), differences(results))
