"""Texts: every format gives the same corpus, splits are disjoint and stratified, and mistakes are named."""

import json

import numpy as np
import pandas as pd
import pytest
from tiny import write_csv

from layerprobe.data import load_corpus
from layerprobe.errors import DataError


def saved(frame, path):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")), encoding="utf-8")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def write(path, rows, columns=("text", "label")):
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return str(path)


def sixty(labels=("b", "a", "c")):
    return [(f"text {i}", labels[i % len(labels)]) for i in range(60)]


def test_all_formats_give_the_same_corpus(tmp_path):
    frame = pd.read_csv(write_csv(tmp_path / "t.csv", n=90, classes=3), dtype=str)
    frame.loc[3, "text"] = 'He said "NA", <b>100 %</b> 🎉, naïve\tcafé'
    corpora = [
        load_corpus(str(saved(frame, tmp_path / f"t{ending}"))) for ending in (".csv", ".tsv", ".jsonl", ".parquet")
    ]
    for other in corpora[1:]:
        assert other.fingerprint == corpora[0].fingerprint
        assert other.train.texts == corpora[0].train.texts
        assert (other.test.labels == corpora[0].test.labels).all()
    assert frame.loc[3, "text"] in {t for part in (corpora[0].train, corpora[0].test) for t in part.texts}


