"""The terminal: plans with times, starters for data files, JSON, plain lines in pipes, and messages that name where they looked."""

import json
import math
import subprocess
import sys
import tomllib

import pandas as pd
import pytest
from running import environment
from test_cli import cli, refused, study  # noqa: F401  the fixture
from tiny import write_csv

from layerprobe import Study, pipeline
from layerprobe.context import read_study
from layerprobe.display import DURATIONS, duration
from layerprobe.errors import StudyError
from layerprobe.graph import expand
from layerprobe.stages import REGISTRY

GUESSES = {stage.name: stage.first_guess for stage in REGISTRY}


def test_plan_says_what_it_does_before_it_loads_a_library(study):  # noqa: F811
    code = (
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'pandas', 'layerprobe.pipeline'): print('LOADS', name, file=sys.stderr, flush=True)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from layerprobe.__main__ import main\n"
        f"sys.argv = ['layerprobe', 'plan', {str(study)!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(study.parent), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("LOADS"))
    assert lines[0] == "Planning mine: reading the data and the model" and first >= 1


def test_a_plan_adds_recorded_times_and_guesses(study, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path / "home"))
    shown = cli("plan", study).stdout
    tasks = expand(Study.load(study), 2)
    assert f"Time: about {duration(sum(GUESSES[task.name] for task in tasks))} with one job (a rough guess)." in shown
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / DURATIONS).write_text(json.dumps({"adapt": 7200.0}))
    planned = pipeline.plan(Study.load(study))
    expected = sum(7200 if task.name == "adapt" else GUESSES[task.name] for task in tasks)
    assert planned.seconds == pytest.approx(expected)
    n_adapt = sum(task.name == "adapt" for task in tasks)
    shown = cli("plan", study).stdout
    words = f"(from the times of earlier tasks for {n_adapt} of {len(tasks)} tasks, guessed for the others)."
    assert f"Time: about {duration(expected)} with one job {words}" in shown
    assert any(line.startswith("adapt ") and "  2.0 h  " in line for line in shown.splitlines())
    # Without a model there are times as well.
    assert "Time: about" in cli("plan", study, "--set", "model.name=org/unknown").stdout


def test_finished_tasks_take_no_time(study, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path / "home"))
    assert cli("run", study, "--out", tmp_path / "out").exit_code == 0
    planned = pipeline.plan(Study.load(study))
    assert all(task.finished and task.measured for task in planned.tasks) and planned.seconds == 0
    assert "Time:" not in cli("plan", study).stdout


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_piped_tables_are_plain_lines(study):  # noqa: F811
    long = study.with_name("mine2.toml")
    long.write_text(study.read_text().replace("['head']", f"['checkpoint:/{'long/' * 40}x', 'full']"))
    shown = cli("plan", long, "--set", "model.name=org/unknown").stdout
    assert "\x1b" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("adapt ") and "checkpoint" in line]
    assert "long/" * 40 + "x" in line and line.split()[-1] == "unknown"  # one line, nothing cut
    shown = cli("measures").stdout.splitlines()
    from layerprobe.similarity import MEASURES

    assert len(shown) == 1 + len(MEASURES)
    assert [line.split()[0] for line in shown[1:]] == [measure.name for measure in MEASURES]


def test_measures_as_json():
    from layerprobe.similarity import MEASURES

    result = cli("measures", "--json")
    assert result.exit_code == 0
    found = {row["measure"]: row for row in json.loads(result.stdout)}
    assert set(found) == {measure.name for measure in MEASURES}
    for measure in MEASURES:
        row = found[measure.name]
        assert row["source"] == measure.citation and set(row["invariances"]) == set(measure.invariances)
        assert row["min_rows"] == measure.min_rows and row["symmetric"] is measure.symmetric
        ends = [math.inf if end is None else end for end in row["range"]]
        assert [abs(end) for end in ends] == [abs(end) for end in measure.range]


# Starters ---------------------------------------------------------------------------------------------------------------


def starter(tmp_path, frame, monkeypatch, name="my data.csv", **options):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    result = cli("init", name)
    assert result.exit_code == 0, result.output
    written = tmp_path / result.stdout.splitlines()[-1]
    return Study.load(written), written, result.stdout


