"""The quick selections are exactly torch's, and training with them is sae-lens' reference."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import TrainingSAE
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from sparse_rows import planted

from layerprobe.sae import SaeConfig
from layerprobe.sae._config import plan
from layerprobe.sae._rows import measure, order
from layerprobe.sae._selection import kth_largest_of_columns, largest_of_batch, largest_of_rows, nth_largest
from layerprobe.sae._trainer import Trainer, initialise, trainer_settings
from layerprobe.sae.architectures import ARCHITECTURES

pytestmark = pytest.mark.numerical

# Few distinct values: most borders are tied.
tied = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.sampled_from([-1, 0, 1, 2])
)


@pytest.mark.parametrize("shift", [0.0, -1.0, -3.0])
@pytest.mark.parametrize("k", [1, 8, 60, 256])
def test_the_same_set_as_torch_over_the_batch(k, shift):
    """Large enough for the sampled bound; at a shift of -3 fewer are above zero than requested."""
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(k)) + shift
    expected = torch.zeros(x.numel(), dtype=torch.bool)
    expected[x.flatten().topk(k * len(x)).indices] = True
    expected &= x.flatten() > 0
    np.testing.assert_array_equal(largest_of_batch(x, k * len(x)), expected.nonzero()[:, 0])
    assert torch.equal(expected, BatchTopK(k)(x).flatten() > 0)
    assert nth_largest(x.relu(), k * len(x)) == x.relu().flatten().sort(descending=True).values[k * len(x) - 1]


@pytest.mark.parametrize("k", [1, 7, 64, 256])
def test_the_same_set_as_torch_by_row(k):
    x = torch.randn(300, 256, generator=torch.Generator().manual_seed(k))
    expected = torch.zeros_like(x, dtype=torch.bool).scatter(1, x.topk(k).indices, True) & (x > 0)
    np.testing.assert_array_equal(largest_of_rows(x, k), expected.flatten().nonzero()[:, 0])


@pytest.mark.parametrize("k", [1, 7, 32, 64, 256])
@pytest.mark.parametrize("values", [None, (0, 1), (3,)], ids=["distinct", "tied", "equal"])
def test_the_same_border_as_a_partition_by_column(k, values):
    rng = np.random.default_rng(k)
    x = rng.standard_normal((256, 301)) if values is None else rng.choice(values, (256, 301))
    x = x.astype(np.float32)
    np.testing.assert_array_equal(kth_largest_of_columns(x, k), np.sort(x, axis=0)[-k])


def test_a_misleading_sample_changes_nothing():
    """The sample sees only the largest values, so its bound is far too high."""
    flat = np.ones(200_000, dtype=np.float32)
    flat[:: len(flat) // 16_384] = 9
    flat += np.arange(len(flat), dtype=np.float32) * 1e-6
    for count in (100, 30_000, 150_000):
        expected = np.sort(np.argsort(-flat, kind="stable")[:count])
        np.testing.assert_array_equal(largest_of_batch(torch.from_numpy(flat.reshape(1000, 200)), count), expected)


@settings(max_examples=200, deadline=None)
@given(tied, st.integers(0, 50))
def test_ties_are_cut_at_exactly_as_many_as_asked(values, count):
    """A slow twin: sorted by value, then by position, and cut."""
    flat = values.ravel()
    best = [i for i in sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:count] if flat[i] > 0]
    assert largest_of_batch(torch.from_numpy(values), count).tolist() == sorted(best)
    k = max(1, count % 9)
    kept = [
        i * len(row) + j
        for i, row in enumerate(values)
        for j in sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]
        if row[j] > 0
    ]
    assert largest_of_rows(torch.from_numpy(values), k).tolist() == sorted(kept)


def pair(architecture, dtype=torch.float32):
    """Our training dictionary and sae-lens' with the same weights, not tied, norms uneven."""
    rows, _ = planted(2000)
    config = SaeConfig(architecture, expansion=2, k=4, samples=60 * 128, batch_size=128, learning_rate=1e-3)
    sizes = plan(config, rows.shape)
    ours = initialise(sizes, measure(rows))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    theirs = TrainingSAE.from_dict(ours.cfg.to_dict())
    theirs.load_state_dict(ours.state_dict())
    return rows, sizes, ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize("n_dead", [0, 5, 30])
@pytest.mark.parametrize("architecture", [row.name for row in ARCHITECTURES.values() if row.trainer])
def test_losses_and_gradients_are_sae_lens_own(architecture, n_dead):
    """In float64, with no, few, and more dead latents than the auxiliary loss may use."""
    rows, _, ours, theirs = pair(architecture, torch.float64)
    dead = torch.zeros(48, dtype=torch.bool)
    dead[torch.randperm(48, generator=torch.Generator().manual_seed(0))[:n_dead]] = True
    step = TrainStepInput(torch.from_numpy(rows[:200].astype(np.float64)), {}, dead, 0, False)
    mine, reference = ours.training_forward_pass(step), theirs.training_forward_pass(step)
    mine.loss.backward()
    reference.loss.backward()
    assert mine.loss.item() == pytest.approx(reference.loss.item(), rel=1e-10)
    assert torch.allclose(mine.feature_acts.to_dense(), reference.feature_acts) and torch.allclose(
        mine.sae_out, reference.sae_out
    )
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-8, atol=1e-10), name


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "standard", "jumprelu"])
def test_training_follows_plain_sae_lens(architecture):
    """The same batches through SAETrainer: weights, schedules, coefficients and counts of silent steps."""
    rows, sizes, ours, theirs = pair(architecture)
    scale = measure(rows)
    trainer = Trainer(sizes, ours, rows, scale)
    plain = SAETrainer(cfg=trainer_settings(sizes), sae=theirs, data_provider=iter(()))
    plain.activation_scaler.scaling_factor = scale.factor
    batches = order(len(rows), sizes.batch_size, 0)
    for _ in range(sizes.steps):
        trainer.advance()
        plain.step(torch.from_numpy(rows[next(batches)]))
        plain.n_training_steps += 1
    assert trainer.get_coefficients() == plain.get_coefficients()
    assert trainer.lr_scheduler.get_last_lr() == plain.lr_scheduler.get_last_lr()
    assert (trainer.n_forward_passes_since_fired == plain.n_forward_passes_since_fired).float().mean() > 0.95
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item()), name
