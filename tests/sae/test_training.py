"""Training: defaults, starts, orders, several at once, interruptions, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from sparse_rows import planted

from layerprobe import sae
from layerprobe.errors import StudyError
from layerprobe.sae import _checkpoint, _training
from layerprobe.sae._recipe import default_k, default_learning_rate, recipe
from layerprobe.sae._rows import measure
from layerprobe.sae._trainer import started

pytestmark = pytest.mark.numerical

SMALL = {"expansion": 2, "k": 3, "samples": 6000, "batch_size": 250, "progress": False}
ARCHITECTURES = ["topk", "batchtopk", "matryoshka_batchtopk", "standard", "gated", "jumprelu"]


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
    made = rows.view(Interrupted)
    made.left = steps
    return made


def weights(folder):
    return (folder / "sae_weights.safetensors").read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_interrupted_training_ends_with_the_same_weights(architecture, rows, tmp_path, monkeypatch):
    options = {**SMALL, "architecture": architecture}
    sae.train(rows, tmp_path / "whole", **options)
    monkeypatch.setattr(_training, "CHECKPOINT_SECONDS", 0)
    for steps in (7, 9):
        with pytest.raises(Killed):
            sae.train(cut(rows, steps), tmp_path / "cut", **options)
    with safe_open(tmp_path / "cut" / "training.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["state"])["n_training_steps"] == 16
    sae.train(cut(rows, 9), tmp_path / "cut", **options)
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")
    logs = [pd.read_parquet(tmp_path / name / "history.parquet") for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*logs)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [
        "cfg.json",
        "history.parquet",
        "sae_weights.safetensors",
    ]


@pytest.mark.parametrize("spoiled", ["other rows", "other options", "damaged"])
def test_a_checkpoint_that_does_not_fit_is_left_aside(spoiled, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(_training, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(Killed):
        sae.train(cut(rows, 7), tmp_path / "d", **SMALL)
    asked, options = rows, dict(SMALL)
    if spoiled == "other rows":
        asked = rows + np.float32(0.1)
    elif spoiled == "other options":
        options["learning_rate"] = 1e-4
    else:
        path = tmp_path / "d" / _checkpoint.CHECKPOINT
        path.write_bytes(path.read_bytes()[:-100])
    sae.train(asked, tmp_path / "d", **options)
    sae.train(asked, tmp_path / "fresh", **options)
    assert weights(tmp_path / "d") == weights(tmp_path / "fresh")


def test_one_pass_gives_what_each_alone_gives(rows, tmp_path):
    several = {"base": rows, "adapted": rows[:1500] * np.float32(1.5)}
    folders = {name: tmp_path / name for name in several}
    base = sae.train(rows, tmp_path / "start", **SMALL)
    made = sae.train_many(several, folders, start={"adapted": base}, **SMALL)
    assert list(made) == ["base", "adapted"]
    sae.train(several["adapted"], tmp_path / "alone", start=base, **SMALL)
    assert weights(tmp_path / "base") == weights(tmp_path / "start")
    assert weights(tmp_path / "adapted") == weights(tmp_path / "alone")
    with pytest.raises(StudyError, match="'adapted' is alone"):
        sae.train_many(several, {"base": tmp_path}, **SMALL)
    with pytest.raises(StudyError, match="'other' is alone"):
        sae.train_many(several, folders, start={"other": base}, **SMALL)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_start_is_taken_up_where_it_was_saved(architecture, rows, tmp_path):
    """Before any step the continued dictionary rebuilds scaled rows as the saved one rebuilds raw ones."""
    base = sae.train(rows, tmp_path / "base", architecture=architecture, **SMALL)
    options = {key: value for key, value in SMALL.items() if key != "progress"}
    made = recipe(rows.shape, architecture=architecture, learning_rate=None, start=base, **options)
    scale = measure(rows * np.float32(1.7))
    begun = started(made, scale, seed=5, start=base).eval()
    # One threshold is not a choice among the batch, so the reconstruction is compared over all latents above it.
    if architecture.endswith("batchtopk"):
        x = torch.from_numpy(rows[:1000])
        with torch.no_grad():
            here = ((x * scale.factor - begun.b_dec) @ begun.W_enc + begun.b_enc) * begun.W_dec.norm(dim=1)
            there = (x - base.sae.b_dec) @ base.sae.W_enc + base.sae.b_enc
        torch.testing.assert_close(here, there * scale.factor, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(begun.b_dec.detach(), base.sae.b_dec.detach() * scale.factor)
        return
    with torch.no_grad():
        rebuilt = begun.decode(begun.encode(torch.from_numpy(rows[:1000]) * scale.factor)) / scale.factor
    np.testing.assert_allclose(rebuilt.numpy(), base.decode(base.encode(rows[:1000])), atol=2e-4)


def test_a_null_continues_the_same_start_on_other_orders(rows, tmp_path):
    """Dictionaries with one start stay near each other; with the same order they are one; seeds are far apart."""
    base = sae.train(rows, tmp_path / "base", **SMALL)
    one, two = (
        sae.train(rows, tmp_path / str(order), start=base, seed=9, order_seed=order, **SMALL) for order in (1, 2)
    )
    again = sae.train(rows, tmp_path / "again", start=base, seed=4, order_seed=1, **SMALL)
    other = sae.train(rows, tmp_path / "other", seed=9, order_seed=1, **SMALL)

    def paired(a, b):
        x, y = (d.sae.W_dec.detach().numpy() for d in (a, b))
        return np.mean((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))

    assert torch.equal(one.sae.W_dec, again.sae.W_dec) and not torch.equal(one.sae.W_dec, two.sae.W_dec)
    assert paired(one, two) > 0.8 > 0.4 > paired(one, other)


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_a_frozen_decoder_keeps_its_random_directions(architecture, rows, tmp_path):
    options = {**SMALL, "architecture": architecture}
    frozen = sae.train(rows, tmp_path / "d", frozen_decoder=True, **options)
    random = sae.untrained(frozen, rows, architecture=architecture, k=3, seed=0)
    x, y = (d.sae.W_dec.detach().numpy() for d in (frozen, random))
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    assert not torch.allclose(frozen.sae.W_enc, random.sae.W_enc)


def test_frozen_directions_explain_more_than_none_trained_and_less_than_all(tmp_path):
    rows, _ = planted(4000)
    options = {**SMALL, "samples": 40_000}
    full = sae.train(rows, tmp_path / "full", **options)
    made = {
        "full": full,
        "frozen": sae.train(rows, tmp_path / "frozen", frozen_decoder=True, **options),
        "untrained": sae.untrained(full, rows, architecture="topk", k=3, seed=0),
    }
    found = {
        name: sae.evaluate(d, rows, np.arange(4000), progress=False).explained_variance for name, d in made.items()
    }
    assert found["full"] > found["frozen"] + 0.1 > found["untrained"] + 0.2


def test_training_leaves_torch_as_it_was(rows, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sae.train(rows, tmp_path / "d", **SMALL)
    assert torch.equal(before, torch.get_rng_state())


def test_defaults_follow_width_and_rows():
    def made(n, d, **options):
        asked = {"expansion": None, "k": None, "samples": None, "learning_rate": None, **options}
        return recipe((n, d), architecture="topk", batch_size=1024, **asked)

    usual = made(60_000, 384)
    assert (usual.d_sae, usual.k, usual.learning_rate) == (1536, 32, 3e-3)
    assert made(60_000, 768).k == 64
    assert made(1000, 384).d_sae == 500
    assert made(60_000, 384, expansion=8).learning_rate < usual.learning_rate < made(60_000, 96).learning_rate <= 1e-2
    assert usual.steps == 4 * 60_000 // 1024
    assert made(13_000, 384).steps == 200
    assert made(1600, 384).steps == 32 * 1600 // 1024
    assert default_k(8, 1) == 1 and default_learning_rate(1) == 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 49}, r"sae\.k = 49 of 48 latents .* from 1 to 48"),
        ({"k": 0}, r"sae\.k = 0 of 48"),
        ({"expansion": 0}, r"sae\.expansion = 0 of 24 features leaves no latent; raise it to at least 0\.0417"),
        ({"expansion": 100}, r"2400 latents was given 2000 rows.*needs at least 2400 rows.*at most 83\.3"),
        ({"architecture": "dense"}, "'dense'; the architectures are topk"),
        ({"learning_rate": -1.0}, r"learning_rate = -1\.0"),
        ({"learning_rate": 1e30}, "diverged"),
    ],
)
def test_mistakes_are_named(options, message, rows, tmp_path):
    with pytest.raises(StudyError, match=message):
        sae.train(rows, tmp_path / "d", **{**SMALL, **options})
    assert not (tmp_path / "d" / "cfg.json").exists()


def test_starts_that_do_not_fit_are_named(rows, tmp_path):
    base = sae.train(rows, tmp_path / "base", **SMALL)
    with pytest.raises(StudyError, match="batchtopk dictionary cannot start from one that is saved as topk"):
        sae.train(rows, tmp_path / "d", start=base, **{**SMALL, "architecture": "batchtopk"})
    with pytest.raises(StudyError, match="rows are 20 wide, the dictionary to start from takes 24"):
        sae.train(rows[:, :20], tmp_path / "d", start=base, **SMALL)
    with pytest.raises(StudyError, match="asks for 72 latents, the dictionary to start from has 48"):
        sae.train(rows, tmp_path / "d", start=base, **{**SMALL, "expansion": 3})
    with pytest.raises(StudyError, match=r"shape \(1, 24\)"):
        sae.train(rows[:1], tmp_path / "d", **SMALL)
    with pytest.raises(StudyError, match="takes 24 wide"):
        sae.untrained(base, rows[:, :5], architecture="topk", k=3, seed=0)


def test_the_bar_tells_how_it_goes(rows, tmp_path, capsys, monkeypatch):
    import tqdm as bars

    monkeypatch.setattr(
        _training, "tqdm", lambda **options: bars.tqdm(**{**options, "delay": 0, "leave": True, "mininterval": 0})
    )
    sae.train(rows, tmp_path / "d", **{**SMALL, "progress": True})
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("loss", "EV", "L0 3.0", "dead", "24/24"))
