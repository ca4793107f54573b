"""Meta-gradients agree with finite differences and explicit Hessians; counts, invariances and errors of the inner loop."""

from dataclasses import replace

import pytest
import torch
from learners import small_learner, small_task, with_gradients
from torch import nn

from layerprobe.errors import ArgumentError
from layerprobe.metalearning import InnerConfig, State, adapt, adapt_heads, counting, meta_gradient

DEPTHS = ("head", "top:1", "full", "body")


def query_loss(learner, parameters, task, config, rates=None):
    """A slow twin's loss: the inner loop written out for all adapted parameters as one vector."""
    names = config.names(learner)
    current = dict(parameters)
    for _ in range(config.steps):
        leaves = {name: current[name].detach().requires_grad_() for name in names}
        loss = nn.functional.cross_entropy(learner.logits({**current, **leaves}, task.support), task.support_labels)
        if config.l2 and config.adapts_head:
            loss = loss + config.l2 / 2 * (leaves["head.weight"].square().sum() + leaves["head.bias"].square().sum())
        loss.backward()
        for name, leaf in leaves.items():
            rate = config.rate if rates is None else rates[name.partition(".")[0]]
            current[name] = (leaf - rate * leaf.grad).detach()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(learner.logits(current, task.query), task.query_labels))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("depth", DEPTHS)
