"""Commands and code in the README work as they are written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_encoder, write_csv

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands(start):
    lines = [
        shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines() if line.strip()
    ]
    return [words for words in lines if words[0] == start]


def in_shell(words, folder, home):
    """A command of the README, with this interpreter's layerprobe."""
    env = {**os.environ, "LAYERPROBE_HOME": str(home)}
    result = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_python_example_is_ten_lines_and_runs(tmp_path, monkeypatch, capsys):
    """As it is written, but on a small random model in place of the bundled one, which takes minutes."""
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    model = make_encoder(tmp_path / "model", n_layers=6, positions=130)
    monkeypatch.setattr("layerprobe.bundled.model_folder", lambda name: model)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Under head, no layer of the body changed")
    assert ["method", "full", "head"] in [line.split() for line in lines]
    layer, full, head = lines[-1].split()
    assert layer == "6" and float(full) <= 1 and float(head) == 1
    assert (tmp_path / "reports" / "small" / "index.html").is_file()


def test_one_s_own_checkpoint_and_data_run_as_written(tmp_path):
    (study,) = blocks("toml")
    (tmp_path / "mine.toml").write_text(study, encoding="utf-8")
    make_encoder(tmp_path / "models" / "base", positions=130)
    make_encoder(tmp_path / "models" / "fine-tuned", positions=130, seed=1, labels=["class a", "class b"])
    data = write_csv(tmp_path / "reviews.csv", n=200)
    data.write_text(data.read_text().replace("text,label", "review,verdict"))
    shown = [words for words in commands("layerprobe") if any("mine" in word for word in words)]
    assert [words[1] for words in shown] == ["plan", "run", "report"]
    outputs = [in_shell(words, tmp_path, tmp_path / "home") for words in shown]
    assert "To be added" in outputs[0]
    assert outputs[1].splitlines()[-1] == outputs[2].strip() == "reports/mine/index.html"
    assert (tmp_path / "reports" / "mine" / "index.html").is_file()
    assert "./mine/index.html" in (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")


def test_commands_on_shipped_studies_are_valid(tmp_path):
    shipped = [words for words in commands("layerprobe") if any("analyses/" in word for word in words)]
    assert shipped
    for words in shipped:
        without_out = [w for i, w in enumerate(words) if w != "--out" and words[i - 1] != "--out"]
        assert "top:2" in in_shell(["layerprobe", "plan", *without_out[2:]], ROOT, tmp_path)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_two_commands_are_targets():
    for words, does in zip(commands("make"), ("layerprobe demo", "pytest"), strict=True):
        printed = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True)
        assert printed.returncode == 0 and does in printed.stdout


def test_files_that_the_readme_links_to_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target
