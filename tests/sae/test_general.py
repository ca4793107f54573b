"""General properties of tokens and latents that follow them: each as defined, tests valid where tokens depend."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array
from scipy.stats import hypergeom, norm, pearson3, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from layerprobe import sae
from layerprobe.errors import MeasureError
from layerprobe.sae._general import general_tests
from layerprobe.sae._properties import FUNCTION_WORDS, Properties


def table_of(sentences):
    """A table of tokens; those in square or angle brackets at the ends are special."""
    return pd.DataFrame(
        [
            {"example": e, "token_index": i, "token": token, "special": i in (0, len(words) - 1)}
            for e, words in enumerate(sentences)
            for i, token in enumerate(words)
        ]
    )


def having(properties, name, tokens):
    """Which tokens of the first sentence have a property."""
    first = (tokens.example == 0).to_numpy()
    return tokens.token[first & properties.binary[name]].tolist()


def test_word_pieces():
    words = [
        "[CLS]",
        "the",
        "un",
        "##able",
        "men",
        "'",
        "s",
        "2nd",
        "film",
        ",",
        "the",
        "##sis",
        "…",
        "#",
        "##s",
        "[UNK]",
        "$",
        "café",
        "of",
        "[SEP]",
    ]
    tokens = table_of([words] * 25)
    properties = sae.token_properties(tokens)
    assert having(properties, "continuation", tokens) == ["##able", "##sis", "##s"]
    assert having(properties, "punctuation", tokens) == ["'", ",", "…", "#", "$"]
    assert having(properties, "digits", tokens) == ["2nd"]
    # "the ##sis" is one word, and no function word.
    assert having(properties, "function_word", tokens) == ["the", "of"]
    assert having(properties, "content_word", tokens) == [
        *("un", "##able", "men", "s", "2nd", "film", "the", "##sis", "##s", "café")
    ]
    assert having(properties, "special", tokens) == ["[CLS]", "[SEP]"]
    assert "capitals" not in properties.binary  # this tokenizer keeps none
    assert "length" not in properties.numeric  # all texts are equally long
    assert properties.common[0] == "the" and properties.common[properties.identity[1]] == "the"
    at = tokens.token.tolist().index("the")
    assert properties.numeric["frequency"][at] == 50 and properties.numeric["position"][at] == 1


def test_leading_space_marks_of_a_byte_level_tokenizer():
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = [piece for piece, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str("Unless café’s Owner, who said")]
    assert "ĠcafÃ©" in pieces
    split = [part for piece in pieces for part in ([piece[:4], piece[4:]] if piece == "ĠOwner" else [piece])]
    tokens = table_of([["<s>", *split, "</s>"]] * 25)
    properties = sae.token_properties(tokens)
    assert having(properties, "continuation", tokens) == ["er"]
    assert having(properties, "punctuation", tokens) == ["âĢĻ", ","]
    assert having(properties, "capitals", tokens) == ["Unless", "ĠOwn"]
    assert having(properties, "function_word", tokens) == ["Ġwho"]
    assert "Ġ" not in "".join(FUNCTION_WORDS) and "digits" not in properties.binary


def test_leading_space_marks_of_sentence_pieces():
    tokens = table_of([["[CLS]", "▁the", "▁play", "ing", ".", "▁She", "▁had", "n", "'", "t", "[SEP]"]] * 25)
    properties = sae.token_properties(tokens)
    assert having(properties, "continuation", tokens) == ["ing", "n"]
    assert having(properties, "function_word", tokens) == ["▁the", "▁She"]
    assert having(properties, "capitals", tokens) == ["▁She"]


def test_tokens_are_read_in_the_order_of_the_text_however_they_are_stored():
    rng = np.random.default_rng(0)
    words = ["[CLS]", "▁the", "▁play", "ing", ".", "▁of", "ten", "[SEP]"]
    tokens = table_of([[*words[: rng.integers(4, 8)], "[SEP]"] for _ in range(60)])
    order = rng.permutation(len(tokens))
    straight, mixed = sae.token_properties(tokens), sae.token_properties(tokens.iloc[order])
    assert list(straight.binary) == list(mixed.binary)
    for name in straight.binary:
        np.testing.assert_array_equal(straight.binary[name][order], mixed.binary[name])
    for name in ("position", "length", "frequency"):
        np.testing.assert_array_equal(straight.numeric[name][order], mixed.numeric[name])


def test_only_common_tokens_have_an_identity():
    sentences = [
        ["[CLS]", "the", *(["rare"] if e < 19 else []), *(["packed"] * 8 if e < 9 else []), "[SEP]"] for e in range(60)
    ]
    properties = sae.token_properties(table_of(sentences))
    assert sorted(properties.common) == ["[CLS]", "[SEP]", "the"]
    assert set(properties.identity) == {-1, 0, 1, 2}


def test_mistakes_are_named():
    tokens = table_of([["[CLS]", "a", "[SEP]"]])
    with pytest.raises(MeasureError, match="no column `token_index`"):
        sae.token_properties(tokens.drop(columns="token_index"))
    with pytest.raises(MeasureError, match="no row"):
        sae.token_properties(tokens[:0])


def series(lengths, latents, rng, whole=0.8, near=0.6):
    """Noise that tokens of one example share, and neighbours more so."""
    out = []
    for n in lengths:
        x = rng.standard_normal((n, latents))
        for i in range(1, n):
            x[i] = near * x[i - 1] + np.sqrt(1 - near**2) * x[i]
        out.append(x + whole * rng.standard_normal(latents))
    return np.concatenate(out)


def simulated(seed, latents=40, n_examples=80, rate=0.85):
    """Dependent activations, silent mostly, and dependent properties that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 14, size=n_examples)
    example = np.repeat(np.arange(n_examples), lengths)
    rows = np.maximum(series(lengths, latents, rng) - np.sqrt(1.64) * norm.ppf(rate), 0).astype(np.float32)
    other = series(lengths, 4, rng)
    identity = np.digitize(series(lengths, 1, rng)[:, 0], [-1.5, 0, 1.8]) - 1
    properties = Properties(
        {
            "often": other[:, 0] > 0.3,
            "seldom": other[:, 1] > 1.8,
            "of_example": (rng.random(n_examples) < 0.3)[example],
        },
        {"numeric": other[:, 2], "of_text": lengths[example].astype(float)},
        identity,
        ("x", "y", "z"),
    )
    return rows, example, properties


