"""What doctor and the docs say of accelerators is true of the tests and the stages."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from layerprobe import accelerators
from layerprobe.cli import app
from layerprobe.stages import REGISTRY

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "accelerators.md"


def test_doctor_lists_the_tests_that_pytest_finds():
    """Only files that mention the mark are collected, and no test can have it from elsewhere."""
    marked = [path for path in (ROOT / "tests").rglob("*.py") if "mark.accelerator" in path.read_text(encoding="utf-8")]
    assert all(path.name.startswith("test_") for path in marked)
    command = [sys.executable, "-m", "pytest", "-m", "accelerator", "--collect-only", "-q", "-p", "no:xdist"]
    done = subprocess.run([*command, "-o", "addopts=", *marked], cwd=ROOT, capture_output=True, text=True)
    found = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert done.returncode == 0 and found, done.stdout + done.stderr
    shown = CliRunner().invoke(app, ["doctor"]).stdout
    assert set(re.findall(r"tests/\S+::\S+", shown)) == found
    assert "python -m pytest -m accelerator" in shown


def test_marks_are_found_on_tests_and_on_files(tmp_path):
    (tests := tmp_path / "tests" / "part").mkdir(parents=True)
    (tests / "test_one.py").write_text(
        "import pytest\n@pytest.mark.accelerator\ndef test_a(): pass\ndef test_b(): pass\n"
        "@pytest.mark.parametrize('x', [pytest.mark.other])\ndef test_c(x): pass\n"
    )
    (tests / "test_two.py").write_text("import pytest\npytestmark = [pytest.mark.accelerator]\ndef test_d(): pass\n")
    assert accelerators.test_names(tmp_path / "tests") == [
        "tests/part/test_one.py::test_a",
        "tests/part/test_two.py::test_d",
    ]


def test_doctor_names_the_accelerator_its_memory_and_its_number_formats(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Big GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(accelerators.devices, "free_bytes", lambda device: 15 * 10**9)
    lines = list(accelerators.describe("cuda", tmp_path / "missing"))
    assert lines[0] == ("accelerator", "Big GPU, 15.0 GB free, bf16 no, TF32 no")
    assert "pip download --no-deps --no-binary layerprobe layerprobe==" in lines[-1][1]
    assert next(accelerators.describe("cpu", tmp_path)) == ("accelerator", "none that torch can use")
    assert not any("no float64" in text for _, text in lines)
    assert any("no float64" in text for _, text in accelerators.describe("mps", tmp_path))


def rows():
    """The cells of the table of stages."""
    section = DOCS.read_text(encoding="utf-8").partition("## What runs where")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return {
        cells[0].strip("` "): cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)
    }


def test_the_docs_say_for_every_stage_what_runs_where():
    table = rows()
    assert list(table) == [stage.name for stage in REGISTRY]
    for stage in REGISTRY:
        on_device, on_cpu = table[stage.name]
        assert (on_device != "nothing") == stage.accelerator, stage.name
        assert on_device and on_cpu and (stage.accelerator or stage.on_cpu), stage.name
        assert stage.on_cpu in on_cpu


def test_doctor_lists_what_stays_on_the_cpu():
    shown = " ".join(CliRunner().invoke(app, ["doctor"]).stdout.split())
    assert "reference: logistic regression of scikit-learn" in shown
    for stage in REGISTRY:
        if stage.on_cpu:
            assert re.search(rf"\b{stage.name}\b[^:]*: {re.escape(stage.on_cpu)}", shown), stage.name


@pytest.mark.parametrize("stage", REGISTRY, ids=lambda stage: stage.name)
def test_a_stage_that_uses_the_device_declares_it(stage):
    """Executors give the device to one such task at a time, and a cluster shows its GPU to no other."""
    classes = [one for one in stage.__mro__ if one.__module__.startswith("layerprobe.stages")]
    alone = [one for one in REGISTRY if one.__module__ == stage.__module__] == [stage]
    parts = [inspect.getmodule(stage) if alone else stage, *classes]  # with the functions beside it
    source = "".join(map(inspect.getsource, parts))
    uses = any(words in source for words in ("context.device", "adapt_config(context", "make_learner(context"))
    assert stage.accelerator == uses