def reviews(n=60):
    words = [
        "the",
        "film",
        "was",
        "long",
        "and",
        "the",
        "end",
        "of",
        "it",
        "was",
        "as",
        "one",
        "had",
        "feared",
        "or",
        "hoped",
    ]
    texts = [" ".join([*words[i % 7 :], str(i)]) for i in range(n)]
    return pd.DataFrame({"id": range(n), "stars": [i % 3 for i in range(n)], "words": texts, "who": "me"})


@pytest.mark.parametrize("name", ["my data.csv", "t.tsv.csv", "t.parquet", "t.jsonl"])
def test_a_starter_names_columns_by_what_they_hold_and_is_a_study_that_reads(tmp_path, monkeypatch, name):
    loaded, written, shown = starter(tmp_path, reviews(), monkeypatch, name)
    assert (loaded.data.text, loaded.data.label) == ("words", "stars")
    assert loaded.data.source == str(tmp_path / name)
    assert "60 rows; text in 'words', label in 'stars'." in shown and "3 classes: 0 (20), 1 (20), 2 (20)." in shown
    read = read_study(loaded)[None]
    assert len(read.examples) == 60 and read.label_names == ("0", "1", "2")
    text = written.read_text()
    assert text.count("#") > 10 and "# 3 classes" in text and "Further columns: id, who." in text
    assert "bundled:minilm-l6" in text and "layerprobe run" in text


def test_a_starter_finds_pairs_splits_and_missing_cells(tmp_path, monkeypatch):
    frame = reviews().rename(columns={"words": "Premise", "stars": "gold"}).drop(columns=["id", "who"])
    frame["hypothesis"] = frame.Premise.str.upper()
    frame["fold"] = ["train", "train", "test"] * 20
    frame["gold"] = frame.gold.map({0: "no", 1: "yes", 2: "maybe"})
    frame.loc[4, "gold"] = None
    loaded, _, shown = starter(tmp_path, frame, monkeypatch, "t.parquet")
    assert loaded.data.text == ("Premise", "hypothesis") and loaded.data.label == "gold"
    assert (loaded.data.split_column, loaded.data.on_missing) == ("fold", "drop")
    assert "1 rows lack text or label" in shown and "'fold' assigns rows" in shown
    assert len(read_study(loaded)[None].examples) == 59


def test_names_in_the_file_cannot_break_out_of_the_starter(tmp_path, monkeypatch):
    frame = reviews().rename(columns={"words": 'te"xt\\', "who": "x\n[sae]\nk = 7"})
    frame["stars"] = frame.stars.map({0: "a\nname = 'evil'", 1: "b", 2: "c"})
    loaded, written, _ = starter(tmp_path, frame, monkeypatch, "t.parquet")
    assert loaded.data.text == 'te"xt\\' and loaded.sae.k is None and loaded.name == "t"
    assert tomllib.loads(written.read_text())["data"]["label"] == "stars"


def test_a_starter_for_a_run_that_runs(tmp_path, monkeypatch, tiny_bert):
    write_csv(tmp_path / "data.csv", n=160)
    monkeypatch.chdir(tmp_path)
    assert cli("init", "data.csv", "--model", str(tiny_bert), "--out", "first.toml").exit_code == 0
    shown = cli("plan", "first.toml", "--set", "data.max_length=32")
    assert shown.exit_code == 0, shown.output
    assert "full seed 0" in shown.stdout


def test_starters_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reviews().to_csv("t.csv", index=False)
    (tmp_path / "t.toml").write_text("mine")
    refused(cli("init", "t.csv"), "t.toml exists and was not changed", "--out")
    assert (tmp_path / "t.toml").read_text() == "mine"
    refused(cli("init", "t.csv", "--out", "nowhere/t.toml"), "no folder nowhere")
    refused(cli("init", "none.csv"), f"no data file none.csv in the working folder {tmp_path}")
    reviews()[["id", "words"]].to_csv("t.csv", index=False)
    refused(cli("init", "t.csv", "--out", "u.toml"), "No column of t.csv looks like a label", "id, words")
    reviews()[["id", "stars"]].to_csv("t.csv", index=False)
    refused(cli("init", "t.xlsx", "--out", "u.toml"), "no data file t.xlsx")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    refused(cli("init", "t.xlsx", "--out", "u.toml"), "ends in '.xlsx'; supported are .csv")
    assert not (tmp_path / "u.toml").exists()


# Overrides, files and messages ------------------------------------------------------------------------------------------


