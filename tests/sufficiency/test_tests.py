"""The score test, its bounds and the orders of testing, against closed forms, enumeration and slow twins."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.stats import binom, multinomial, norm, t

from layerprobe.sufficiency._depth import holm, in_sequence
from layerprobe.sufficiency._score import bound, lower_bound, noninferiority_p, null_variance, statistic, tally

spec = importlib.util.spec_from_file_location(
    "bench_sufficiency", Path(__file__).parents[2] / "benchmarks" / "sufficiency.py"
)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

TABLES = [(3, 90, 7), (7, 90, 3), (0, 100, 0), (0, 95, 5), (5, 95, 0), (40, 20, 40), (1, 498, 1), (0, 20, 0)]


def tango(lost: int, won: int, n: int, margin: float) -> float:
    """Tango (1998), section 4: the root of a quadratic for the restricted share of pairs that only the new method lost."""
    a = 2 * n
    # With q = P(lost), P(won) = q - margin: 2 n q^2 + b q + c = 0.
    b = -(lost + won) - margin * (2 * n - won + lost)
    c = lost * margin * (1 + margin)
    q = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return (won - lost + n * margin) / math.sqrt(n * (2 * q - margin - margin**2))


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(("lost", "tied", "won"), TABLES)
def test_one_seed_is_tangos_closed_form(lost, tied, won, margin):
    ours = statistic(np.array([[lost, tied, won]], dtype=float), -margin)[0]
    assert ours == pytest.approx(tango(lost, won, lost + tied + won, margin), abs=1e-7)


def test_without_margin_it_is_mcnemars():
    """At a mean of 0 the restricted shares of lost and won are equal: (won - lost) / sqrt(won + lost)."""
    for lost, tied, won in [(3, 90, 7), (40, 20, 10), (0, 50, 5)]:
        ours = statistic(np.array([[lost, tied, won]], dtype=float), 0.0)[0]
        assert ours == pytest.approx((won - lost) / math.sqrt(won + lost), abs=1e-6)
    assert statistic(np.array([[0.0, 50.0, 0.0]]), 0.0)[0] == 0


@pytest.mark.parametrize(
    "counts", [(1, 3, 2, 80, 4, 2, 1), (0, 0, 0, 50, 3, 0, 1), (0, 0, 2, 60, 5, 1, 0), (0, 4, 0, 30, 0, 0, 2)]
)
@pytest.mark.parametrize("mean", [-0.05, 0.1])
def test_three_seeds_maximise_the_likelihood_under_the_mean(counts, mean):
    """A general optimiser over all distributions on the seven values gives the same variance."""
    counts = np.array(counts, dtype=float)
    values = np.linspace(-1, 1, 7)
    seen = counts > 0
    best = min(
        (
            minimize(
                lambda w: -(counts[seen] * np.log(np.maximum(w[seen], 1e-300))).sum(),
                start,
                jac=lambda w: np.where(seen, -counts / np.maximum(w, 1e-300), 0.0),
                bounds=[(1e-12, 1)] * 7,
                constraints=[
                    {"type": "eq", "fun": lambda w: w.sum() - 1},
                    {"type": "eq", "fun": lambda w: w @ values - mean},
                ],
                options={"ftol": 1e-13, "maxiter": 1000},
            )
            for start in (np.full(7, 1 / 7), (counts + 1) / (counts + 1).sum())
        ),
        key=lambda result: result.fun,
    )
    variance = best.x @ (values - mean) ** 2
    assert null_variance(counts[None], np.array([mean]))[0] == pytest.approx(variance, rel=2e-3)


def test_level_by_enumeration_of_every_table():
    """Small n, every table (lost, won) with its multinomial probability: the benchmark's sum, and a level near 5%."""
    n, margin = 40, 0.1
    for disagreement in (0.1, 0.2, 0.5):
        lost, won = (disagreement + margin) / 2, (disagreement - margin) / 2
        total = 0.0
        for a, b in itertools.product(range(n + 1), repeat=2):
            if a + b <= n:
                z = tango(a, b, n, margin)
                p = max(norm.sf(z), (1 - margin) ** n if a == 0 else 0.0)
                total += (p <= 0.05) * multinomial.pmf((a, b, n - a - b), n, (lost, won, 1 - lost - won))
        assert bench.exact_size(n, disagreement, margin) == pytest.approx(total, abs=1e-8)
        assert total < 0.06


