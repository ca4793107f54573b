"""The index of a folder of runs: every run with its answer, whatever else is there, and whoever else writes it."""

import json
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from fabricated import record
from test_compare import write
from test_report import EVIL
from typer.testing import CliRunner

from layerprobe import index as indexing
from layerprobe.cli import app
from layerprobe.errors import StorageError
from layerprobe.index import update_index, write_index
from layerprobe.report import compare_runs
from layerprobe.runs import Run

HOSTILE = (EVIL.replace("/", ""), "javascript:alert(1)", "#x?y%20&z", "two\nlines")
"""Names of folders."""


def at(time):
    """A change of a record: when its run ended."""

    def change(about):
        about.provenance.finished = f"2026-11-{time}+00:00"

    return change


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs, and a sweep of two with its page."""
    root = tmp_path_factory.mktemp("index") / "runs"
    small = {"methods": ("head", "full")}
    early = write(root / "early", "early", "a", change=at("01T08:00:00"), **small)
    late = write(root / "late", "late & <b>bold</b>", "b", change=at("03T09:30:00"), **small)
    swept = [
        write(root / "sweep" / name, name, name, change=at("02T10:00:00"), seed=i, **small)
        for i, name in enumerate("xy")
    ]
    (root / "late" / "index.html").write_text("the page of late")
    compare_runs(swept, root / "sweep")
    return {"root": root, "early": early, "late": late}


@pytest.fixture
def root(made, tmp_path):
    """A folder with links to the runs, to which anything may be added."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for path in made["root"].iterdir():
        (folder / path.name).symlink_to(path)
    return folder


class Page(HTMLParser):
    """Links, words and tags of a page."""

    def __init__(self, html):
        super().__init__()
        self.links, self.tags, self.words = [], set(), []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attributes)
        self.links += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        self.words.append(data)


def read(folder):
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def cli(folder):
    return CliRunner().invoke(app, ["index", str(folder)])


def test_every_run_is_listed_with_its_answer_the_newest_first(root, made):
    result = cli(root)
    assert (result.exit_code, result.stdout.splitlines(), result.stderr) == (0, [str(root / "index.html")], "")
    page = read(root)
    assert "4 runs in runs" in page.text
    assert [page.text.index(f"2026-11-0{day}") for day in (3, 2, 1)] == sorted(
        page.text.index(f"2026-11-0{day}") for day in (1, 2, 3)
    )
    assert page.links == ["./sweep/index.html", "./late/index.html"]  # a run without a page is no link
    assert page.text.count("What changed?") == 4 and "late & <b>bold</b>" in page.text
    for card in made["early"].cards():
        number = "" if card.number == "–" else f"; {card.number}"
        assert f"{card.claim}{number} {card.badge}" in page.text
    assert "sweep/x" in page.text and "2 runs: x · y" in page.text


def test_the_strips_hold_the_change_of_every_layer(root, made):
    html = write_index(root).page.read_text(encoding="utf-8")
    cka = made["early"].table("similarity").query("method == 'full' and measure == 'cka'").value
    values = ", ".join(f"{max(0, 1 - value):.2f}" for value in cka)
    assert f'aria-label="full: change of layers 0 to 6: {values}; shown for no layer"' in html
    assert html.count('<div class="cells"') == 8 and html.count("<i ") == 8 * 7


def test_nothing_runs_or_is_loaded_on_the_page(root):
    page = read_of(root)
    assert not page.tags & {"script", "img", "iframe", "link", "form", "object"}


def read_of(folder):
    write_index(folder)
    return read(folder)


