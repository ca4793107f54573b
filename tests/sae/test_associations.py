"""Associations of latents: AUROC, p and FDR against other libraries and slow twins, planted latents, permuted labels."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array
from scipy.stats import false_discovery_control, hypergeom, mannwhitneyu, norm, pearson3, rankdata
from sklearn.metrics import mutual_info_score, roc_auc_score

from layerprobe import sae
from layerprobe.errors import MeasureError
from layerprobe.sae import _labels
from layerprobe.stats import length_strata, permuted_labels


def texts(lengths, seed=0):
    """A table of tokens: words drawn from a small vocabulary, none of them special."""
    rng = np.random.default_rng(seed)
    example = np.repeat(np.arange(len(lengths)), lengths)
    index = np.concatenate([np.arange(n) for n in lengths])
    words = np.array(["film", "the", "market", "of", "night", "river", "stone", "and"], dtype=object)
    token = words[rng.integers(len(words), size=len(example))]
    return pd.DataFrame({"example": example, "token_index": index, "token": token, "special": False})


def sparse(n, latents, rate=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.exponential(size=(n, latents)) * (rng.random((n, latents)) < rate)).astype(np.float32)


def pooled(rows, example):
    """Max and mean over each example's rows."""
    return [
        np.stack([getattr(rows[example == e].astype(np.float64), how)(0) for e in range(example.max() + 1)])
        for how in ("max", "mean")
    ]


def run(rows, tokens, labels, names="abcdef", **settings):
    return sae.associations(csc_array(np.maximum(rows, 0)), tokens, np.asarray(labels), list(names), **settings)


def test_with_one_stratum_and_equal_classes_the_numbers_are_those_of_other_libraries():
    tokens, labels = texts([6] * 120), np.arange(120) % 2
    example = tokens.example.to_numpy()
    rows = sparse(720, 12)
    rows[np.ix_(labels[example] == 1, range(3))] *= 3
    rows[np.ix_(labels[example] == 1, [4])] = 0
    table = run(rows, tokens, labels)
    both = [column.round(6) for column in pooled(rows, example)]
    auroc = np.array([[roc_auc_score(labels, column) for column in values.T] for values in both])
    p = np.array(
        [
            [
                mannwhitneyu(c[labels == 1], c[labels == 0], method="asymptotic", use_continuity=False).pvalue
                for c in values.T
            ]
            for values in both
        ]
    )
    q = false_discovery_control(p.ravel()).reshape(p.shape)
    for row in table.itertuples():
        at = (["max", "mean"].index(row.pooling), row.latent)
        assert row.auroc == pytest.approx(max(auroc[at], 1 - auroc[at]), abs=1e-12)
        assert row.label == ("b" if auroc[at] > 0.5 else "a")
        assert row.p == pytest.approx(p[at], rel=1e-9)
        assert row.q == pytest.approx(q[at], rel=1e-9)
        assert row.effect == pytest.approx(2 * row.auroc - 1, abs=1e-12)
    passed = (q <= 0.05) & (np.abs(2 * auroc - 1) >= 0.2)
    assert table.task.tolist() == passed.any(0).tolist() and 0 < passed.sum() < passed.size
    np.testing.assert_allclose(table.density, (rows > 0).mean(0))
    np.testing.assert_allclose(table.max_activation, rows.max(0))
    assert table.active_examples.tolist() == (both[0] > 0).sum(0).tolist()


def twin(values, members, strata):
    """AUROC, z and skewness of one latent and class, stratum by stratum from the definitions."""
    total = variance = third = scale = auroc = 0.0
    for h in np.unique(strata):
        here, one = values[strata == h], members[strata == h]
        n, n1 = len(here), int(one.sum())
        if n1 in (0, n):
            continue
        w, ranks = 1 / (n + 1), rankdata(here)
        centred = ranks - ranks.mean()
        total += w * centred[one].sum()
        variance += w**2 * n1 * (n - n1) / n * ranks.var(ddof=1)
        third += w**3 * n1 * (n - n1) * (n - 2 * n1) / ((n - 1) * (n - 2)) * (centred**3).mean()
        auroc += w * n1 * (n - n1) * roc_auc_score(one, here)
        scale += w * n1 * (n - n1)
    return auroc / scale, total / np.sqrt(variance), third / variance**1.5


