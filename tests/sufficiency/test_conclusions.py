"""Conclusions about depth, the number of examples that they need, and Pareto fronts, in planted cases."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from layerprobe.errors import LayerprobeError
from layerprobe.sufficiency import by_validation, pareto, required_examples, required_seeds, smallest_sufficient_depth

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
    assert (
        "top:1, the next one tested, is undecided (difference -0.0088): about 420,000 test examples" in result.sentence
    )
    assert "if the true difference is the observed one" in result.sentence
    assert result.sentence.endswith(
        "This holds for the model trained by each method: it covers other test examples, but not another training run, which "
        "takes 3 seeds or more."
    )
    assert result.df is None and result.critical == "critical value 1.64, of the normal distribution"
    assert result.order == ("top:2", "top:1", "head")
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
    assert "top:2, the first one tested, is undecided" in result.sentence
    # The order is the depths', not the rows'.
    turned = smallest_sufficient_depth(
        planted(8000, {"head": (10, 20), "top:1": (10, 20), "top:2": (450, 380)}), {"head": 2, "top:1": 1, "top:2": 0}
    )
    assert turned.smallest == "top:1"


def test_an_inferior_depth_ends_the_sequence():
    result = smallest_sufficient_depth(planted(4000, {"head": (800, 100), "top:1": (90, 100)}), {"head": 0, "top:1": 1})
    assert outcomes(result) == {"head": "inferior", "top:1": "sufficient"}
    assert result.undecided is None and result.needed is None
    assert "head, the next one tested, is inferior: difference -0.1750, and at least 0.1" in result.sentence
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


def test_three_seeds_enter_the_test():
    """The same mean difference, once steady over seeds and once from one bad seed of three: only the steady one is shown."""
    steady = planted(6000, {"head": (60, 54)}, seeds=3)
    result = smallest_sufficient_depth(steady, {"head": 0})
    assert result.smallest == "head" and not result.conditional_on_seeds
    assert "training run" not in result.sentence
    assert "3 seeds; critical value 2.92, of t with 2 degrees of freedom)" in result.sentence
    assert (result.df, round(result.critical_value, 2)) == (2, 2.92)
    parts = [planted(6000, {"head": (lost, 54)}).assign(seed=s) for s, lost in enumerate((0, 0, 180))]
    shaky = smallest_sufficient_depth(pd.concat(parts), {"head": 0})
    row = shaky.table.iloc[0]
    assert row.difference == pytest.approx(result.table.difference.iloc[0])
    assert row.outcome == "undecidable" and shaky.smallest is None
    assert shaky.undecided == "head" and shaky.needed is None
    # Three seeds at .009, .009 and -.021 less the noise that 6,000 examples leave: 2.92 x .01.
    assert row.seed_error == pytest.approx(t.isf(0.05, 2) * np.std([0.009, 0.009, -0.021], ddof=1) / 3**0.5, rel=0.01)
    assert "head, the first one tested, is undecidable with these seeds (difference -0.0010)" in shaky.sentence
    assert f"the error over seeds alone is {row.seed_error:.4f}, more than the margin" in shaky.sentence
    # Of two seeds, the conclusion is about these models.
    few = smallest_sufficient_depth(pd.concat(parts[:2]), {"head": 0})
    assert few.conditional_on_seeds and few.smallest == "head" and pd.isna(few.table.seed_error.iloc[0])
    assert "for the 2 models trained by each method" in few.sentence


def test_methods_of_equal_depth_are_tested_in_the_given_order():
    changes = {"head": (30, 30), "linear": (3, 3), "top:1": (20, 20)}
    first = smallest_sufficient_depth(planted(4000, changes), {"linear": 0, "head": 0, "top:1": 1})
    assert first.order == ("top:1", "linear", "head") and first.smallest == "linear"
    turned = smallest_sufficient_depth(planted(4000, changes), {"head": 0, "top:1": 1, "linear": 0})
    assert turned.order == ("top:1", "head", "linear") and turned.smallest == "head"
    assert first.table.set_index("method")["order"].to_dict() == {"head": 3, "linear": 2, "top:1": 1}
    # A failure of the first stops the sequence, and one after a success at the same depth leaves nothing open.
    changes["linear"] = (400, 380)
    stopped = smallest_sufficient_depth(planted(4000, changes), {"linear": 0, "head": 0, "top:1": 1})
    assert outcomes(stopped) == {"head": "not tested", "linear": "undecided", "top:1": "sufficient"}
    assert (stopped.smallest, stopped.undecided) == ("top:1", "linear")
    passed = smallest_sufficient_depth(planted(4000, changes), {"head": 0, "linear": 0, "top:1": 1})
    assert (passed.smallest, passed.undecided, passed.needed) == ("head", None, None)
    assert outcomes(passed)["linear"] == "undecided" and "linear, the next one tested, is undecided" in passed.sentence
    words = passed.in_words({"head": "the head alone", "full": "full fine-tuning"})
    assert "The head alone is the smallest depth" in words and "from that of full fine-tuning by" in words


def test_the_order_of_frozen_models_follows_from_validation_alone():
    rows = [
        ("a", 0.70, 0.6),
        ("a", 0.72, 0.6),
        ("b", 0.71, 0.5),
        ("b", 0.71, 0.5),
        ("c", 0.8, 0.9),
        ("other", 0.9, 0.1),
    ]
    quality = pd.DataFrame(rows, columns=["method", "validation_accuracy", "validation_loss"])
    # Equal means of .71: the smaller cross-entropy first. Without validation: last, in the given order.
    assert by_validation(quality, ["z", "a", "b", "c", "y"]) == ("c", "b", "a", "z", "y")
    assert by_validation(quality[["method"]], ["b", "a"]) == ("b", "a")
    assert by_validation(quality.assign(accuracy=[0, 0, 1, 1, 0, 1]), ["a", "c"]) == ("c", "a")


def test_seeds_that_are_needed_before_anything_is_trained():
    """Against a simulation: means of m normal seeds plus the error of the examples, and their t test."""
    seeds = required_seeds(0.01, 0.12, 0.01, 40_000)
    assert seeds == 10
    rng = np.random.default_rng(0)
    for m, low, high in ((seeds, 0.8, 0.9), (seeds - 2, 0.6, 0.8)):
        drawn = rng.normal(0, 0.01, (100_000, m)) + rng.normal(0, (0.12 / 40_000) ** 0.5, (100_000, 1))
        error = np.sqrt(drawn.var(axis=1, ddof=1) / m + 0.12 / 40_000)
        assert low <= (drawn.mean(axis=1) + 0.01 > t.isf(0.05, m - 1) * error).mean() <= high
    assert required_seeds(0.0, 0.12, 0.01, 10**7) == 3
    assert required_seeds(0.001, 0.12, 0.01, 500) is None
    for arguments, message in (((-1, 0.1, 0.01, 9), "seed_sd is -1"), ((0.1, 0.1, 0.01, 0), "examples is 0")):
        with pytest.raises(LayerprobeError, match=message):
            required_seeds(*arguments)


def test_unusable_depths_and_levels_are_refused_by_name():
    results = planted(100, {"head": (1, 1), "top:1": (1, 1)})
    refused = {
        r"depths names 'top:3', which is not in results; the methods are head, top:1": {"top:3": 3},
        r"depths names 'full', which is the reference": {"head": 0, "full": 7},
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
    # Copies of one seed carry no more than that seed: two that agree need as many examples.
    copies = smallest_sufficient_depth(pd.concat([results.assign(seed=s) for s in range(2)]), DEPTHS).table
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
