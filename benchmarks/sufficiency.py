"""How often the conclusions about depth are wrong, in simulated studies with a planted truth.

    python benchmarks/sufficiency.py           # about six minutes on one core
    python benchmarks/sufficiency.py --quick   # a tenth of the studies

Studies have seven depths and full, whose predictions for one example are dependent. Each share is printed with twice its
Monte Carlo error. Nothing is timed, so that other work on the machine does not matter.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import pandas as pd
from scipy.stats import binom, norm

from layerprobe.sufficiency import smallest_sufficient_depth
from layerprobe.sufficiency._depth import in_sequence
from layerprobe.sufficiency._score import noninferiority_p, tally
from layerprobe.sufficiency._spread import simultaneous, spread, variance_over_seeds

DEPTHS = (*tuple(f"top:{k}" for k in range(6, 0, -1)), "head")
MARGIN, ALPHA = 0.01, 0.05
# The patterns of (full, top:6, ..., head) on one example: right or wrong, 2^8 of them.
PATTERNS = np.array(list(itertools.product((0, 1), repeat=1 + len(DEPTHS))))


def exchangeable(gap: float, disagreement: float, accuracy: float = 0.75) -> np.ndarray:
    """Shares of the patterns when all depths lose `gap` and disagree equally with full and each other.

    The ease of an example is normal, and each method adds an independent normal: the accuracies are exact, and the disagreement
    (of two methods without a gap) fixes the weight of the ease.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights /= weights.sum()

    def right(ease: float, target: float) -> np.ndarray:
        return norm.cdf(np.sqrt(1 + ease**2) * norm.ppf(target) + ease * nodes)

    low, high = 0.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        one = right(middle, accuracy)
        low, high = (middle, high) if 2 * (weights * one * (1 - one)).sum() > disagreement else (low, middle)
    shares = np.stack([right(low, accuracy)] + [right(low, accuracy - gap)] * len(DEPTHS))
    each = np.where(PATTERNS[:, :, None] == 1, shares, 1 - shares).prod(axis=1)
    total = each @ weights
    return total / total.sum()


def chain(gap: float, step: float, accuracy: float = 0.75) -> np.ndarray:
    """Shares of the patterns when each depth changes the predictions of the next deeper one.

    The share `step` of examples changes at every step, with the whole gap lost at the first: full to top:6.
    """
    patterns = np.where(PATTERNS[:, 0] == 1, accuracy, 1 - accuracy)
    right = accuracy
    for k in range(1, PATTERNS.shape[1]):
        loss = gap if k == 1 else 0.0
        lost, gained = (step + loss) / 2 / right, (step - loss) / 2 / (1 - right)
        before, after = PATTERNS[:, k - 1], PATTERNS[:, k]
        patterns = patterns * np.where(
            before == 1, np.where(after == 0, lost, 1 - lost), np.where(after == 1, gained, 1 - gained)
        )
        right -= loss
    return patterns


def tallies(shares: np.ndarray, n: int, studies: int, seed: int) -> np.ndarray:
    """Examples of each study that each depth lost, tied and won against full: studies x depths x 3."""
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=studies)
    gaps = PATTERNS[:, 1:] - PATTERNS[:, :1]
    return np.stack([drawn @ (gaps == value) for value in (-1, 0, 1)], axis=-1).astype(float)


def wald_p(counts: np.ndarray, margin: float) -> np.ndarray:
    """The plain test, whose standard error is that of the observed differences: 0 where none differs."""
    n = counts.sum(axis=-1)
    mean = (counts[..., 2] - counts[..., 0]) / n
    error = np.sqrt(np.maximum((counts[..., 2] + counts[..., 0]) / n - mean**2, 0.0) / (n - 1))
    with np.errstate(divide="ignore"):
        return norm.sf((mean + margin) / error)


def declared(shares: np.ndarray, n: int, studies: int, seed: int) -> dict[str, float]:
    """Shares of studies in which a depth is called sufficient: any in sequence, the last (head), any without order."""
    counts = tallies(shares, n, studies, seed)
    p = noninferiority_p(counts, MARGIN)
    ordered = in_sequence(p) <= ALPHA
    return {
        "sequence": ordered.any(axis=1).mean(),
        "head": ordered[:, -1].mean(),
        "unordered": (p <= ALPHA).any(axis=1).mean(),
        "unordered, Wald": (wald_p(counts, MARGIN) <= ALPHA).any(axis=1).mean(),
        "sequence, Wald": (in_sequence(wald_p(counts, MARGIN)) <= ALPHA).any(axis=1).mean(),
    }


