"""Meta-training resumes bit-equal, stops early, keeps its best parameters, and learns a planted subspace."""

import numpy as np
import pytest
import torch
from learners import small_learner, small_task
from torch import nn

from layerprobe.errors import ArgumentError
from layerprobe.metalearning import (
    InnerConfig,
    Learner,
    OuterConfig,
    State,
    Task,
    check_depths,
    evaluate,
    kept_file,
    meta_train,
    read,
)
from layerprobe.metalearning._outer import CHECKPOINT

INNER = InnerConfig("head", 3, 0.3)


def tasks(number):
    return small_task(seed=number)


def validation(number):
    return small_task(seed=1000 + number)


def test_interrupted_training_ends_with_the_same_parameters(tmp_path):
    config = OuterConfig(steps=12, rate=0.01, tasks_per_step=2, validate_every=3, validation_tasks=3)
    inner = InnerConfig("full", 2, 0.1, learned_rates=True)
    whole = meta_train(small_learner(), tasks, validation, inner, config)

    class StopError(Exception):
        pass

    def interrupted(number):
        if number == 15:
            raise StopError
        return tasks(number)

    seen = []

    def resumed(number):
        seen.append(number)
        return tasks(number)

    with pytest.raises(StopError):
        meta_train(small_learner(), interrupted, validation, inner, config, folder=tmp_path)
    again = meta_train(small_learner(), resumed, validation, inner, config, folder=tmp_path)
    assert min(seen) == 12  # step 7 of 12: the state was kept after step 6
    assert all(torch.equal(whole.parameters[name], again.parameters[name]) for name in whole.parameters)
    assert all(torch.equal(whole.rates[name], again.rates[name]) for name in whole.rates)
    assert [(e.step, e.loss, e.validation_loss) for e in whole.log] == [
        (e.step, e.loss, e.validation_loss) for e in again.log
    ]
    assert not list(tmp_path.iterdir())


def test_kept_parameters_are_those_after_that_many_steps_also_when_resumed(tmp_path):
    from safetensors.torch import load_file

    inner, keep = InnerConfig("full", 2, 0.1, learned_rates=True), (4, 7)
    common = {"rate": 0.01, "tasks_per_step": 2, "validate_every": 3, "validation_tasks": 2}
    config = OuterConfig(steps=8, keep=keep, patience=1, **common)

    def interrupted(number):
        if number == 10:
            raise KeyboardInterrupt
        return tasks(number)

    def worse(number):
        return small_task(seed=2000 + number, ways=3, queries=1)

    with pytest.raises(KeyboardInterrupt):
        meta_train(small_learner(), interrupted, worse, inner, config, folder=tmp_path)
    meta_train(small_learner(), tasks, worse, inner, config, folder=tmp_path)
    for step in keep:
        # The last validation of a training of so many steps decides nothing if it is the only one after the start.
        plain = OuterConfig(steps=step, keep=(step,), **common | {"validate_every": 100})
        meta_train(small_learner(), tasks, worse, inner, plain, folder=tmp_path / "alone")
        kept, alone = (load_file(kept_file(folder, step)) for folder in (tmp_path, tmp_path / "alone"))
        assert "rate of head" in kept and kept.keys() == alone.keys()
        assert all(torch.equal(kept[name], alone[name]) for name in kept)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ArgumentError, match=r"keep is \[0, 3\]; its steps must be 1 to 5"):
        OuterConfig(steps=5, keep=(0, 3))
    with pytest.raises(ArgumentError, match="keep needs folder"):
        meta_train(small_learner(), tasks, validation, INNER, OuterConfig(steps=2, keep=(1,)))


@pytest.mark.parametrize("damage", ["flip", "truncate", "other configuration", "no checksum"])
def test_a_state_that_does_not_fit_is_not_used(tmp_path, damage):
    config = OuterConfig(steps=4, rate=0.01, tasks_per_step=1, validate_every=2, validation_tasks=1)
    expected = meta_train(small_learner(), tasks, validation, INNER, config)

    def interrupted(number):
        if number == 3:
            raise KeyboardInterrupt
        return tasks(number)

    with pytest.raises(KeyboardInterrupt):
        meta_train(small_learner(), interrupted, validation, INNER, config, folder=tmp_path)
    path = tmp_path / CHECKPOINT
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-20] ^= 64
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-8])
    elif damage == "no checksum":
        path.with_name(f"{CHECKPOINT}.sha256").unlink()
    seen = []

    def counted(number):
        seen.append(number)
        return tasks(number)

    other = OuterConfig(steps=4, rate=0.02, tasks_per_step=1, validate_every=2, validation_tasks=1)
    result = meta_train(
        small_learner(),
        counted,
        validation,
        INNER,
        other if damage == "other configuration" else config,
        folder=tmp_path,
    )
    assert min(seen) == 0
    if damage != "other configuration":
        assert all(torch.equal(expected.parameters[name], result.parameters[name]) for name in expected.parameters)


def test_the_best_validated_parameters_are_returned_and_patience_stops():
    config = OuterConfig(steps=200, rate=0.3, tasks_per_step=1, validate_every=1, validation_tasks=4, patience=5)
    result = meta_train(small_learner(), tasks, validation, INNER, config)
    losses = [entry.validation_loss for entry in result.log]
    assert result.best_step == int(np.argmin(losses))
    assert len(result.log) == result.best_step + 6 < 200
    learner = small_learner()
    again = [evaluate(learner, result.parameters, validation(i), INNER)[0] for i in range(4)]
    assert np.mean(again) == pytest.approx(min(losses), abs=1e-12)


