"""A study of data in memory equals one of the same data in a file, and its file is named by its content."""

import shlex
import subprocess
import sys

import datasets
import pandas as pd
import pytest
from running import environment

from layerprobe import Run, Study, run
from layerprobe.context import read_study
from layerprobe.errors import DataError, StudyError
from layerprobe.files import checksum


def frame_of(n=60, **columns):
    frame = pd.DataFrame({"words": [f"text {i}" for i in range(n)], "topic": [("a", "b")[i % 2] for i in range(n)]})
    return frame.assign(**columns)


def study_of(data, tmp_path, /, **sections):
    return Study.from_data(
        data, model="bundled:minilm-l6", text="words", label="topic", home=tmp_path / "home", **sections
    )


def test_the_study_refers_to_a_file_named_by_its_content_and_reads_the_same_examples(tmp_path):
    frame = frame_of(unused=[object()] * 60)  # other columns are not written
    study = study_of(frame, tmp_path, name="mine", seeds=[0, 1], adaptation={"methods": ["head"]}, data={"train": 30})
    (path,) = (tmp_path / "home" / "data").iterdir()
    assert study.data.source == str(path) and path.stem == checksum(path)
    assert (study.name, study.seeds, study.adaptation.methods, study.data.train) == ("mine", (0, 1), ("head",), 30)
    assert list(pd.read_parquet(path).columns) == ["words", "topic"]
    read = read_study(study)[None]
    assert read.examples.texts == tuple(frame.words) and read.label_names == ("a", "b")
    frame.drop(columns="unused").to_csv(tmp_path / "t.csv", index=False)
    content = {"model": {"name": "bundled:minilm-l6"}, "data": {"source": str(tmp_path / "t.csv"), "text": "words"}}
    content["data"]["label"] = "topic"
    other = read_study(Study.parse(content))[None]
    assert read.examples.ids == other.examples.ids and (read.examples.labels == other.examples.labels).all()
    # Equal data, whatever its index, is the same file; other data is another one.
    assert study_of(frame.set_index(frame.index + 5), tmp_path).data.source == str(path)
    assert study_of(frame.iloc[:50], tmp_path).data.source != str(path)
    # The study is plain data: it survives being written and read.
    assert Study.parse(study.resolved()) == study


def test_dtypes_of_pandas_give_the_same_examples(tmp_path):
    frame = frame_of()
    expected = read_study(study_of(frame, tmp_path))[None].examples.ids
    for changed in (
        frame.astype({"topic": "category"}),
        frame.astype({"words": "string", "topic": "string"}),
        frame.assign(topic=pd.array([i % 2 for i in range(60)], dtype="Int64")),
        frame.assign(topic=[i % 2 == 0 for i in range(60)]),
    ):
        read = read_study(study_of(changed, tmp_path))[None]
        assert read.examples.ids == expected and len(read.label_names) == 2
    missing = frame.assign(topic=pd.array([i % 2 for i in range(59)] + [pd.NA], dtype="Int64"))
    with pytest.raises(DataError, match="no label in row 60"):
        read_study(study_of(missing, tmp_path))
    assert len(read_study(study_of(missing, tmp_path, data={"on_missing": "drop"}))[None].examples) == 59


def test_a_data_set_keeps_its_classes_and_a_dict_its_test_split(tmp_path):
    frame = frame_of()
    whole = datasets.Dataset.from_pandas(frame).cast_column("topic", datasets.ClassLabel(names=["a", "b"]))
    read = read_study(study_of(whole, tmp_path))[None]
    assert read.label_names == ("a", "b") and read.is_test is None
    assert study_of(whole, tmp_path).data.source == study_of(frame, tmp_path).data.source
    unlabelled = whole.select(range(50, 60)).map(lambda row: {"topic": -1})
    split = datasets.DatasetDict(train=whole.select(range(40)), validation=whole.select(range(40, 50)), test=unlabelled)
    study = study_of(split, tmp_path)
    read = read_study(study)[None]
    assert study.data.split_column == "split"
    assert read.examples.texts == tuple(frame.words[:50])
    assert read.is_test.tolist() == [i >= 40 for i in range(50)]
    plain = study_of(datasets.DatasetDict(train=whole), tmp_path)
    assert plain.data.split_column is None