def exact_size(n: int, disagreement: float, margin: float = MARGIN, test=noninferiority_p) -> float:
    """Probability that one test rejects when the true difference is -margin, summed over all possible tables."""
    total = 0.0
    share = (disagreement + margin) / 2 / disagreement
    differing = np.arange(max(0, int(binom.ppf(1e-10, n, disagreement))), int(binom.isf(1e-10, n, disagreement)) + 1)
    for start in range(0, len(differing), 64):
        part = differing[start : start + 64, None]
        lost = np.arange(part.max() + 1)[None]
        won = np.maximum(part - lost, 0)
        counts = np.stack([lost + 0 * part, n - lost - won, won], axis=-1).astype(float)
        probability = binom.pmf(part, n, disagreement) * binom.pmf(lost, part, share)
        total += probability[(test(counts, margin) <= ALPHA) & (lost <= part)].sum()
    return float(total)


def crossed(
    n: int, m: int, studies: int, seed: int, *, gap: float, wobble: float, ease: float = 2.5, accuracy: float = 0.75
):
    """Studies with seeds: gaps (depths x n x m) and the truth, over all seeds and over these ones.

    `wobble` is how much a method's threshold moves from seed to seed.
    """
    rng = np.random.default_rng(seed)
    scale = np.sqrt(1 + ease**2 + wobble**2)
    targets = np.array([accuracy] + [accuracy - gap] * len(DEPTHS))
    for _ in range(studies):
        shift = scale * norm.ppf(targets)[:, None] + wobble * rng.standard_normal((len(targets), m))
        noise = rng.standard_normal((len(targets), n, m), dtype=np.float32)
        right = noise + (ease * rng.standard_normal(n))[:, None] + shift[:, None, :] > 0
        these = norm.cdf(shift / np.sqrt(1 + ease**2)).mean(axis=1)
        yield right[1:].astype(float) - right[:1], targets[1:] - targets[0], these[1:] - these[0]


def coverage(
    n: int, m: int, studies: int, seed: int, *, wobble: float, draws: int = 4000
) -> tuple[float, float, float]:
    """Shares of studies whose simultaneous bands hold all truths; whose first pointwise interval holds its own;
    where the first depth's true gap is at least the margin, those that call it sufficient (the probability that the sequence
    calls any). The gap over all seeds is the margin; the truth is that of these seeds where the intervals are about them."""
    from scipy.stats import t

    held = alone = called = wrong = 0
    for gaps, everywhere, these in crossed(n, m, studies, seed, gap=MARGIN, wobble=wobble):
        moments = spread(gaps)
        truth = these if moments.conditional_on_seeds else everywhere
        reach = simultaneous(moments, alpha=0.05, draws=draws)
        off = np.abs(moments.centre - truth) / moments.se
        held += bool((off <= reach).all())
        alone += bool(off[0] <= t.ppf(0.975, moments.df))
        p = noninferiority_p(tally(gaps), MARGIN, moments.seed_variance, moments.df)
        if truth[0] < -MARGIN + 1e-9:
            wrong += 1
            called += bool(p[0] <= ALPHA)
    return held / studies, alone / studies, called / wrong


