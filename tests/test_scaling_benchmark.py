"""The benchmark of scale: its fits find planted laws, and a run of two small points gives its table, record and plot."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import linregress

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import scaling
from _fits import fit_line, fit_power
from _svg import Panel, draw

BENCHMARKS = Path(scaling.__file__).parent
SIZES = [1e2, 1e3, 1e4, 1e5, 1e6]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_a_planted_power_law_is_found(exponent):
    exact = fit_power(SIZES, [3e-4 * n**exponent for n in SIZES])
    assert exact.slope == pytest.approx(exponent, abs=1e-9)
    assert exact.high - exact.low < 1e-6
    assert 10 ** exact.at(7) == pytest.approx(3e-4 * 1e7**exponent)


def test_intervals_of_the_exponent_cover_it():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        noisy = [2e-3 * n**1.3 * np.exp(rng.normal(0, 0.2)) for n in SIZES]
        fit = fit_power(SIZES, noisy)
        covered += fit.low <= 1.3 <= fit.high
    assert 930 <= covered <= 970


def test_a_line_equals_that_of_scipy():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=12), rng.normal(size=12)
    ours, theirs = fit_line(x.tolist(), y.tolist()), linregress(x, y)
    assert (ours.slope, ours.intercept) == pytest.approx((theirs.slope, theirs.intercept))
    assert (ours.high - ours.low) / 2 == pytest.approx(2.228139 * theirs.stderr, rel=1e-5)


def test_what_cannot_be_fitted_is_refused():
    assert np.isnan(fit_power([1, 10], [1, 10]).low)
    with pytest.raises(ValueError, match="two different sizes"):
        fit_line([3, 3], [1, 2])
    with pytest.raises(ValueError, match="positive"):
        fit_power([1, 2], [0, 1])


def test_rows_without_room_are_left_out(tmp_path, monkeypatch, capsys):
    free = 3e6 * 384 * 4 + scaling.SPARE + 1
    monkeypatch.setattr(scaling.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert scaling.with_room([10**6, 3 * 10**6, 10**7], tmp_path) == [10**6, 3 * 10**6]
    assert "10,000,000 rows are left out" in capsys.readouterr().out
    points = [{"size": n, "seconds": n / 1e4, "before_bytes": 1e8, "peak_bytes": 2e8} for n in (10**6, 3 * 10**6)]
    assert "1e7 by the fit: 1,000 s" in scaling.summary("rows", points).largest


def test_rows_have_the_covariance_that_the_true_value_assumes(tmp_path):
    scaling.make_rows(tmp_path / "rows.npy", 40_000)
    rows = np.load(tmp_path / "rows.npy").astype(float)
    rows -= rows.mean(0)
    other = scaling.adapted(rows)
    cross = np.linalg.norm(rows.T @ other) ** 2
    plain = cross / np.linalg.norm(rows.T @ rows) / np.linalg.norm(other.T @ other)
    assert plain == pytest.approx(scaling.true_cka(), abs=2e-3) and plain < 0.99


def test_two_points_give_a_table_a_record_and_a_plot(tmp_path):
    command = [sys.executable, BENCHMARKS / "scaling.py", "--only", "texts", "--sizes", "40", "120", "--markdown"]
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stderr
    points = json.loads((tmp_path / "scaling.json").read_text())["texts"]["points"]
    assert [point["size"] for point in points] == [40, 120]
    # Each text has 4 to 20 words and two special tokens.
    assert all(6 * point["size"] <= point["token_rows"] <= 22 * point["size"] for point in points)
    assert all(point["peak_bytes"] >= point["before_bytes"] > 1e7 and point["cpu_seconds"] > 0 for point in points)
    exponent = fit_power([40, 120], [point["seconds"] for point in points]).slope
    assert f"| Capture of texts | 120 texts | {exponent:.2f} |" in done.stdout
    circles = ElementTree.parse(tmp_path / "scaling.svg").getroot().iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(circles)) == 4  # seconds and memory


def test_points_of_a_plot_lie_on_their_fitted_line():
    sizes, seconds = [10.0, 1000.0], [0.02, 2.0]
    root = ElementTree.fromstring(draw([Panel("A & B", "", sizes, seconds, "rows", (0.02, 2.0))], "title"))
    name = "{http://www.w3.org/2000/svg}"
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{name}circle")]
    (path,) = root.iter(f"{name}path")
    ends = [tuple(map(float, end.split())) for end in path.get("d").removeprefix("M").split("L")]
    np.testing.assert_allclose(circles, ends, atol=0.05)
    assert circles[0][0] < circles[1][0] and circles[0][1] > circles[1][1]
