"""Training: defaults, starts, orders of rows, controls, interruptions, and invalid arguments."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from sparse_rows import planted, quality

from layerprobe import sae
from layerprobe.errors import ArgumentError
from layerprobe.sae import SaeConfig, _training
from layerprobe.sae._config import default_k, default_learning_rate, plan
from layerprobe.sae._rows import measure
from layerprobe.sae._trainer import hold_directions, initialise
from layerprobe.sae.architectures import ARCHITECTURES

pytestmark = pytest.mark.numerical

SMALL = SaeConfig(expansion=2, k=3, samples=6000, batch_size=250)


def train(rows, folder, config=SMALL, start=None, **changes):
    return sae.train(rows, folder, replace(config, **changes), start=start)


@pytest.fixture(scope="module")
def rows():
    return planted(2000)[0]


class Killed(BaseException):
    """Nothing in training may catch it."""


class Interrupted(np.ndarray):
    """Rows that can be read a few times; whole slices, as before training, don't count."""

    left = 0

    def __getitem__(self, which):
        if isinstance(which, np.ndarray):
            if self.left == 0:
                raise Killed
            self.left -= 1
        return np.asarray(self).__getitem__(which)


def cut(rows, steps):
    interrupted = rows.view(Interrupted)
    interrupted.left = steps
    return interrupted


