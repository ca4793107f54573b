"""The command line: one sentence and exit code 2 for user errors, a path on stdout at the end."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from layerprobe.cli import analyses, app

ROOT = Path(__file__).parent.parent


@pytest.fixture
def study(tmp_path, tiny_bert, tiny_csv):
    path = tmp_path / "mine.toml"
    path.write_text(
        f"[model]\nname = {str(tiny_bert)!r}\n[data]\nsource = {str(tiny_csv)!r}\ntrain = 60\ntest = 30\nmax_length = 48\n"
        "[adaptation]\nmethods = ['head']\n[sae]\nlayers = []\n[internals]\nparts = []\n[similarity]\nunits = ['token']\n"
    )
    return path


def cli(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result, *words):
    assert result.exit_code == 2, result.output
    sentences = [line for line in result.stderr.splitlines() if line.startswith("layerprobe: ")]
    assert len(sentences) == 1 and "Traceback" not in result.stderr
    for word in words:
        assert word in sentences[0], sentences[0]


def test_run_ends_with_the_page_and_report_rebuilds_it(study, tmp_path):
    result = cli("run", study, "--out", tmp_path / "out", "--seed", 3)
    assert result.exit_code == 0, result.output
    page = tmp_path / "out" / "index.html"
    assert result.stdout.splitlines()[-1] == str(page)
    page.unlink()
    result = cli("report", tmp_path / "out")
    assert result.exit_code == 0 and result.stdout.strip() == str(page) and page.is_file()
    from layerprobe import Run

    assert Run.load(tmp_path / "out").record.study.resolved["seeds"] == [3]
    assert f"--out {tmp_path / 'out'} --seed 3" in Run.load(tmp_path / "out").record.command


def test_plan_lists_tasks_and_bytes(study):
    result = cli("plan", study)
    assert result.exit_code == 0
    assert "adapt" in result.stdout and "To be added: about" in result.stdout


def test_the_published_study_plans_without_a_network():
    result = cli("plan", analyses() / "layerwise_evolution.toml")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("pending") > 10
    for words in ("full seed 2", "base layer 12", "HF_HUB_OFFLINE"):
        assert words in result.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "analyses").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_study_opens_with_its_question_and_plans(path):
    assert path.read_text().splitlines()[0].startswith("# ")
    assert cli("plan", path).exit_code == 0


def test_user_errors_are_one_sentence_and_exit_2(study, tmp_path, tiny_bert):
    (tmp_path / "something").mkdir()
    (tmp_path / "something" / "else.txt").write_text("mine")
    corrupt = shutil.copytree(tiny_bert, tmp_path / "corrupt")
    (corrupt / "model.safetensors").write_bytes(b"\x00" * 100)
    for overrides, words in {
        ("--set", "data.source=nowhere.csv"): ["no data file nowhere.csv"],
        ("--set", "data.source=org/unknown"): ["no local data file 'org/unknown'", "HF_HUB_OFFLINE"],
        ("--set", "model.name=org/unknown"): ["no local model 'org/unknown'"],
        ("--set", "data.text=headline"): ["no column 'headline'", "data.text"],
        ("--set", "data.train=5000"): ["data.train = 5,000", "160 distinct"],
        ("--set", "adaptation.methods=['heads']"): ["'heads' is unknown"],
        ("--set", "adaptation.methods=['top:99']"): ["top:99", "1 to 2"],
        ("--set", "adaptation.methods=['checkpoint:/nowhere']"): ["no checkpoint folder /nowhere"],
        ("--set", "sae.layers=[7]"): ["layer 7", "0 (embeddings) to 2"],
        ("--set", "sae.colour=1"): ["sae.colour"],
        ("--set", "sae.layer=[1]"): ["did you mean 'layers'?"],
        ("--set", "similarity.measures=[]"): ["similarity.measures", "at least 1 item"],
        ("--set", "similarity.units=[]"): ["similarity.units", "at least 1 item"],
        ("--seed", "-1"): ["seeds", "greater than or equal to 0"],
        ("--set", "data.test=7"): ["data.test is 7", "at least 8"],
        ("--set", "activations.examples=1"): ["activations.examples is 1,", "at least 8"],
        ("--set", "nonsense"): ["nonsense"],
        ("--set", f"model.name={corrupt}"): ["damaged"],
        ("--device", "tpu"): ["tpu is unknown"],
        ("--precision", "fp8"): ["fp8"],
        ("--jobs", "0"): ["--jobs is 0", "1 or more"],
        ("--threads", "-1"): ["--threads is -1"],
        ("--out", str(tmp_path / "something")): ["something other than a layerprobe run"],
    }.items():
        refused(cli("run", study, *(() if "--out" in overrides else ("--out", tmp_path / "out")), *overrides), *words)
    refused(cli("run", tmp_path / "no.toml"), "no study file")
    refused(cli("report", tmp_path), "run.json")
    assert (tmp_path / "something" / "else.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(study, tmp_path):
    (tmp_path / "file").write_text("")
    refused(cli("run", study, "--out", tmp_path / "file"), "is a file")
    refused(cli("run", study, "--out", tmp_path / "file" / "below"), "cannot be written")


def test_plan_refuses_a_path_that_is_not_there(study):
    """Keys are unknown only where the Hub may have the model."""
    refused(cli("plan", study, "--set", "data.source=nowhere.csv"), "no data file nowhere.csv")
    refused(cli("plan", study, "--set", "data.label=topic", "--set", "model.name=org/unknown"), "no column 'topic'")
    refused(cli("plan", study, "--set", "model.name=./nowhere"), "no model folder")
    result = cli("plan", study, "--set", "model.name=org/unknown")
    assert result.exit_code == 0 and "unknown" in result.stdout


def test_a_full_disk_under_the_run_folder_is_one_sentence(study, tmp_path, monkeypatch):
    import errno

    from layerprobe.runs import Run

    def full(self, tables, specs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Run, "save_tables", full)
    result = cli("run", study, "--out", tmp_path / "out")
    refused(result, "The disk is full", str(tmp_path / "out"), "Every finished task is kept", "--out")
    assert Run.load(tmp_path / "out").record.status == "failed"


def test_a_page_that_cannot_be_written_is_one_sentence(study, tmp_path, monkeypatch):
    import errno

    assert cli("run", study, "--out", tmp_path / "out").exit_code == 0

    def refuse(self, *args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("write_text", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    refused(cli("report", tmp_path / "out"), "Read-only file system", "tables are kept")


def test_doctor_reports_versions_and_assets():
    result = cli("doctor")
    assert result.exit_code == 0
    assert result.stdout.count("found, checksum correct") == 3
    assert "torch" in result.stdout and "free)" in result.stdout


def test_measures_are_listed_with_what_they_mean():
    result = cli("measures")
    assert result.exit_code == 0
    for name in ("paired_cosine", "cka", "procrustes"):
        assert name in result.stdout
    assert "rotation" in result.stdout


def test_measures_keep_their_names_in_a_narrow_terminal(monkeypatch, capsys):
    from layerprobe import terminal
    from layerprobe.cli import measures
    from layerprobe.similarity import MEASURES

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(terminal, "print_table", partial(terminal.print_table, width=80))
    measures(as_json=False)
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    assert all(measure.name in shown for measure in MEASURES)


def test_help_and_import_load_no_heavy_library():
    code = (
        "import sys, layerprobe, layerprobe.cli; from layerprobe import Study;"
        "heavy = {'torch', 'transformers', 'sae_lens', 'datasets', 'pandas', 'plotly', 'scipy'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    shown = subprocess.run([sys.executable, "-m", "layerprobe", "--help"], check=True, capture_output=True, text=True)
    for command in ("run", "plan", "init", "report", "compare", "index", "demo", "doctor", "measures"):
        assert command in shown.stdout


def test_a_run_contacts_no_network(study, tmp_path):
    """Every attempt to open a connection is an error, and the run succeeds."""
    code = (
        "import socket, sys\n"
        "def no(*a, **k): raise AssertionError('a network connection was attempted')\n"
        "socket.socket.connect = no; socket.create_connection = no; socket.getaddrinfo = no\n"
        "from layerprobe.__main__ import main\n"
        f"sys.argv = ['layerprobe', 'run', {str(study)!r}, '--out', {str(tmp_path / 'out')!r}, '--set', 'sae.layers=[1]',"
        " '--set', 'sae.rows=300', '--set', 'sae.k=4']\n"
        "main()\n"
    )
    env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "WANDB_MODE")}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_interruption_that_surfaces_as_another_error_is_reported_as_one(capsys):
    import os
    import signal

    import typer

    from layerprobe.cli import _one_sentence

    # A shell that starts the tests in the background makes them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(typer.Exit) as ended, _one_sentence(resume="layerprobe run x.toml"):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as interruption:
                raise RuntimeError("cannot release un-acquired lock") from interruption
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.exit_code == 130
    assert "resume with: layerprobe run x.toml" in capsys.readouterr().err
    with pytest.raises(RuntimeError), _one_sentence():
        raise RuntimeError("a bug")


def test_an_interrupted_command_does_not_wait_for_a_thread_that_nobody_ends():
    """As `ThreadPoolExecutor` leaves one behind if Ctrl-C comes while it starts it."""
    code = (
        "import os, signal, sys, threading, time\n"
        "from layerprobe import __main__, cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def load(*_):\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(10)\n"
        "cli._load = load\n"
        f"sys.argv = ['layerprobe', 'plan', {str(ROOT / 'analyses' / 'quickstart.toml')!r}]\n"
        "__main__.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130 and ended.stderr.count("Interrupted.") == 1 and "Traceback" not in ended.stderr


def ended_quietly(code):
    """Exit code, stdout and stderr of a program that runs some code after `end_quietly`."""
    start = (
        "import os, signal\n"
        "from layerprobe import interrupt\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "interrupt.end_quietly()\n"
    )
    ended = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


def test_ctrl_c_after_the_last_line_of_the_program_changes_no_exit_code():
    code = (
        "class Late:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGINT):\n"
        "        print('late', flush=True)\n"
        "        kill(me, number)\n"
        "late = Late()\n"
    )
    assert ended_quietly(code) == (0, "late\n", "")


def test_ctrl_c_after_the_end_of_a_command_loses_neither_its_last_lines_nor_its_exit_code():
    code = "with interrupt.listening():\n    print('path of the page')\nos.kill(os.getpid(), signal.SIGINT)\n"
    assert ended_quietly(code) == (0, "path of the page\n", "")


def test_a_second_sigterm_does_not_disturb_the_clean_up_of_the_first_nor_another_handler(monkeypatch):
    import os
    import signal

    from layerprobe import interrupt

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupt.listening():
            signal.signal(signal.SIGTERM, lambda *_: os._exit(3))  # as a library may
            interrupt.resume_listening()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.heard() == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGTERM, other := lambda *_: None)  # of a program that uses this package
        with interrupt.listening():
            assert signal.getsignal(signal.SIGTERM) is other and interrupt.heard() is None
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
