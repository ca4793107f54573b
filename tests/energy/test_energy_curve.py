"""The best number of meta-training rounds: directions that FACTS states, censoring, ratio and sensitivity."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plants import LINKS, arguments, curve, efficiencies, example, measurements

from layerprobe.energy import MeasuredRounds, TwoStage, energy_curve
from layerprobe.errors import ArgumentError

quick = settings(max_examples=25, deadline=None)


def best(model, measured):
    return curve(model, measured).optimum().meta_rounds


@quick
@given(arguments(), measurements(nonincreasing=True), efficiencies)
def test_the_best_number_of_rounds_does_not_rise_with_sidelink_efficiency(given, measured, factor):
    less, more = sorted([1.0, factor])
    model = TwoStage(**given)
    at = [best(replace(model, sidelink_bit_per_joule=model.sidelink_bit_per_joule * f), measured) for f in (less, more)]
    assert at[1] <= at[0]


@quick
@given(arguments(), measurements(nonincreasing=True), efficiencies)
def test_it_does_not_fall_with_uplink_efficiency_if_data_are_sent_again(given, measured, factor):
    less, more = sorted([1.0, factor])
    model = TwoStage(**{**given, "resend_data": True})
    at = [best(replace(model, uplink_bit_per_joule=model.uplink_bit_per_joule * f), measured) for f in (less, more)]
    assert at[1] >= at[0]


@quick
@given(arguments(n_tasks=4), measurements(n_tasks=4, nonincreasing=True))
def test_it_does_not_fall_with_a_further_task_whose_cost_does_not_rise(given, measured):
    """The fourth task is outside meta-training; its adaptation saves at least its downlink."""
    given["meta_tasks"] = [task for task in given["meta_tasks"] if task < 3] or [0]
    all_tasks = TwoStage(**given)
    three = {
        name: value[:3] if isinstance(value, list) and name != "meta_tasks" else value for name, value in given.items()
    }
    without = {t0: rounds[:3] for t0, rounds in measured.items()}
    added = curve(all_tasks, measured).energy.total - curve(TwoStage(**three), without).energy.total
    assume((np.diff(added) <= 0).all())
    assert best(all_tasks, measured) >= best(TwoStage(**three), without)


def test_a_profiting_task_outside_can_lower_it():
    """Centre cost 5, task A saves 9 J, B saves 1 J, downlink 3 J each: A alone t0 = 1, both t0 = 0."""
    free = {"sidelink_bit_per_joule": math.inf, "uplink_bit_per_joule": math.inf, "pue": 1, "second_order_factor": 1}
    single = {"devices_per_task": 1, "neighbours": 0, "device_batches": 1, "joule_per_batch_device": 1, "meta_tasks": 1}
    cost = {"support_batches": 5, "query_batches": 0, "joule_per_batch_center": 1}
    model = example(**free, **single, **cost, parameters_down=3, downlink_bit_per_joule=32.0)
    assert best(model, {0: [9], 1: [0]}) == 1
    assert best(model, {0: [9, 1], 1: [0, 0]}) == 0


@quick
@given(arguments(), measurements())
def test_the_optimum_is_the_least_of_separate_energies_and_ties_go_to_the_smallest(given, measured):
    model = TwoStage(**given)
    totals = {t0: model.energy(t0, rounds).total for t0, rounds in measured.items()}
    optimum = curve(model, dict(reversed(measured.items()))).optimum()
    assert optimum.meta_rounds == min(totals, key=lambda t0: (totals[t0], t0))
    assert optimum.energy.total == min(totals.values())
    if optimum.energy.total > 0:
        assert optimum.ratio == totals[0] / min(totals.values()) >= 1
    assert not optimum.undecided and not optimum.ratio_is_lower_bound


def curve_of_devices(**censored):
    """Totals of 40 J, 12 J and 22 J at t0 of 0, 10, 20: 10 J a round on the device, 1 J a round at the centre."""
    links = dict.fromkeys(LINKS, math.inf)
    single = {"devices_per_task": 1, "neighbours": 0, "device_batches": 1, "joule_per_batch_device": 1, "meta_tasks": 1}
    model = example(
        **links, **single, pue=1, second_order_factor=1, support_batches=1, query_batches=0, joule_per_batch_center=1
    )
    rounds = {0: 40, 10: 2, 20: 2}
    return energy_curve(model, [MeasuredRounds(t0, [n], [censored.get(f"at_{t0}", False)]) for t0, n in rounds.items()])


def test_a_censored_candidate_is_left_out_of_the_optimum_and_may_leave_it_undecided():
    assert curve_of_devices().optimum().meta_rounds == 10
    assert curve_of_devices().ratio.tolist() == [1, 40 / 12, 40 / 22]
    without = curve_of_devices(at_10=True)
    assert without.energy.total.tolist() == [40, 12, 22]  # the middle one is a lower bound
    assert without.censored.tolist() == [False, True, False]
    optimum = without.optimum()
    assert (optimum.meta_rounds, optimum.energy.total, optimum.ratio, optimum.undecided) == (20, 22, 40 / 22, True)
    assert np.isnan(without.ratio).tolist() == [False, True, False]
    dearer = curve_of_devices(at_20=True).optimum()
    assert (dearer.meta_rounds, dearer.undecided) == (10, False)


def test_without_a_reached_target_at_0_the_ratio_is_a_lower_bound_and_absent_without_0():
    found = curve_of_devices(at_0=True)
    assert found.optimum().ratio == 40 / 12 and found.optimum().ratio_is_lower_bound
    assert np.isnan(found.ratio).all()
    absent = curve(found.model, {5: [1]}).optimum()
    assert math.isnan(absent.ratio) and not absent.ratio_is_lower_bound


def test_a_target_that_no_candidate_reaches_is_refused():
    found = curve_of_devices(at_0=True, at_10=True, at_20=True)
    for use in (found.optimum, found.sensitivity):
        with pytest.raises(
            ArgumentError, match=r"every task reached the target \(tried: 0, 10, 20\); lower the target"
        ):
            use()


@quick
@given(arguments(), measurements(), st.sampled_from(LINKS))
def test_within_the_reported_range_the_optimum_stays_and_outside_it_changes(given, measured, link):
    model = TwoStage(**given)
    found = getattr(curve(model, measured).sensitivity(), link.split("_")[0])
    at = best(model, measured)
    assert found.low <= getattr(model, link) <= found.high

    def there(efficiency):
        return best(replace(model, **{link: efficiency}), measured)

    # At the ends of the range two candidates are equally good.
    inside = 1 / np.linspace(1 / found.low if found.low else 2 / getattr(model, link), 1 / found.high, 5)[1:-1]
    if found.high > found.low * (1 + 1e-9):
        assert {there(float(efficiency)) for efficiency in inside} == {at}
    if found.low > 0:
        assert there(found.low * (1 - 1e-9)) != at
    if math.isfinite(found.high):
        assert there(found.high * (1 + 1e-9)) != at


@quick
@given(arguments(), measurements(), st.sampled_from(LINKS))
def test_elasticity_is_the_logarithmic_derivative_of_the_least_energy(given, measured, link):
    model = TwoStage(**given)
    here = curve(model, measured)
    found = getattr(here.sensitivity(), link.split("_")[0])
    if here.optimum().energy.total == 0:
        assert math.isnan(found.elasticity)
        return
    step = 1e-5
    assume(found.low < getattr(model, link) * (1 - step) and getattr(model, link) * (1 + step) < found.high)

    def logarithm(factor):
        changed = replace(model, **{link: getattr(model, link) * factor})
        return math.log(curve(changed, measured).optimum().energy.total)

    slope = (logarithm(1 + step) - logarithm(1 - step)) / (math.log1p(step) - math.log1p(-step))
    assert found.elasticity == pytest.approx(slope, abs=1e-6)


@settings(max_examples=8, deadline=None)
@given(arguments(), measurements(), st.booleans())
def test_a_grid_equals_one_curve_for_each_pair_of_efficiencies(given, measured, censor_first):
    measured = [MeasuredRounds(t0, rounds, [censor_first and t0 == 0] * 3) for t0, rounds in measured.items()]
    assume(len(measured) > 1)
    uplink, sidelink = np.array([[0.25], [4.0], [math.inf]]), np.array([0.5, 8.0])
    model = TwoStage(**given)
    grid = energy_curve(replace(model, uplink_bit_per_joule=uplink, sidelink_bit_per_joule=sidelink), measured)
    optimum, sensitivity = grid.optimum(), grid.sensitivity()
    assert grid.energy.total.shape == (len(measured), 3, 2) and optimum.meta_rounds.shape == (3, 2)
    for i, j in np.ndindex(3, 2):
        links = {"uplink_bit_per_joule": float(uplink[i, 0]), "sidelink_bit_per_joule": float(sidelink[j])}
        single = energy_curve(replace(model, **links), measured)
        alone = single.optimum()
        assert optimum.meta_rounds[i, j] == alone.meta_rounds
        assert optimum.energy.total[i, j] == alone.energy.total
        assert optimum.undecided[i, j] == alone.undecided
        np.testing.assert_equal(optimum.ratio[i, j], alone.ratio)
        np.testing.assert_equal(grid.ratio[:, i, j], single.ratio)
        for link in ("uplink", "downlink", "sidelink"):
            for name in ("elasticity", "low", "high"):
                of_grid = getattr(getattr(sensitivity, link), name)[i, j]
                np.testing.assert_equal(of_grid, getattr(getattr(single.sensitivity(), link), name))


def test_both_regimes():
    """Where links are poor, exchanging less decides; where they are good, computing less does."""
    measured = {0: [30, 30], 50: [5, 5]}
    poor, good = (example(**dict.fromkeys(LINKS, efficiency)) for efficiency in (1.0, 1e6))
    at_poor, at_good = (curve(model, measured).optimum().energy for model in (poor, good))
    assert at_poor.communication > 10 * at_poor.learning and at_good.learning > 10 * at_good.communication


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ([], "measured is empty"),
        ([MeasuredRounds(1, [1, 1]), MeasuredRounds(1, [2, 2])], "repeats"),
        ([MeasuredRounds(0, [1, 1]), MeasuredRounds(1, [2, 2, 2])], "different numbers of tasks: 2, 3"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(measured, message):
    with pytest.raises(ArgumentError, match=message):
        energy_curve(example(), measured)


def test_censoring_is_given_for_each_task():
    with pytest.raises(ArgumentError, match="censored has 1 values, task_rounds has 2"):
        MeasuredRounds(0, [1, 2], [True])