def test_strata_of_length_weigh_as_van_elteren_s_and_no_p_is_below_the_normal_one():
    rng = np.random.default_rng(3)
    lengths = np.sort(rng.integers(2, 9, size=200))[::-1]
    tokens, labels = texts(lengths), rng.choice(3, p=[0.5, 0.4, 0.1], size=200)
    example = tokens.example.to_numpy()
    rows = sparse(len(tokens), 10, rate=0.08)
    rows[np.ix_(labels[example] == 2, [0, 1])] += 0.2
    # The store's order of rows is not that of the examples' numbers.
    order = rng.permutation(len(tokens))
    table = run(rows[order], tokens.iloc[order], labels)
    strata = length_strata(lengths)
    assert len(np.unique(strata)) > 4
    fields = np.array(
        [
            [[twin(c.astype(np.float32), labels == k, strata) for c in values.T] for k in range(3)]
            for values in pooled(rows, example)
        ]
    )
    auroc, z, skew = np.moveaxis(fields, -1, 0)
    # Where the skewness does not count against the tail, the normal approximation stays.
    heavier = np.maximum(np.sign(z) * skew, 1e-9)
    p = np.minimum(2 * np.maximum(norm.sf(np.abs(z)), pearson3.sf(np.abs(z), heavier)), 1)
    assert (p > 1.5 * norm.sf(np.abs(z)) * 2).any()
    q = false_discovery_control(p.ravel()).reshape(p.shape)
    for row in table.itertuples():
        at = (["max", "mean"].index(row.pooling), "abc".index(row.label), row.latent)
        assert row.auroc == pytest.approx(auroc[at], abs=1e-9)
        assert row.p == pytest.approx(p[at], rel=1e-6)
        assert row.q == pytest.approx(q[at], rel=1e-6)
    assert set(table.label[table.task]) == {"c"} and table.task[:2].all()


def test_strata_are_as_narrow_as_twenty_examples_allow():
    lengths = np.repeat([3, 4, 5, 6, 7, 9], [25, 10, 15, 40, 5, 4])
    strata = length_strata(lengths)
    assert [np.unique(lengths[strata == h]).tolist() for h in range(strata.max() + 1)] == [[3], [4, 5], [6, 7, 9]]
    assert set(length_strata(np.array([5, 9, 2]))) == {0}


def test_p_of_a_rare_class_follows_the_exact_tail():
    """A latent with one level of activation makes the rank sum hypergeometric, which is known exactly."""
    labels = np.zeros(400, dtype=int)
    labels[:20] = 1
    tokens = texts([1] * 400)
    hits = np.arange(3, 9)
    rows = np.zeros((400, len(hits)), dtype=np.float32)
    for column, inside in enumerate(hits):
        rows[:inside, column] = 1
        rows[100 : 112 - inside, column] = 1
    table = run(rows, tokens, labels)
    exact = hypergeom.sf(hits - 1, 400, 20, 12)
    spread = np.sqrt(hypergeom.var(400, 20, 12))
    normal = 2 * norm.sf((hits - 0.6) / spread)
    assert ((table.p > exact * 0.8) & (table.p < 4 * exact**0.75)).all()
    assert normal[-1] < exact[-1] * 1e-6


PLANTED = {
    0: ("task", "a", None, None),
    1: ("general", None, "punctuation", "yes"),
    2: ("general", None, "token", "river"),
    3: ("general", None, "length", "high"),
    4: ("both", "b", "token", "good"),
    5: ("general", None, "position", "lowest tenth"),
    6: ("unexplained", None, None, None),
    7: ("dead", None, None, None),
    8: ("unexplained", None, None, None),
}


@pytest.fixture(scope="module")
def planted():
    """Texts whose labels differ in length and in one word, and one latent for each thing to find."""
    rng = np.random.default_rng(5)
    labels = rng.integers(2, size=400)
    lengths = np.clip(rng.poisson(11 + 2 * labels), 5, 22)
    tokens = texts(lengths)
    example, index = tokens.example.to_numpy(), tokens.token_index.to_numpy()
    token = tokens.token.to_numpy().copy()
    token[rng.random(len(token)) < 0.1] = "."
    token[rng.random(len(token)) < 0.05] = ","
    token[(rng.random(len(token)) < 0.15) & (labels[example] == 1)] = "good"
    tokens["token"] = token
    rows = sparse(len(tokens), 9, rate=0.02, seed=1)
    on = rng.exponential(size=len(tokens)) + 1
    rows[:, 0] += on * (labels[example] == 0) * (rng.random(len(tokens)) < 0.15)
    rows[:, 1] += on * np.isin(token, [".", ","])
    rows[:, 2] += on * (token == "river")
    rows[:, 3] += lengths[example] * (rng.random(len(tokens)) < 0.5) * (lengths[example] > 13)
    rows[:, 4] += on * (token == "good")
    rows[:, 5] += on * (index < 2)
    rows[:, 7] = 0
    rows[20:, 8] = 0
    return rows, tokens, labels


