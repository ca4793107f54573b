"""Crosscoders: planted features identified, equal sides equal, rotated sides rotated, gradients and census as defined."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sparse_rows import at_median_ratio

from layerprobe import sae
from layerprobe.errors import ArgumentError, MeasureError, StorageError
from layerprobe.sae import Crosscoder, CrosscoderConfig, crosscoder
from layerprobe.sae._sparse import Weights
from layerprobe.sae.crosscoder import AUXILIARY, loss
from layerprobe.stats import assign_folds

pytestmark = pytest.mark.numerical

KINDS = np.array(["shared"] * 16 + ["base_only"] * 4 + ["adapted_only"] * 4 + ["rotated"] * 4)
MEASURED = ["delta", "delta_centred", "nu_error", "nu_reconstruction", "cosine", "firing_rate", "energy_share"]
TESTED = ["nu_error_low", "nu_error_high", "nu_statistic", "p_exclusive"]


def planted(n=12_000, d=32, rate=0.08, seed=0):
    """Two sides' rows of 28 sparse features of four kinds, around different means, and the features' activations."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((28, 2, d))
    directions[:16, 1] = directions[:16, 0]
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    directions[KINDS == "base_only", 1] = 0
    directions[KINDS == "adapted_only", 0] = 0
    codes = np.where(rng.random((n, 28)) < rate, rng.uniform(0.5, 1.5, (n, 28)), 0)
    rows = np.einsum("nf,fsd->snd", codes, directions) + 0.05 * rng.standard_normal((2, n, d))
    rows += rng.standard_normal((2, 1, d)) * [[[1.0]], [[3.0]]]
    return rows[0].astype(np.float32), 2 * rows[1].astype(np.float32), codes


def best_latents(codes, activations):
    """Latent whose activation correlates best with each planted feature's, and that correlation."""
    z = (activations - activations.mean(0)) / np.maximum(activations.std(0), 1e-9)
    correlations = ((codes - codes.mean(0)) / codes.std(0)).T @ z / len(codes)
    return correlations.argmax(1), correlations.max(1)


def train(base, adapted, **options):
    config = CrosscoderConfig(**{"d_sae": 48, "k": 2, "steps": 500, **options})
    return crosscoder.train(base, adapted, config)


def census(trained, base, adapted):
    return sae.census(trained, base, adapted, trained.encode(base, adapted))


def variance(trained, base, adapted):
    return trained.explained_variance(base, adapted, trained.encode(base, adapted))


def dense(trained, base, adapted):
    return trained.encode(base, adapted).toarray()


@pytest.fixture(scope="module")
def sides():
    return planted()


@pytest.fixture(scope="module")
def trained(sides):
    return train(*sides[:2])


@pytest.fixture(scope="module")
def table(trained, sides):
    return census(trained, *sides[:2])


def test_planted_features_are_found_and_named(trained, table, sides):
    base, adapted, codes = sides
    latents, correlations = best_latents(codes, dense(trained, base, adapted))
    named = np.where(correlations > 0.7, table["kind"].to_numpy()[latents], "none")
    unrotated = KINDS != "rotated"
    assert (named == KINDS)[unrotated].sum() >= 22
    assert (named == KINDS)[~unrotated].sum() >= 3
    exclusive = table["latent"][table["kind"].isin(["base_only", "adapted_only"])]
    assert len(set(exclusive) - set(latents[16:24])) <= 1
    assert set(table.columns) == {"latent", *MEASURED, *TESTED, "kind"}
    assert set(table["kind"]) <= {"shared", "amplified", "shifted", "rotated", "base_only", "adapted_only", "dead"}
    assert (variance(trained, base, adapted) > 0.9).all()


def test_features_of_one_side_are_found_at_half_a_percent():
    base, adapted, codes = planted(n=20_000, rate=0.005)
    trained = train(base, adapted, k=0.14, steps=600)
    latents, correlations = best_latents(codes, dense(trained, base, adapted))
    named = np.where(correlations > 0.7, census(trained, base, adapted)["kind"].to_numpy()[latents], "none")
    assert (named == KINDS)[16:24].sum() >= 6


def test_swapping_the_sides_swaps_the_census(sides):
    base, adapted, _ = sides
    options = {"steps": 150, "d_sae": 40}
    one, other = train(base, adapted, **options), train(adapted, base, **options)
    there, back = census(one, base, adapted), census(other, adapted, base)
    mirrored = there["kind"].replace({"base_only": "adapted_only", "adapted_only": "base_only"})
    assert (mirrored == back["kind"]).mean() > 0.9
    assert {"base_only", "adapted_only"} <= set(there["kind"])
    live = (there["kind"] != "dead") & (back["kind"] != "dead")
    np.testing.assert_allclose(there["delta"][live], 1 - back["delta"][live], atol=0.05)