def test_split_is_disjoint_stratified_and_repeats(tmp_path):
    rows = [(f"text {i}", "rare" if i % 5 == 0 else "common") for i in range(500)]
    path = write(tmp_path / "t.csv", rows)
    corpus = load_corpus(path, train=200, test=100, seed=3)
    parts = [set(part.ids) for part in (corpus.train, corpus.test, corpus.unseen)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert [len(part) for part in parts] == [200, 100, 200]
    for part in (corpus.train, corpus.test):
        assert (part.labels == corpus.label_names.index("rare")).mean() == pytest.approx(0.2)
    again, other = load_corpus(path, train=200, test=100, seed=3), load_corpus(path, train=200, test=100, seed=4)
    assert again.test.ids == corpus.test.ids
    assert set(other.test.ids) != parts[1]
    assert other.fingerprint == corpus.fingerprint  # of the source, not of the split


def test_ids_depend_on_the_text_alone(tmp_path):
    rows = sixty()
    one = load_corpus(write(tmp_path / "a.csv", rows))
    other = load_corpus(write(tmp_path / "b.csv", rows[::-1]))

    def ids(corpus):
        return {t: i for part in (corpus.train, corpus.test) for t, i in zip(part.texts, part.ids, strict=True)}

    assert ids(one) == ids(other)


def test_duplicates_never_straddle_and_conflicts_are_counted(tmp_path):
    rows = [*sixty(), ("text 1", "a"), ("text 2", "a"), ("   ", "a")]  # text 1 again; text 2 under another label
    corpus = load_corpus(write(tmp_path / "t.csv", rows))
    texts = [*corpus.train.texts, *corpus.test.texts, *corpus.unseen.texts]
    assert sorted(texts) == sorted(f"text {i}" for i in range(60))
    assert "1 rows without text" in corpus.notes[0]
    assert "2 repetitions" in corpus.notes[1] and "1 of them under another label" in corpus.notes[1]


def test_string_labels_are_numbered_in_sorted_order_and_whole_numbers_in_theirs(tmp_path):
    assert load_corpus(write(tmp_path / "a.csv", sixty())).label_names == ("a", "b", "c")
    assert load_corpus(write(tmp_path / "b.csv", sixty(("10", "9", "-1")))).label_names == ("-1", "9", "10")


def test_a_class_that_no_text_has_is_no_class(tmp_path):
    corpus = load_corpus(write(tmp_path / "t.csv", [*sixty(("a", "c")), ("", "b"), ("text 1", "d")]))
    assert corpus.label_names == ("a", "c")
    assert set(corpus.train.labels) == {0, 1}


def test_pairs_twenty_classes_and_named_columns(tmp_path):
    rows = [(f"question {i}", f"answer {i % 7}", f"class {i % 20}") for i in range(400)]
    path = write(tmp_path / "t.csv", rows, ("q", "a", "kind"))
    corpus = load_corpus(path, text=("q", "a"), label="kind", train=200, test=100)
    assert len(corpus.label_names) == 20
    assert corpus.train.pairs is not None and corpus.train.pairs[0].startswith("answer")
    assert np.bincount(corpus.test.labels).tolist() == [5] * 20


@pytest.mark.parametrize(
    ("rows", "columns", "options", "words"),
    [
        (sixty(), ("sentence", "label"), {}, ["no column 'text'", "sentence, label", "data.text"]),
        (sixty(), ("text", "topic"), {}, ["no column 'label'", "data.label"]),
        ([], ("text", "label"), {}, ["no rows"]),
        ([(f"t{i}", "only") for i in range(9)], ("text", "label"), {}, ["1 class", "'only'", "at least two"]),
        (sixty(), ("text", "label"), {"train": 50, "test": 20}, ["data.train = 50", "60 distinct"]),
        ([*sixty(), ("x", "")], ("text", "label"), {}, ["no label in row 61"]),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(tmp_path, rows, columns, options, words):
    with pytest.raises(DataError) as caught:
        load_corpus(write(tmp_path / "t.csv", rows, columns), **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": 5, "label": "a"}], ["int instead of text in row 1"]),
        ([{"text": None, "label": "a"}], ["nothing instead of text in row 1"]),
        ([{"text": "t", "label": None}], ["no label in row 1"]),
        ([{"text": "t", "label": "a"}, {"text": "u", "label": 1}], ["mixes", "text ('a')", "whole numbers (1)"]),
        ([{"text": "t", "label": 0.5}, {"text": "u", "label": 1.5}], ["fractions"]),
        ([{"text": "t", "label": ["a"]}], ["list"]),
    ],
)
def test_bad_cells_are_named(tmp_path, rows, words):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_corpus(str(path))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_unreadable_sources_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "latin.csv").write_bytes(b"text,label\ncaf\xe9,a\n")
    (tmp_path / "ragged.csv").write_text("text,label\na,b\nc,d,e\n", encoding="utf-8")
    (tmp_path / "half.jsonl").write_text('{"text": "a", "label": "b"}\n{"text":\n', encoding="utf-8")
    (tmp_path / "not.parquet").write_bytes(b"PAR0 nonsense")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    for name, word in {
        "missing.csv": "no data file",
        "empty.csv": "is empty",
        "latin.csv": "not UTF-8",
        "ragged.csv": "cannot be read as CSV",
        "half.jsonl": "Line 2",
        "not.parquet": "cannot be read as PARQUET",
        "t.xlsx": "the files read are",
        "": "is a folder",
    }.items():
        with pytest.raises(DataError, match=word) as caught:
            load_corpus(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_hub_id_without_a_network_is_refused_at_once():
    with pytest.raises(DataError, match=r"'org/nothing' is no file here, and the Hub was not asked"):
        load_corpus("org/nothing")


def test_a_hub_data_set_is_read_with_its_own_split_and_label_names(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})

    def split(texts, labels):
        return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)

    made = datasets.DatasetDict(
        {
            "train": split([f"t{i}" for i in range(40)] + ["shared"], [i % 2 for i in range(41)]),
            "test": split([f"s{i}" for i in range(20)] + ["shared"], [i % 2 for i in range(21)]),
            "unsupervised": split([f"u{i}" for i in range(30)], [-1] * 30),
        }
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: made)
    corpus = load_corpus("org/reviews", train=20, test=21)
    assert corpus.label_names == ("neg", "pos")
    assert set(corpus.test.texts) == {*(f"s{i}" for i in range(20)), "shared"}
    assert all(text.startswith("t") for text in corpus.train.texts)
    assert {f"u{i}" for i in range(30)} <= set(corpus.unseen.texts)
    with pytest.raises(DataError, match=r"data.test = 22, but org/reviews has 21"):
        load_corpus("org/reviews", test=22)


@pytest.mark.parametrize(
    ("source", "classes", "least"), [("bundled:tweets", 3, 29_000), ("bundled:bbc-news", 5, 2_100)]
)
def test_bundled_texts_are_real(source, classes, least):
    corpus = load_corpus(source, train=200, test=100)
    assert len(corpus.label_names) == classes
    assert len(corpus.unseen) + 300 > least
    assert min(np.bincount(corpus.test.labels, minlength=classes)) > 0
