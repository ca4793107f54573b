"""Clusters of devices end to end on a tiny encoder: rounds against a slow twin, energy against its formula, and errors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from bench import Bench
from test_few_shot_stages import FEW, write_groups

from layerprobe import Study
from layerprobe.energy_study import cluster_sampler
from layerprobe.errors import StudyError
from layerprobe.few_shot import given_rate
from layerprobe.metalearning import InnerConfig, Learner, State, adapt
from layerprobe.resolve import resolve
from layerprobe.stages._clusters import Body, ClusterTask
from layerprobe.stages._few_shot import make_inputs, make_learner, read_parameters
from layerprobe.stages.energy import Energy, batch_operations
from layerprobe.stages.energy_rounds import EnergyRounds, EnergyTrial, target_accuracy

ENERGY = {
    "devices": [2, 4],
    "topologies": ["ring", "mesh"],
    "tasks": 2,
    "validation_tasks": 2,
    "max_rounds": 4,
    "local_steps": 2,
    "target": 0.5,
    "pue": 2.0,
    "uplink_bit_per_joule": 1e3,
    "downlink_bit_per_joule": 2e3,
    "sidelink_bit_per_joule": 4e3,
}


@pytest.fixture(scope="module")
def content(tiny_bert, tmp_path_factory):
    source = write_groups(tmp_path_factory.mktemp("groups") / "groups.csv", groups=3, classes=3, texts=260)
    return {
        "name": "few",
        "model": {"name": str(tiny_bert)},
        "data": {"source": str(source), "group": "group", "max_length": 16},
        "few_shot": FEW | {"keep_steps": [1, 3], "baselines": ["pretrained"]},
        "energy": ENERGY,
    }


@pytest.fixture(scope="module")
def bench(content, tmp_path_factory):
    return Bench(Study.parse(content), tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def rounds(bench):
    return {task.inner: bench.build(task) for task in EnergyRounds.tasks(bench.resolved.shape)}


@pytest.fixture(scope="module")
def energy(bench):
    (task,) = Energy.tasks(bench.resolved.shape)
    return bench.build(task).table("energy")


def test_every_cluster_has_its_rounds_and_none_passes_the_cap(rounds):
    for inner, built in rounds.items():
        table = built.table("energy_rounds")
        assert len(table) == 2 * 2 * 3 * 2 and set(table.inner) == {inner}
        assert set(table.meta_rounds) == {0, 1, 3} and set(table.target) == {0.5}
        assert table.rounds.between(2, 4).all() and (table.rounds[table.censored] == 4).all()
        assert (table.accuracy[~table.censored] >= 0.5).all()
        mesh = table.topology == "mesh"
        assert (table.disagreement[mesh] < 1e-6).all()
        # Of two devices, a ring is a mesh; of four it is not.
        two, four = (table[table.devices == n].pivot(index=["meta_rounds", "task"], columns="topology") for n in (2, 4))
        assert (two.accuracy.ring == two.accuracy.mesh).all()
        assert (four.disagreement.ring > 1e-4).all()


def test_devices_hold_disjoint_examples(bench):
    sampler = cluster_sampler(bench.context.few_shot, bench.context.few_shot.parts.test)
    episode = sampler.draw(0)
    assert episode.support.shape == (2, 4) and episode.query.shape == (2, 250)
    assert len(np.unique(np.r_[episode.support.ravel(), episode.query.ravel()])) == 508


@pytest.mark.parametrize("inner", ["head", "top:1"])
def test_rounds_are_those_of_a_slow_twin(inner, bench, rounds):
    """Every device from tokens, with nothing cached, and models averaged name by name."""
    table = rounds[inner].table("energy_rounds")
    learner = make_learner(bench.context, 0)
    inputs = make_inputs(bench.context, learner, None)
    (task,) = (task for task in EnergyRounds.tasks(bench.resolved.shape) if task.inner == inner)
    start, _ = read_parameters(learner, bench.get(task.trained), 3)
    episode = cluster_sampler(bench.context.few_shot, bench.context.few_shot.parts.test).draw(1)
    config = InnerConfig(inner, 2, given_rate(bench.context.study, inner))
    query, asked = inputs.task(episode).query, inputs.task(episode).query_labels
    found = table[(table.topology == "mesh") & (table.devices == 2) & (table.meta_rounds == 3) & (table.task == 1)]
    model, accuracies = start, []
    for _ in range(int(found.rounds.iloc[0])):
        models = [
            adapt(learner, model, inputs.state(episode.support[:, [k]]), torch.arange(2), config).parameters
            for k in range(2)
        ]
        model = {name: (models[0][name] + models[1][name]) / 2 for name in start}
        accuracies.append(float((learner.logits(model, query).argmax(1) == asked).double().mean()))
    assert found.accuracy.iloc[0] == pytest.approx(accuracies[-1], abs=0.005)
    passed = [a >= 0.5 and b >= 0.5 for a, b in pairwise(accuracies)]
    assert not any(passed[:-1]) and passed[-1] != bool(found.censored.iloc[0])


@pytest.mark.parametrize("depth", ["head", "top:1", "full"])
@pytest.mark.parametrize("topology", ["ring", "mesh"])
def test_devices_with_identical_data_are_one_device(depth, topology):
    from torch import nn

    torch.manual_seed(0)
    parts = [nn.Linear(4, 5), *(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(2))]
    learner = Learner([part.double() for part in parts], width=5, ways=3)
    support, labels, query = (
        State(0, torch.randn(9, 4).double()),
        torch.arange(3).repeat(3),
        State(0, torch.randn(9, 4).double()),
    )
    config = InnerConfig(depth, 3, 0.1)
    same = ClusterTask((support,) * 5, labels, ((query, labels),))
    body = Body(learner, learner.parameters(), None, config)
    found = body.run(body.above(same), topology, 5, target=None, max_rounds=4)
    alone = learner.parameters()
    for _ in range(4):
        alone = adapt(learner, alone, support, labels, config).parameters
    np.testing.assert_allclose(found.models, np.tile(body.vector(alone), (5, 1)), rtol=0, atol=1e-12)
    assert max(found.disagreement) < 1e-12
    model = body.model(found.models[0])
    assert all((model[name] - value).abs().max() < 1e-12 for name, value in alone.items())
    assert found.accuracy[-1] == float((learner.logits(alone, query).argmax(1) == labels).double().mean())


def test_energy_follows_from_rounds_and_operations(energy, rounds):
    assert set(energy.topology) == {"ring", "mesh", "server"} and len(energy) == 2 * 3 * 2 * 3
    for row in energy.itertuples():
        built = rounds[row.inner].table("energy_rounds")
        links = "mesh" if row.topology == "server" else row.topology
        cell = built[
            (built.topology == links) & (built.devices == row.devices) & (built.meta_rounds == row.meta_rounds)
        ]
        assert row.rounds == cell.rounds.mean() and row.censored == cell.censored.any()
        trained = row.meta_rounds > 0
        batches = 1 + row.second_order_factor * row.query_batches
        assert row.center_joule == pytest.approx(2 * row.meta_rounds * 2 * batches * row.joule_per_batch_center)
        episode = row.upload_bits_per_device * row.devices
        assert row.uplink_joule == pytest.approx(row.meta_rounds * 2 * episode / 1e3)
        assert row.downlink_joule == pytest.approx(trained * 2 * row.devices * row.parameters_down * 32 / 2e3)
        total = cell.rounds.sum() * row.devices
        assert row.devices_joule == pytest.approx(total * 2 * row.joule_per_batch_device)
        neighbours, per_bit = {"ring": min(2, row.devices - 1), "mesh": row.devices - 1, "server": 1}, 1 / 4e3
        per_bit = 1 / 1e3 + 1 / 2e3 if row.topology == "server" else per_bit
        sent = total * neighbours[row.topology] * row.parameters_exchanged * 32
        assert row.sidelink_joule == pytest.approx(sent * per_bit)
        assert row.total_low <= row.total_joule <= row.total_high
    reached = energy[~energy.censored]
    for _, rows in reached.groupby(["inner", "topology", "devices"]):
        assert list(rows.meta_rounds[rows.optimum]) == [rows.meta_rounds[rows.total_joule.idxmin()]]
    assert not energy.optimum[energy.censored].any() and energy.ratio[energy.censored].isna().all()


def test_what_is_exchanged_and_sent_down(energy):
    by_depth = energy.groupby("inner").agg(
        down=("parameters_down", "first"), exchanged=("parameters_exchanged", "first")
    )
    assert by_depth.exchanged["head"] == 2 * 32 + 2
    assert by_depth.down["head"] == by_depth.down["top:1"] == by_depth.exchanged["top:1"] > 5000
    # Words are of two to six letters and separated by blanks.
    assert energy.upload_bits_per_device[energy.devices == 2].between(8 * 5 * 20, 8 * 5 * 60).all()


def test_operations_grow_with_depth_and_second_derivatives(bench, content):
    head, top, full = (
        batch_operations(bench.context, InnerConfig(depth, 2, 0.1)) for depth in ("head", "top:1", "full")
    )
    assert head["flops_device"] < top["flops_device"] < full["flops_device"]
    # Forward through all, and backward twice as much through all of it.
    assert full["flops_device"] / head["flops_device"] == pytest.approx(3, rel=0.05)
    assert top["second_order_factor"] > 1.2 and head["second_order_factor"] >= 1
    first = batch_operations(bench.context, InnerConfig("top:1", 2, 0.1, first_order=True))
    assert first["second_order_factor"] == 1 and first["flops_center"] < top["flops_center"]
    for found in (head, top, first):
        passes = 1 + found["query_batches"] * found["second_order_factor"]
        assert found["joule_per_batch_center"] * passes == pytest.approx(found["flops_center"] * 5e-11)
        assert found["joule_per_batch_device"] == found["flops_device"] * 2e-10


def test_the_target_is_a_share_of_what_all_depths_hold_on_validation(bench):
    for task in EnergyTrial.tasks(bench.resolved.shape):
        assert (bench.build(task).folder / "held.json").exists()
    held = {"head": [[0.6, 0.8], [0.7, 0.7]], "full": [[0.9, 0.9], [0.5, 0.75]]}
    assert target_accuracy(held, None, 40) == pytest.approx(0.95 * 0.7)
    assert target_accuracy(held, 0.85, 40) == 0.85
    with pytest.raises(StudyError, match=r"energy.target is 0.95, which no depth reaches .*highest: 0.900, by full"):
        target_accuracy(held, 0.95, 40)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("few_shot", {"keep_steps": []}, "few_shot.keep_steps lists none"),
        ("few_shot", {"tasks_per_step": 3}, "energy.tasks is 2, but"),
        ("energy", {"queries": 600}, "which 0 of 3 classes of the validation part have"),
        ("energy", {"devices": [2, 2]}, "energy.devices = [2, 2] lists a value twice"),
        ("energy", {"pue": 0.5}, "energy.pue = 0.5: input should be greater than or equal to 1"),
        ("energy", {"sidelink_bit_per_joule": 0}, "energy.sidelink_bit_per_joule = 0: input should be greater than 0"),
        ("energy", {"devices": [1]}, "energy.devices = 1: input should be greater than or equal to 2"),
        ("energy", {"topologies": "star"}, "energy.topologies = 'star'"),
        ("energy", {"uplink": 1}, "unknown key 'energy.uplink'"),
    ],
)
def test_user_errors_are_one_sentence_that_names_study_keys(section, values, words, content):
    with pytest.raises(StudyError) as error:
        resolve(Study.parse(content | {section: content[section] | values}), "cpu", "fp32")
    assert words in str(error.value) and "\n" not in str(error.value)