def test_level_holds_at_every_disagreement_and_walds_does_not():
    """Exact probabilities at margin .01: the score test stays within .3 points of 5%, the plain test reaches twice that."""
    for n in (299, 466, 500, 1000):
        score = max(bench.exact_size(n, d) for d in (0.01, 0.011, 0.015, 0.03, 0.06, 0.12))
        wald = max(bench.exact_size(n, d, test=bench.wald_p) for d in (0.01, 0.011, 0.015, 0.03))
        assert score <= 0.053
        assert wald > 0.07


def test_no_disagreement_among_few_examples_shows_nothing():
    counts = np.array([[0.0, 20.0, 0.0]])
    assert noninferiority_p(counts, 0.01)[0] == pytest.approx(0.99**20)
    assert bench.wald_p(counts, 0.01)[0] == 0
    # The exact probability of losing none of n: 298 examples are too few, 299 enough.
    assert noninferiority_p(np.array([[0.0, 298.0, 0.0]]), 0.01)[0] > 0.05
    assert noninferiority_p(np.array([[0.0, 299.0, 0.0]]), 0.01)[0] <= 0.05


def test_bounds_are_where_the_test_turns():
    counts = np.array(TABLES, dtype=float)
    low = lower_bound(counts, 0.05)
    for row, value in zip(counts, low, strict=True):
        assert noninferiority_p(row[None], -value)[0] == pytest.approx(0.05, abs=1e-6) or not row[0]
        if row[0]:
            expected = brentq(lambda m, row=row: tango(row[0], row[2], row.sum(), -m) - norm.isf(0.05), -0.95, -1e-9)
            assert value == pytest.approx(expected, abs=1e-6)
        assert noninferiority_p(row[None], min(0.999, -value + 1e-6))[0] <= 0.05
        assert noninferiority_p(row[None], -value - 1e-6)[0] > 0.05
    mirrored = -bound(counts[:, ::-1], 2.0)
    assert (mirrored > counts @ [-1, 0, 1] / counts.sum(1)).all()
    assert statistic(counts[:1], mirrored[0])[0] == pytest.approx(-2.0, abs=1e-6)
    everything_lost = np.array([[30.0, 0.0, 0.0]])
    assert lower_bound(everything_lost, 0.05)[0] == -1


def test_seeds_part_adds_to_the_error_and_takes_t():
    counts = np.array([[3.0, 90.0, 7.0]])
    error = np.sqrt(null_variance(counts, np.array([-0.01])) / 100 + 0.0004)
    assert noninferiority_p(counts, 0.01, 0.0004, 4.0)[0] == pytest.approx(t.sf((0.04 + 0.01) / error[0], 4))


def test_tally_counts_each_examples_mean_over_seeds():
    gaps = np.array([[[1, 1, -1], [0, 0, 0], [-1, -1, -1], [1, -1, 0]]], dtype=float)
    assert tally(gaps).tolist() == [[1, 0, 0, 2, 1, 0, 0]]


def test_sequence_and_holm():
    assert in_sequence(np.array([0.01, 0.2, 0.03])).tolist() == [0.01, 0.2, 0.2]
    # Holm (1979) by hand: 4 x .005, 3 x .01, then 2 x .03 = .06 before 1 x .04.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.7, 0.9])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


