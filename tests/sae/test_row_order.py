"""The order of rows in training: every row once per pass, in memory that does not depend on their number."""

import re
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from layerprobe.sae import _rows
from layerprobe.sae._rows import measure, order, permuted, read

N = 5003


@pytest.fixture
def piecewise(monkeypatch):
    monkeypatch.setattr(_rows, "SHUFFLED_ROWS", 100)
    monkeypatch.setattr(_rows, "READ_ROWS", 700)


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, N])
def test_a_network_is_a_permutation(n):
    keys = np.random.default_rng(0).integers(0, 2**64, 6, dtype=np.uint64)
    assert sorted(permuted(np.arange(n, dtype=np.uint64), n, keys)) == list(range(n))


def test_each_pass_visits_every_row_once(piecewise):
    drawn = np.concatenate(list(islice(order(N, 64, 0), 2 * N // 64 + 1)))
    first, second = drawn[: N // 64 * 64], drawn[: 2 * N // 64 * 64]
    assert len(set(first)) == len(first)
    assert np.bincount(second, minlength=N).max() == 2
    again = np.concatenate(list(islice(order(N, 64, 0), 2 * N // 64 + 1)))
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, np.concatenate(list(islice(order(N, 64, 1), 2 * N // 64 + 1))))


def test_batches_are_as_even_over_the_rows_as_random_ones(piecewise):
    """Where the rows of first batches lie among 20 stretches of the file, over 300 seeds, against equal shares."""
    drawn = np.concatenate([next(order(N, 64, seed)) for seed in range(300)])
    counts = np.histogram(drawn, bins=20, range=(0, N))[0]
    assert chisquare(counts).pvalue > 1e-4
    # A permutation of consecutive numbers would have neighbours in one batch; at random, 64 of 5,003 rows have 0.8.
    neighbours = np.mean([(np.diff(next(order(N, 64, seed))) == 1).sum() for seed in range(300)])
    assert 0.6 < neighbours < 1.0


def test_small_numbers_of_rows_keep_the_order_of_the_generator():
    expected = np.random.default_rng(3).permutation(1000)[:64]
    np.testing.assert_array_equal(next(order(1000, 64, 3)), np.sort(expected))


def test_memory_does_not_depend_on_the_rows():
    peaks = []
    for n in (2_000_000, 200_000_000):
        batches = order(n, 1024, 0)
        tracemalloc.start()
        for _ in range(20):
            next(batches)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 5e6 and peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("kept", [0, 2**30])
def test_read_rows_are_those_of_the_file(kept, tmp_path, monkeypatch):
    monkeypatch.setattr("layerprobe.files.RESIDENT_BYTES", kept)
    monkeypatch.setattr(_rows, "RESIDENT_BYTES", kept)
    values = np.random.default_rng(0).standard_normal((1000, 5)).astype(np.float16)
    np.save(tmp_path / "rows.npy", values)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    chosen = np.arange(3, 1000, 2)
    np.testing.assert_array_equal(read(rows, chosen), values[chosen].astype(np.float32))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_leaves_no_more_of_a_large_file_in_memory(tmp_path, monkeypatch):
    """Of 40 MB, read whole for its mean and row by row for its batches, at most 18 MB are mapped at any time."""
    monkeypatch.setattr("layerprobe.files.RESIDENT_BYTES", 1)
    monkeypatch.setattr(_rows, "RESIDENT_BYTES", 1)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((100_000, 100), dtype=np.float32))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    seen = []
    real = _rows.release_pages

    def release(mapped):
        maps = Path("/proc/self/smaps").read_text().split(str(tmp_path / "rows.npy"))[1]
        seen.append(int(re.search(r"Rss:\s+(\d+) kB", maps)[1]) / 1000)
        real(mapped)

    monkeypatch.setattr(_rows, "release_pages", release)
    measure(rows)
    for batch in islice(order(len(rows), 1024, 0), 5):
        read(rows, batch)
    assert len(seen) == 7 + 5 * 32 and 1 < max(seen) < 18.5
