"""How often the page would print each of its claims where there is nothing to claim.

    python benchmarks/claims.py           # a few minutes on one core
    python benchmarks/claims.py --quick   # a tenth of the studies

Each study is simulated under the null of one claim, and passed to the function that decides the sentence. Printed are the share
of studies with a false claim, its stated level, and two Monte Carlo errors; the exit code is 1 if a share is above its level plus
these. Nothing is timed, so that other work on the machine does not matter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from layerprobe import onsets, sae, similarity, sufficiency
from layerprobe.internals import label_variance
from layerprobe.sae import SaeQuality
from layerprobe.similarity import Replicates, control_difference
from layerprobe.stats import Bands, jackknife_error, simultaneous_bands

LAYERS, FOLDS = 13, 20
Claim = tuple[str, str, float, Callable[[np.random.Generator], bool]]


def claims() -> Iterator[Claim]:
    """What is simulated, the sentence, its level, and one study that returns whether the sentence is printed."""
    yield "no drift beyond 0.95", "a layer 'changed', or 'kept its representation'", 0.05, drift_verdict
    for models in (3, 5):
        yield (
            f"drift as under the control, {models} seeds",
            "drift exceeds training without the task from a layer on",
            0.05,
            lambda rng, models=models: drift_beyond_control(rng, models),
        )
    yield "equal layers", "'is largest at layer ...'", 0.05, largest
    yield "equal layers under equal steps", "later layers change more also without larger steps", 0.05, falls
    yield "no label variance", "label variance of the adapted model has an onset", 0.05, no_label_variance
    yield "equal label variance", "label variance exceeds the base's from a layer on", 0.05, equal_label_variance
    for runs in (1, 4, 10):
        yield (
            f"equal label effects, {runs} training seeds",
            "the label effect of latents exceeds the base's from a layer on",
            0.05,
            lambda rng, runs=runs: crossing(rng, runs),
        )
    yield "a rise like that of one control", "'features became task-specific'", 0.05, task_specific
    yield "kinds change as between base dictionaries", "more latents changed their kind", 0.05, transition
    for seeds in (1, 3, 5):
        yield (
            f"a depth worse by the margin, {seeds} seeds",
            "a smaller depth is sufficient",
            0.05,
            lambda rng, seeds=seeds: sufficient(rng, seeds),
        )
    yield "equal accuracy of 4 methods, 1 seed", "a method is better or worse than full", 0.05, accuracy_differs
    yield (
        "equal explained variance as one control",
        "the base's dictionary explains more than its controls",
        0.025,
        explains_more,
    )
    yield (
        "equal explained variance as two controls",
        "a control explains more than the base's dictionary",
        0.05,
        explains_less,
    )
    yield "directions drawn from the rows", "subspaces of unstable latents overlap by more", 0.05, subspaces
    yield "nulls with as many exclusive latents", "features are exclusive to one side", 0.05, exclusive


# Drift ----------------------------------------------------------------------------------------------------------------


def drift_verdict(rng: np.random.Generator) -> bool:
    """CKA of 13 layers whose population value is .95 exactly, with bands from `similarity.compare`'s jackknife."""
    noise = np.sqrt(1 / 0.95 - 1)
    x = {layer: rng.standard_normal((300, 8)) for layer in range(LAYERS)}
    y = {layer: rows + noise * rng.standard_normal(rows.shape) for layer, rows in x.items()}
    table = similarity.compare(x, y, np.arange(300), measures=["cka"])
    return set(onsets.verdicts(table["band_low"], table["band_high"], 0.95)) != {"undecided"}


def drift_beyond_control(rng: np.random.Generator, models: int) -> bool:
    """Method and control with equal mean similarities; trainings and examples vary."""
    truth = np.linspace(1, 0.4, LAYERS)
    examples = 0.05 * rng.standard_normal((200, 1)) + 0.05 * rng.standard_normal((200, LAYERS))
    sides = []
    for _ in range(2):
        trained = truth + 0.02 * rng.standard_normal((models, 1)) + 0.006 * rng.standard_normal((models, LAYERS))
        rows = trained[:, None] + examples + 0.01 * rng.standard_normal((models, *examples.shape))
        parts = rows.reshape(models, FOLDS, -1, LAYERS).sum(2)
        left_out = (rows.sum(1, keepdims=True) - parts) / (200 * (1 - 1 / FOLDS))
        sides.append(Replicates(rows.mean(1), left_out.transpose(0, 2, 1)))
    return onsets.first_beyond(range(LAYERS), [control_difference(*sides).bands.low]) is not None


def equal_layers(rng: np.random.Generator, layers: int) -> Bands:
    """Bands of layers with equal similarities."""
    rows = 0.9 + 0.05 * rng.standard_normal((200, layers))
    errors = jackknife_error(without_folds(rows).T)
    return simultaneous_bands(rows.mean(0), errors, FOLDS - 1, -1, 1)