@pytest.mark.parametrize(
    ("make", "disagreement"),
    [(lambda gap: bench.exchangeable(gap, 0.12), 0.12), (lambda gap: bench.chain(gap, 0.03), 0.03)],
)
def test_planted_gaps_are_exact(make, disagreement):
    for gap in (0.0, 0.02):
        shares = make(gap)
        assert shares.sum() == pytest.approx(1)
        assert shares.min() >= 0
        assert shares @ (bench.PATTERNS[:, 1:] - bench.PATTERNS[:, :1]) == pytest.approx([-gap] * 7, abs=1e-9)
    assert make(0.0) @ np.abs(bench.PATTERNS[:, 1] - bench.PATTERNS[:, 0]) == pytest.approx(disagreement, abs=1e-6)


def most(share: float, studies: int) -> float:
    """The share that is exceeded once in 10,000 seeds if the true one is `share`."""
    return float(binom.isf(1e-4, studies, share)) / studies


def test_no_depth_is_called_sufficient_too_often():
    """5,000 studies each; the same limits are broken by testing without order, and by the plain test at a small disagreement."""
    studies = 5000
    for n in (500, 2000, 8000):
        rates = bench.declared(bench.exchangeable(0.01, 0.12), n, studies, seed=n)
        assert rates["sequence"] <= most(0.05, studies)
        assert rates["unordered"] > 0.15
    for n in (2000, 8000):
        assert bench.declared(bench.exchangeable(0.02, 0.12), n, studies, seed=n)["sequence"] <= most(0.01, studies)
    few = bench.declared(bench.chain(0.01, 0.012), 500, studies, seed=1)
    assert few["sequence"] <= most(0.05, studies)
    assert few["sequence, Wald"] > most(0.05, studies)


def test_with_one_seed_the_level_is_over_examples():
    """At most 5% where training has no chance in it; where seeds differ by a point, one seed is wrong far more often."""
    assert bench.seed_level(1000, 1, 0.0, 5000, seed=0)["examples alone"] <= most(0.055, 5000)
    assert bench.seed_level(4000, 1, 0.01, 2000, seed=0)["examples alone"] > 0.15


def test_with_three_seeds_the_crossed_test_keeps_its_level():
    """Near 5% where the seeds decide, below where they hardly differ; over examples alone it is 30%."""
    studies = 2000
    rates = bench.seed_level(4000, 3, 0.02, studies, seed=3)
    assert 0.04 <= rates["crossed"] <= 0.055
    assert rates["examples alone"] > 0.25
    for sd in (0.0, 0.005):
        assert bench.seed_level(1000, 3, sd, studies, seed=4)["crossed"] <= 0.05


def test_frozen_models_may_be_ordered_by_validation_but_not_by_test_examples():
    """Seven models that all lose the margin: the first one passes in 5% of studies, or far more if the test chose it."""
    studies, n = 5000, 2000
    shares = bench.exchangeable(0.01, 0.12)
    validation, test = (bench.tallies(shares, n, studies, seed) for seed in (1, 2))
    p = noninferiority_p(test, 0.01)
    rates = []
    for counts in (validation, test):
        order = np.argsort(counts[..., 0] - counts[..., 2], axis=1, kind="stable")  # fewest lost, most won
        rates.append((in_sequence(np.take_along_axis(p, order, axis=1)) <= 0.05).any(axis=1).mean())
    assert rates[0] <= most(0.05, studies) and rates[1] > 0.15


def test_power_is_what_the_number_of_examples_was_chosen_for():
    """With the number of examples that `required_examples` names, the first depth passes in 80% of studies without a gap."""
    from layerprobe.sufficiency import required_examples

    n = required_examples(0.12, 0.01)
    rates = bench.declared(bench.exchangeable(0.0, 0.12), n, 5000, seed=0)
    assert rates["sequence"] == pytest.approx(0.80, abs=0.02)


def test_the_public_function_concludes_the_same_from_whole_tables():
    assert bench.same_as_public(studies=4)