def test_equal_sides_have_no_exclusive_latent(sides):
    base = sides[0]
    trained = train(base, base, steps=200, k=3.5)
    table = census(trained, base, base)
    assert set(table["kind"]) <= {"shared", "dead"}
    live = table[table["kind"] != "dead"]
    assert live["nu_error"].notna().sum() >= 20
    for column, value in {"delta": 0.5, "nu_error": 1, "nu_reconstruction": 1, "cosine": 1}.items():
        # A ratio is undefined where the rows of a latent's dominant side do not hold its direction.
        np.testing.assert_allclose(live[column].dropna(), value, atol=1e-6)


def test_a_rotated_side_has_rotated_latents_and_none_of_its_own(sides):
    base, _, codes = sides
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((32, 32)))[0].astype(np.float32)
    trained = train(base, base @ rotation)
    table = census(trained, base, base @ rotation)
    latents, correlations = best_latents(codes[:, :20], dense(trained, base, base @ rotation))
    assert (table["kind"].to_numpy()[latents[correlations > 0.7]] == "rotated").all()
    assert (correlations > 0.7).sum() >= 18
    assert not set(table["kind"]) & {"base_only", "adapted_only"}


def slow_census(joint, base, adapted, median=None):
    """The definitions written out latent by latent, over dense reconstructions in float64."""
    f = dense(joint, base, adapted).astype(np.float64)
    sides = [(x.astype(np.float64) - m) / s for x, m, s in zip((base, adapted), joint.means, joint.scales, strict=True)]
    parts = [f @ joint.decoder[:, s].astype(np.float64) for s in (0, 1)]
    whole = np.concatenate(parts, axis=1)
    sizes = np.linalg.norm(joint.decoder.astype(np.float64), axis=2)
    # One number for the whole table, also where rows are left out.
    median = median_ratio(sizes, (f > 0).sum(0)) if median is None else median
    rows = []
    for j in range(joint.d_sae):
        d_base, d_adapted = joint.decoder[j].astype(np.float64)
        lengths = np.linalg.norm(d_base), np.linalg.norm(d_adapted)
        dominant = int(lengths[1] / median > lengths[0])
        d = (d_base, d_adapted)[dominant]
        nu = []
        for target in ("error", "reconstruction"):
            betas = []
            for s in (0, 1):
                y = parts[s]
                if target == "error":
                    y = sides[s] - (parts[s] + joint.decoder_bias[s]) + np.outer(f[:, j], (d_base, d_adapted)[s])
                beta = (f[:, j] * (y @ d)).sum() / (f[:, j] ** 2).sum() / (d @ d)
                betas.append(beta / (1, median)[s])
            nu.append(betas[1 - dominant] / betas[dominant] if betas[dominant] > 0 else np.nan)
        part = np.outer(f[:, j], np.concatenate([d_base, d_adapted]))
        share = ((part - part.mean(0)) * (whole - whole.mean(0))).sum() / ((whole - whole.mean(0)) ** 2).sum()
        shorter = lengths[0], lengths[1] / median
        deltas = [0.5 * (1 + (one[1] - one[0]) / max(one)) for one in (lengths, shorter)]
        cosine = d_base @ d_adapted / lengths[0] / lengths[1]
        rows.append([*deltas, *nu, cosine, (f[:, j] > 0).mean(), share])
    return np.array(rows)


def median_ratio(norms, active):
    """Median ratio of the two norms, each latent repeated as often as it is active."""
    both = active > 0
    return np.exp(np.median(np.repeat(np.log(norms[both, 1] / norms[both, 0]), active[both])))


def test_census_follows_its_definition(sides):
    base, adapted, _ = sides
    joint = train(base[:3000], adapted[:3000], steps=40, k=3, d_sae=24)
    joint = replace(joint, decoder_bias=joint.decoder_bias + 0.1)
    table = census(joint, base[3000:9000], adapted[3000:9000])
    live = (table["kind"] != "dead").to_numpy()
    live = live & ~at_median_ratio(joint, joint.encode(base[3000:9000], adapted[3000:9000]))
    assert live.sum() > 10
    with np.errstate(all="ignore"):
        expected = slow_census(joint, base[3000:9000], adapted[3000:9000])
    np.testing.assert_allclose(table[MEASURED].to_numpy()[live], expected[live], rtol=1e-5, atol=1e-6)
    assert table["energy_share"].sum() == pytest.approx(1)