def test_planted_latents_are_named_as_planted(planted):
    rows, tokens, labels = planted
    table = run(rows, tokens, labels).set_index("latent")
    for latent, (kind, label, what, value) in PLANTED.items():
        row = table.loc[latent]
        assert row.kind == kind, latent
        assert not label or row.label == label
        assert not what or (row.property, row.property_value) == (what, value)
    assert table.judged.tolist() == [True] * 7 + [False] * 2
    assert table.loc[8, "active_examples"] < 10 and np.isnan(table.loc[8, "p"]) and pd.isna(table.loc[8, "label"])
    # Without strata, the latent that tells only long from short texts would tell the labels apart.
    long = pooled(rows[:, [3]], tokens.example.to_numpy())[0][:, 0]
    assert mannwhitneyu(long[labels == 1], long[labels == 0]).pvalue < 1e-5


def test_mutual_information_is_that_of_states_and_labels_less_its_bias(planted):
    rows, tokens, labels = planted
    table = run(rows, tokens, labels)
    states = pooled(rows, tokens.example.to_numpy())[0] > 0
    for row in table.itertuples():
        state = states[:, row.latent]
        cells = len(set(zip(state, labels, strict=True)))
        bias = (len(set(state)) + 2 - cells - 1) / (2 * len(labels))
        assert row.mutual_information == pytest.approx((mutual_info_score(state, labels) + bias) / np.log(2), abs=1e-9)
    assert table.mutual_information.idxmax() == 4


def test_mutual_information_of_unrelated_labels_is_zero_on_average():
    rng = np.random.default_rng(0)
    tokens = texts([2] * 100)
    information = [
        run(sparse(200, 20, 0.3, seed), tokens, rng.integers(3, size=100)).mutual_information for seed in range(20)
    ]
    assert np.mean(information) == pytest.approx(0, abs=0.002)  # uncorrected: .0144