def test_one_word_stands_for_a_list_of_one(study):  # noqa: F811
    words = {
        "adaptation.methods=head": lambda s: s.adaptation.methods == ("head",),
        "adaptation.methods=lora:8": lambda s: s.adaptation.methods == ("lora:8",),
        "adaptation.methods=depths": lambda s: s.adaptation.methods == "depths",
        "seeds=3": lambda s: s.seeds == (3,),
        "sae.layers=1": lambda s: s.sae.layers == (1,),
        "similarity.units=mean": lambda s: s.similarity.units == ("mean",),
        "similarity.measures=cka": lambda s: s.similarity.measures == ("cka",),
        "internals.parts=probes": lambda s: s.internals.parts == ("probes",),
        "data.text=headline": lambda s: s.data.text == "headline",
    }
    for override, holds in words.items():
        assert holds(Study.load(study, [override])), override
    for override in ("seeds=true", "similarity.units=word", "sae.layers=1.5"):
        with pytest.raises(StudyError, match=override.partition("=")[0]):
            Study.load(study, [override])
    study.write_text(study.read_text().replace("['head']", "'full'"))
    assert Study.load(study).adaptation.methods == ("full",)


def test_a_study_with_a_byte_order_mark_is_read(study, tmp_path):  # noqa: F811
    marked = tmp_path / "marked.toml"
    marked.write_bytes(b"\xef\xbb\xbf" + study.read_bytes())
    assert Study.load(marked).model_dump(exclude={"name"}) == Study.load(study).model_dump(exclude={"name"})


def test_an_unknown_device_is_refused_before_anything_is_read_or_written(study, tmp_path, monkeypatch):  # noqa: F811
    def fail(*words):
        raise AssertionError("something was read")

    monkeypatch.setattr(pipeline, "resolve", fail)
    monkeypatch.setattr(pipeline, "stay_offline", fail)
    for words in (("run", study, "--out", tmp_path / "out"), ("plan", study)):
        refused(cli(*words, "--device", "tpu"), "--device tpu is unknown; the devices are auto, cpu, cuda and mps.")
    assert not (tmp_path / "out").exists()


def test_messages_name_the_folder_that_a_path_is_relative_to(study, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    study.write_text(study.read_text().replace("[data]", "[data]\ntest_source = 'more/t.csv'"))
    refused(cli("plan", study), f"data.test_source: There is no data file {tmp_path}/more/t.csv; check the path.")
    words = f"There is no data file reviews.xlsx in the working folder {tmp_path}/elsewhere; check the path."
    refused(cli("plan", study, "--set", "data.source=reviews.xlsx"), words)
    words = f"There is no model folder ./m in the working folder {tmp_path}/elsewhere;"
    study.write_text(study.read_text().replace("test_source = 'more/t.csv'\n", ""))
    refused(cli("plan", study, "--set", "model.name=./m"), words)
    for written, words in (("['checkpoint:mine']", f"{tmp_path}/mine"), ("'checkpoint:mine'", f"{tmp_path}/mine")):
        study.write_text(study.read_text().replace("['head']", written))
        assert Study.load(study).adaptation.methods == (f"checkpoint:{words}",)
    # A path that exists in the working folder alone is taken as such; a Hub id stays one.
    (tmp_path / "elsewhere" / "here.csv").write_text("text,label\n")
    for source, expected in (("here.csv", "here.csv"), ("org/name", "org/name"), ("gone.csv", f"{tmp_path}/gone.csv")):
        content = f"[model]\nname = 'bundled:minilm-l6'\n[data]\nsource = '{source}'\n"
        study.write_text(content)
        assert Study.load(study).data.source == expected


def test_lists_and_fractions_are_refused_with_what_is_not_supported(study, tmp_path):  # noqa: F811
    frame = reviews()
    frame.assign(stars=frame.stars / 7).to_csv(tmp_path / "t.csv", index=False)
    words = ("--set", f"data.source={tmp_path / 't.csv'}", "--set", "data.text=words", "--set", "data.label=stars")
    refused(cli("plan", study, *words), "regression is not supported")
    rows = [{"text": ["a", "b"], "label": ["x"]} for _ in range(5)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--set", f"data.source={tmp_path / 't.jsonl'}")
    refused(cli("plan", study, *words), "token classification and multi-label classification are not supported")