def test_damaged_and_foreign_folders_are_named_and_the_others_are_shown(root, made):
    (root / "photos").mkdir()
    (root / "garbage").mkdir()
    (root / "garbage" / "run.json").write_text("{ no json")
    (root / "older").mkdir()
    (root / "older" / "run.json").write_text(json.dumps({"schema": 1, "status": "complete", "command": "x"}))
    (root / "folder").mkdir()
    (root / "folder" / "run.json").mkdir()
    (root / "list").mkdir()
    (root / "list" / "run.json").write_text("[1]")
    (root / "notes.txt").write_text("a file is no folder")
    (root / ".hidden").mkdir()
    (root / "loop").symlink_to(root)
    torn = write(root / "torn", "torn", "t", methods=("head", "full"))
    (torn.folder / "tables" / "similarity.parquet").write_bytes(b"")
    result = cli(root)
    assert result.exit_code == 0 and len(result.stderr.splitlines()) == 1
    page = read(root)
    assert "4 runs in runs" in page.text and "6 folders are not shown" in page.text
    for told in (page.text, result.stderr):
        assert "photos: holds no run.json" in told and "garbage: " in told and "older: " in told
        assert "has schema 1, but this version reads schema 2" in told
        assert "torn: " in told and "does not match its checksum" in told
        assert "notes" not in told and "hidden" not in told and "loop" not in told


def test_unfinished_runs_are_listed_with_the_command_that_resumes_them(tmp_path):
    failed = Run.create(tmp_path / "runs" / "failed", record(status="failed", error="the disk is full"))
    Run.create(tmp_path / "runs" / "killed", record(status="running"))
    page = read_of(tmp_path / "runs")
    assert f"Failed: the disk is full. Resume with: {failed.record.command}" in page.text
    assert "Not finished. Resume with:" in page.text and "What to do" not in page.text


def test_an_empty_folder_says_how_to_begin(tmp_path):
    assert "There is no run yet: layerprobe run STUDY.toml" in read_of(tmp_path).text


def test_hostile_names_and_texts_are_shown_as_they_are(tmp_path, made):
    folder = tmp_path / EVIL.replace("/", "")
    folder.mkdir()
    names = [*map(os.fsencode, HOSTILE), b"caf\xe9"]
    for name in names:
        os.symlink(made["late"].folder, os.path.join(os.fsencode(folder), name))
        os.mkdir(os.path.join(os.fsencode(folder), b"foreign " + name))

    def evil(about):
        about.question = about.data.name = about.encoder.name = EVIL

    write(folder / "evil", EVIL, "e", methods=("head", "full"), change=evil)
    result = cli(folder)
    assert result.exit_code == 0 and len(result.stderr.splitlines()) == 1 and "\\n" in result.stderr
    page = read(folder)
    assert not page.tags & {"script", "img"} and "alert('x')" in page.text
    assert page.text.count(" ".join(EVIL.split())) >= 3
    assert len(page.links) == len(HOSTILE)
    for link in page.links:
        assert link.startswith("./") and not re.search(r"[<>\"'#?\s:]", link)
        assert (folder / unquote(link)).read_text() == "the page of late"
    assert "foreign caf\N{REPLACEMENT CHARACTER}: holds no run.json" in page.text  # its name is no text
    # Parquet files cannot be opened below such a name.
    assert " caf\N{REPLACEMENT CHARACTER}: " in page.text


def test_an_index_is_refused_where_it_would_replace_something(root, made, tmp_path):
    (root / "index.html").write_text("<p>my page")
    for folder, words in (
        (root, "is not an index of runs, so it was left as it is"),
        (made["root"] / "sweep", "is not an index of runs"),
        (made["early"].folder, "is a run; name the folder that holds it"),
        (tmp_path / "nowhere", "does not exist"),
        (root / "index.html", "is a file, not a folder"),
    ):
        result = cli(folder)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and words in result.stderr
    assert (root / "index.html").read_text() == "<p>my page"