def slow_p(x, b, raw, example):
    """p of one latent and property, by loops from the definition; `raw` is the regressor of the robust variances."""
    n, examples = len(x), np.unique(example)
    a = rankdata(x) - (n + 1) / 2
    alone = (a**2).sum() * (b**2).sum() / (n - 1)
    within = pairs = 0.0
    for e in examples:
        here = a[example == e]
        within += here.sum() ** 2 - (here**2).sum()
        pairs += len(here) * (len(here) - 1)
    r = np.clip(within / pairs / (a**2).mean(), 0, 1)
    dealt = sum(b[example == e].sum() ** 2 for e in examples) / (b**2).sum()
    score = raw * (a - (a * raw).sum() / (raw**2).sum() * raw)
    ratio = sum(score[example == e].sum() ** 2 for e in examples) / (score**2).sum()
    design = max(1, 1 - r + r * dealt, ratio)
    skew = n * (a**3).sum() * (b**3).sum() / ((n - 1) * (n - 2)) / alone**1.5 * np.sqrt(design)
    z = (a * b).sum() / np.sqrt(alone * design)
    bent = pearson3.sf(abs(z), np.sign(z) * skew) if z * skew > 0 else 0
    return min(2 * max(norm.sf(abs(z)), bent), 1)


def test_effects_and_p_are_those_of_other_libraries_and_of_a_slow_twin():
    rows, example, properties = simulated(0, latents=6)
    rows[:, 0] += properties.binary["seldom"]
    rows[:, 1] += properties.identity == 1
    rows[:, 2] = np.where(properties.numeric["numeric"] > 1, rows[:, 2] + 1, 0)
    order = np.random.default_rng(1).permutation(len(example))
    shuffled = Properties(
        {k: v[order] for k, v in properties.binary.items()},
        {k: v[order] for k, v in properties.numeric.items()},
        properties.identity[order],
        properties.common,
    )
    tests = general_tests(csc_array(rows[order]), example[order], shuffled, np.arange(6))
    ends = ["high", "lowest tenth", "highest tenth"]
    assert [name[:2] for name in tests.names] == [
        *(("often", "yes"), ("seldom", "yes"), ("of_example", "yes")),
        *(("numeric", end) for end in ends),
        *(("of_text", end) for end in ends),
        *(("token", "x"), ("token", "y"), ("token", "z")),
    ]
    for latent in range(6):
        x = rows[:, latent]
        effects, aurocs, ps = [], [], []

        def holds(member, x=x, effects=effects, aurocs=aurocs, ps=ps, raw=None):
            effects.append(spearmanr(member, x).statistic)
            aurocs.append(roc_auc_score(member, x))
            b = member - member.mean()
            ps.append(slow_p(x, b, b if raw is None else raw, example))

        for member in properties.binary.values():
            holds(member)
        for value in properties.numeric.values():
            b = rankdata(value) - (len(value) + 1) / 2
            effects.append(spearmanr(value, x).statistic)
            aurocs.append(np.nan)
            ps.append(slow_p(x, b, b, example))
            holds(value <= np.quantile(value, 0.1))
            holds(value >= np.quantile(value, 0.9))
        for t in range(3):
            holds(properties.identity == t, raw=(properties.identity == t).astype(float))
        np.testing.assert_allclose(tests.effect[:, latent], effects, atol=1e-12)
        np.testing.assert_allclose(tests.auroc[:, latent], aurocs, atol=1e-12)
        np.testing.assert_allclose(tests.p[:, latent], ps, rtol=1e-5)


