"""The energy model: FACTS' limits and monotonicities, an independent sum over devices, and errors."""

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plants import EXAMPLE, LINKS, arguments, example

from layerprobe import energy
from layerprobe.energy import TwoStage, shipping
from layerprobe.errors import ArgumentError

PARTS = ("center", "uplink", "downlink", "devices", "sidelink")
rounds_of_3 = st.lists(st.integers(0, 30), min_size=3, max_size=3)


def by_device(given, meta_rounds, task_rounds):
    """The published sums, written out over tasks, devices and neighbours."""
    joule = dict.fromkeys(PARTS, 0.0)
    if meta_rounds > 0:
        sent_again = meta_rounds if given["resend_data"] else 1
        for i in given["meta_tasks"]:
            batches = given["support_batches"] + given["second_order_factor"] * given["query_batches"]
            joule["center"] += given["pue"] * meta_rounds * batches * given["joule_per_batch_center"]
            for _ in range(given["devices_per_task"][i]):
                joule["uplink"] += sent_again * given["upload_bits_per_device"][i] / given["uplink_bit_per_joule"]
    for i, rounds in enumerate(task_rounds):
        for _ in range(given["devices_per_task"][i]):
            if meta_rounds > 0:
                joule["downlink"] += given["parameters_down"] * 32 / given["downlink_bit_per_joule"]
            joule["devices"] += rounds * given["device_batches"][i] * given["joule_per_batch_device"][i]
            for _ in range(given["neighbours"][i]):
                joule["sidelink"] += rounds * given["parameters_exchanged"] * 32 / given["sidelink_bit_per_joule"]
    return joule


@settings(max_examples=25, deadline=None)
@given(arguments(), st.integers(0, 20), rounds_of_3)
def test_the_energy_is_the_sum_over_tasks_devices_and_neighbours(given, meta_rounds, task_rounds):
    found = TwoStage(**given).energy(meta_rounds, task_rounds)
    expected = by_device(given, meta_rounds, task_rounds)
    for part in PARTS:
        assert getattr(found, part) == pytest.approx(expected[part], rel=1e-12)
    assert found.total == pytest.approx(sum(expected.values()), rel=1e-12)
    assert found.total == pytest.approx(found.learning + found.communication)


def test_one_case_by_hand():
    found = example().energy(10, [5, 7, 0])
    assert found.center == 1.5 * 10 * 2 * (1 + 3 * 2) * 2  # two of three tasks
    assert found.uplink == 2 * 4 * 1000 / 100
    assert found.downlink == 3 * 4 * 100 * 32 / 50
    assert found.devices == (5 + 7) * 4 * 3 * 0.5
    assert found.sidelink == (5 + 7) * 4 * 2 * 10 * 32 / 200
    assert example(resend_data=True).energy(10, [5, 7, 0]).uplink == 10 * found.uplink
    assert example().traffic(10, [5, 7, 0]) == energy.Traffic(8000, 38400, 30720)
    with pytest.raises(FrozenInstanceError):
        found.center = 0


@settings(max_examples=30, deadline=None)
@given(arguments(), rounds_of_3)
def test_without_meta_training_there_is_neither_center_nor_uplink_nor_downlink(given, task_rounds):
    found = TwoStage(**given).energy(0, task_rounds)
    assert (found.center, found.uplink, found.downlink) == (0, 0, 0)
    assert found.total == found.devices + found.sidelink


@settings(max_examples=30, deadline=None)
@given(arguments(), st.floats(0.1, 1e9), st.integers(0, 20), rounds_of_3)
def test_doubling_every_efficiency_halves_exactly_the_communication(given, factor, meta_rounds, task_rounds):
    given = {**given, **{link: given[link] * factor for link in LINKS}}
    once = TwoStage(**given).energy(meta_rounds, task_rounds)
    twice = TwoStage(**{**given, **{link: 2 * given[link] for link in LINKS}}).energy(meta_rounds, task_rounds)
    assert twice.communication == once.communication / 2
    assert twice.learning == once.learning


@settings(max_examples=30, deadline=None)
@given(arguments(), st.integers(0, 20), rounds_of_3)
def test_infinite_efficiencies_leave_learning_only(given, meta_rounds, task_rounds):
    found = TwoStage(**{**given, **dict.fromkeys(LINKS, math.inf)}).energy(meta_rounds, task_rounds)
    assert found.communication == 0
    assert found.total == found.learning == TwoStage(**given).energy(meta_rounds, task_rounds).learning


@settings(max_examples=30, deadline=None)
@given(arguments(), st.integers(0, 20), rounds_of_3, st.integers(0, 2))
def test_energy_does_not_fall_with_rounds_or_pue(given, meta_rounds, task_rounds, task):
    model = TwoStage(**given)
    more = [rounds + (i == task) for i, rounds in enumerate(task_rounds)]
    assert model.energy(meta_rounds, more).total >= model.energy(meta_rounds, task_rounds).total
    assert model.energy(meta_rounds + 1, task_rounds).total >= model.energy(meta_rounds, task_rounds).total
    assert (
        replace(model, pue=2 * model.pue).energy(meta_rounds, task_rounds).center
        == 2 * model.energy(meta_rounds, task_rounds).center
    )


