"""The page about energy: its example prints what the page shows, its command runs, and it names keys that exist."""

import re
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from layerprobe import Study
from layerprobe.cli import app
from layerprobe.energy_section import EnergySection

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "energy.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


def test_the_example_prints_what_the_page_shows(capsys):
    (code,), (shown,) = blocks("python"), blocks("text")
    exec(compile(code, "docs/energy.md", "exec"), {})
    assert capsys.readouterr().out == shown


def test_the_command_of_the_page_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (line,) = blocks("bash")
    result = CliRunner().invoke(app, line.split()[1:])
    assert result.exit_code == 0, result.output
    assert "energy-rounds" in result.stdout


def test_every_key_that_the_page_names_exists():
    assert set(re.findall(r"`energy\.(\w+)`", PAGE)) <= set(EnergySection.model_fields)


def test_studies_of_energy_start_from_the_bodies_of_the_few_shot_studies():
    """Equal sections give equal keys, so that meta-training is not repeated."""
    for size in ("quick", "icd10"):
        energy, few = (
            tomllib.loads((ROOT / "analyses" / f"{kind}_{size}.toml").read_text(encoding="utf-8"))
            for kind in ("energy", "few_shot")
        )
        for content in (energy, few):
            content["few_shot"].pop("convergence", None)
        assert {name: energy[name] for name in ("seeds", "model", "data", "few_shot")} == {
            name: few[name] for name in ("seeds", "model", "data", "few_shot")
        }
        assert Study.parse(energy).energy is not None
