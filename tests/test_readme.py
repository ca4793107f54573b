"""Commands and code in the README work as they are written."""

import re
import shutil
import subprocess

import pytest
from documented import ROOT, blocks, call, commands, links, read
from tiny import make_encoder, write_csv

README = ROOT / "README.md"


def test_it_is_one_screen_and_links():
    text = read(README).partition("## Documentation")[0]
    assert len(text.splitlines()) <= 80


def test_the_python_example_is_ten_lines_and_runs(tmp_path, monkeypatch, capsys):
    """As it is written, but on a small random model in place of the bundled one, which takes minutes."""
    (code,) = blocks(README, "python")
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


def test_one_s_own_checkpoint_and_data_run_as_written(tmp_path, monkeypatch):
    (study,) = blocks(README, "toml")
    (tmp_path / "mine.toml").write_text(study, encoding="utf-8")
    make_encoder(tmp_path / "models" / "base", positions=130)
    make_encoder(tmp_path / "models" / "fine-tuned", positions=130, seed=1, labels=["class a", "class b"])
    data = write_csv(tmp_path / "reviews.csv", n=200)
    data.write_text(data.read_text().replace("text,label", "review,verdict"))
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shown = [words for words in commands(README, "layerprobe") if any("mine" in word for word in words)]
    assert [words[1] for words in shown] == ["plan", "run", "report"]
    outputs = [call(words) for words in shown]
    assert "To be added" in outputs[0]
    assert outputs[1].splitlines()[-1] == outputs[2].strip() == "reports/mine/index.html"
    assert (tmp_path / "reports" / "mine" / "index.html").is_file()
    assert "./mine/index.html" in (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")


def test_commands_on_shipped_studies_are_valid(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    shipped = [words for words in commands(README, "layerprobe") if any("analyses/" in word for word in words)]
    assert shipped
    for words in shipped:
        without_out = [w for i, w in enumerate(words) if w != "--out" and words[i - 1] != "--out"]
        assert "top:2" in call(["layerprobe", "plan", *without_out[2:]])


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_commands_are_targets():
    named = [words[1] for words in commands(README, "make")] + re.findall(r"`make (\w+)`", read(README))
    does = {"demo": "layerprobe demo", "test": "pytest", "docs": "zensical build --clean --strict"}
    assert named == list(does)
    for target in named:
        printed = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert printed.returncode == 0 and does[target] in printed.stdout


def test_files_that_the_readme_links_to_exist():
    for target in links(read(README)):
        if not target.startswith("http"):
            assert (ROOT / target.partition("#")[0]).is_file(), target
