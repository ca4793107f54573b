"""Tasks evaluated as a batch, and rates tried on them, against one task after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from learners import small_learner, small_task
from torch import nn

from layerprobe.errors import ArgumentError
from layerprobe.metalearning import InnerConfig, RateTrial, adapt, best_rate, evaluate_tasks, try_rates

TASKS = [small_task(seed=seed) for seed in range(4)]


def one_by_one(learner, inner, rates=None):
    found = []
    for task in TASKS:
        adapted = adapt(learner, learner.parameters(), task.support, task.support_labels, inner, rates=rates)
        logits = learner.logits(adapted.parameters, task.query)
        loss = nn.functional.cross_entropy(logits, task.query_labels)
        found.append((float(loss), float((logits.argmax(1) == task.query_labels).double().mean())))
    return found


@pytest.mark.parametrize("l2", [0.0, 0.2])
@pytest.mark.parametrize("depth", ["head", "top:1", "full", "body"])
def test_a_batch_equals_a_loop(depth, l2):
    learner, inner = small_learner(), InnerConfig(depth, 4, 0.3, l2=l2)
    found = evaluate_tasks(learner, learner.parameters(), iter(TASKS), inner)
    np.testing.assert_allclose(found, one_by_one(learner, inner), atol=1e-12)


def test_learned_rates_are_used():
    learner, inner = small_learner(), InnerConfig("head", 4, 0.3)
    rates = {"head": torch.tensor(0.05, dtype=torch.float64)}
    found = evaluate_tasks(learner, learner.parameters(), TASKS, inner, rates)
    np.testing.assert_allclose(found, one_by_one(learner, replace(inner, rate=0.05)), atol=1e-12)


@pytest.mark.parametrize("depth", ["head", "top:1"])
def test_every_rate_is_tried_on_the_same_tasks(depth):
    learner, inner, rates = small_learner(), InnerConfig(depth, 3, 1.0), (0.05, 0.5, 1e7)
    trials = try_rates(learner, learner.parameters(), TASKS, inner, rates)
    assert [trial.rate for trial in trials] == list(rates)
    for trial in trials[:2]:
        expected = np.mean(one_by_one(learner, replace(inner, rate=trial.rate)), axis=0)
        assert (trial.loss, trial.accuracy) == pytest.approx(tuple(expected), abs=1e-12)
    assert trials[2] == RateTrial(1e7, None, None)
    assert best_rate(trials) == min(trials[:2], key=lambda trial: trial.loss).rate


def test_a_diverging_batch_and_rates_that_all_diverge_are_refused():
    learner = small_learner()
    with pytest.raises(
        ArgumentError, match=r"rate is 1e\+07, with which the inner loss diverges .at step 2 of 3.; try 1e\+06"
    ):
        evaluate_tasks(learner, learner.parameters(), TASKS, InnerConfig("head", 3, 1e7))
    with pytest.raises(ArgumentError, match="rates is 5, 9, with each of which the inner loss diverges; lower them"):
        best_rate([RateTrial(5.0, None, None), RateTrial(9.0, None, None)])