def weights(folder):
    return (folder / "sae_weights.safetensors").read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_interrupted_training_ends_with_the_same_weights(architecture, rows, tmp_path, monkeypatch):
    train(rows, tmp_path / "whole", architecture=architecture)
    monkeypatch.setattr(_training, "CHECKPOINT_SECONDS", 0)
    for steps in (7, 9):
        with pytest.raises(Killed):
            train(cut(rows, steps), tmp_path / "cut", architecture=architecture)
    with safe_open(tmp_path / "cut" / "training.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["state"])["n_training_steps"] == 16
    train(cut(rows, 9), tmp_path / "cut", architecture=architecture)
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")
    logs = [pd.read_parquet(tmp_path / name / "history.parquet") for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*logs)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [
        "cfg.json",
        "history.parquet",
        "sae_weights.safetensors",
    ]


@pytest.mark.parametrize("spoiled", ["other rows", "other options", "truncated", "flipped", "no checksum"])
def test_a_checkpoint_that_does_not_fit_is_left_aside(spoiled, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(Killed):
        train(cut(rows, 7), tmp_path / "d")
    config = SMALL
    if spoiled == "other rows":
        rows = rows + np.float32(0.1)
    elif spoiled == "other options":
        config = replace(SMALL, learning_rate=1e-4)
    else:
        path = tmp_path / "d" / _training.CHECKPOINT
        content = bytearray(path.read_bytes())
        if spoiled == "truncated":
            path.write_bytes(content[:-100])
        elif spoiled == "flipped":
            content[-20] ^= 64  # of a number, which would be read
            path.write_bytes(content)
        else:
            path.with_name(f"{path.name}.sha256").unlink()
    train(rows, tmp_path / "d", config)
    train(rows, tmp_path / "fresh", config)
    assert weights(tmp_path / "d") == weights(tmp_path / "fresh")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_start_is_taken_up_where_it_was_saved(architecture, rows, tmp_path):
    """Before any step the continued dictionary rebuilds scaled rows as the saved one rebuilds raw ones."""
    config = replace(SMALL, architecture=architecture)
    base = train(rows, tmp_path / "base", config)
    scale = measure(rows * np.float32(1.7))
    begun = initialise(plan(config, rows.shape, base), scale, base).eval()
    # One threshold is not a choice among the batch, so the reconstruction is compared over all latents above it.
    if ARCHITECTURES[architecture].recalibrated:
        x = torch.from_numpy(rows[:1000])
        with torch.no_grad():
            here = ((x * scale.factor - begun.b_dec) @ begun.W_enc + begun.b_enc) * begun.W_dec.norm(dim=1)
            there = (x - base.sae.b_dec) @ base.sae.W_enc + base.sae.b_enc
        torch.testing.assert_close(here, there * scale.factor, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(begun.b_dec.detach(), base.sae.b_dec.detach() * scale.factor)
        return
    with torch.no_grad():
        rebuilt = begun.decode(begun.encode(torch.from_numpy(rows[:1000]) * scale.factor)) / scale.factor
    np.testing.assert_allclose(rebuilt.numpy(), base.sae(torch.from_numpy(rows[:1000])).detach(), atol=2e-4)


def test_a_null_continues_the_same_start_on_other_orders(rows, tmp_path):
    """Dictionaries with one start stay near each other; with the same order they are one; seeds are far apart."""
    base = train(rows, tmp_path / "base")
    one, two = (train(rows, tmp_path / str(order), start=base, seed=9, order_seed=order) for order in (1, 2))
    again = train(rows, tmp_path / "again", start=base, seed=4, order_seed=1)
    other = train(rows, tmp_path / "other", seed=9, order_seed=1)

    def paired(a, b):
        x, y = (d.sae.W_dec.detach().numpy() for d in (a, b))
        return np.mean((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))

    assert torch.equal(one.sae.W_dec, again.sae.W_dec) and not torch.equal(one.sae.W_dec, two.sae.W_dec)
    assert paired(one, two) > 0.8 > 0.4 > paired(one, other)


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_a_frozen_decoder_keeps_its_random_directions(architecture, rows, tmp_path):
    config = replace(SMALL, architecture=architecture, frozen_decoder=True)
    frozen = train(rows, tmp_path / "d", config)
    random = sae.untrained(frozen, rows, config)
    x, y = (d.sae.W_dec.detach().numpy() for d in (frozen, random))
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    assert not torch.allclose(frozen.sae.W_enc, random.sae.W_enc)


def test_a_soft_frozen_decoder_stays_near_its_random_directions(rows, tmp_path):
    config = replace(SMALL, learning_rate=1e-2)
    held = train(rows, tmp_path / "held", config, least_cosine=0.8)
    free = train(rows, tmp_path / "free", config)
    start = sae.untrained(held, rows, config)
    cosines = [torch.cosine_similarity(one.decoder, start.decoder, dim=1) for one in (held, free)]
    assert cosines[0].min() >= 0.8 - 1e-4 and cosines[1].min() < 0.7
    assert ((cosines[0] - 0.8).abs() < 1e-3).any()  # some would have gone on


def test_directions_are_turned_back_no_further_than_needed():
    torch.manual_seed(0)
    start = torch.nn.functional.normalize(torch.randn(50, 6, dtype=torch.float64), dim=1)
    rows = 3 * start + 4 * torch.randn(50, 6, dtype=torch.float64)
    before = rows.clone()
    hold_directions(rows, start, 0.8)
    cosine, earlier = (torch.cosine_similarity(one, start, dim=1) for one in (rows, before))
    near = earlier >= 0.8
    assert 0 < near.sum() < 50 and torch.equal(rows[near], before[near])
    torch.testing.assert_close(cosine[~near], torch.full_like(cosine[~near], 0.8))
    torch.testing.assert_close(rows.norm(dim=1), before.norm(dim=1))
    # The nearest such direction lies in the plane of the start and the row.
    planes = torch.stack([rows, before, start], dim=1)[~near]
    assert torch.linalg.svdvals(planes)[:, 2].max() < 1e-9


@pytest.mark.parametrize("architecture", ["topk", "gated"])
def test_a_frozen_encoder_keeps_its_random_weights(architecture, rows, tmp_path):
    config = replace(SMALL, architecture=architecture, frozen_encoder=True)
    frozen = train(rows, tmp_path / "d", config)
    random = sae.untrained(frozen, rows, config)
    x, y = (torch.nn.functional.normalize(d.sae.W_enc.detach(), dim=0) for d in (frozen, random))
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(frozen.decoder, random.decoder, atol=1e-2)


def test_frozen_directions_explain_more_than_none_trained_and_less_than_all(tmp_path):
    rows, _ = planted(4000)
    config = replace(SMALL, samples=40_000)
    full = train(rows, tmp_path / "full", config)
    dictionaries = {
        "full": full,
        "frozen": train(rows, tmp_path / "frozen", config, frozen_decoder=True),
        "untrained": sae.untrained(full, rows, config),
    }
    variances = {name: quality(d, rows).explained_variance for name, d in dictionaries.items()}
    assert variances["full"] > variances["frozen"] + 0.1 > variances["untrained"] + 0.2


def test_training_leaves_torch_as_it_was(rows, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(rows, tmp_path / "d")
    assert torch.equal(before, torch.get_rng_state())


def test_defaults_follow_width_and_rows():
    def sizes(n, d, **options):
        return plan(SaeConfig(**options), (n, d))

    usual = sizes(60_000, 384)
    assert (usual.d_sae, usual.k, usual.learning_rate) == (1536, 32, 3e-3)
    assert sizes(60_000, 768).k == 64
    assert sizes(1000, 384).d_sae == 500
    assert sizes(60_000, 384, expansion=8).learning_rate < usual.learning_rate < sizes(60_000, 96).learning_rate <= 1e-2
    assert usual.steps == 4 * 60_000 // 1024
    assert sizes(13_000, 384).steps == 200
    assert sizes(1600, 384).steps == 32 * 1600 // 1024
    assert default_k(8, 1) == 1 and default_learning_rate(1) == 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 49}, r"k is 49, but the dictionary has 48 latents .* from 1 to 48"),
        ({"k": 0}, r"k is 0, .* 48 latents"),
        ({"expansion": 0}, r"expansion is 0, .* no latent with 24 features; raise it to at least 0\.0417"),
        ({"expansion": 100}, r"2000 rows, .* 2400 latents needs at least 2400.*expansion to at most 83\.3"),
        ({"architecture": "dense"}, "'dense'; the architectures are topk"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0"),
        ({"learning_rate": 1e30}, "diverged"),
    ],
)
def test_mistakes_are_named(options, message, rows, tmp_path):
    with pytest.raises(ArgumentError, match=message) as caught:
        train(rows, tmp_path / "d", **options)
    assert not (tmp_path / "d" / "cfg.json").exists()
    assert set(options) & set(caught.value.arguments)
    (name,) = options
    assert f"sae.{name}" in caught.value.with_names({name: f"sae.{name}"})


def test_starts_that_do_not_fit_are_named(rows, tmp_path):
    base = train(rows, tmp_path / "base")
    with pytest.raises(ArgumentError, match="saved as topk, so a batchtopk dictionary cannot start from it"):
        train(rows, tmp_path / "d", start=base, architecture="batchtopk")
    with pytest.raises(ArgumentError, match="rows has 20 features, but start takes 24"):
        train(rows[:, :20], tmp_path / "d", start=base)
    with pytest.raises(ArgumentError, match="gives 72 latents, but start has 48"):
        train(rows, tmp_path / "d", start=base, expansion=3)
    with pytest.raises(ArgumentError, match=r"shape \(1, 24\)"):
        train(rows[:1], tmp_path / "d")
    with pytest.raises(ArgumentError, match="takes rows of 24 features"):
        sae.untrained(base, rows[:, :5], SMALL)


def test_training_reports_every_step(rows, tmp_path):
    from layerprobe import progress

    reports = []
    with progress.reporting(lambda label, done, total: reports.append((label, done, total))):
        sae.train(rows, tmp_path / "d", SMALL)
    steps = [report for report in reports if report[0] == "training a sparse autoencoder"]
    assert [done for _, done, _ in steps] == list(range(24)) and {total for *_, total in steps} == {24}