def test_meta_gradients_equal_finite_differences(depth, steps):
    learner, task = small_learner(), small_task()
    config = InnerConfig(depth, steps, 0.2, l2=0.05)
    names = list(learner.parameters())
    result = meta_gradient(learner, with_gradients(learner.parameters(), names), task, config, outer=names)
    step = 1e-5
    with torch.no_grad():
        for name in names:
            parameters = {key: value.clone() for key, value in learner.parameters().items()}
            numbers = torch.randperm(parameters[name].numel(), generator=torch.Generator().manual_seed(0))[:4]
            for number in numbers:
                ends = []
                for sign in (1, -1):
                    moved = {**parameters, name: parameters[name].clone()}
                    moved[name].view(-1)[number] += sign * step
                    with torch.enable_grad():
                        ends.append(query_loss(learner, moved, task, config))
                slope = (ends[0] - ends[1]) / (2 * step)
                assert float(result.gradients[name].reshape(-1)[number]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("depth", ["head", "top:1", "full"])
def test_meta_gradients_equal_products_of_explicit_hessians(depth):
    """d/dw = [prod (I - alpha H_m)] grad, and d/dphi with its mixed products, from matrices that autograd is not chained through."""
    learner, task, config = small_learner(blocks=1), small_task(), InnerConfig(depth, 3, 0.3)
    inner = config.names(learner)
    outer = [name for name in learner.parameters() if name not in inner]
    start = learner.parameters()
    sizes = {name: start[name].numel() for name in start}

    def unpack(names, vector):
        pieces = vector.split([sizes[name] for name in names]) if names else ()
        return {name: piece.reshape(start[name].shape) for name, piece in zip(names, pieces, strict=True)}

    def loss(w, phi, state, labels):
        parameters = unpack(inner, w) | unpack(outer, phi)
        return nn.functional.cross_entropy(learner.logits(parameters, state), labels)

    def support(w, phi):
        return loss(w, phi, task.support, task.support_labels)

    w = torch.cat([start[name].reshape(-1) for name in inner])
    phi = torch.cat([start[name].reshape(-1) for name in outer]) if outer else torch.zeros(1, dtype=w.dtype)
    jacobian, mixed = [], []
    for _ in range(config.steps):
        (hessian, cross), _ = torch.autograd.functional.hessian(support, (w, phi))
        jacobian.append(torch.eye(len(w), dtype=w.dtype) - config.rate * hessian)
        mixed.append(cross.T)
        (gradient, _) = torch.autograd.functional.jacobian(support, (w, phi))
        w = w - config.rate * gradient
    grad_w, grad_phi = torch.autograd.functional.jacobian(
        lambda w, phi: loss(w, phi, task.query, task.query_labels), (w, phi)
    )
    after = grad_w.clone()
    for m in reversed(range(config.steps)):
        grad_phi = grad_phi - config.rate * mixed[m] @ after
        after = jacobian[m] @ after
    expected = unpack(inner, after) | unpack(outer, grad_phi)
    names = list(start)
    result = meta_gradient(learner, with_gradients(start, names), task, config, outer=names)
    for name in names:
        torch.testing.assert_close(result.gradients[name], expected[name], atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_error_of_first_order_gradients_is_proportional_to_the_rate(steps):
    learner, task = small_learner(), small_task()
    names = list(learner.parameters())

    def difference(rate):
        config = InnerConfig("full", steps, rate)
        both = [
            meta_gradient(
                learner,
                with_gradients(learner.parameters(), names),
                task,
                replace(config, first_order=first),
                outer=names,
            )
            for first in (False, True)
        ]
        return sum(float((both[0].gradients[name] - both[1].gradients[name]).square().sum()) for name in names) ** 0.5

    assert difference(1e-3) > 0
    assert difference(5e-4) / difference(1e-3) == pytest.approx(0.5, rel=0.05)


def test_learned_rates_have_the_gradient_of_finite_differences():
    learner, task, config = small_learner(), small_task(), InnerConfig("full", 3, 0.2, learned_rates=True)
    parts = ("embeddings", "block 1", "block 2", "head")
    rates = {part: torch.tensor(0.2, dtype=torch.float64, requires_grad=True) for part in parts}
    parameters = learner.parameters()
    result = meta_gradient(learner, parameters, task, config, outer=[f"rate of {part}" for part in parts], rates=rates)
    for part in parts:
        ends = [
            query_loss(learner, parameters, task, config, {p: 0.2 + (step if p == part else 0) for p in parts})
            for step in (1e-5, -1e-5)
        ]
        assert float(result.gradients[f"rate of {part}"]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_body_passes_do_not_depend_on_the_steps_of_the_head(steps):
    learner, task = small_learner(), small_task()
    names = list(learner.parameters())
    body = ("embeddings", "block 1", "block 2")
    with counting(learner) as counts:
        parameters = with_gradients(learner.parameters(), names)
        meta_gradient(learner, parameters, task, InnerConfig("head", steps, 0.1), outer=names, counts=counts)
    assert counts.forward_passes == dict.fromkeys(body, 2)  # support and query
    assert counts.backward_passes == dict.fromkeys(body, 2)
    assert (counts.inner_gradients, counts.outer_gradients, counts.second_order_products) == (steps, 1, steps)
    with counting(learner) as counts:
        parameters = with_gradients(learner.parameters(), names)
        meta_gradient(
            learner, parameters, task, InnerConfig("full", steps, 0.1, first_order=True), outer=names, counts=counts
        )
    assert counts.forward_passes == dict.fromkeys(body, steps + 1)
    assert counts.backward_passes == dict.fromkeys(body, steps + 1)
    assert (counts.inner_gradients, counts.second_order_products) == (steps, 0)


def test_lower_parts_run_once_for_top_blocks():
    learner, task = small_learner(), small_task()
    names = list(learner.parameters())
    with counting(learner) as counts:
        parameters = with_gradients(learner.parameters(), names)
        meta_gradient(learner, parameters, task, InnerConfig("top:1", 4, 0.1), outer=names, counts=counts)
    assert counts.forward_passes["embeddings"] == counts.forward_passes["block 1"] == 2
    assert counts.forward_passes["block 2"] == 5


@pytest.mark.parametrize("depth", DEPTHS)
def test_only_the_named_parameters_change(depth):
    learner, task, config = small_learner(), small_task(), InnerConfig(depth, 3, 0.2)
    before = learner.parameters()
    after = adapt(learner, before, task.support, task.support_labels, config)
    changed = {name for name in before if not torch.equal(before[name], after.parameters[name])}
    assert changed == set(config.names(learner))
    assert after.losses[-1] < after.losses[0]
    if depth == "head":
        assert torch.equal(learner.vectors(before, task.query), learner.vectors(after.parameters, task.query))


def test_many_heads_at_once_equal_one_by_one():
    learner = small_learner()
    config, parameters = InnerConfig("anil", 4, 0.3, l2=0.1), learner.parameters()
    tasks = [small_task(seed=seed) for seed in range(3)]
    vectors = torch.stack([learner.vectors(parameters, task.support) for task in tasks]).detach()
    labels = torch.stack([task.support_labels for task in tasks])
    weights, biases = adapt_heads(vectors, labels, (parameters["head.weight"], parameters["head.bias"]), config)
    for i, task in enumerate(tasks):
        alone = adapt(learner, parameters, task.support, task.support_labels, config).parameters
        torch.testing.assert_close(weights[i], alone["head.weight"])
        torch.testing.assert_close(biases[i], alone["head.bias"])


def test_algorithms_are_accepted_by_name():
    assert [InnerConfig(name).depth for name in ("anil", "MAML", "boil", "top:2")] == ["head", "full", "body", "top:2"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depth": "top"}, "depth is 'top'; it is head (ANIL), top:k such as top:2"),
        ({"depth": "top:0"}, "depth is 'top:0'"),
        ({"steps": 0}, "steps is 0; the inner loop takes at least 1 step. The reader without one is `nil`."),
        ({"rate": -1.0}, "rate is -1; it must be above 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"l2": float("inf")}, "l2 is inf"),
    ],
)
def test_bad_settings_are_refused(values, said):
    with pytest.raises(ArgumentError, match="^" + said.replace("(", r"\(").replace(")", r"\)")):
        InnerConfig(**values)


def test_a_divergent_rate_is_refused_with_one_that_works():
    learner, task = small_learner(), small_task()
    with pytest.raises(
        ArgumentError, match=r"^rate is 1e\+07, with which the inner loss diverges \(at step 2 of 5\); "
    ) as error:
        adapt(learner, learner.parameters(), task.support, task.support_labels, InnerConfig("full", 5, 1e7))
    better = float(str(error.value).split("; ")[1].split()[0])
    after = adapt(learner, learner.parameters(), task.support, task.support_labels, InnerConfig("full", 5, better))
    assert after.losses[-1] <= after.losses[0]


def test_deeper_than_the_model_or_below_a_cached_prefix_is_refused():
    learner, task = small_learner(), small_task()
    with pytest.raises(ArgumentError, match="depth is top:3, but the model has 2 blocks"):
        adapt(learner, learner.parameters(), task.support, task.support_labels, InnerConfig("top:3"))
    cached = learner.apply(learner.parameters(), task.support, to=2)
    with pytest.raises(ArgumentError, match="depth is full, but the input starts above part 2"):
        adapt(learner, learner.parameters(), State(2, cached.value), task.support_labels, InnerConfig("full"))
