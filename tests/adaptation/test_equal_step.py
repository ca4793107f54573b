"""Full fine-tuning with steps of one relative size: each step, and the whole training."""

import numpy as np
import pytest
import torch
from adapting import adapted

from layerprobe.adaptation import AdaptConfig, parse_method
from layerprobe.adaptation._training import equalise_steps
from layerprobe.encoder import head_parameter_names, load_classifier

pytestmark = pytest.mark.numerical
METHOD = parse_method("full:equal-step")


def relative(before, after):
    flat = [np.concatenate([x.detach().numpy().ravel() for x in side]) for side in (before, after)]
    return np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0])


def test_it_trains_the_task_at_the_rate_of_full_and_is_no_depth():
    assert METHOD.name == "full:equal-step" and not METHOD.is_control and METHOD.depth(6) is None
    assert METHOD.reference_rank is None
    assert METHOD.learning_rate(AdaptConfig(learning_rates={"full": 1e-4})) == 1e-4


def test_groups_are_the_embeddings_and_the_blocks(tiny_encoder):
    model = tiny_encoder.classifier(["a", "b"], seed=0)
    groups = METHOD.step_groups(model, tiny_encoder)
    assert len(groups) == 3 and all("embeddings" in name for name in groups[0])
    assert all(f"layer.{i}." in name for i in (0, 1) for name in groups[i + 1])
    grouped = {name for group in groups for name in group}
    body = {name for name, _ in model.named_parameters()} - head_parameter_names(model, tiny_encoder)
    assert body - grouped == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}  # above the last layer


def test_a_step_is_scaled_to_the_mean_relative_size_in_its_own_direction():
    generator = torch.Generator().manual_seed(0)
    before = [[torch.randn(4, 3, generator=generator), torch.randn(3, generator=generator)] for _ in range(3)]
    steps = [
        [size * torch.randn(x.shape, generator=generator) for x in group]
        for group, size in zip(before, (0.1, 0.01, 0), strict=True)
    ]
    after = [[x + step for x, step in zip(*pair, strict=True)] for pair in zip(before, steps, strict=True)]
    sizes = [relative(*pair) for pair in zip(before, after, strict=True)]
    equalise_steps(after, before)
    scaled = [relative(*pair) for pair in zip(before, after, strict=True)]
    assert scaled[:2] == pytest.approx([np.mean(sizes[:2])] * 2, rel=1e-5) and scaled[2] == 0
    taken = after[1][0] - before[1][0]
    assert torch.allclose(taken / taken.norm(), steps[1][0] / steps[1][0].norm(), atol=1e-5)


def test_layers_move_alike_in_one_step_and_not_under_full(tiny_encoder, tiny_corpus, tmp_path):
    """One batch is one step, so that the change of the whole training is that of the step."""
    moved = {}
    for name in ("full", "full:equal-step"):
        result = adapted(tiny_encoder, tiny_corpus, tmp_path / name, name, n=8, batch_size=8)
        before = dict(tiny_encoder.classifier(tiny_corpus.label_names, seed=0).named_parameters())
        after = dict(load_classifier(result.checkpoint, tiny_encoder).named_parameters())
        groups = METHOD.step_groups(load_classifier(result.checkpoint, tiny_encoder), tiny_encoder)
        moved[name] = [relative([before[n] for n in g], [after[n] for n in g]) for g in groups]
    assert moved["full:equal-step"] == pytest.approx([np.mean(moved["full"])] * 3, rel=1e-3)
    assert max(moved["full"]) > 1.2 * min(moved["full"])