def test_a_scalar_stands_for_every_task_and_a_number_of_tasks_for_the_first():
    per_task = {name: [EXAMPLE[name]] * 3 for name in ("devices_per_task", "neighbours", "device_batches")}
    per_task |= {name: np.full(3, EXAMPLE[name]) for name in ("joule_per_batch_device", "upload_bits_per_device")}
    expected = example().energy(10, [5, 7, 0])
    assert example(**per_task).energy(10, np.array([5, 7, 0])) == expected
    assert example(meta_tasks=[0, 1]).energy(10, [5, 7, 0]) == expected
    uneven = example(upload_bits_per_device=[1, 10, 100], meta_tasks=[1, 2])
    assert uneven.traffic(1, [0, 0, 0]).uplink == 4 * 110
    assert hash(example(**per_task)) == hash(replace(example(**per_task)))


def test_arrays_of_efficiencies_equal_one_call_for_each():
    uplink, sidelink = np.array([[1.0], [10.0], [math.inf]]), np.array([2.0, 20.0])
    grid = example(uplink_bit_per_joule=uplink, sidelink_bit_per_joule=sidelink).energy(10, [5, 7, 0])
    for i, j in np.ndindex(3, 2):
        single = example(uplink_bit_per_joule=float(uplink[i, 0]), sidelink_bit_per_joule=float(sidelink[j]))
        for part in (*PARTS, "total"):
            assert getattr(grid, part)[i, j] == getattr(single.energy(10, [5, 7, 0]), part)


def test_published_sizes():
    """The DQN of Savazzi et al., a head of two classes, and all of MiniLM-L6, whose exchange costs 14.5 kJ at 50 kbit/J."""

    def exchange(parameters):
        one = {"devices_per_task": 2, "neighbours": 0.5, "sidelink_bit_per_joule": 50e3, "meta_tasks": 1}
        return example(parameters_exchanged=parameters, **one)

    assert exchange(1_450_660).traffic(0, [1]).sidelink == pytest.approx(46.42e6, abs=0.005e6)
    assert exchange(2 * 384 + 2).traffic(0, [1]).sidelink == 24_640
    assert exchange(2 * 384 + 2).energy(0, [1]).sidelink == pytest.approx(0.49, abs=0.005)
    assert exchange(22_713_216).traffic(0, [1]).sidelink == pytest.approx(727e6, abs=0.5e6)
    assert exchange(22_713_216).energy(0, [1]).sidelink == pytest.approx(14.5e3, abs=0.05e3)


def test_shipping_adds_training_and_one_transmission_for_each_device():
    found = shipping(training_joule=100, parameters=770, devices=10_000, downlink_bit_per_joule=50e3, pue=1.5)
    assert (found.center, found.downlink, found.uplink, found.devices, found.sidelink) == (150, 4928, 0, 0, 0)
    several = shipping(training_joule=100, parameters=770, devices=10, downlink_bit_per_joule=[770.0, math.inf])
    assert several.total.tolist() == [420, 100]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pue": 0.9}, r"pue is 0.9; .* at least 1"),
        ({"pue": math.nan}, "pue is nan"),
        ({"second_order_factor": 0.5}, "second_order_factor is 0.5"),
        ({"uplink_bit_per_joule": 0}, "uplink_bit_per_joule is 0; it must be above 0"),
        ({"downlink_bit_per_joule": -1.0}, "downlink_bit_per_joule is -1"),
        ({"sidelink_bit_per_joule": [1.0, 0.0]}, "sidelink_bit_per_joule is 0"),
        ({"sidelink_bit_per_joule": math.nan}, "sidelink_bit_per_joule is nan"),
        ({"uplink_bit_per_joule": [1.0, 2], "sidelink_bit_per_joule": [1.0, 2, 3]}, "cannot be broadcast"),
        ({"bits_per_parameter": 0}, "bits_per_parameter is 0"),
        ({"joule_per_batch_center": -1}, "joule_per_batch_center is -1"),
        ({"joule_per_batch_device": [1.0, -1.0]}, "joule_per_batch_device is -1"),
        ({"device_batches": math.inf}, "device_batches is inf"),
        ({"neighbours": 4}, "neighbours is 4, but devices_per_task is 4; a device has at most 3"),
        ({"devices_per_task": [4, 2, 4]}, "neighbours is 2, but devices_per_task is 2"),
        ({"devices_per_task": 0, "neighbours": 0}, "devices_per_task is 0"),
        ({"devices_per_task": 3.5}, "whole numbers"),
        ({"devices_per_task": [4, 4], "device_batches": [1, 2, 3]}, "devices_per_task has 2, device_batches has 3"),
        ({"device_batches": []}, "device_batches has shape"),
        ({"meta_tasks": 0}, "meta_tasks is empty"),
        ({"meta_tasks": [1, 1]}, "repeated"),
        ({"meta_tasks": [-1]}, "meta_tasks is"),
        ({"meta_tasks": 4, "device_batches": [1, 2, 3]}, "there are 3 tasks"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(ArgumentError, match=message):
        example(**changes)


@pytest.mark.parametrize(
    ("meta_rounds", "task_rounds", "message"),
    [
        (-1, [1, 1, 1], "meta_rounds is -1"),
        (0.5, [1, 1, 1], "whole number"),
        (1, [1, -1, 1], "task_rounds is -1"),
        (1, [1, math.nan, 1], "task_rounds is nan"),
        (1, [], "task_rounds has shape"),
        (1, [1, 1], "task_rounds has 2 values, but device_batches has 3"),
    ],
)
def test_rounds_that_do_not_fit_are_refused(meta_rounds, task_rounds, message):
    with pytest.raises(ArgumentError, match=message):
        example(device_batches=[1, 2, 3]).energy(meta_rounds, task_rounds)


def test_meta_tasks_are_checked_against_the_rounds():
    with pytest.raises(ArgumentError, match=r"meta_tasks is 2; .* there are 1 tasks"):
        example().energy(1, [1])