def dependent(n_examples=150, latents=30, seed=0):
    """Codes with groups of latents that are nearly copies, on examples of varying length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 8, size=n_examples)
    tokens = texts(lengths, seed)
    base = sparse(len(tokens), latents // 3, 0.1, seed)
    noise = sparse(len(tokens), latents, 0.02, seed + 1)
    return np.tile(base, (1, 3)) + noise, tokens, rng


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.6, 0.34, 0.06]])
@pytest.mark.parametrize("effect", [0, 0.2])
def test_with_labels_permuted_at_most_a_share_q_of_searches_finds_anything(shares, effect):
    rows, tokens, rng = dependent()
    labels = rng.choice(len(shares), p=shares, size=150)
    codes = csc_array(rows)
    null = sae.label_null(codes, tokens.example.to_numpy(), labels, permutations=200, effect=effect)
    q, error = 0.05, np.sqrt(0.05 * 0.95 / 200)
    assert null.any_share <= q + 2 * error
    assert len(null.shares) == 200 and null.share == null.shares.mean() and null.high == np.quantile(null.shares, 0.95)


def test_permuting_labels_over_all_lengths_finds_as_little():
    rows, tokens, rng = dependent(80, 12)
    labels = np.sort(rng.choice(3, p=[0.5, 0.4, 0.1], size=80))
    discoveries = [run(rows, tokens, rng.permutation(labels), effect=0).task.any() for _ in range(200)]
    assert np.mean(discoveries) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_the_normal_approximation_alone_would_not_keep_that_share(monkeypatch):
    """A class of 3% and latents that are active in 4% of the examples: what a balanced test never meets."""
    codes = csc_array(sparse(400, 300, 0.04))
    arguments = (codes, np.arange(400), (np.arange(400) < 12).astype(int))
    assert sae.label_null(*arguments).any_share <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    monkeypatch.setattr(_labels, "two_sided_p", lambda z, skew: 2 * norm.sf(np.abs(z)))
    assert sae.label_null(*arguments).any_share > 0.3


@pytest.mark.parametrize("classes", [2, 3])
def test_a_permutation_s_share_is_that_of_associations_with_those_labels(classes):
    rows, tokens, rng = dependent(90, 18)
    labels = rng.integers(classes, size=90)
    example = tokens.example.to_numpy()
    # The floor and the rate are loosened, so that permuted labels give something to find.
    loose = {"effect": 0.05, "q": 0.9}
    codes = csc_array(rows)
    null = sae.label_null(codes, example, labels, permutations=8, seed=4, **loose)
    strata = length_strata(np.bincount(example))
    (drawn,) = permuted_labels(labels, strata, 8, 4, block=_labels.DRAWS)
    shares = []
    for permuted in drawn:
        for h in np.unique(strata):
            assert sorted(permuted[strata == h]) == sorted(labels[strata == h])
        table = run(rows, tokens, permuted, **loose)
        shares.append(table.task.sum() / table.judged.sum())
    np.testing.assert_allclose(null.shares, shares)
    assert max(shares) > 0 and len({tuple(row) for row in drawn}) == 8


def test_a_store_s_rows_are_taken_as_they_are(tiny_encoder, tiny_corpus, tmp_path):
    from layerprobe.activations import capture

    model = tiny_encoder.classifier(tiny_corpus.label_names, seed=0)
    store = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "rows")
    rows, labels = store.tokens(2), tiny_corpus.test.labels
    table = run(rows, store.rows, labels, tiny_corpus.label_names)
    np.testing.assert_allclose(table.density, (np.asarray(rows) > 0).mean(0))
    assert (
        len(table) == 32
        and table.judged.any()
        and set(table.property.dropna())
        <= {
            *("token", "continuation", "punctuation", "digits", "function_word", "content_word", "special"),
            *("position", "length", "frequency"),
        }
    )
    back = tmp_path / "latents.parquet"
    table.to_parquet(back, index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(back), table)


def test_a_dictionary_without_a_judged_latent_has_its_table():
    tokens, labels = texts([3] * 40), np.arange(40) % 2
    table = run(np.zeros((120, 4), dtype=np.float32), tokens, labels)
    assert table.kind.tolist() == ["dead"] * 4 and not table.task.any() and not table.general.any()
    codes = csc_array(np.zeros((120, 4), dtype=np.float32))
    assert np.isnan(sae.label_null(codes, tokens.example.to_numpy(), labels).share)


@pytest.mark.filterwarnings("error")
def test_a_latent_that_is_equally_active_everywhere_is_about_nothing():
    tokens, labels = texts([3, 5] * 20), np.arange(40) // 2 % 2
    rows = sparse(160, 3, 0.3)
    rows[:, 1] = 2.5
    row = run(rows, tokens, labels).loc[1]
    assert (row.kind, row.density, row.judged) == ("unexplained", 1, True)
    assert pd.isna(row[["label", "auroc", "p", "property", "property_effect", "property_p"]]).all()


def test_a_label_that_length_decides_cannot_be_judged():
    tokens = texts([3] * 40 + [6] * 40)
    table = run(sparse(360, 3, 0.3), tokens, np.repeat([0, 1], 40))
    assert table.judged.all() and not table.task.any() and table.auroc.isna().all()


def test_mistakes_are_named():
    tokens, rows = texts([3] * 20), sparse(60, 4)
    labels = np.arange(20) % 2
    with pytest.raises(MeasureError, match="59 rows of activations and 60 tokens"):
        run(rows[:-1], tokens, labels)
    with pytest.raises(MeasureError, match="examples 0 to 19 and there are 19 labels"):
        run(rows, tokens, labels[:-1])
    with pytest.raises(MeasureError, match="1 label; give examples of at least two"):
        run(rows, tokens, np.zeros(20, dtype=int))
    with pytest.raises(MeasureError, match="no column `special`"):
        run(rows, tokens.drop(columns="special"), labels)
    with pytest.raises(MeasureError, match="0 to 1, but there are 1 label names"):
        run(rows, tokens, labels, names="a")
    with pytest.raises(MeasureError, match="Example 7 has no row"):
        run(rows[tokens.example != 7], tokens[tokens.example != 7], labels)
