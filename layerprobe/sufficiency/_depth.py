"""The smallest depth of adaptation that is shown to be as good as the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.sufficiency._power import check_alpha, check_margin, needed_of
from layerprobe.sufficiency._results import paired
from layerprobe.sufficiency._score import bound, lower_bound, noninferiority_p, tally
from layerprobe.sufficiency._spread import simultaneous, spread

POWER = 0.8


@dataclass(frozen=True)
class Sufficiency:
    """What the test examples say about how deep adaptation must go.

    Attributes:
        smallest: the shallowest depth shown to be sufficient; None if none was.
        undecided: the depth at which the sequence stopped because the examples can't tell; None if it ended or stopped
            at an inferior depth.
        needed: test examples that could decide about `undecided`; None if there is none, or no number would do.
        sentence: the conclusion in words.
        n: test examples.
        seeds: number of seeds.
        conditional_on_seeds: whether all this speaks of these seeds only.
        table: one row a method: `method`, `depth` (missing outside the sequence), `family` (sequence or holm), `outcome`
            (sufficient, inferior, undecided or not tested), `difference`, `lower` (one-sided 1 - alpha bound of this test),
            `upper` (simultaneous bound over all methods), `p`, `p_adjusted` (sequence: the largest p so far; Holm: its
            adjusted p), `disagreement`, `n`, `needed`, `needed_at_observed` (as in `needed_from`).
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


def depths_of(methods: Iterable[str]) -> dict[str, int]:
    """The depth of each method that has one by its name: head is 0, top:k is k; all others are left out."""
    found = {}
    for method in methods:
        kind, _, k = method.partition(":")
        if method == "head":
            found[method] = 0
        elif kind == "top" and k.isdecimal():
            found[method] = int(k)
    return found


def smallest_sufficient_depth(
    results: pd.DataFrame,
    depths: Mapping[str, int],
    *,
    reference: str = "full",
    margin: float = 0.01,
    alpha: float = 0.05,
) -> Sufficiency:
    """Test each depth for non-inferiority to the reference, from the deepest to the shallowest, up to the first failure.

    Each is tested at one-sided alpha by the score test of the paired difference (Tango 1998; its variance under the null does not
    vanish when the methods agree everywhere); because the order is fixed
    beforehand and stops, the chance that any depth is falsely called sufficient is at most alpha without a correction
    (Maurer, Hothorn and Lehmacher 1995). Methods without a depth are a family of their own, tested by Holm's procedure at alpha.
    Outcomes:

    * sufficient: p is at most alpha, and so it was at every deeper depth (Holm: the adjusted p is at most alpha).
    * inferior: the upper end of a score interval that holds for all methods at once (two-sided 1 - alpha, max-T) is below
      -margin. This doesn't depend on the sequence, and never meets sufficient.
    * undecided: tested, and neither of these: the examples can't tell.
    * not tested: the sequence stopped at a deeper depth. Nothing is said about this one, whatever its p.

    Args:
        results: method, seed, example_id, correct; all methods on the same examples and seeds.
        depths: the methods of the sequence with their depths (`depths_of` reads them from the names).
        margin: the loss of accuracy that is still called sufficient.

    Raises:
        MeasureError: if the table cannot be joined, two depths are equal, a method with a depth is absent or is the reference,
            or a number is out of its range.
    """
    check_margin(margin)
    check_alpha(alpha)
    joined = paired(results, reference)
    sequence = _sequence(depths, joined.methods, reference)
    known, counts = spread(joined.gaps), tally(joined.gaps)
    df = np.full(len(joined.methods), np.inf) if known.conditional_on_seeds else known.df
    p = noninferiority_p(counts, margin, known.seed_variance, df)
    # A method without spread has no correlation to others; its own term only makes the interval wider.
    reach = simultaneous(known, alpha=alpha, draws=10_000, seed=0)
    upper = -bound(counts[:, ::-1], reach, known.seed_variance)
    needed, observed = needed_of(joined, margin=margin, power=POWER, alpha=alpha)
    ordered = np.array([name in depths for name in joined.methods])
    adjusted = np.empty(len(p))
    adjusted[sequence] = in_sequence(p[sequence])
    adjusted[~ordered] = holm(p[~ordered])
    outcome = np.where(upper < -margin, "inferior", "undecided").astype(object)
    # What comes after the first failure was not tested.
    stopped = np.array(sequence, dtype=int)[np.flatnonzero(adjusted[sequence] > alpha)[1:]]
    outcome[[i for i in stopped if outcome[i] == "undecided"]] = "not tested"
    outcome[adjusted <= alpha] = "sufficient"
    table = pd.DataFrame(
        {
            "method": joined.methods,
            "depth": pd.array([depths.get(name) for name in joined.methods], dtype="Int64"),
            "family": np.where(ordered, "sequence", "holm"),
            "outcome": outcome,
            "difference": known.mean,
            "lower": lower_bound(counts, alpha, known.seed_variance, df),
            "upper": upper,
            "p": p,
            "p_adjusted": adjusted,
            "disagreement": np.abs(joined.gaps).mean(axis=(1, 2)),
            "n": joined.n,
            "needed": needed,
            "needed_at_observed": observed,
        }
    )
    passed = [i for i in sequence if outcome[i] == "sufficient"]
    stop = sequence[len(passed)] if len(passed) < len(sequence) else None
    undecided = stop if stop is not None and outcome[stop] == "undecided" else None
    result = Sufficiency(
        reference=reference,
        margin=margin,
        alpha=alpha,
        smallest=joined.methods[passed[-1]] if passed else None,
        undecided=None if undecided is None else joined.methods[undecided],
        needed=None if undecided is None else _needed(table.iloc[undecided]),
        sentence="",
        n=joined.n,
        seeds=len(joined.seeds),
        conditional_on_seeds=known.conditional_on_seeds,
        table=table,
    )
    return replace(result, sentence=_sentence(result, None if stop is None else joined.methods[stop]))