def test_intervals_of_latent_scaling_leave_out_whole_examples(sides):
    """Twin: the definitions on the rows that each fold leaves, then Student's t."""
    base, adapted, _ = sides
    joint, rows = train(base[:3000], adapted[:3000], steps=40, k=3, d_sae=24), slice(3000, 5000)
    groups = np.arange(2000) // 5
    table = sae.census(joint, base[rows], adapted[rows], joint.encode(base[rows], adapted[rows]), groups)
    live = (table["kind"] != "dead") & ~at_median_ratio(joint, joint.encode(base[rows], adapted[rows]))
    sizes = np.linalg.norm(joint.decoder.astype(np.float64), axis=2)
    median = median_ratio(sizes, np.diff(joint.encode(base[rows], adapted[rows]).indptr))
    folds = assign_folds(400, 20, seed=0)[groups]
    with np.errstate(all="ignore"):
        left_out = np.stack(
            [
                slow_census(joint, base[rows][folds != one], adapted[rows][folds != one], median)[:, 2]
                for one in range(20)
            ]
        )
    error = np.sqrt(19 / 20 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    statistic = (table["nu_error"] - 0.1) / error
    np.testing.assert_allclose(table["nu_statistic"][live], statistic[live], rtol=1e-4)
    np.testing.assert_allclose(table["p_exclusive"][live], stats.t.cdf(statistic, 19)[live], rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose((table["nu_error_high"] - table["nu_error"])[live], 2.093 * error[live], rtol=1e-3)
    apart = sae.census(joint, base[rows], adapted[rows], joint.encode(base[rows], adapted[rows]))
    assert not np.allclose(apart["nu_error_high"][live], table["nu_error_high"][live])


def hand_made(decoder, k=1.0):
    """A crosscoder whose latent i fires on coordinate i of the base rows, and writes as given."""
    decoder = np.array(decoder, dtype=np.float32)
    m, _, d = decoder.shape
    encoder = np.zeros((m, 2, d), dtype=np.float32)
    encoder[np.arange(m), 0, np.arange(m)] = 1
    zeros = np.zeros((2, d), dtype=np.float32)
    return Crosscoder(encoder, np.zeros(m, np.float32), decoder, zeros, zeros, np.ones(2, np.float32), 1e-6, k)


def test_latent_scaling_overrules_norms_and_knows_its_sides():
    """Latent 0 is base's alone though its norms are uneven only by .7; 1 seems base's by norms, but adapted has it."""
    eye = np.eye(9)
    base = np.abs(np.random.default_rng(0).standard_normal((400, 9))).astype(np.float32)
    base[:, 4:6] = 0
    adapted = base * np.float32([0, 1, 1, 0, 0, 0, 1, 0.25, 1])
    adapted[:, 4] = base[:, 3]
    decoder = [[eye[i], eye[i]] for i in range(9)]
    decoder[0], decoder[1], decoder[3] = [eye[0], 0.7 * eye[5]], [eye[1], 1e-3 * eye[1]], [eye[3], eye[4]]
    decoder[7] = [eye[7], 0.25 * eye[7]]
    kinds = ["base_only", "shifted", "shared", "rotated", "dead", "dead", "shared", "amplified", "shared"]
    live, expected = [0, 1, 2, 3, 6, 7, 8], {"nu_error": [0, 1, 1, 0, 1, 0.25, 1]}
    expected |= {"nu_reconstruction": [0, 1e-3, 1, 0, 1, 0.25, 1], "delta": [0.35, 0.0005, 0.5, 0.5, 0.5, 0.125, 0.5]}
    table = census(hand_made(decoder), base, adapted)
    assert list(table["kind"]) == kinds
    for column, values in expected.items():
        np.testing.assert_allclose(table[column][live], values, atol=1e-6)
    np.testing.assert_allclose(table["delta_centred"], table["delta"], atol=1e-6)  # the median latent is shared
    swapped = census(
        replace(
            hand_made(np.array(decoder)[:, ::-1]),
            encoder=np.ascontiguousarray(hand_made(decoder).encoder[:, ::-1]),
        ),
        adapted,
        base,
    )
    assert list(swapped["kind"]) == ["adapted_only", *kinds[1:]]
    np.testing.assert_allclose(swapped["delta"][live], 1 - np.array(expected["delta"]), atol=1e-6)


def test_a_side_that_is_weaker_as_a_whole_is_recentred():
    """All but one latent write half as much on adapted: those are the shared ones, and the other is amplified."""
    eye = np.eye(7)
    base = np.abs(np.random.default_rng(0).standard_normal((400, 7))).astype(np.float32)
    adapted = base * np.float32([0.5] * 6 + [3])
    decoder = [[eye[i], (3 if i == 6 else 0.5) * eye[i]] for i in range(7)]
    table = census(hand_made(decoder), base, adapted)
    assert list(table["kind"]) == ["shared"] * 6 + ["amplified"]
    np.testing.assert_allclose(table["delta"], [0.25] * 6 + [5 / 6], atol=1e-6)
    np.testing.assert_allclose(table["delta_centred"], [0.5] * 6 + [11 / 12], atol=1e-6)
    np.testing.assert_allclose(table["nu_error"], [1] * 6 + [1 / 6], atol=1e-6)


def test_silent_latents_are_dead_and_undefined():
    joint = hand_made([[[1, 0], [1, 0]], [[0, 1], [0, 1]]])
    rows = np.float32([[1, -1], [2, -3], [3, -2]])
    table = census(joint, rows, rows)
    assert list(table["kind"]) == ["shared", "dead"]
    assert list(table["firing_rate"]) == [1, 0]
    assert np.isnan(table["nu_error"][1]) and table["energy_share"][1] == 0


@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize("n_dead", [0, 8])
def test_gradients_are_those_of_dense_automatic_differentiation(penalty, n_dead):
    rng = np.random.default_rng(0)
    m, d_sae, d, k = 64, 40, 12, 2.5
    start = [torch.from_numpy(rng.standard_normal(s)) for s in ((2 * d, d_sae), d_sae, (d_sae, 2 * d), 2 * d)]
    x = torch.from_numpy(rng.standard_normal((m, 2 * d)))
    weights = Weights(*(value.clone().requires_grad_() for value in start))
    mine, fired = loss(weights, x, CrosscoderConfig(k=k, penalty=penalty), torch.arange(d_sae) < n_dead)
    mine.backward()
    encoder, bias, decoder, decoder_bias = parameters = [value.requires_grad_() for value in start]
    norms = decoder.view(d_sae, 2, d).norm(dim=2).sum(1)
    hidden = x @ encoder + bias
    kept = torch.zeros(m * d_sae, dtype=torch.bool)
    kept[torch.topk((hidden * norms).relu().flatten(), round(k * m)).indices] = True
    codes = torch.where(kept.view(m, d_sae), hidden, 0)
    miss = x - codes @ decoder - decoder_bias
    total = (miss**2).sum(1).mean() + penalty * (codes * norms).sum(1).mean()
    if n_dead:
        tops = torch.topk(hidden[:, :n_dead].relu(), 2 * d // 4)
        revived = torch.zeros(m, n_dead, dtype=x.dtype).scatter(1, tops.indices, tops.values)
        total = total + AUXILIARY * ((miss.detach() - revived @ decoder[:n_dead]) ** 2).sum(1).mean()
    total.backward()
    assert mine.item() == pytest.approx(total.item(), rel=1e-10)
    for one, other in zip(weights, parameters, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)
    assert torch.equal(fired, (codes > 0).any(0))


@pytest.mark.parametrize("k", [0.5, 2, 3.3])
def test_k_latents_are_active_on_average(sides, k):
    base, adapted, _ = sides
    trained = train(base[:4000], adapted[:4000], steps=30, k=k)
    assert trained.encode(base[:4000], adapted[:4000]).nnz / 4000 == pytest.approx(k, abs=1e-3)


def test_equal_seeds_give_equal_crosscoders(sides):
    base, adapted, _ = sides
    one, same, other = (train(base, adapted, steps=20, seed=seed) for seed in (0, 0, 1))
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert not np.array_equal(one.decoder, other.decoder)


def test_sides_are_scaled_alike_and_rebuilt_in_their_own_units(trained, sides):
    base, adapted, _ = sides
    for side, rows in enumerate((base, adapted)):
        np.testing.assert_allclose(trained.means[side], rows.mean(0, dtype=np.float64), atol=1e-5)
        assert trained.scales[side] == pytest.approx(np.sqrt(rows.var(0, dtype=np.float64).sum()), rel=1e-5)
    rebuilt = np.einsum("nm,msd->nsd", dense(trained, base, adapted), trained.decoder) + trained.decoder_bias
    rebuilt = rebuilt * trained.scales[:, None] + trained.means
    for side, (rows, value) in enumerate(zip((base, adapted), variance(trained, base, adapted), strict=True)):
        residual = ((rows - rebuilt[:, side]) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()
        assert value == pytest.approx(1 - residual, abs=1e-5)
    assert trained.decoder.shape == (48, 2, 32)


def test_memory_mapped_half_precision_rows_are_read_as_they_are(sides, tmp_path):
    mapped = []
    for name, rows in zip(("base", "adapted"), sides, strict=False):
        np.save(tmp_path / f"{name}.npy", rows[:2000].astype(np.float16))
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    plain = [np.asarray(rows, dtype=np.float32) for rows in mapped]
    np.testing.assert_array_equal(train(*mapped, steps=5).decoder, train(*plain, steps=5).decoder)


def test_saved_crosscoders_come_back_whole(trained, sides, tmp_path):
    trained.save(tmp_path / "a" / "b")
    again = Crosscoder.load(tmp_path / "a" / "b")
    np.testing.assert_array_equal(dense(again, *sides[:2]), dense(trained, *sides[:2]))
    assert (again.k, again.threshold) == (trained.k, trained.threshold)
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"crosscoder.json", "crosscoder.safetensors"}


def test_damaged_crosscoders_are_refused(trained, tmp_path):
    with pytest.raises(StorageError, match="has no crosscoder"):
        Crosscoder.load(tmp_path)
    trained.save(tmp_path)
    weights, config_file = tmp_path / "crosscoder.safetensors", tmp_path / "crosscoder.json"
    whole, settings = weights.read_bytes(), json.loads(config_file.read_text())
    weights.write_bytes(whole[:-100])
    with pytest.raises(StorageError, match="cannot be read"):
        Crosscoder.load(tmp_path)
    weights.write_bytes(whole)
    for wrong in ({**settings, "d_in": 31}, {**settings, "format": "other"}, {"k": 1}):
        config_file.write_text(json.dumps(wrong))
        with pytest.raises(StorageError, match="train it again"):
            Crosscoder.load(tmp_path)
    config_file.write_text("{")
    with pytest.raises(StorageError, match="cannot be read"):
        Crosscoder.load(tmp_path)


ROWS = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_sae": 0}, "d_sae is 0"),
        ({"k": 49}, "k is 49, .* at most 48"),
        ({"k": 0}, "k is 0"),
        ({"d_sae": 100, "k": 2}, "60 rows; it needs at least 100"),
        ({"steps": 0}, "steps is 0"),
        ({"penalty": -1.0}, "penalty is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        train(ROWS, ROWS, **options)


@pytest.mark.parametrize(
    ("base", "adapted", "message"),
    [
        (ROWS, ROWS[:50], r"\(60, 8\) and adapted_rows \(50, 8\)"),
        (ROWS, ROWS[:, :7], r"\(60, 7\)"),
        (ROWS[0], ROWS[0], r"two matrices"),
        (ROWS, np.where(np.arange(60)[:, None] == 7, np.nan, ROWS), "first in row 7 of the adapted side"),
        (np.full_like(ROWS, 1 / 3), ROWS, "base side that do not vary"),
        (np.float32([[0.1] * 8] * 60), ROWS, "do not vary"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(base, adapted, message):
    with pytest.raises(MeasureError, match=message):
        train(base, adapted)


def test_a_crosscoder_refuses_rows_that_are_not_its_own(trained, sides):
    base, adapted, _ = sides
    with pytest.raises(MeasureError, match="takes 32 features per side"):
        trained.encode(ROWS, ROWS)
    with pytest.raises(MeasureError, match="same tokens"):
        trained.encode(base[:10], adapted[:9])
    with pytest.raises(MeasureError, match="first in row 1"):
        trained.encode(np.where(np.arange(3)[:, None] > 0, np.inf, base[:3]), adapted[:3])
    codes = trained.encode(base[:10], adapted[:10])
    for call in (trained.explained_variance, lambda *rest: sae.census(trained, *rest)):
        with pytest.raises(MeasureError, match="same tokens"):
            call(base[:10], adapted[:9], codes)
        with pytest.raises(MeasureError, match=r"codes has shape \(10, 48\), but there are 9 rows"):
            call(base[:9], adapted[:9], codes)
    with pytest.raises(MeasureError, match="no rows"):
        sae.census(trained, base[:0], adapted[:0], codes[:0])
    with pytest.raises(MeasureError, match="1 rows were given"):
        trained.explained_variance(base[:1], adapted[:1], codes[:1])


def test_the_submodule_is_an_attribute_of_the_package():
    assert sae.crosscoder is crosscoder and sae.Crosscoder is Crosscoder
    assert {"Crosscoder", "CrosscoderConfig", "census", "crosscoder"} <= set(sae.__all__)