def test_the_gradient_norm_is_that_of_the_mean_meta_gradient():
    from learners import with_gradients

    from layerprobe.metalearning import meta_gradient

    learner = small_learner()
    config = OuterConfig(depth=1, steps=1, rate=0.01, tasks_per_step=3, validate_every=1, validation_tasks=1)
    result = meta_train(small_learner(), tasks, validation, INNER, config)
    outer = [*learner.names_at(1), "head.weight", "head.bias"]
    parameters = with_gradients(learner.parameters(), outer)
    three = [meta_gradient(learner, parameters, tasks(i), INNER, outer=outer).gradients for i in range(3)]
    mean = torch.cat([sum(one[name] for one in three).reshape(-1) / 3 for name in outer])
    assert result.log[1].gradient_norm == pytest.approx(float(mean.norm()))
    assert result.log[1].head_gradient_norm == pytest.approx(float(mean[-18:].norm()))
    # Below the trained block nothing moves.
    assert all(torch.equal(result.parameters[n], v) for n, v in learner.parameters().items() if n.startswith("emb"))


def test_an_inner_loop_deeper_than_the_outer_is_refused():
    with pytest.raises(ArgumentError, match="depth is top:2, but the outer loop trains only the top 1 blocks"):
        check_depths(InnerConfig("top:2"), OuterConfig(depth=1), 6)
    with pytest.raises(ArgumentError, match="depth is full"):
        check_depths(InnerConfig("maml"), OuterConfig(depth=6), 6)
    with pytest.raises(ArgumentError, match="outer is top:7, but the model has 6 blocks"):
        check_depths(InnerConfig("head"), OuterConfig(depth=7), 6)
    check_depths(InnerConfig("top:2"), OuterConfig(depth=2), 6)


def test_a_divergent_outer_rate_is_refused():
    config = OuterConfig(steps=50, rate=1e6, tasks_per_step=1, validate_every=50, validation_tasks=1)
    with pytest.raises(ArgumentError, match=r"rate .* diverges"):
        meta_train(small_learner(blocks=1), tasks, validation, InnerConfig("head", 1, 1e-3), config)


# Planted episodes ------------------------------------------------------------------------------------------------------

WIDTH, SIGNAL, NUISANCE = 64, 3, 10.0**0.5


def planted(number, directions, shots=5, queries=15):
    """A linear rule inside one subspace that all tasks share, under nuisance of ten times its variance elsewhere."""
    rng = np.random.default_rng([7, number])
    rule = rng.standard_normal(SIGNAL)

    def half(n):
        rows, labels = [], []
        for label in (0, 1):
            signal = rng.standard_normal((20 * n, SIGNAL))
            signal = signal[(signal @ rule > 0) == bool(label)][:n]
            inside = signal @ directions[:SIGNAL]
            rows.append(inside + NUISANCE * rng.standard_normal((n, WIDTH - SIGNAL)) @ directions[SIGNAL:])
            labels += [label] * n
        return State(0, torch.tensor(np.concatenate(rows))), torch.tensor(labels)

    return Task(*half(shots), *half(queries))


def test_meta_training_finds_the_subspace_that_tasks_share():
    """Measured: .51 before, .84 after, .87 with the oracle's projection, .50 by readers of the inputs."""
    directions, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))
    directions = directions.T
    projection = nn.Linear(WIDTH, 8, bias=False).double()
    torch.manual_seed(0)
    nn.init.normal_(projection.weight, std=WIDTH**-0.5)
    learner = Learner([nn.Identity(), projection], width=8, ways=2)
    inner = InnerConfig("head", 5, 0.5, l2=0.01)
    config = OuterConfig(steps=200, rate=0.01, tasks_per_step=6, validate_every=50, validation_tasks=20)
    result = meta_train(
        learner, lambda i: planted(i, directions), lambda i: planted(10**6 + i, directions), inner, config
    )
    test = [planted(2 * 10**6 + i, directions) for i in range(150)]

    def accuracy(parameters):
        return np.mean([evaluate(learner, parameters, task, inner)[1] for task in test])

    def reader(name, project):
        scores = []
        for task in test:
            support, query = (project(state.value).detach().numpy() for state in (task.support, task.query))
            predicted = read(name, support, task.support_labels.numpy(), query)
            scores.append((predicted == task.query_labels.numpy()).mean())
        return np.mean(scores)

    before, after = accuracy(learner.parameters()), accuracy(result.parameters)
    oracle_directions = torch.tensor(directions[:SIGNAL].T)
    oracle = max(reader(name, lambda x: x @ oracle_directions) for name in ("logistic", "centroid"))
    plain = {name: reader(name, lambda x: x) for name in ("logistic", "centroid", "nil")}
    learned = {name: reader(name, lambda x: x @ result.parameters["block 1.weight"].T) for name in plain}
    assert after > before + 0.15, (before, after)
    assert after > max(plain.values()) + 0.1, plain
    assert after < oracle + 0.03 and after > oracle - 0.1, (after, oracle)
    # The learned body serves readers without an inner loop as well.
    assert learned["centroid"] > plain["centroid"] + 0.1, (learned, plain)

    # What was learned is the subspace: the share of the projection's energy inside it rises.
    def share(weight):
        return float((weight @ oracle_directions).square().sum() / weight.square().sum())

    assert share(result.parameters["block 1.weight"]) > 0.5 > share(learner.parameters()["block 1.weight"]) + 0.3
