"""Speed of the similarity measures against bare products and other libraries, memory of the accumulator, coverage.

    python benchmarks/similarity.py             # speed: 13 x 13 layers, n = 4,096, d = 768; about two minutes on two cores
    python benchmarks/similarity.py --coverage  # share of 95% intervals that cover planted truth; about ten minutes
    python benchmarks/similarity.py --units     # one pair in units of one SVD, and the parts of each measure

Install the packages compared with by `pip install "layerprobe[bench]" -c constraints.txt`: pytorch-cka and rsatoolbox. netrep is
in no package index. Run it on an otherwise idle machine. Ratios are of medians within one run.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np

from layerprobe.similarity import SimilarityAccumulator, cka, compare, grid, paired_cosine
from layerprobe.similarity import __dict__ as measures
from layerprobe.stats import _resamples, bootstrap_mean

N, D, LAYERS = 4096, 768, 13


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


def line(what: str, value: str) -> None:
    print(f"{what:72} {value}", flush=True)


def sides() -> dict[str, dict[int, np.ndarray]]:
    """Two encoders whose layers share half of their variance, in float32."""
    rng = np.random.default_rng(0)
    layers: dict[str, dict[int, np.ndarray]] = {"base": {}, "adapted": {}}
    for layer in range(LAYERS):
        layers["base"][layer] = rng.standard_normal((N, D), dtype=np.float32)
        layers["adapted"][layer] = layers["base"][layer] + rng.standard_normal((N, D), dtype=np.float32)
    return layers


def speed() -> None:
    layers = sides()
    flat = [*layers["base"].values(), *layers["adapted"].values()]
    doubles = [x.astype(np.float64) for x in flat]
    bare64 = seconds(lambda: [x @ x.T for x in doubles])
    bare32 = seconds(lambda: [x @ x.T for x in flat])
    line("26 bare Gram products, float64 / float32", f"{bare64:6.2f} s / {bare32:.2f} s")
    exact = seconds(lambda: grid(layers))
    line(
        "exact debiased CKA grid, all three squares, float64",
        f"{exact:6.2f} s   {exact / bare64:.2f}x the bare products (goal 1.25)",
    )
    minibatch = seconds(lambda: grid(layers, estimator="minibatch", batch=256))
    line("minibatch grid, batch 256", f"{minibatch:6.2f} s")
    whole = grid(layers)
    part = grid(layers, estimator="minibatch", batch=256)
    line("    its largest error against the exact value", f"{np.abs(whole.value - part.value).max():.4f}")
    peer(layers, minibatch)
    x, y = flat[3], flat[16]
    one = seconds(lambda: cka(x, y), 5)
    line("one pair: CKA", f"{one * 1e3:6.0f} ms")
    units(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("rsa", "mutual_knn", "jaccard_knn", "linear_predictivity"):
            taken = seconds(lambda name=name: measures[name](x[:1000], y[:1000]), 1)
            line(f"    {name} (1,000 rows)", f"{taken * 1e3:6.0f} ms")
    intervals = seconds(
        lambda: compare(layers["base"], layers["adapted"], np.arange(N), measures=["paired_cosine", "cka"]),
        1,
    )
    line("intervals of all 13 cosines and CKAs (goal: 10 s)", f"{intervals:6.2f} s")
    bootstraps()
    memory()
    second_opinions(x[:300, :20], y[:300, :20])


def units(x: np.ndarray, y: np.ndarray, rounds: int = 5) -> None:
    """Each measure of one pair, and the parts that it consists of, in turns and in units of one SVD on one thread."""
    from scipy.linalg import solve_triangular
    from threadpoolctl import threadpool_limits

    a, b = (z.astype(np.float64) - z.mean(0, dtype=np.float64) for z in (x, y))
    square, cross, root = a[:D], a.T @ b, np.linalg.cholesky(a.T @ a)
    scatter = root @ root.T

    def one_thread(function: Callable[[], object]) -> Callable[[], object]:
        def limited() -> None:
            with threadpool_limits(1, user_api="blas"):
                function()

        return limited

    def both_converted() -> None:
        for z in (x, y):
            rows = z.astype(np.float64)
            rows - rows.mean(0)

    bare: dict[str, Callable[[], object]] = {
        "SVD, singular values only (the unit)": one_thread(lambda: np.linalg.svd(square, compute_uv=False)),
        "the same on all threads": lambda: np.linalg.svd(square, compute_uv=False),
        "SVD with vectors": one_thread(lambda: np.linalg.svd(square)),
        "eigenvalues of a symmetric matrix": one_thread(lambda: np.linalg.eigvalsh(scatter)),
        "eigenvalues and vectors": one_thread(lambda: np.linalg.eigh(scatter)),
        "eigenvalues and vectors on all threads": lambda: np.linalg.eigh(scatter),
        "Gram matrix of the cross product": lambda: cross @ cross.T,
        "Cholesky root": one_thread(lambda: np.linalg.cholesky(scatter)),
        "triangular solve": one_thread(lambda: solve_triangular(root, cross, lower=True, check_finite=False)),
        "conversion to float64 and centring, both sides": both_converted,
        "X'X, Y'Y and X'Y": lambda: (a.T @ a, b.T @ b, a.T @ b),
    }
    names = [
        *("cka", "cka_angle", "procrustes", "procrustes_angle", "shape_distance"),
        *("mean_squared_cca", "mean_cca", "svcca", "pwcca"),
    ]
    calls = {**bare, **{name: lambda name=name: measures[name](x, y) for name in names}}  # type: ignore[misc]
    times: dict[str, list[float]] = {what: [] for what in calls}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(rounds):
            for what, call in calls.items():
                times[what].append(seconds(call, 1))
    unit = median(times["SVD, singular values only (the unit)"])
    print(
        f"one pair, {len(x):,} rows of width {D}, in units of one SVD of {D} x {D} on one thread: {unit * 1e3:.0f} ms"
    )
    for what in calls:
        line(f"    {what}", f"{median(times[what]) / unit:5.2f}")
    print(
        "    a measure = conversion + X'X, Y'Y, X'Y + Gram matrix and its eigenvalues (procrustes)"
        " + 2 roots, 2 solves (mean_cca)\n"
        "    or 2 decompositions with vectors (svcca); pwcca has vectors of the Gram matrix instead of eigenvalues"
    )


def peer(layers: dict[str, dict[int, np.ndarray]], ours: float) -> None:
    """The same minibatch estimate by the package pytorch-cka (base x adapted only)."""
    import torch
    from cka.hsic import hsic

    tensors = {side: [torch.from_numpy(x) for x in by.values()] for side, by in layers.items()}

    def theirs() -> None:
        everything = tensors["base"] + tensors["adapted"]
        with torch.inference_mode():
            for start in range(0, N, 256):
                grams = torch.stack([x[start : start + 256] @ x[start : start + 256].T for x in everything])
                hsic(grams[:LAYERS], grams[LAYERS:])

    taken = seconds(theirs)
    line(
        "pytorch-cka's HSIC over the same batches, 13 x 13, float32",
        f"{taken:6.2f} s   ours / theirs {ours / taken:.2f}",
    )


def bootstraps() -> None:
    """The shared resamples of `bootstrap_mean` against `scipy.stats.bootstrap`, for two means at each layer."""
    from scipy.stats import bootstrap

    def ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
        return sums.sum(axis) / counts.sum(axis)

    rng = np.random.default_rng(0)
    counts = rng.integers(5, 30, size=2000)
    means = counts * rng.standard_normal((2 * LAYERS, 2000))
    options = {"paired": True, "vectorized": True, "n_resamples": 2000, "batch": 200, "method": "percentile"}
    shared = seconds(lambda: [(_resamples.cache_clear(), [bootstrap_mean(x, counts, 0) for x in means])])
    scipy = seconds(lambda: [bootstrap((x, counts), ratio, rng=0, **options) for x in means])
    line(
        f"bootstrap of {2 * LAYERS} means over 2,000 examples",
        f"{shared:6.2f} s   scipy.stats.bootstrap {scipy:.2f} s, {scipy / shared:.1f}x",
    )


def memory() -> None:
    """Peak memory of the accumulator for ten times the rows."""
    import tracemalloc

    peaks = []
    for batches in (4, 40):
        rng = np.random.default_rng(0)
        accumulator = SimilarityAccumulator()
        tracemalloc.start()
        for _ in range(batches):
            accumulator.add({"base": rng.standard_normal((4096, D)), "adapted": rng.standard_normal((4096, D))})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    line("accumulator, peak memory at 16,384 and at 163,840 rows", f"{peaks[0] / 1e6:.0f} MB, {peaks[1] / 1e6:.0f} MB")


def second_opinions(x: np.ndarray, y: np.ndarray) -> None:
    """RSA compared with rsatoolbox."""
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm
    from rsatoolbox.rdm import compare as compare_rdms

    start = time.perf_counter()
    theirs = float(
        compare_rdms(*(calc_rdm(Dataset(z.astype(np.float64)), "correlation") for z in (x, y)), "spearman")[0, 0]
    )
    middle = time.perf_counter()
    ours = measures["rsa"](x, y)
    taken = time.perf_counter() - middle
    line("rsa and rsatoolbox", f"{ours:.10f} and {theirs:.10f}; {taken / (middle - start):.2f}x its time")


def coverage(draws: int = 200) -> None:
    """Share of 95% intervals that contain the value of a large sample; goal 92% to 98%."""
    rng = np.random.default_rng(0)
    d, n = 6, 300
    weights = np.linspace(1, 2, d)

    def pair(size: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.standard_normal((size, d)) * weights
        return x, x + rng.standard_normal((size, d))

    names = ["paired_cosine", "cka", "mean_cca", "procrustes", "svcca", "rsa", "mutual_knn"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        big = pair(200_000)
        truth = {name: measures[name](*big) for name in ("cka", "mean_cca", "procrustes", "svcca")}
        truth["paired_cosine"] = paired_cosine(*big)
        truth["rsa"] = float(np.mean([measures["rsa"](*pair(1500)) for _ in range(12)]))
        # Neighbourhoods depend on n: their truth is the mean at this n.
        truth["mutual_knn"] = float(np.mean([measures["mutual_knn"](*pair(n)) for _ in range(400)]))
        held = dict.fromkeys(names, 0)
        for draw in range(draws):
            x, y = pair(n)
            table = compare({0: x}, {0: y}, np.arange(n), measures=names, seed=draw).set_index("measure")
            for name in names:
                held[name] += bool(table.ci_low[name] <= truth[name] <= table.ci_high[name])
    print(f"coverage of 95% intervals, n = {n} examples, {draws} draws (a share of .95 has a standard error of .015)")
    for name in names:
        line(f"    {name}", f"{held[name] / draws:.3f}")
    print("tokens: 80 examples of 5 to 15 dependent tokens")
    held = dict.fromkeys(("paired_cosine", "cka"), 0)

    def tokens(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        groups = np.repeat(np.arange(number), rng.integers(5, 16, size=number))
        shared, extra = rng.standard_normal((2, number, d))
        x = shared[groups] * weights + rng.standard_normal((len(groups), d))
        return x, x + 0.7 * extra[groups] + 0.7 * rng.standard_normal((len(groups), d)), groups

    big_x, big_y, big_groups = tokens(15_000)
    truth = {"paired_cosine": paired_cosine(big_x, big_y), "cka": cka(big_x, big_y, groups=big_groups)}
    for draw in range(draws):
        x, y, groups = tokens(80)
        table = compare({0: x}, {0: y}, groups, measures=list(held), seed=draw).set_index("measure")
        for name in held:
            held[name] += bool(table.ci_low[name] <= truth[name] <= table.ci_high[name])
    for name, count in held.items():
        line(f"    {name}", f"{count / draws:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coverage", action="store_true", help="coverage of the intervals instead of speed")
    parser.add_argument("--units", action="store_true", help="one pair only, in units of one SVD")
    options = parser.parse_args()
    if options.units:
        pair = sides()
        units(pair["base"][3], pair["adapted"][3])
    else:
        sys.exit(coverage() if options.coverage else speed())
