"""Progress: what loops report, and how a run shows it on a terminal and elsewhere."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import sys
import termios
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import LIGHT, run_study, write_study
from toy_stages import Toy, resolved_study

from layerprobe import progress
from layerprobe.display import DURATIONS, Display
from layerprobe.executors import Finished, Progressed, Started, Workload
from layerprobe.graph import expand
from layerprobe.store import Artifact, ArtifactMeta
from layerprobe.study import Study

TASKS = (Toy(1), Toy(2), Toy(3))
LOADS = [Workload(resolved_study(), TASKS)]


def finished(task, *, seconds=2.34, reused=False):
    return Finished(task, Artifact(Path(), ArtifactMeta("toy", task.title, "key", {}, seconds, 1, {}, {}), reused), ())


# Loops -----------------------------------------------------------------------------------------------------------------


def test_loops_report_to_the_reporter_of_their_context():
    reports = []
    with progress.reporting(lambda *report: reports.append(report)):
        assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
        assert list(progress.track(iter("ab"), "more")) == ["a", "b"]
        progress.report("steps", 5)
    assert reports == [
        ("letters", 0, 3),
        ("letters", 1, 3),
        ("letters", 2, 3),
        ("more", 0, None),
        ("more", 1, None),
        ("steps", 5, None),
    ]
    progress.report("steps", 6)
    assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    assert len(reports) == 6


@pytest.mark.parametrize("terminal", [False, True])
def test_loops_outside_a_run_draw_a_bar_on_a_terminal_alone(monkeypatch, terminal):
    options = []

    def bar(items, **given):
        options.append(given)
        return items

    monkeypatch.setattr("tqdm.tqdm", bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert list(progress.track([1, 2], "numbers")) == [1, 2]
    assert options == [{"desc": "numbers", "total": 2, "leave": False, "delay": 1, "disable": not terminal}]


def test_no_library_draws_a_bar_itself():
    package = Path(progress.__file__).parent
    files = [path for path in package.rglob("*.py") if path.name != "progress.py"]
    assert len(files) > 50
    assert [str(path) for path in files if re.search(r"^\s*(from|import) tqdm", path.read_text(), re.M)] == []


# A file or a pipe ------------------------------------------------------------------------------------------------------


def test_elsewhere_there_is_one_line_per_task(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Display(LOADS, tmp_path, 1, visible=True) as display:
        display.on_event(Started(TASKS[0].id))
        display.on_event(Progressed(TASKS[0].id, "adding", 1, 2))
        display.finished(finished(TASKS[0]))
        display.finished(finished(TASKS[1], reused=True))
        display.finished(finished(TASKS[2], seconds=75))
        display.finished(finished(TASKS[0]))  # computed again, as it was damaged
    assert sys.stderr.getvalue().splitlines() == [
        "[1/3] toy: number 1: 2.3 s",
        "[2/3] toy: number 2: reused",
        "[3/3] toy: number 3: 75.0 s",
        "[3/3] toy: number 1: 2.3 s",
    ]


def test_without_progress_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Display(LOADS, tmp_path, 1, visible=False) as display:
        display.on_event(Started(TASKS[0].id))
        display.finished(finished(TASKS[0]))
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_writes_plain_lines_without_carriage_returns(tmp_path, tiny_bert, tiny_csv, capfd, jobs):
    path = write_study(tmp_path, tiny_bert, tiny_csv)
    methods = "adaptation.methods=['full']"
    run_study(path, tmp_path / "out", tmp_path / "home", methods, *LIGHT, progress=True, jobs=jobs)
    err = capfd.readouterr().err
    assert "\r" not in err and "\x1b" not in err
    first, *lines = err.splitlines()
    assert first == "Reading the data and the model"
    tasks = expand(Study.load(path, [methods, *LIGHT]), 2)
    matches = [re.fullmatch(r"\[(\d+)/(\d+)\] (.+): (\d+\.\d s|reused)", line) for line in lines]
    assert all(matches), err
    assert [int(match[1]) for match in matches] == list(range(1, len(tasks) + 1))
    assert {int(match[2]) for match in matches} == {len(tasks)}
    assert {match[3] for match in matches} == {task.id for task in tasks}
    durations = json.loads((tmp_path / "home" / DURATIONS).read_text())
    assert set(durations) == {task.name for task in tasks} and min(durations.values()) >= 0


# A terminal ------------------------------------------------------------------------------------------------------------


@contextmanager
def terminal(kind="xterm"):
    """Make standard error a terminal of 120 columns; the value reads what was written to it since the last time."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    os.set_blocking(main, False)

    def read():
        stream.flush()
        content = b""
        try:
            while part := os.read(main, 65536):
                content += part
        except BlockingIOError:
            pass
        # Without colours and movements of the cursor.
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content.decode())

    with pytest.MonkeyPatch.context() as patch, os.fdopen(other, "w") as stream:
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", kind)
        patch.setattr(sys, "stderr", stream)
        yield read
    os.close(main)


def test_a_terminal_shows_finished_and_running_tasks_with_their_progress(tmp_path):
    with terminal() as read, Display(LOADS, tmp_path, 2, visible=True) as display:
        display.finished(finished(TASKS[0]))
        display.on_event(Started(TASKS[1].id))
        display.on_event(Started(TASKS[2].id))
        display.on_event(Progressed(TASKS[1].id, "layers [of the base]", 3, 4))
        display.progress.refresh()
        shown = read()
        assert "all tasks" in shown and "1 of 3, about 2 s left" in shown  # two tasks of 2.3 s, side by side
        assert "toy: number 2" in shown and "layers [of the base]" in shown and "toy: number 3" in shown
        assert re.search(r"\d:\d\d:\d\d", shown)  # elapsed time
        display.finished(finished(TASKS[1]))
        display.finished(finished(TASKS[2], reused=True))
        display.progress.refresh()
        shown = read()
        assert "3 of 3, about 0 s left" in shown
        assert "number 2" not in shown.split("3 of 3")[-1]


def test_the_display_ends_with_an_error(tmp_path):
    with terminal() as read:
        with pytest.raises(KeyboardInterrupt), Display(LOADS, tmp_path, 1, visible=True) as display:
            display.on_event(Started(TASKS[0].id))
            raise KeyboardInterrupt
        assert "number 1" in read()
        assert not display.progress.live.is_started


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path):
    with terminal("dumb") as read, Display(LOADS, tmp_path, 1, visible=True) as display:
        display.on_event(Started(TASKS[0].id))
        display.finished(finished(TASKS[0]))
        assert read().splitlines() == ["[1/3] toy: number 1: 2.3 s"]


# The time left ---------------------------------------------------------------------------------------------------------


def left(home, jobs=1):
    return Display(LOADS, home, jobs, visible=False)._remaining()


def test_the_time_left_follows_from_earlier_runs(tmp_path):
    assert left(tmp_path) == "about 6 s left"  # the stage's first guess
    with Display(LOADS, tmp_path, 1, visible=False) as display:
        display.finished(finished(TASKS[0], seconds=100))
        display.finished(finished(TASKS[1], seconds=0, reused=True))  # says nothing of the time it takes
    assert json.loads((tmp_path / DURATIONS).read_text()) == {"toy": 100}
    assert left(tmp_path) == "about 5 min left"
    assert left(tmp_path, jobs=4) == "about 75 s left"


@pytest.mark.parametrize("content", ["{half", "[1, 2]", '{"toy": "long"}', '{"toy": null}'])
def test_damaged_records_of_durations_are_ignored(tmp_path, content):
    (tmp_path / DURATIONS).write_text(content)
    assert left(tmp_path) == "about 6 s left"
