"""Conclusions about depth, the number of examples that they need, and Pareto fronts, in planted cases."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from layerprobe.errors import LayerprobeError
from layerprobe.sufficiency import pareto, required_examples, smallest_sufficient_depth

DEPTHS = {"head": 0, "top:1": 1, "top:2": 2}


def planted(n, changes, seeds=1):
    """`full` is right on the first three quarters; each method loses and gains the given numbers of examples."""
    truth = np.arange(n) < 3 * n // 4
    parts = [("full", truth)]
    for method, (lost, won) in changes.items():
        right = truth.copy()
        right[:lost] = False
        right[n - won :] = True
        parts.append((method, right))
    return pd.concat(
        pd.DataFrame({"method": method, "seed": seed, "example_id": np.arange(n), "correct": right})
        for method, right in parts
        for seed in range(seeds)
    )


def outcomes(result):
    return result.table.set_index("method").outcome.to_dict()


def test_each_outcome_and_its_sentence():
    result = smallest_sufficient_depth(
        planted(8000, {"head": (900, 100), "top:1": (450, 380), "top:2": (300, 300), "lora:8": (310, 300)}), DEPTHS
    )
    assert outcomes(result) == {"head": "inferior", "top:1": "undecided", "top:2": "sufficient", "lora:8": "sufficient"}
    assert (result.smallest, result.undecided) == ("top:2", "top:1")
    row = result.table.set_index("method").loc["top:1"]
    # 830 of 8,000 disagree: 6.18 x .10375 / .0001 = 6,415 would be enough without a gap; there are more, so the gap counts:
    # (.10375 - .00875^2) x 6.1826 / .00125^2.
    assert row.needed == 6415
    assert result.needed == row.needed_at_observed == pytest.approx(410_212, abs=150)
    assert (
        "top:2 is the smallest depth shown to be sufficient: its accuracy differs from that of full by +0.0000"
        in result.sentence
    )
    assert "top:1, the next depth tested, is undecided (-0.0088): about 420,000 test examples" in result.sentence
    assert "if the true difference is the observed one" in result.sentence
    assert result.sentence.endswith("This holds for the seeds that were run, not for seeds in general.")
    families = result.table.set_index("method").family
    assert families["lora:8"] == "holm" and families["head"] == "sequence"
    assert pd.isna(result.table.set_index("method").depth["lora:8"])
    assert result.n == 8000 and result.seeds == 1 and result.conditional_on_seeds


def test_what_comes_after_the_first_failure_is_not_tested_however_good():
    result = smallest_sufficient_depth(
        planted(8000, {"head": (10, 20), "top:1": (10, 20), "top:2": (450, 380)}), DEPTHS
    )
    assert outcomes(result) == {"head": "not tested", "top:1": "not tested", "top:2": "undecided"}
    assert result.smallest is None
    assert result.table.set_index("method").p["head"] < 1e-6
    assert (
        "No depth below full was shown to be sufficient (one-sided 95%; margin 0.01; 8,000 test examples, 1 seed)"
        in result.sentence
    )
    assert "top:2, the first depth tested, is undecided" in result.sentence
    # The order is the depths', not the rows'.
    turned = smallest_sufficient_depth(
        planted(8000, {"head": (10, 20), "top:1": (10, 20), "top:2": (450, 380)}), {"head": 2, "top:1": 1, "top:2": 0}
    )
    assert turned.smallest == "top:1"


def test_an_inferior_depth_ends_the_sequence():
    result = smallest_sufficient_depth(planted(4000, {"head": (800, 100), "top:1": (90, 100)}), {"head": 0, "top:1": 1})
    assert outcomes(result) == {"head": "inferior", "top:1": "sufficient"}
    assert result.undecided is None and result.needed is None
    assert "head, the next depth tested, is inferior: -0.1750, and at least 0.1" in result.sentence
    upper = result.table.set_index("method").upper["head"]
    # Compared with the plain simultaneous interval, whose critical value for two methods lies between 1.96 and 2.24.
    error = np.sqrt((900 / 4000 - 0.175**2) / 4000)
    assert -0.175 + 1.9 * error < upper < -0.175 + 2.4 * error


def test_all_sufficient_names_the_head():
    result = smallest_sufficient_depth(planted(4000, {"head": (30, 30), "top:1": (30, 30), "top:2": (3, 3)}), DEPTHS)
    assert result.smallest == "head" and result.undecided is None
    assert "the next" not in result.sentence


def test_twenty_examples_without_disagreement_are_undecided():
    result = smallest_sufficient_depth(planted(20, {"head": (0, 0), "top:1": (0, 0)}), {"head": 0, "top:1": 1})
    assert outcomes(result) == {"head": "not tested", "top:1": "undecided"}
    assert result.smallest is None and result.needed == 299
    assert result.table.p.tolist() == pytest.approx([0.99**20] * 2)
    enough = smallest_sufficient_depth(planted(300, {"head": (0, 0), "top:1": (0, 0)}), {"head": 0, "top:1": 1})
    assert enough.smallest == "head"


def test_outside_the_sequence_holm_corrects():
    """Four methods whose p is below 5% but not below 5% / 4: none is sufficient; each alone is."""
    results = planted(4000, dict.fromkeys(("bitfit", "lora:2", "lora:4", "lora:8"), (168, 160)))
    result = smallest_sufficient_depth(results, {})
    p = result.table.p.iloc[0]
    assert 0.05 / 4 < p <= 0.05
    assert result.table.p_adjusted.tolist() == pytest.approx([4 * p] * 4)
    assert set(outcomes(result).values()) == {"undecided"}
    assert result.sentence == "No depth below full was tested."
    alone = smallest_sufficient_depth(results[results.method.isin(["full", "lora:8"])], {})
    assert outcomes(alone) == {"lora:8": "sufficient"}


def test_five_seeds_allow_conclusions_about_all_seeds():
    """The same mean difference, once steady over seeds and once from two bad seeds of six: only the steady one is shown."""
    steady = planted(6000, {"head": (60, 54)}, seeds=6)
    result = smallest_sufficient_depth(steady, {"head": 0})
    assert result.smallest == "head" and not result.conditional_on_seeds
    assert "seeds that were run" not in result.sentence and "6 seeds" in result.sentence
    parts = [planted(6000, {"head": (lost, 54)}).assign(seed=s) for s, lost in enumerate((0, 0, 0, 0, 180, 180))]
    shaky = smallest_sufficient_depth(pd.concat(parts), {"head": 0})
    assert shaky.table.difference.iloc[0] == pytest.approx(result.table.difference.iloc[0])
    assert shaky.smallest is None and shaky.undecided == "head" and shaky.needed is None
    assert "varies so much between seeds" in shaky.sentence
    # The same predictions are enough if there are no other seeds.
    few = smallest_sufficient_depth(pd.concat(parts[1:5]), {"head": 0})
    assert few.conditional_on_seeds and few.smallest == "head"


def test_unusable_depths_and_levels_are_refused_by_name():
    results = planted(100, {"head": (1, 1), "top:1": (1, 1)})
    refused = {
        r"depths names 'top:3', which is not in results; the methods are head, top:1": {"top:3": 3},
        r"depths names 'full', which is the reference": {"head": 0, "full": 7},
        r"'head' and 'top:1' both at 0": {"head": 0, "top:1": 0},
    }
    for message, depths in refused.items():
        with pytest.raises(LayerprobeError, match=message):
            smallest_sufficient_depth(results, depths)
    for margin in (0, 1, -0.01, float("nan")):
        with pytest.raises(LayerprobeError, match=r"margin is .*above 0 and below 1"):
            smallest_sufficient_depth(results, {"head": 0}, margin=margin)
    with pytest.raises(LayerprobeError, match=r"alpha is 5; it must be above 0 and below \.5"):
        smallest_sufficient_depth(results, {"head": 0}, alpha=5)


def test_required_examples():
    assert required_examples(0.12, 0.01) == 7420
    exact = (norm.ppf(0.95) + norm.ppf(0.8)) ** 2
    assert exact == pytest.approx(6.18, abs=0.005)
    assert required_examples(0.2, 0.02, power=0.9, alpha=0.025) == np.ceil(10.507 * 0.2 / 0.0004)
    # None lost of 299 is the first count that shows a loss below 1%: .99^299 <= .05 < .99^298.
    assert required_examples(0.0, 0.01) == 299
    assert 0.99**299 <= 0.05 < 0.99**298
    for arguments, message in [
        ((1.2, 0.01), "disagreement is 1.2"),
        ((0.1, 0.0), "margin is 0.0"),
    ]:
        with pytest.raises(LayerprobeError, match=message):
            required_examples(*arguments)
    with pytest.raises(LayerprobeError, match=r"power is 0\.01"):
        required_examples(0.1, 0.01, power=0.01)


def test_needed_examples_follow_from_the_observed_disagreement():
    results = planted(1000, {"head": (80, 40), "top:1": (30, 30), "top:2": (30, 20)})
    table = smallest_sufficient_depth(results, DEPTHS).table.set_index("method")
    assert table.disagreement.tolist() == pytest.approx([0.12, 0.06, 0.05])
    assert table.needed["head"] == required_examples(0.12, 0.01) == 7420
    assert table.needed_at_observed["head"] == np.ceil(
        (norm.ppf(0.95) + norm.ppf(0.8)) ** 2 * (0.12 - 0.04**2) / 0.03**2
    )
    # A difference of exactly -margin is decided by no number of examples.
    assert pd.isna(table.needed_at_observed["top:2"])
    # Copies of one seed carry no more than that seed: three that agree need as many examples.
    copies = smallest_sufficient_depth(pd.concat([results.assign(seed=s) for s in range(3)]), DEPTHS).table
    assert copies.needed.tolist() == table.needed.tolist()


def test_pareto_marks_what_nothing_dominates():
    table = pd.DataFrame(
        {
            "method": ["head", "top:1", "top:2", "full", "tie", "gone"],
            "accuracy": [0.70, 0.74, 0.73, 0.75, 0.74, 0.80],
            "seconds": [1.0, 2.0, 3.0, 7.0, 2.0, np.nan],
            "flops": [1.0, 2.0, 1.0, 7.0, 3.0, 9.0],
        }
    )
    front = pareto(table, costs=("seconds", "flops")).set_index(["cost", "method"])
    seconds = front.loc["seconds"]
    # Equal in both: neither dominates. A method without its cost is neither on the front nor off it, and dominates none.
    assert seconds.efficient.drop("gone").to_dict() == {
        "head": True, "top:1": True, "top:2": False, "full": True, "tie": True,
    }  # fmt: skip
    assert pd.isna(seconds.efficient["gone"])
    assert seconds.dominated_by["top:2"] == "top:1"
    flops = front.loc["flops"]
    assert not flops.efficient["head"] and flops.dominated_by["head"] == "top:2"
    assert not flops.efficient["tie"] and flops.dominated_by["tie"] == "top:1"
    assert flops.efficient["gone"] and flops.efficient["top:2"]


def test_pareto_against_every_pair():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "method": [f"m{i}" for i in range(30)],
            "accuracy": rng.integers(0, 8, 30) / 8,
            "seconds": rng.integers(0, 8, 30),
        }
    )
    front = pareto(table, costs=["seconds"]).set_index("method")
    rows = table.set_index("method")
    for one in rows.index:
        beaten = [
            other
            for other in rows.index
            if rows.accuracy[other] >= rows.accuracy[one]
            and rows.seconds[other] <= rows.seconds[one]
            and (rows.accuracy[other], rows.seconds[other]) != (rows.accuracy[one], rows.seconds[one])
        ]
        assert front.efficient[one] == (not beaten)
        assert front.dominated_by[one] in (beaten or [""])


def test_pareto_refuses_by_name():
    table = pd.DataFrame({"method": ["head", "head"], "accuracy": [0.7, 0.8], "seconds": [1, 2]})
    with pytest.raises(LayerprobeError, match="several rows of 'head'"):
        pareto(table, costs=["seconds"])
    with pytest.raises(LayerprobeError, match="lacks flops; it has method, accuracy, seconds"):
        pareto(table, costs=["flops"])
    with pytest.raises(LayerprobeError, match="costs is empty"):
        pareto(table, costs=[])


def test_importing_it_loads_no_torch_and_no_scipy():
    code = "import sys, layerprobe.sufficiency; sys.exit(any(m in sys.modules for m in ('torch', 'scipy.stats')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