def test_an_index_that_cannot_be_written_never_fails_a_run(root, capsys, monkeypatch):
    reports = root.rename(root.with_name("reports"))
    update_index(reports / "early")
    assert "4 runs in reports" in read(reports).text and capsys.readouterr().err == ""
    before = (reports / "index.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    def broken(*_):
        raise ValueError("two\nlines")

    for problem, words in ((full, "cannot be written (No space left on device)"), (broken, "ValueError: two lines")):
        monkeypatch.setattr(indexing, "write_text", problem)
        update_index(reports / "early")
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and words in told
    assert (reports / "index.html").read_bytes() == before
    (reports / "index.html").write_text("<p>my page")
    update_index(reports / "early")
    assert "is not an index of runs" in capsys.readouterr().err


def test_only_reports_and_folders_with_an_index_are_kept_up_to_date(root, capsys, monkeypatch):
    update_index(root / "early")
    assert not (root / "index.html").exists()
    write_index(root)
    (root / "early").unlink()
    monkeypatch.chdir(root)
    update_index(indexing.Path("late"))
    assert "3 runs in runs" in read(root).text and capsys.readouterr().err == ""


def test_tables_are_read_again_only_where_a_run_changed(root, made, monkeypatch):
    first = write_index(root).page.read_bytes()
    opened = []
    table = Run.table
    monkeypatch.setattr(Run, "table", lambda run, name: opened.append(run.folder.name) or table(run, name))
    assert write_index(root).page.read_bytes() == first and not opened
    changed = made["early"].record.model_copy(deep=True)
    changed.methods = changed.methods[:1]
    (root / "early").unlink()
    run = Run.create(root / "early", changed)
    run.save_tables({name: made["early"].table(name) for name in made["early"].tables})
    run.save()
    opened.clear()
    write_index(root)
    assert set(opened) == {"early"}
    for damage in ("{", "[]", '{"schema": 9, "runs": {}}', "{}"):
        (root / ".index.json").write_text(damage)
        assert "4 runs in runs" in read_of(root).text
    kept = json.loads((root / ".index.json").read_text())
    kept["runs"]["./late"]["overview"] = {"claims": 3}
    (root / ".index.json").write_text(json.dumps(kept))
    assert "4 runs in runs" in read_of(root).text
    # Of an index of another version, a run reads its own tables alone.
    monkeypatch.setattr(indexing, "_source", lambda: "another version")
    for fresh, names in ((False, set()), (True, {"early", "late", "x", "y"})):
        opened.clear()
        write_index(root, fresh=fresh)
        assert set(opened) == names


def test_two_runs_at_once_leave_an_index_with_both(tmp_path, monkeypatch):
    """The first one has read the folder before the second run is there, and writes after it."""
    Run.create(tmp_path / "one", record(name="first one"))
    has_read, other_runs, read_folder = threading.Event(), threading.Event(), indexing._read

    def slow(folder, before):
        found = read_folder(folder, before)
        if not has_read.is_set():
            has_read.set()
            other_runs.wait(1)
        return found

    monkeypatch.setattr(indexing, "_read", slow)
    first = threading.Thread(target=write_index, args=(tmp_path,))
    first.start()
    has_read.wait(60)
    Run.create(tmp_path / "two", record(name="second one"))
    second = threading.Thread(target=write_index, args=(tmp_path,))
    second.start()
    first.join(60)
    second.join(60)
    text = read(tmp_path).text
    assert "first one" in text and "second one" in text
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_an_index_is_written_without_the_lock_if_it_is_not_free(tmp_path, monkeypatch):
    from filelock import FileLock

    Run.create(tmp_path / "one", record(name="first one"))
    monkeypatch.setattr(indexing, "WAIT", 0.05)
    with FileLock(tmp_path / ".index.lock"):
        assert "first one" in read_of(tmp_path).text


def test_an_index_needs_no_torch(root):
    code = (
        "import sys\n"
        "from layerprobe.cli import app\n"
        f"try: app(['index', {str(root)!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'sae_lens', 'datasets'} & set(sys.modules)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.strip() == str(root / "index.html")


def test_reasons_name_the_folder():
    with pytest.raises(StorageError, match="name a folder that holds run folders, such as reports"):
        write_index("no such folder")
