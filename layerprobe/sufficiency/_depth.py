"""The smallest depth of adaptation that is shown to be as good as the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.sufficiency._power import POWER, check_level, required_for
from layerprobe.sufficiency._results import paired
from layerprobe.sufficiency._score import bound, lower_bound, noninferiority_p, tally
from layerprobe.sufficiency._spread import simultaneous, spread


@dataclass(frozen=True)
class Sufficiency:
    """What the test examples show about the depth of adaptation that is needed.

    Attributes:
        reference: the method that the others were compared with.
        margin: the largest loss of accuracy that counts as none.
        alpha: one-sided level of the tests.
        smallest: the smallest depth shown to be sufficient; None if there is none.
        undecided: the depth at which the sequence stopped because there were too few examples; None if it ended or stopped
            at an inferior depth.
        needed: test examples that could decide about `undecided`; None if there is none, or no number would do.
        sentence: the conclusion in words.
        n: test examples.
        seeds: number of seeds.
        conditional_on_seeds: whether the conclusion holds for these seeds only.
        table: one row per method: `method`, `depth` (missing outside the sequence), `family` (sequence or holm), `outcome`
            (sufficient, inferior, undecided or not tested), `difference`, `lower` (one-sided 1 - alpha bound of this test),
            `upper` (simultaneous bound over all methods), `p`, `p_adjusted` (sequence: the largest p so far; Holm: its
            adjusted p), `disagreement`, `n`, `needed` and `needed_at_observed` (test examples that could decide with 80%
            power if the true difference is 0, or the observed one).
    """

    reference: str
    margin: float
    alpha: float
    smallest: str | None
    undecided: str | None
    needed: int | None
    sentence: str
    n: int
    seeds: int
    conditional_on_seeds: bool
    table: pd.DataFrame = field(repr=False, compare=False)


def smallest_sufficient_depth(
    results: pd.DataFrame,
    depths: Mapping[str, int],
    *,
    reference: str = "full",
    margin: float = 0.01,
    alpha: float = 0.05,
) -> Sufficiency:
    """Test each depth for non-inferiority to the reference, from the deepest to the shallowest, up to the first failure.

    Each is tested at one-sided alpha by the score test of the paired difference (Tango 1998), whose variance under the
    null does not vanish when the methods always agree. Because the order is fixed in advance and stops, the probability
    that any depth is falsely called sufficient is at most alpha without a correction (Maurer, Hothorn and Lehmacher 1995).
    Methods without a depth are a family of their own, tested by Holm's procedure at alpha. Outcomes:

    * sufficient: p is at most alpha, as at every deeper depth (Holm: the adjusted p is at most alpha).
    * inferior: the upper end of a score interval that holds for all methods at once (two-sided 1 - alpha, max-T) is below
      -margin. This does not depend on the sequence, and excludes sufficient.
    * undecided: tested, and neither of these: there are too few examples.
    * not tested: the sequence stopped at a deeper depth. Nothing is concluded about this one, whatever its p.

    Args:
        results: method, seed, example_id, correct; all methods on the same examples and seeds.
        depths: the methods of the sequence, with the number of top blocks that each trains.
        reference: the method that the others are compared with.
        margin: the largest loss of accuracy that counts as none.
        alpha: one-sided level of the tests.

    Raises:
        MeasureError: if the methods cannot be paired, two depths are equal, a method with a depth is absent or is the
            reference, or a number is out of range.
    """
    check_level(margin, alpha)
    joined = paired(results, reference)
    sequence = _sequence(depths, joined.methods, reference)
    moments, counts = spread(joined.gaps), tally(joined.gaps)
    df = np.full(len(joined.methods), np.inf) if moments.conditional_on_seeds else moments.df
    p = noninferiority_p(counts, margin, moments.seed_variance, df)
    # A method without variance is uncorrelated with the others, which only makes the interval wider.
    upper = -bound(counts[:, ::-1], simultaneous(moments, alpha=alpha), moments.seed_variance)
    in_order = np.array([name in depths for name in joined.methods])
    adjusted = np.empty(len(p))
    adjusted[sequence], adjusted[~in_order] = in_sequence(p[sequence]), holm(p[~in_order])
    outcome = np.where(upper < -margin, "inferior", "undecided").astype(object)
    after_failure = np.array(sequence, dtype=int)[np.flatnonzero(adjusted[sequence] > alpha)[1:]]
    outcome[[i for i in after_failure if outcome[i] == "undecided"]] = "not tested"
    outcome[adjusted <= alpha] = "sufficient"
    needed, at_observed = required_for(joined, moments, margin, alpha)
    table = pd.DataFrame(
        {
            "method": joined.methods,
            "depth": pd.array([depths.get(name) for name in joined.methods], dtype="Int64"),
            "family": np.where(in_order, "sequence", "holm"),
            "outcome": outcome,
            "difference": moments.mean,
            "lower": lower_bound(counts, alpha, moments.seed_variance, df),
            "upper": upper,
            "p": p,
            "p_adjusted": adjusted,
            "disagreement": joined.disagreement,
            "n": joined.n,
            "needed": needed,
            "needed_at_observed": at_observed,
        }
    )
    n_passed = int((outcome[sequence] == "sufficient").sum())  # these come first
    last, failed = ([table.iloc[i] for i in part] for part in (sequence[:n_passed][-1:], sequence[n_passed:][:1]))
    undecided = next((row for row in failed if row["outcome"] == "undecided"), None)
    examples = f"{joined.n:,} test examples, {len(joined.seeds)} seed{'s' * (len(joined.seeds) > 1)}"
    facts = f"one-sided {100 * (1 - alpha):.3g}%; margin {margin:.3g}; {examples}"
    sentences = [f"No depth below {reference} was tested"]
    if sequence:
        sentences = [_passed(last, reference, facts), *(_failed(row, n_passed) for row in failed)]
        sentences += ["This holds for the seeds that were run, not for seeds in general"] * moments.conditional_on_seeds
    return Sufficiency(
        reference=reference,
        margin=margin,
        alpha=alpha,
        smallest=last[0]["method"] if last else None,
        undecided=None if undecided is None else undecided["method"],
        needed=None if undecided is None else _needed(undecided),
        sentence=". ".join(sentences) + ".",
        n=joined.n,
        seeds=len(joined.seeds),
        conditional_on_seeds=moments.conditional_on_seeds,
        table=table,
    )


def in_sequence(p: Float[np.ndarray, "*studies tests"]) -> Float[np.ndarray, "*studies tests"]:
    """Adjusted p of tests made in this order up to the first failure: the largest so far."""
    return np.maximum.accumulate(p, axis=-1)


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p of Holm (1979): the smallest times the number of tests, the next times one less, never decreasing."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _sequence(depths: Mapping[str, int], methods: tuple[str, ...], reference: str) -> list[int]:
    """Positions of the methods with a depth, the deepest first."""
    for name in depths:
        if name not in methods:
            reason = "the reference" if name == reference else "not in {results}"
            raise MeasureError(
                f"{{depths}} names {name!r}, which is {reason}; the methods are {', '.join(methods)}.",
                "depths",
                "results",
            )
    names = sorted(depths, key=lambda name: -depths[name])
    for one, other in pairwise(names):
        if depths[one] == depths[other]:
            raise MeasureError(
                f"{{depths}} has {one!r} and {other!r} both at {depths[one]}; a fixed sequence needs different depths, "
                "and methods without one are tested outside it.",
                "depths",
            )
    return [methods.index(name) for name in names]


def _needed(row: pd.Series) -> int | None:
    """Examples that could decide: if the true difference is 0, or else, if there were that many, if it is the observed one."""
    numbers = (row["needed"], row["needed_at_observed"])
    return next((int(number) for number in numbers if not pd.isna(number) and number > row["n"]), None)


def _passed(last: list[pd.Series], reference: str, facts: str) -> str:
    if not last:
        return f"No depth below {reference} was shown to be sufficient ({facts})"
    (row,) = last
    return (
        f"{row['method']} is the smallest depth shown to be sufficient: its accuracy differs from that of {reference} by "
        f"{row['difference']:+.4f} and is at most {max(0.0, -row['lower']):.4f} lower ({facts})"
    )


def _failed(row: pd.Series, n_passed: int) -> str:
    method, needed = f"{row['method']}, the {'next' if n_passed else 'first'} depth tested,", _needed(row)
    if row["outcome"] == "inferior":
        bounds = f"{row['difference']:+.4f}, and at least {-row['upper']:.4f} lower (simultaneous over all methods)"
        return f"{method} is inferior: {bounds}"
    method += f" is undecided ({row['difference']:+.4f}):"
    if needed is None:
        return (
            f"{method} the difference is so close to the margin, or varies so much between seeds, that more test examples "
            "alone may not be enough"
        )
    unit = 10 ** max(0, len(str(needed)) - 2)  # two significant digits, rounded up
    condition = "there is no true difference" if needed == row["needed"] else "the true difference is the observed one"
    return f"{method} about {-(-needed // unit) * unit:,} test examples could decide with {100 * POWER:.0f}% power, if {condition}"