def seed_level(n: int, m: int, sd: float, studies: int, seed: int, *, gap: float = MARGIN) -> dict[str, float]:
    """Shares of studies in which one depth is called sufficient, by the test with seeds and by the one without them.

    `sd` is the standard deviation of each method's accuracy over seeds; its true loss over all seeds is `gap`.
    """
    rng, ease, accuracy = np.random.default_rng(seed), 2.5, 0.75
    spread_of_ease = np.sqrt(1 + ease**2)
    wobble = sd * spread_of_ease / norm.pdf(norm.ppf(accuracy))
    threshold = np.sqrt(1 + ease**2 + wobble**2) * norm.ppf(np.array([accuracy, accuracy - gap]))
    called, done = np.zeros(2), 0
    while done < studies:
        size = min(studies - done, max(1, 4_000_000 // (n * m)))
        easy = ease * rng.standard_normal((size, n, 1), dtype=np.float32)
        shift = (threshold[:, None, None] + wobble * rng.standard_normal((2, size, m))).astype(np.float32)
        full, depth = (
            rng.standard_normal((size, n, m), dtype=np.float32) + easy + shift[k, :, None] > 0 for k in range(2)
        )
        gaps = depth.astype(np.float32) - full
        counts = tally(gaps)
        crossed = noninferiority_p(counts, MARGIN, variance_over_seeds(gaps), m - 1) if m > 1 else np.ones(size)
        called += [(crossed <= ALPHA).sum(), (noninferiority_p(counts, MARGIN) <= ALPHA).sum()]
        done += size
    return dict(zip(("crossed", "examples alone"), called / studies, strict=True))


def twice(share: float, studies: int) -> str:
    return f"{100 * share:5.1f}% ± {200 * np.sqrt(max(share * (1 - share), 1 / studies) / studies):.1f}"


def same_as_public(studies: int = 20, n: int = 2000) -> bool:
    """Whether `smallest_sufficient_depth` concludes the same from tables as from tallies."""
    shares, rng = exchangeable(0.0, 0.05), np.random.default_rng(5)
    for _ in range(studies):
        right = PATTERNS[rng.choice(len(PATTERNS), size=n, p=shares)]
        table = pd.concat(
            pd.DataFrame({"method": name, "seed": 0, "example_id": np.arange(n), "correct": right[:, i]})
            for i, name in enumerate(("full", *DEPTHS))
        )
        gaps = right[:, 1:] - right[:, :1]
        counts = np.stack([(gaps == value).sum(axis=0) for value in (-1, 0, 1)], axis=-1).astype(float)
        passed = int((in_sequence(noninferiority_p(counts, MARGIN)) <= ALPHA).sum())
        result = smallest_sufficient_depth(table, {name: len(DEPTHS) - 1 - i for i, name in enumerate(DEPTHS)})
        if result.smallest != (DEPTHS[passed - 1] if passed else None):
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the studies")
    quick = parser.parse_args().quick
    studies = 2000 if quick else 20_000
    print(
        f"Studies in which a depth is called sufficient at margin {MARGIN} ({studies:,} each, % ± twice the Monte Carlo error)"
    )
    print(
        f"{'design, disagreement with full':34} {'n':>6} {'true gap':>8} {'in sequence':>14} {'head':>14} {'any order':>14} {'any order, Wald':>16}"
    )
    designs = [
        ("all alike, .12", lambda gap: exchangeable(gap, 0.12)),
        ("chain, .03 at each step", lambda gap: chain(gap, 0.03)),
    ]
    for (name, make), n, gap in itertools.product(designs, (500, 2000, 8000), (MARGIN, 2 * MARGIN, 0.0)):
        rates = declared(make(gap), n, studies, seed=n)
        print(
            f"{name:34} {n:6} {gap:8.3f} {twice(rates['sequence'], studies):>14} {twice(rates['head'], studies):>14} "
            f"{twice(rates['unordered'], studies):>14} {twice(rates['unordered, Wald'], studies):>16}",
            flush=True,
        )
    print(
        "\nExact level of one test, the largest over disagreements from the margin to .3 (score test | plain Wald test)"
    )
    grid = np.unique(np.round(np.concatenate([np.linspace(MARGIN, 0.04, 13), np.linspace(0.05, 0.3, 6)]), 4))
    for n in (100, 268, 299, 500, 1000, 2000, 8000):
        sizes = [max((exact_size(n, d, test=test), d) for d in grid) for test in (noninferiority_p, wald_p)]
        print(
            f"  n = {n:5}: " + " | ".join(f"{100 * size:5.1f}% at disagreement {d:.4f}" for size, d in sizes),
            flush=True,
        )
    print(
        "\nCoverage of the 95% intervals, and how often a first depth that lacks the margin or more is called sufficient"
    )
    for n, m, wobble in (
        (500, 1, 0.0),
        (2000, 1, 0.0),
        (500, 2, 0.1),
        (500, 3, 0.1),
        (500, 5, 0.0),
        (500, 5, 0.1),
        (2000, 5, 0.1),
        (500, 10, 0.1),
    ):
        runs = (100 if quick else 1000) if n * m > 4000 else (200 if quick else 2000)
        held, alone, called = coverage(n, m, runs, seed=m, wobble=wobble)
        print(
            f"  n = {n:5}, {m:2} seeds, seed spread {wobble:.1f}: bands {twice(held, runs)}, one interval {twice(alone, runs)}, "
            f"called sufficient {twice(called, runs if m != 2 else runs // 2)}",
            flush=True,
        )
    print(
        "\nOne depth that loses the margin over all seeds, called sufficient: with seeds in the test | over examples alone"
    )
    for n, m, sd in itertools.product((500, 2000, 8000), (3, 5), (0.0, 0.002, 0.005, 0.01, 0.02)):
        runs = 400 if quick else 4000
        rates = seed_level(n, m, sd, runs, seed=n + m)
        shown = " | ".join(twice(rate, runs) for rate in rates.values())
        print(f"  n = {n:5}, {m} seeds, SD of accuracy over seeds {sd:.3f}: {shown}", flush=True)
    print(f"\nThe public function concludes the same from whole tables: {same_as_public()}")


if __name__ == "__main__":
    main()