def without_folds(rows: np.ndarray) -> np.ndarray:
    """Means of the rows without each fold: folds x columns."""
    parts = rows.reshape(FOLDS, -1, rows.shape[1]).sum(1)
    return (rows.sum(0) - parts) / (len(rows) * (1 - 1 / FOLDS))


def largest(rng: np.random.Generator) -> bool:
    bands = equal_layers(rng, LAYERS)
    return onsets.extreme(range(LAYERS), bands.low, bands.high) is not None


def falls(rng: np.random.Generator) -> bool:
    bands = equal_layers(rng, 2)
    return onsets.falls(bands.low, bands.high)


# Label variance -------------------------------------------------------------------------------------------------------


def label_sides(rng: np.random.Generator, shift: float) -> tuple[dict, dict, np.ndarray, np.ndarray]:
    """Base and adapted rows of 7 layers, each layer like the one before, with equal variance between labels."""
    n, width = 120, 6
    labels, lengths = rng.integers(3, size=n), rng.integers(3, 9, size=n)
    means = np.linalg.qr(rng.normal(size=(width, 3)))[0].T[labels]
    x, base, adapted = rng.normal(size=(n, width)), {}, {}
    for layer in range(7):
        x = 0.8 * x + 0.6 * rng.normal(size=(n, width))
        base[layer] = x + shift * means
        adapted[layer] = 0.8 * x + 0.6 * rng.normal(size=(n, width)) + shift * means
    return base, adapted, labels, lengths


def no_label_variance(rng: np.random.Generator) -> bool:
    _, adapted, labels, lengths = label_sides(rng, 0.0)
    return label_variance(adapted, np.arange(len(labels)), labels, lengths, permutations=199).onset is not None


def equal_label_variance(rng: np.random.Generator) -> bool:
    *sides, labels, lengths = label_sides(rng, 1.0)
    base, adapted = (label_variance(side, np.arange(len(labels)), labels, lengths, permutations=199) for side in sides)
    return adapted.minus(base).onset is not None


# Latents --------------------------------------------------------------------------------------------------------------


def crossing(rng: np.random.Generator, runs: int) -> bool:
    """Errors of examples, dictionaries and (with several) training runs, and no difference of base and adapted."""
    by_text = rng.normal(size=(LAYERS, FOLDS)) + rng.normal(size=FOLDS)
    by_text *= np.sqrt(FOLDS / 2)
    by_dictionary = rng.normal(size=(2, LAYERS))
    by_run = (rng.normal(size=(runs, 1)) + rng.normal(size=(runs, LAYERS))) / np.sqrt(2) * (runs > 1)
    true = by_run[:, None] + by_dictionary
    without = (by_text.sum(1, keepdims=True) - by_text) / (FOLDS - 1)
    return sae.crossing(np.arange(LAYERS), true + by_text.mean(1), true[..., None] + without).onset is not None


def task_specific(rng: np.random.Generator) -> bool:
    """The dictionaries' label effect rises in each of 4 layers as much as that of one control, and more than the others'."""

    def readings(rise: float, seeds: int, between: float) -> np.ndarray:
        values = np.zeros((1, seeds, 4, 2, 1 + FOLDS))
        parts = rng.standard_normal((4, FOLDS)) * 0.01 * np.sqrt(FOLDS)
        without = (parts.sum(1, keepdims=True) - parts) / (FOLDS - 1)
        of_examples = np.concatenate([parts.mean(1, keepdims=True), without], axis=1)
        values[0, :, :, 1] = rise + between * rng.standard_normal((seeds, 4))[..., None] + of_examples
        return values

    dictionary = readings(0.1, 2, 0.01)
    rises = dict.fromkeys(sae.CONTROLS, 0.0) | {"random directions": 0.1}
    found = {name: sae.excess(dictionary, readings(rise, 5, 0.002)) for name, rise in rises.items()}
    return bool(sae.task_specific(found).layers)


def transition(rng: np.random.Generator) -> bool:
    """80 general latents per layer, of which 6% change by chance on either side."""

    def changed() -> list[str]:
        return np.where(rng.random(80) < 0.06, "task", "general").tolist()

    def layer() -> bool:
        table = sae.transitions(["general"] * 80, changed(), changed(), layers=LAYERS)
        row = table[(table["kind_base"] == "general") & (table["kind_adapted"] == "task or both")].iloc[0]
        return bool(row["all_low"] > 0)

    return any(layer() for _ in range(LAYERS))


def exclusive(rng: np.random.Generator) -> bool:
    """Censuses of 500 latents; as many look exclusive in the study as in its five nulls, by Poisson chance."""

    def census() -> pd.DataFrame:
        statistic = rng.normal(size=500)
        kind = np.full(500, "shared", dtype=object)
        low = np.argsort(statistic)[: rng.poisson(6)]
        kind[low] = "adapted_only"
        columns = {"latent": np.arange(500), "kind": kind, "nu_statistic": statistic, "nu_reconstruction": 0.1}
        return pd.DataFrame({**columns, "p_exclusive": 1e-6})

    return bool(sae.exclusive_features(census(), [census() for _ in range(5)]).latents)


