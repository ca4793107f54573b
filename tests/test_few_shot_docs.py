"""The page about few-shot studies: its example prints what the page shows, its command runs, and its tables exist."""

import re
from pathlib import Path

from typer.testing import CliRunner

from layerprobe.cli import app
from layerprobe.stages import REGISTRY

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "few-shot.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


def test_the_example_prints_what_the_page_shows(capsys):
    (code,), (shown,) = blocks("python"), blocks("text")
    exec(compile(code, "docs/few-shot.md", "exec"), {})
    assert capsys.readouterr().out == shown


def test_the_command_of_the_page_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (line,) = blocks("bash")
    result = CliRunner().invoke(app, line.split()[1:])
    assert result.exit_code == 0, result.output
    assert "meta-similarity" in result.stdout


def test_every_table_of_few_shot_studies_is_listed():
    written = {spec.name for stage in REGISTRY if stage.few_shot for spec in stage.tables}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.M)) == written
