"""Examples: every format gives the same corpus, splits are disjoint and stratified, and user errors are named."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import write_csv

from layerprobe.data import DataSource, load_corpus, load_ood
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
    rows = [*sixty(), ("text 1", "a"), ("text 2", "a"), ("   ", "a")]  # text 1 again; text 2 with another label
    corpus = load_corpus(write(tmp_path / "t.csv", rows))
    texts = [*corpus.train.texts, *corpus.test.texts, *corpus.unseen.texts]
    assert sorted(texts) == sorted(f"text {i}" for i in range(60))
    assert "1 rows without text" in corpus.notes[0]
    assert "2 duplicates" in corpus.notes[1] and "1 of them with another label" in corpus.notes[1]


def test_string_labels_are_numbered_in_sorted_order_and_whole_numbers_in_theirs(tmp_path):
    assert load_corpus(write(tmp_path / "a.csv", sixty())).label_names == ("a", "b", "c")
    assert load_corpus(write(tmp_path / "b.csv", sixty(("10", "9", "-1")))).label_names == ("-1", "9", "10")


def test_unused_classes_are_dropped(tmp_path):
    corpus = load_corpus(write(tmp_path / "t.csv", [*sixty(("a", "c")), ("", "b"), ("text 1", "d")]))
    assert corpus.label_names == ("a", "c")
    assert set(corpus.train.labels) == {0, 1}


def test_pairs_twenty_classes_and_named_columns(tmp_path):
    rows = [(f"question {i}", f"answer {i % 7}", f"class {i % 20}") for i in range(400)]
    path = write(tmp_path / "t.csv", rows, ("q", "a", "kind"))
    corpus = load_corpus(DataSource(path, text=("q", "a"), label="kind"), train=200, test=100)
    assert len(corpus.label_names) == 20
    assert corpus.train.pairs is not None and corpus.train.pairs[0].startswith("answer")
    assert np.bincount(corpus.test.labels).tolist() == [5] * 20


@pytest.mark.parametrize(
    ("rows", "columns", "options", "words"),
    [
        (sixty(), ("sentence", "label"), {}, ["no column 'text'", "sentence, label", "set text to"]),
        (sixty(), ("text", "topic"), {}, ["no column 'label'", "set label to"]),
        ([], ("text", "label"), {}, ["no rows"]),
        ([(f"t{i}", "only") for i in range(9)], ("text", "label"), {}, ["1 class", "'only'", "at least two"]),
        ([(f"t{i}", "x" * 5000) for i in range(9)], ("text", "label"), {}, ["1 class", "xxx…xxx", "at least two"]),
        (sixty(), ("text", "label"), {"train": 50, "test": 20}, ["train = 50 and test = 20", "60 distinct"]),
        ([*sixty(), ("x", "")], ("text", "label"), {}, ["no label in row 61"]),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(tmp_path, rows, columns, options, words):
    with pytest.raises(DataError) as caught:
        load_corpus(write(tmp_path / "t.csv", rows, columns), **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": 5, "label": "a"}], ["int instead of text in row 1"]),
        ([{"text": None, "label": "a"}], ["nothing instead of text in row 1"]),
        ([{"text": "t", "label": None}], ["no label in row 1"]),
        ([{"text": "t", "label": "a"}, {"text": "u", "label": 1}], ["mixes", "text ('a')", "whole numbers (1)"]),
        ([{"text": "t", "label": "x" * 5000}, {"text": "u", "label": 1}], ["mixes", "text ('xxx", "xxx')"]),
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
    assert len(str(caught.value)) < 1000


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
        "ragged.csv": "Line 3 of .* has 3 cells but the header has 2",
        "half.jsonl": "Line 2",
        "not.parquet": "cannot be read as PARQUET",
        "t.xlsx": "supported are",
        "": "is a folder",
    }.items():
        with pytest.raises(DataError, match=word) as caught:
            load_corpus(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_hub_id_without_a_network_is_refused_at_once():
    with pytest.raises(DataError, match=r"no local data file 'org/nothing', and the Hub was not contacted"):
        load_corpus("org/nothing")


def test_a_hub_data_set_is_read_with_its_own_split_and_label_names(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})

    def split(texts, labels):
        return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)

    splits = datasets.DatasetDict(
        {
            "train": split([f"t{i}" for i in range(40)] + ["shared"], [i % 2 for i in range(41)]),
            "test": split([f"s{i}" for i in range(20)] + ["shared"], [i % 2 for i in range(21)]),
            "unsupervised": split([f"u{i}" for i in range(30)], [-1] * 30),
        }
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: splits)
    corpus = load_corpus("org/reviews", train=20, test=21)
    assert corpus.label_names == ("neg", "pos")
    assert set(corpus.test.texts) == {*(f"s{i}" for i in range(20)), "shared"}
    assert all(text.startswith("t") for text in corpus.train.texts)
    assert {f"u{i}" for i in range(30)} <= set(corpus.unseen.texts)
    with pytest.raises(DataError, match=r"test = 22, but org/reviews has 21"):
        load_corpus("org/reviews", test=22)


@pytest.mark.parametrize(
    ("source", "classes", "least"), [("bundled:tweets", 3, 29_000), ("bundled:bbc-news", 5, 2_100)]
)
def test_bundled_texts_are_real(source, classes, least):
    corpus = load_corpus(source, train=200, test=100)
    assert len(corpus.label_names) == classes
    assert len(corpus.unseen) + 300 > least
    assert min(np.bincount(corpus.test.labels, minlength=classes)) > 0


def texts_of(corpus):
    return {t for part in (corpus.train, corpus.test, corpus.unseen) for t in part.texts}


BODY = "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(20))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", "\ufefftext,label\n" + BODY),
        ("windows.csv", ("text,label\n" + BODY).replace("\n", "\r\n")),
        ("old_mac.csv", ("text,label\n" + BODY).replace("\n", "\r")),
        ("semicolons.csv", ("text;label\n" + BODY.replace(",", ";"))),
        ("empty_columns.csv", "text,label,,\n" + BODY.replace("\n", ",,\n")),
        ("blank_lines.csv", "text,label\n" + BODY.replace("\n", "\n\n")),
        ("blanks_around_labels.csv", "text,label\n" + BODY.replace(",a", ", a ")),
        ("bom.jsonl", "\ufeff" + "\n".join(json.dumps({"text": f"t{i}", "label": "ab"[i % 2]}) for i in range(20))),
    ],
)
def test_spellings_of_one_table_give_one_corpus(tmp_path, name, content):
    plain = load_corpus(write(tmp_path / "plain.csv", [line.split(",") for line in BODY.split()]))
    (tmp_path / name).write_bytes(content.encode())
    corpus = load_corpus(str(tmp_path / name))
    assert corpus.fingerprint == plain.fingerprint
    assert corpus.label_names == ("a", "b") and corpus.test.texts == plain.test.texts


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_unusual_texts_are_not_changed(tmp_path, ending):
    odd = [
        "NA",
        "null",
        "None",
        "nan",
        "1",
        " led by a blank",
        "two\nlines",
        "two\r\nlines",
        'He said ""',
        '"quoted"',
        "a, b; c\td",
        "\N{PARTY POPPER}" * 3,
        "<script>alert('&amp;')</script>",
        "word " * 5000,
        "x" * 200_000,
    ]
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(odd)] + [(f"t{i}", "ab"[i % 2]) for i in range(9)]
    path = saved(pd.DataFrame(rows, columns=["text", "label"]), tmp_path / f"t{ending}")
    assert texts_of(load_corpus(str(path))) == {text for text, _ in rows}


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_lone_quotation_mark_never_joins_the_rows_after_it(tmp_path, separator):
    body = ("text,label\n" + BODY + '"an open quote,a\n' + BODY.replace("t", "u") + '"again" here,b\n').replace(
        ",", separator
    )
    path = tmp_path / ("t.csv" if separator == "," else "t.tsv")
    path.write_text(body, encoding="utf-8")
    with pytest.raises(DataError, match=r"quotation mark in .* out of place .* must end with one") as caught:
        load_corpus(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("dup.csv", "text,label,text\na,b,c\n", "two columns named 'text'"),
        ("dup.jsonl", '{"text": "a", "text": "b", "label": "x"}', "Line 1 .* names 'text' twice"),
        ("wide.csv", "text,label\na,b,c\nd,e,f\n", "Line 2 .* 3 cells but the header has 2"),
        ("short.csv", "text,label\n" + BODY + "alone\n", "no label in row 21"),
        ("nul.csv", "text,label\n" + BODY + "a\0b,a\n", "'text' .* NUL character in row 21"),
        ("nul_label.csv", "text,label\n" + BODY + "a,a\0\n", "'label' .* NUL character in row 21"),
        ("half.jsonl", '{"text": "\\ud83d", "label": "a"}', "half a character .* in row 1"),
        ("deep.jsonl", "[" * 100_000, "Line 1 .* cannot be read as JSON"),
        ("nested.jsonl", '{"text": {"a": 1}, "label": "a"}', "dict instead of text in row 1"),
        ("blank.csv", "text,label\n ,a\n ,b\n", "no text: all 2 rows of 'text' are blank"),
        (
            "each_its_own.csv",
            "text,label\n" + "".join(f"t{i},c{i}\n" for i in range(40)),
            r"none is of the class 'c.*' \(one of 40\)",
        ),
        ("utf16.csv", ("text,label\n" + BODY).encode("utf-16"), "not UTF-8"),
        ("header.csv", "text,label\n", "no rows"),
    ],
)
def test_damaged_tables_are_refused_in_one_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        load_corpus(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "labels", "words"),
    [
        (
            ["a", "b"],
            [["x", "y"], ["z", "x"]],
            "lists instead of labels: token classification and multi-label classification are not supported",
        ),
        (["a", "b"], [{"x": 1}, {"x": 2}], "dict; labels are words"),
        ([["a"], ["b"]], ["x", "y"], "lists instead of text: token classification"),
        ([b"a", b"b"], ["x", "y"], "bytes instead of text"),
        (["a", "b", "c"], [1, None, 2], "no label in row 2"),
        (["a", "b", "c"], np.array([1, np.nan, 2], np.float32), "no label in row 2"),
    ],
)
def test_cells_of_parquet_that_are_no_text_or_label_are_named(tmp_path, texts, labels, words):
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=words):
        load_corpus(str(tmp_path / "t.parquet"))


def test_parquet_of_pandas_with_categories_and_an_index_is_read_like_any_other(tmp_path):
    frame = pd.DataFrame([(f"t{i}", "ab"[i % 2]) for i in range(20)], columns=["text", "label"])
    frame.astype({"label": "category"}).set_index("text").to_parquet(tmp_path / "t.parquet")
    assert (
        load_corpus(str(tmp_path / "t.parquet")).fingerprint
        == load_corpus(str(saved(frame, tmp_path / "t.csv"))).fingerprint
    )
    columns = [pa.array(["a"]), pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "label", "label"]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="two columns named 'label'"):
        load_corpus(str(tmp_path / "d.parquet"))


def test_labels_that_only_look_like_numbers_are_words_and_equal_numbers_keep_an_order(tmp_path):
    assert load_corpus(write(tmp_path / "a.csv", sixty(("--5", "²", "7")))).label_names == ("--5", "7", "²")
    assert load_corpus(write(tmp_path / "b.csv", sixty(("1", "01", "2")))).label_names == ("01", "1", "2")


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_one_text_is_trained_on_wherever_there_is_room(tmp_path, seed):
    path = write(tmp_path / "t.csv", [*sixty(("a", "b")), ("lonely", "c")])
    corpus = load_corpus(path, train=12, test=40, seed=seed)
    assert "lonely" in corpus.train.texts and len(corpus.train) == 12 and len(corpus.test) == 40


def test_a_test_split_without_labels_is_replaced_by_the_validation_split(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})

    def split(letter, n, labels):
        rows = {"text": [f"{letter}{i}" for i in range(n)], "label": labels}
        return datasets.Dataset.from_dict(rows, features=features)

    splits = datasets.DatasetDict(
        {
            "train": split("t", 40, [0, 1] * 20),
            "validation": split("v", 10, [0, 1] * 5),
            "test": split("s", 9, [-1] * 9),
        }
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: splits)
    corpus = load_corpus("org/benchmark", train=20)
    assert set(corpus.test.texts) == {f"v{i}" for i in range(10)}
    assert {f"s{i}" for i in range(9)} <= set(corpus.unseen.texts)
    ood = load_ood("hub", "org/benchmark", load_corpus(write(tmp_path / "t.csv", sixty(("neg", "pos", "neutral")))))
    assert set(ood.examples.texts) == {f"v{i}" for i in range(10)} and len(ood.notes) == 1


@pytest.fixture
def three(tmp_path):
    return load_corpus(write(tmp_path / "corpus.csv", sixty(("neg", "neutral", "pos"))), train=30, test=20)


def test_an_ood_set_is_numbered_as_the_corpus_and_leaves_out_what_it_trains_or_tests_on(three, tmp_path):
    in_corpus = [*three.train.texts[:4], *three.test.texts[:3], *three.unseen.texts[:2]]
    rows = [(f"other {i}", ("pos", "neg")[i % 2]) for i in range(50)] + [(text, "pos") for text in in_corpus]
    rows += [("other 1", "neg"), (" ", "neg")]
    ood = load_ood("reviews", write(tmp_path / "o.csv", rows), three)
    assert (ood.name, ood.classes) == ("reviews", (0, 2))
    named = dict(rows[:50])
    for text, number in zip(ood.examples.texts, ood.examples.labels, strict=True):
        assert three.label_names[number] == named.get(text, "pos")
    # Examples that the corpus neither trains nor tests on are kept: fine-tuning does not see them.
    assert set(ood.examples.texts) == {*named, *three.unseen.texts[:2]}
    assert not {*three.train.ids, *three.test.ids} & set(ood.examples.ids)
    assert any(note.startswith("7 examples") and "trains or tests on" in note for note in ood.notes)
    assert any("1 duplicates" in note for note in ood.notes) and any("1 rows without" in note for note in ood.notes)


def test_a_sample_of_an_ood_set_is_seeded_and_keeps_class_shares(three, tmp_path):
    path = write(tmp_path / "o.csv", [(f"other {i}", "pos" if i % 5 else "neg") for i in range(200)])
    one, again = load_ood("o", path, three, rows=50, seed=1), load_ood("o", path, three, rows=50, seed=1)
    other = load_ood("o", path, three, rows=50, seed=2)
    assert one.examples.ids == again.examples.ids != other.examples.ids
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert (one.examples.labels == 0).sum() == 10 and len(one.examples) == 50
    assert one.classes == (0, 2)
    assert load_ood("o", path, three, rows=2).classes == (0, 2)


def test_pairs_are_compared_with_pairs_only(three, tmp_path):
    rows = [(f"question {i}", f"answer {i}", ("yes", "no")[i % 2]) for i in range(60)]
    path = write(tmp_path / "pairs.csv", rows, ("q", "a", "label"))
    corpus = load_corpus(DataSource(path, text=("q", "a")), train=30, test=20)
    # Both texts identify an example: these share only the question.
    others = [(q, a + " or not", label) for q, a, label in rows]
    source = write(tmp_path / "o.csv", [*others, rows[0]], ("q", "a", "label"))
    ood = load_ood("p", DataSource(source, text=("q", "a")), corpus)
    assert ood.examples.pairs is not None and len(ood.examples) >= 60 and ood.classes == (0, 1)
    with pytest.raises(DataError, match=r"'p' .* has 2 text columns but .* has 1; set text to as many"):
        load_ood("p", DataSource(path, text=("q", "a")), three)
    with pytest.raises(DataError, match=r"'p' .* has 1 text column but .* has 2"):
        load_ood("p", DataSource(path, text="q"), corpus)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([("x", "pos"), ("y", "joy"), ("z", "anger")], {}, ["'anger' and 1 more", "neg, neutral, pos", "rename"]),
        ([("x", 0), ("y", 1)], {}, ["'0' and 1 more"]),
        ([("x", "pos"), ("y", "pos")], {}, ["1 class ('pos')", "at least two"]),
        ([("x", "pos"), ("y", "pos"), ("text 0", "neg")], {}, ["'o'", "1 class ('pos')", "2 examples"]),
        ([("x", "pos"), ("y", "neg")], {"rows": 3}, ["rows = 3", "'o'", "has 2 distinct", "use 1 to 2"]),
        ([("x", "pos"), ("y", "neg")], {"rows": 1}, ["1 class", "its 1 examples"]),
        ([("x", "pos"), ("y", "")], {}, ["no label in row 2"]),
    ],
)
def test_ood_sets_that_do_not_fit_are_refused_in_one_sentence(tmp_path, rows, options, words):
    corpus = load_corpus(write(tmp_path / "corpus.csv", sixty(("neg", "neutral", "pos"))), train=40, test=20)
    with pytest.raises(DataError) as caught:
        load_ood("o", write(tmp_path / "o.csv", rows), corpus, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