def explained(rng: np.random.Generator, excess: tuple[float, ...]) -> list[Any]:
    """`ev_difference` of a dictionary and controls that explain `excess` less than it, from means over 200 examples."""
    shared = rng.standard_normal(200)
    means = [0.5, *(0.5 - one for one in excess)]
    qualities = []
    for mean in means:
        rows = (mean + 0.1 * shared + 0.05 * rng.standard_normal(200))[:, None]
        values = {"ev_low": 0.0, "ev_high": 1.0, "l0": 8.0, "dead_share": 0.0, "n": 2000, "examples": 200}
        left_out = tuple(without_folds(rows)[:, 0])
        qualities.append(
            SaeQuality(
                explained_variance=float(rows.mean()),
                reconstruction_bias=1.0,
                densities=pd.DataFrame(),
                left_out=left_out,
                **values,
            )
        )
    return [sae.ev_difference(qualities[0], other) for other in qualities[1:]]


def explains_more(rng: np.random.Generator) -> bool:
    """One control explains as much as the dictionary, another much less."""
    return all(one.low > 0 for one in explained(rng, (0.0, 0.3)))


def explains_less(rng: np.random.Generator) -> bool:
    return any(one.high < 0 for one in explained(rng, (0.0, 0.0)))


def subspaces(rng: np.random.Generator) -> bool:
    rows = rng.standard_normal((400, 24)) * np.linspace(2, 0.2, 24)
    one, other = (rng.standard_normal((12, 24)) * np.linspace(2, 0.2, 24) for _ in range(2))
    found = sae.subspace_overlap(one, other, rows, seed=int(rng.integers(2**31)))
    return found.overlap > found.null_high


# Accuracy -------------------------------------------------------------------------------------------------------------


def sufficient(rng: np.random.Generator, seeds: int) -> bool:
    """`head` is worse than `full` by the margin, over all training runs; 1,000 test examples."""
    n, margin, wobble = 1000, 0.01, 0.01 if seeds > 1 else 0.0
    ease = rng.standard_normal(n)

    def right(accuracy: float) -> np.ndarray:
        runs = np.clip(accuracy + wobble * rng.standard_normal(seeds), 0.01, 0.99)
        threshold = np.sqrt(1 + 2.5**2) * norm.ppf(runs)
        return 2.5 * ease[:, None] + rng.standard_normal((n, seeds)) + threshold > 0

    results = predictions(right, {"full": 0.75, "head": 0.75 - margin}, n, seeds)
    return sufficiency.smallest_sufficient_depth(results, depths={"head": 0}, margin=margin).smallest is not None


def accuracy_differs(rng: np.random.Generator) -> bool:
    """Four methods as accurate as `full`; 500 test examples."""
    ease = rng.standard_normal(500)

    def right(accuracy: float) -> np.ndarray:
        return 2.5 * ease[:, None] + rng.standard_normal((500, 1)) + np.sqrt(1 + 2.5**2) * norm.ppf(accuracy) > 0

    results = predictions(right, dict.fromkeys(("full", "a", "b", "c", "d"), 0.75), 500, 1)
    table = sufficiency.differences(results)
    return bool(((table["band_low"] > 0) | (table["band_high"] < 0)).any())


def predictions(right: Callable[[float], np.ndarray], accuracies: dict[str, float], n: int, seeds: int) -> pd.DataFrame:
    """Which examples each method has right: method, seed, example_id, correct."""
    index = pd.MultiIndex.from_product([range(n), range(seeds)], names=["example_id", "seed"])
    tables = [
        pd.DataFrame({"correct": right(accuracy).ravel()}, index=index).reset_index().assign(method=method)
        for method, accuracy in accuracies.items()
    ]
    return pd.concat(tables, ignore_index=True).astype({"example_id": str})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the studies")
    parser.add_argument("--studies", type=int, default=1000, help="studies per claim")
    options = parser.parse_args()
    studies = options.studies // 10 if options.quick else options.studies
    print(f"{studies} studies per claim\n{'null':46} {'false claim':64} {'share':>6} {'level':>6} {'2 SE':>6}")
    above = 0
    for number, (null, sentence, level, study) in enumerate(claims()):
        rng = np.random.default_rng([number, 0])
        share = np.mean([study(rng) for _ in range(studies)])
        error = 2 * np.sqrt(level * (1 - level) / studies)
        above += share > level + error
        print(f"{null:46} {sentence:64} {share:6.3f} {level:6.3f} {error:6.3f}", flush=True)
    print("every claim keeps its level" if not above else f"{above} claims are above their level")
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