def in_sequence(p: Float[np.ndarray, "*studies tests"]) -> Float[np.ndarray, "*studies tests"]:
    """Adjusted p of tests made in this order up to the first failure: the largest so far."""
    return np.maximum.accumulate(p, axis=-1)


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p of Holm (1979): the smallest times their number, the next times one less, never falling."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _sequence(depths: Mapping[str, int], methods: tuple[str, ...], reference: str) -> list[int]:
    """Where the methods of the sequence stand among all, the deepest first."""
    for name in depths:
        if name == reference or name not in methods:
            why = "the reference" if name == reference else "not among the results"
            raise MeasureError(
                f"The depths name {name!r}, which is {why}; depths may be given for {', '.join(methods)}."
            )
    names = sorted(depths, key=lambda name: -depths[name])
    for one, other in pairwise(names):
        if depths[one] == depths[other]:
            raise MeasureError(
                f"The methods {one!r} and {other!r} both have depth {depths[one]}; a fixed sequence needs different depths, "
                "and methods without one are tested outside it."
            )
    return [methods.index(name) for name in names]


def _needed(row: pd.Series) -> int | None:
    """Examples that could decide: if the truth is no difference, or else, where so many were had, if it is the one seen."""
    for wanted in (row["needed"], row["needed_at_observed"]):
        if not pd.isna(wanted) and wanted > row["n"]:
            return int(wanted)
    return None


def _sentence(found: Sufficiency, stop: str | None) -> str:
    rows = found.table.set_index("method")
    level = f"one-sided {100 * (1 - found.alpha):.3g}%"
    scope = f"{found.n:,} test examples, {found.seeds} seed{'s' * (found.seeds > 1)}"
    margin, reference = f"{found.margin:.3g}", found.reference
    if not (rows["family"] == "sequence").any():
        return f"No depth short of {reference} was tested."
    if found.smallest is not None:
        row = rows.loc[found.smallest]
        parts = [
            f"{found.smallest} is the smallest depth shown to be sufficient: its accuracy differs from {reference}'s by "
            f"{row['difference']:+.4f} and is at most {max(0.0, -row['lower']):.4f} lower ({level}; margin {margin}; {scope})"
        ]
    else:
        parts = [f"No depth short of {reference} was shown to be sufficient at the margin {margin} ({level}; {scope})"]
    if stop is not None:
        row = rows.loc[stop]
        which = f"{stop}, the {'first' if found.smallest is None else 'next'} to be tested,"
        if row["outcome"] == "inferior":
            parts.append(
                f"{which} is inferior: {row['difference']:+.4f}, and at least {-row['upper']:.4f} lower "
                "(simultaneous over all methods)"
            )
        elif found.needed is None:
            parts.append(
                f"{which} is undecided ({row['difference']:+.4f}): the difference lies so near the margin, or varies "
                "so much between seeds, that more test examples alone may not tell"
            )
        else:
            about = f"about {_round(found.needed):,} test examples could decide with {100 * POWER:.0f}% power"
            if found.needed == row["needed"]:
                about += ", if there is no true difference"
            else:
                about += ", if the true difference is the one seen"
            parts.append(f"{which} is undecided ({row['difference']:+.4f}): {about}")
    if found.conditional_on_seeds:
        parts.append("All this speaks of the seeds that were run, not of others")
    return ". ".join(parts) + "."


def _round(number: int) -> int:
    """Two significant digits, upwards: more would claim too much of an estimate."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