def test_what_cannot_be_a_study_is_refused_before_anything_is_written(tmp_path):
    frame = frame_of()
    for data, sections, error, words in (
        (
            [("a", "b")],
            {},
            DataError,
            "is a list; give a pandas DataFrame, a datasets.Dataset or a datasets.DatasetDict",
        ),
        (frame.iloc[:0], {}, DataError, "The data has no rows"),
        (frame.drop(columns="topic"), {}, DataError, "no column 'topic'; its columns are words; set label"),
        (frame, {"data": {"group_column": "author"}}, DataError, "no column 'author'.*data.group_column"),
        (frame, {"data": {"split_column": "fold"}}, DataError, "no column 'fold'.*data.split_column"),
        (frame, {"data": {"source": "x.csv"}}, StudyError, "data.source is given by the argument data"),
        (frame, {"data": {"label": "x"}}, StudyError, "data.label is given by the argument label"),
        (frame, {"adaption": {}}, StudyError, "did you mean 'adaptation'?"),
        (frame.assign(topic=["a", 1] * 30), {}, DataError, "cells of several types"),
        (pd.concat([frame, frame[["topic"]]], axis=1), {}, DataError, "two columns named 'topic'"),
    ):
        with pytest.raises(error, match=words):
            study_of(data, tmp_path, **sections)
    assert not list((tmp_path / "home").rglob("*.parquet")) and not list((tmp_path / "home").rglob("*.partial"))


def test_by_default_the_file_is_below_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path / "elsewhere"))
    study = Study.from_data(frame_of(), model={"name": "bundled:minilm-l6"}, text="words", label="topic")
    assert study.data.source.startswith(str(tmp_path / "elsewhere" / "data"))


def test_new_keys_are_checked(tmp_path):
    base = {"model": {"name": "m"}, "data": {"source": "x.csv", "test_source": "y.csv", "split_column": "s"}}
    with pytest.raises(StudyError, match=r"data.test_source and data.split_column .* leave one out"):
        Study.parse(base)
    for key in ("test_source", "split_column", "group_column"):
        with pytest.raises(StudyError, match=rf"data.{key} = 'x' has no meaning in a few-shot study"):
            Study.parse({"model": {"name": "m"}, "data": {"source": "x.csv", key: "x"}, "few_shot": {}})
    with pytest.raises(StudyError, match=r"data.on_missing = 'ignore'.*'error' or 'drop'"):
        Study.parse({"model": {"name": "m"}, "data": {"source": "x.csv", "on_missing": "ignore"}})


def test_a_test_source_is_relative_to_the_study_file(tmp_path):
    frame_of(10).to_csv(tmp_path / "test.csv")
    path = tmp_path / "s.toml"
    path.write_text("[model]\nname = 'm'\n[data]\nsource = 'x'\ntest_source = 'test.csv'\n")
    assert Study.load(path).data.test_source == str(tmp_path / "test.csv")


def test_the_recorded_command_of_a_run_from_python_repeats_it(tmp_path, tiny_bert):
    """Study and folder with quotes and blanks: the command is what a shell takes."""
    frame = frame_of(words=[f"good w{i % 50} film w{i}" if i % 2 else f"bad w{i % 50} match w{i}" for i in range(60)])
    study = Study.from_data(
        frame,
        model=str(tiny_bert),
        text="words",
        label="topic",
        home=tmp_path / "home",
        question='What\'s "new" in $HOME?',
        data={"train": 30, "test": 20, "max_length": 32, "near_duplicates": "keep"},
        adaptation={"methods": ["head"]},
        sae={"layers": []},
        internals={"parts": []},
        similarity={"units": ["token"], "measures": ["cka"]},
    )
    folder = tmp_path / "it's a run"
    result = run(study, out=folder, home=tmp_path / "home", threads=1, progress=False)
    command = result.record.command
    (folder / "run.json").unlink()
    (folder / "index.html").unlink()
    (folder / ".made.json").unlink()
    for path in (folder / "tables").iterdir():
        path.unlink()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (bin_folder / "python").chmod(0o755)
    variables = environment(tmp_path / "another home") | {"PATH": f"{bin_folder}:/usr/bin:/bin"}
    done = subprocess.run(command, shell=True, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = Run.load(folder)
    assert again.record.study.resolved == result.record.study.resolved and again.record.command == command
    assert all(task.reused for task in again.record.tasks)  # the same home, and the same keys
