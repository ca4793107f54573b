"""The smallest depth of adaptation that is shown to be as good as the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.sufficiency._power import POWER, check_level, required_for
from layerprobe.sufficiency._results import paired
from layerprobe.sufficiency._score import bound, lower_bound, noninferiority_p, tally
from layerprobe.sufficiency._spread import FEWEST_SEEDS, simultaneous, spread


@dataclass(frozen=True)
class Sufficiency:
    """What the test examples show about the depth of adaptation that is needed.

    Attributes:
        reference: the method that the others were compared with.
        margin: the largest loss of accuracy that counts as none.
        alpha: one-sided level of the tests.
        smallest: the method of the smallest depth shown to be sufficient, the first in order if there are several; None if
            there is none.
        undecided: the method of a smaller depth at which the sequence stopped without an answer; None if it ended, or
            stopped at an inferior one.
        needed: test examples that could decide about `undecided`; None if there is none, or no number would do.
        n: test examples.
        seeds: number of seeds.
        conditional_on_seeds: whether the conclusion holds for these seeds only.
        critical_value: of each test, at `alpha`: of the t distribution with `df` degrees of freedom, else the normal one.
        df: number of seeds minus 1; None if conditional on seeds.
        table: one row per method: `method`, `depth` (missing outside the sequence), `order` (place in the sequence, from 1;
            missing outside), `family` (sequence or holm), `outcome` (sufficient, inferior, undecided, undecidable or not
            tested), `difference`, `lower` (one-sided 1 - alpha bound of this test), `upper` (simultaneous bound over all
            methods), `p`, `p_adjusted` (sequence: the largest p so far; Holm: its adjusted p), `disagreement`, `n`, `needed`
            and `needed_at_observed` (test examples that could decide with 80% power if the true difference is 0, or the
            observed one), `seed_error` (critical value x standard error over seeds; missing if conditional on seeds).
    """

    reference: str
    margin: float
    alpha: float
    smallest: str | None
    undecided: str | None
    needed: int | None
    n: int
    seeds: int
    conditional_on_seeds: bool
    critical_value: float
    df: int | None
    table: pd.DataFrame = field(repr=False, compare=False)

    @property
    def order(self) -> tuple[str, ...]:
        """The methods of the sequence in the order of testing."""
        rows = self.table[self.table["order"].notna()].sort_values("order")
        return tuple(rows["method"])

    @property
    def sentence(self) -> str:
        """The conclusion in words, with the names of the methods."""
        return self.in_words({})

    def in_words(self, labels: Mapping[str, str]) -> str:
        """The conclusion in words.

        Args:
            labels: words for methods; the others are called by their names.
        """
        rows = {row["method"]: row for _, row in self.table.iterrows()}
        reference = labels.get(self.reference, self.reference)
        if not self.order:
            return f"No depth below {reference} was tested."
        failed = next((name for name in self.order if rows[name]["outcome"] != "sufficient"), None)
        sentences = [
            f"No depth below {reference} was shown to be sufficient ({self._facts()})"
            if self.smallest is None
            else _passed(_opening(self.smallest, labels), rows[self.smallest], reference, self._facts())
        ]
        if failed is not None:
            which = "next" if self.smallest else "first"
            sentences.append(_failed(f"{_opening(failed, labels)}, the {which} one tested,", rows[failed]))
        if self.conditional_on_seeds:
            trained = "model" if self.seeds == 1 else f"{self.seeds} models"
            sentences.append(
                f"This holds for the {trained} trained by each method: it covers other test examples, but not another "
                f"training run, which takes {FEWEST_SEEDS} seeds or more"
            )
        return ". ".join(sentences) + "."

    def _facts(self) -> str:
        counts = f"{self.n:,} test examples, {self.seeds} seed{'s' * (self.seeds > 1)}"
        facts = f"one-sided {100 * (1 - self.alpha):.3g}%; margin {self.margin:.3g}; {counts}"
        return facts + ("" if self.df is None else f"; {self.critical}")

    @property
    def critical(self) -> str:
        """The critical value in words."""
        if self.df is None:
            return f"critical value {self.critical_value:.2f}, of the normal distribution"
        return f"critical value {self.critical_value:.2f}, of t with {self.df} degrees of freedom"


def _opening(method: str, labels: Mapping[str, str]) -> str:
    """A method at the opening of a sentence: words with a capital, names as they are."""
    words = labels.get(method)
    return method if words is None else words[0].upper() + words[1:]


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
    null does not vanish when the methods always agree. With three seeds or more, the variance over seeds is added to it,
    and the critical value is that of t with as many degrees of freedom as there are seeds, minus 1; with fewer, the
    conclusion holds for these seeds only. Because the order is fixed in advance and stops, the probability that any depth
    is falsely called sufficient is at most alpha without a correction (Maurer, Hothorn and Lehmacher 1995). Methods
    without a depth are a family of their own, tested by Holm's procedure at alpha. Outcomes:

    * sufficient: p is at most alpha, as at every method before (Holm: the adjusted p is at most alpha).
    * inferior: the upper end of a score interval that holds for all methods at once (two-sided 1 - alpha, max-T) is below
      -margin. This does not depend on the sequence, and excludes sufficient.
    * undecidable: tested, and neither of these, and the error over seeds alone (critical value x standard error) is at
      least the margin: no number of test examples would do with these seeds.
    * undecided: tested, and none of these: there are too few examples.
    * not tested: the sequence stopped at an earlier method. Nothing is concluded about this one, whatever its p.

    Args:
        results: method, seed, example_id, correct; all methods on the same examples and seeds.
        depths: the methods of the sequence, with the number of top blocks that each trains. Methods of equal depth are
            tested in this order, which must not depend on the test examples.
        reference: the method that the others are compared with.
        margin: the largest loss of accuracy that counts as none.
        alpha: one-sided level of the tests.

    Raises:
        MeasureError: if the methods cannot be paired, a method with a depth is absent or is the reference, or a number is
            out of range.
    """
    from scipy.stats import t

    check_level(margin, alpha)
    joined = paired(results, reference)
    sequence = _sequence(depths, joined.methods, reference)
    moments, counts = spread(joined.gaps), tally(joined.gaps)
    p = noninferiority_p(counts, margin, moments.seed_variance, moments.df)
    upper = -bound(counts[:, ::-1], simultaneous(moments, alpha=alpha), moments.seed_variance)
    in_order = np.array([name in depths for name in joined.methods])
    adjusted = np.empty(len(p))
    adjusted[sequence], adjusted[~in_order] = in_sequence(p[sequence]), holm(p[~in_order])
    critical = float(t.isf(alpha, moments.df))
    seed_error = critical * np.sqrt(moments.seed_variance)
    outcome = np.where(seed_error >= margin, "undecidable", "undecided").astype(object)
    after_failure = np.array(sequence, dtype=int)[np.flatnonzero(adjusted[sequence] > alpha)[1:]]
    outcome[after_failure] = "not tested"
    outcome[upper < -margin] = "inferior"
    outcome[adjusted <= alpha] = "sufficient"
    needed, at_observed = required_for(joined, moments, margin, alpha)
    places = {i: place for place, i in enumerate(sequence, 1)}
    table = pd.DataFrame(
        {
            "method": joined.methods,
            "depth": pd.array([depths.get(name) for name in joined.methods], dtype="Int64"),
            "order": pd.array([places.get(i) for i in range(len(p))], dtype="Int64"),
            "family": np.where(in_order, "sequence", "holm"),
            "outcome": outcome,
            "difference": moments.mean,
            "lower": lower_bound(counts, alpha, moments.seed_variance, moments.df),
            "upper": upper,
            "p": p,
            "p_adjusted": adjusted,
            "disagreement": joined.disagreement,
            "n": joined.n,
            "needed": needed,
            "needed_at_observed": at_observed,
            "seed_error": np.nan if moments.conditional_on_seeds else seed_error,
        }
    )
    n_passed = int((outcome[sequence] == "sufficient").sum())  # these come first
    passed, failed = ([table.iloc[i] for i in part] for part in (sequence[:n_passed], sequence[n_passed:][:1]))
    smallest = next((row for row in passed if row["depth"] == passed[-1]["depth"]), None)
    undecided = next((row for row in failed if row["outcome"] in ("undecided", "undecidable")), None)
    if smallest is not None and undecided is not None and undecided["depth"] == smallest["depth"]:
        undecided = None
    return Sufficiency(
        reference=reference,
        margin=margin,
        alpha=alpha,
        smallest=None if smallest is None else smallest["method"],
        undecided=None if undecided is None else undecided["method"],
        needed=None if undecided is None else _needed(undecided),
        n=joined.n,
        seeds=len(joined.seeds),
        conditional_on_seeds=moments.conditional_on_seeds,
        critical_value=critical,
        df=None if moments.conditional_on_seeds else len(joined.seeds) - 1,
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
    """Positions of the methods with a depth, the deepest first, equal depths in the given order."""
    for name in depths:
        if name not in methods:
            reason = "the reference" if name == reference else "not in {results}"
            raise MeasureError(
                f"{{depths}} names {name!r}, which is {reason}; the methods are {', '.join(methods)}.",
                "depths",
                "results",
            )
    return [methods.index(name) for name in sorted(depths, key=lambda name: -depths[name])]


def _needed(row: pd.Series) -> int | None:
    """Examples that could decide: if the true difference is 0, or else, if there were that many, if it is the observed one."""
    if row["outcome"] == "undecidable":
        return None
    numbers = (row["needed"], row["needed_at_observed"])
    return next((int(number) for number in numbers if not pd.isna(number) and number > row["n"]), None)


def _passed(method: str, row: pd.Series, reference: str, facts: str) -> str:
    return (
        f"{method} is the smallest depth shown to be sufficient: its accuracy differs from that of {reference} by "
        f"{row['difference']:+.4f} and is at most {max(0.0, -row['lower']):.4f} lower ({facts})"
    )


def _failed(method: str, row: pd.Series) -> str:
    needed = _needed(row)
    if row["outcome"] == "inferior":
        bounds = f"difference {row['difference']:+.4f}, and at least {-row['upper']:.4f} lower (simultaneous over all methods)"
        return f"{method} is inferior: {bounds}"
    if row["outcome"] == "undecidable":
        return (
            f"{method} is undecidable with these seeds (difference {row['difference']:+.4f}): the error over seeds alone is "
            f"{row['seed_error']:.4f}, more than the margin, and only more seeds could reduce it"
        )
    method += f" is undecided (difference {row['difference']:+.4f}):"
    if needed is None:
        return f"{method} the difference is so close to the margin that more test examples alone may not be enough"
    unit = 10 ** max(0, len(str(needed)) - 2)  # two significant digits, rounded up
    equal = pd.notna(row["needed"]) and needed == row["needed"]
    condition = "there is no true difference" if equal else "the true difference is the observed one"
    return f"{method} about {-(-needed // unit) * unit:,} test examples could decide with {100 * POWER:.0f}% power, if {condition}"