def test_judged_latents_are_picked_from_all():
    rows, example, properties = simulated(2, latents=8)
    whole = general_tests(csc_array(rows), example, properties, np.arange(8))
    part = general_tests(csc_array(rows), example, properties, np.array([1, 6]))
    np.testing.assert_array_equal(part.p, whole.p[:, [1, 6]])
    np.testing.assert_array_equal(part.effect, whole.effect[:, [1, 6]])
    assert general_tests(csc_array(rows), example, properties, np.zeros(0, dtype=int)).names == ()


@pytest.mark.parametrize("rate", [0.5, 0.85, 0.97])
def test_unrelated_properties_are_found_no_more_often_than_chance_allows(rate):
    p, naive, names = [], [], None
    for seed in range(25):
        rows, example, properties = simulated(seed, rate=rate)
        judged = np.flatnonzero((rows > 0).sum(0) >= 12)
        tests = general_tests(csc_array(rows), example, properties, judged)
        p.append(tests.p)
        # Every token as its own example: the test for independent tokens.
        naive.append(general_tests(csc_array(rows), np.arange(len(rows)), properties, judged).p)
        names = tests.names
    p, naive = np.concatenate(p, axis=1), np.concatenate(naive, axis=1)
    for number, name in enumerate(names):
        assert (p[number] < 0.05).mean() < 0.075, name
        assert (p[number] < 0.001).mean() < 0.006, name
    assert (naive < 0.05).mean() > 0.1 or rate == 0.97
    assert (p < 0.05).mean() > 0.01  # and it is not deaf


def test_the_spread_is_that_of_dealing_whole_examples_anew():
    """Examples of one length, whose activations are shuffled as wholes: the null that the design effect stands for."""
    rng = np.random.default_rng(0)
    rows = np.maximum(series([8] * 60, 5, rng), 0).astype(np.float32)
    example = np.repeat(np.arange(60), 8)
    member = series([8] * 60, 1, rng)[:, 0] > 0
    b = member - member.mean()
    for latent in range(5):
        a = (rankdata(rows[:, latent]) - 240.5).reshape(60, 8)
        drawn = [(a[rng.permutation(60)].ravel() * b).sum() for _ in range(3000)]
        tests = general_tests(
            csc_array(rows), example, Properties({"m": member}, {}, np.full(480, -1), ()), np.array([latent])
        )
        total = (a.ravel() * b).sum()
        spread = abs(total) / norm.isf(tests.p[0, 0] / 2)
        assert 0.85 < spread / np.std(drawn) < 1.4


def test_a_few_occurrences_are_not_mistaken_for_many():
    """A token in 12 examples, a latent active on 2%: 3 hits have p near .002, which the normal approximation makes 1e-8."""
    member = np.zeros(6000, dtype=bool)
    member[::500] = True
    rows = np.zeros((6000, 1), dtype=np.float32)
    rows[[0, 500, 1000]] = 1
    rows[7::51] = 1
    properties = Properties({}, {}, np.where(member, 0, -1), ("t",))
    tests = general_tests(csc_array(rows), np.arange(6000) // 10, properties, np.array([0]))
    exact = hypergeom.sf(2, 6000, 12, (rows > 0).sum())
    assert tests.auroc[0, 0] > 0.6 and exact < tests.p[0, 0] < 2 * exact
    assert tests.effect[0, 0] < 0.1  # most of what it is active on is something else


def test_ties_that_make_half_of_a_tenth_are_no_tenth():
    rows, example, _ = simulated(3, latents=4)
    value = np.where(np.arange(len(example)) % 3 == 0, np.arange(len(example)), 0).astype(float)
    tests = general_tests(
        csc_array(rows), example, Properties({}, {"v": value}, np.full(len(example), -1), ()), np.arange(4)
    )
    assert [name[1] for name in tests.names] == ["high", "highest tenth"]
