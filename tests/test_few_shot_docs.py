"""The page about few-shot studies: its example prints what the page shows, its command runs, and its tables exist."""

import re

from documented import DOCS, ROOT, blocks, call, commands, read

from layerprobe.stages import REGISTRY

PAGE = DOCS / "few-shot.md"


def test_the_example_prints_what_the_page_shows(capsys):
    (code,), (shown,) = blocks(PAGE, "python"), blocks(PAGE, "text")
    exec(compile(code, "docs/few-shot.md", "exec"), {})
    assert capsys.readouterr().out == shown


def test_the_command_of_the_page_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (words,) = commands(PAGE, "layerprobe")
    assert "meta-similarity" in call(words)


def test_every_table_of_few_shot_studies_is_listed():
    written = {spec.name for stage in REGISTRY if stage.few_shot for spec in stage.tables}
    assert set(re.findall(r"^\| `(\w+)` \|", read(PAGE), flags=re.M)) == written
