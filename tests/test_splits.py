"""Splits that the user decides: a test source, a split column, groups that stay together, missing cells, saved data sets."""

import datasets
import numpy as np
import pandas as pd
import pytest

from layerprobe.data import DataSource, KnownCopies, NearCopies, load_corpus
from layerprobe.errors import DataError


def frame_of(n=60, classes=("a", "b", "c"), **columns):
    frame = pd.DataFrame(
        {"text": [f"text {i}" for i in range(n)], "label": [classes[i % len(classes)] for i in range(n)]}
    )
    return frame.assign(**columns)


def write(frame, path):
    frame.to_csv(path, index=False)
    return str(path)


def parts(corpus):
    return {name: set(getattr(corpus, name).texts) for name in ("train", "test", "unseen")}


def test_the_test_source_is_the_test_split_and_its_texts_are_not_trained_on(tmp_path):
    first = write(frame_of(60), tmp_path / "a.csv")
    second = frame_of(12)
    second.loc[2:, "text"] = [f"other {i}" for i in range(10)]  # texts 0 and 1 are in both
    other = write(second, tmp_path / "b.csv")
    corpus = load_corpus(DataSource(first, test_source=other), near_duplicates="keep")
    assert parts(corpus)["test"] == set(second.text)
    assert parts(corpus)["train"] == {f"text {i}" for i in range(2, 60)}
    assert corpus.fingerprint != load_corpus(first).fingerprint
    with pytest.raises(DataError, match=r"test_source: There is no data file .*nowhere.csv"):
        load_corpus(DataSource(first, test_source=str(tmp_path / "nowhere.csv")))
    with pytest.raises(DataError, match=r"b.csv has no column 'text'; its columns are words, label"):
        write(second.rename(columns={"text": "words"}), tmp_path / "b.csv")
        load_corpus(DataSource(first, test_source=other))


def test_a_split_column_decides_and_validation_stands_in_for_a_missing_test_split(tmp_path):
    split = np.array(["Train", "train", "valid", " TEST ", "train"])[np.arange(60) % 5]
    path = write(frame_of(60, split=split), tmp_path / "t.csv")
    corpus = load_corpus(DataSource(path, split_column="split"), near_duplicates="keep")
    assert parts(corpus)["test"] == {f"text {i}" for i in range(60) if i % 5 == 3}
    assert parts(corpus)["train"] == {f"text {i}" for i in range(60) if i % 5 in (0, 1, 4)}
    assert not parts(corpus)["unseen"]  # validation rows are left out
    frame = frame_of(60, split=np.where(np.arange(60) % 4 == 0, "dev", "training"))
    corpus = load_corpus(DataSource(write(frame, tmp_path / "t.csv"), split_column="split"), near_duplicates="keep")
    assert parts(corpus)["test"] == {f"text {i}" for i in range(0, 60, 4)}
    for values, words in (
        (["train"] * 60, "no row of .* is validation"),
        (["test"] * 60, "is train in column 'split'"),
        (["train"] * 59 + ["fold 3"], "has 'fold 3' in row 60; it is train, validation or test"),
    ):
        write(frame.assign(split=values), tmp_path / "t.csv")
        with pytest.raises(DataError, match=words):
            load_corpus(DataSource(path, split_column="split"))
    with pytest.raises(DataError, match=r"no column 'fold'.*set split_column"):
        load_corpus(DataSource(path, split_column="fold"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", ["equal", "one large"])
def test_no_group_is_in_two_parts_and_class_shares_are_kept(tmp_path, sizes, seed):
    rng = np.random.default_rng(seed)
    n = 900
    authors = rng.integers(0, 90, n) if sizes == "equal" else np.where(np.arange(n) < 300, 0, rng.integers(1, 120, n))
    frame = frame_of(n, author=[f"author {i}" for i in authors]).sample(frac=1, random_state=seed)
    path = write(frame, tmp_path / "t.csv")
    corpus = load_corpus(
        DataSource(path, group_column="author"), train=300, test=120, seed=seed, near_duplicates="keep"
    )
    author_of = dict(zip(frame.text, frame.author, strict=True))
    found = {name: {author_of[text] for text in texts} for name, texts in parts(corpus).items()}
    assert not found["train"] & found["test"] and not found["train"] & found["unseen"]
    assert not found["test"] & found["unseen"] and found["unseen"]
    assert (len(corpus.train), len(corpus.test)) == (300, 120)
    # Three classes of a third each; what is left of the groups of the test part shifts the shares of the others a little.
    for part, most in ((corpus.test, 1), (corpus.train, 9)):
        assert np.abs(np.bincount(part.labels) - len(part) / 3).max() <= most
    used = sum(map(len, parts(corpus).values()))
    assert f"{n - used} examples were left out because others of their group" in " ".join(corpus.notes)
    again = load_corpus(DataSource(path, group_column="author"), train=300, test=120, seed=seed, near_duplicates="keep")
    assert again.train.ids == corpus.train.ids and again.unseen.ids == corpus.unseen.ids


def test_examples_without_shared_groups_are_split_as_without_groups(tmp_path):
    """With one example per group, groups forbid nothing: sizes and shares are those of the plain split."""
    path = write(frame_of(200, id=range(200)), tmp_path / "t.csv")
    grouped = load_corpus(DataSource(path, group_column="id"), train=90, test=45, near_duplicates="keep")
    plain = load_corpus(path, train=90, test=45, near_duplicates="keep")
    for name in ("train", "test", "unseen"):
        one, other = getattr(grouped, name), getattr(plain, name)
        assert len(one) == len(other)
        assert np.abs(np.bincount(one.labels) - np.bincount(other.labels)).max() <= 1
    assert grouped.fingerprint != plain.fingerprint  # which decides the keys of all artifacts


def test_groups_of_a_given_test_split_are_not_trained_on(tmp_path):
    frame = frame_of(60, author=[f"author {i // 3}" for i in range(60)], split=["test", "train", "train"] * 20)
    frame.loc[30:, "split"] = "train"
    source = DataSource(write(frame, tmp_path / "t.csv"), split_column="split", group_column="author")
    # label a is tested on alone, so the classes of the rows are rotated
    frame["label"] = [("a", "b", "c")[(i + i // 3) % 3] for i in range(60)]
    write(frame, tmp_path / "t.csv")
    corpus = load_corpus(source, near_duplicates="keep")
    assert parts(corpus)["test"] == {f"text {i}" for i in range(0, 30, 3)}
    assert parts(corpus)["train"] == {f"text {i}" for i in range(30, 60)}
    assert "20 examples were left out because others of their group" in " ".join(corpus.notes)


def test_groups_and_near_copies_give_the_same_examples_again(tmp_path):
    """A worker knows the ids that were left out, and not how they were found."""
    base = [
        f"the quick brown fox number {i} jumps over the lazy dog of {i * 7} and runs away into wood {i}"
        for i in range(60)
    ]
    texts = [*base, *(f"{text}!" for text in base[:40])]  # copies by punctuation, of other authors
    frame = pd.DataFrame({"text": texts, "label": [("x", "y")[i % 2] for i in range(100)]})
    frame["author"] = [f"author {i // 2}" for i in range(100)]
    source = DataSource(write(frame, tmp_path / "t.csv"), group_column="author")
    found = load_corpus(source, train=50, test=20, finder=NearCopies())
    assert found.left_out
    known = load_corpus(source, train=50, test=20, finder=KnownCopies(found.left_out))
    for name in ("train", "test", "unseen"):
        assert getattr(known, name).ids == getattr(found, name).ids


def test_groups_that_leave_too_little_are_refused(tmp_path):
    path = write(frame_of(60, author=["one"] * 40 + ["two"] * 20), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"outside the groups of the test examples, too few for train = 45"):
        load_corpus(DataSource(path, group_column="author"), train=45, test=10)
    frame = frame_of(60, author=range(60))
    frame.loc[frame.label == "c", "author"] = 99
    write(frame, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"all examples of the class 'c'.*group_column"):
        load_corpus(DataSource(path, group_column="author"), train=20, test=20)
    with pytest.raises(DataError, match=r"no column 'writer'.*set group_column"):
        load_corpus(DataSource(path, group_column="writer"))
    frame = frame.astype({"author": object})
    frame.loc[4, "author"] = None
    write(frame, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"Column 'author' of .* has no group in row 5; .*on_missing = \"drop\""):
        load_corpus(DataSource(path, group_column="author"))


def test_missing_cells_are_an_error_or_left_out_and_counted(tmp_path):
    frame = frame_of(60, author=[str(i) for i in range(60)])
    frame.loc[3, "text"], frame.loc[7, "label"], frame.loc[9, "author"], frame.loc[11, "label"] = None, None, None, "  "
    path = str(tmp_path / "t.parquet")
    frame.to_parquet(path)
    with pytest.raises(DataError, match=r'no label in rows 8, 12; .*, or set on_missing = "drop"'):
        load_corpus(path)
    corpus = load_corpus(DataSource(path, on_missing="drop"), near_duplicates="keep")
    assert set.union(*parts(corpus).values()) == {f"text {i}" for i in range(60) if i not in (3, 7, 11)}
    assert "3 rows without text, label or group were left out." in corpus.notes
    corpus = load_corpus(DataSource(path, on_missing="drop", group_column="author"), near_duplicates="keep")
    assert set.union(*parts(corpus).values()) == {f"text {i}" for i in range(60) if i not in (3, 7, 9, 11)}
    frame.assign(label=None).to_parquet(path)
    with pytest.raises(DataError, match="no row with text and label; all 60"):
        load_corpus(DataSource(path, on_missing="drop"))


def test_a_saved_data_set_is_a_source(tmp_path):
    frame = frame_of(60)
    names = datasets.ClassLabel(names=["a", "b", "c"])
    whole = datasets.Dataset.from_pandas(frame).cast_column("label", names)
    whole.save_to_disk(tmp_path / "one")
    expected = load_corpus(write(frame, tmp_path / "t.csv"))
    corpus = load_corpus(str(tmp_path / "one"))
    assert corpus.fingerprint == expected.fingerprint and corpus.train.ids == expected.train.ids
    split = datasets.DatasetDict(train=whole.select(range(40)), test=whole.select(range(40, 60)))
    split.save_to_disk(tmp_path / "two")
    corpus = load_corpus(str(tmp_path / "two"), near_duplicates="keep")
    assert parts(corpus)["test"] == set(frame.text[40:])
    assert parts(corpus)["train"] == set(frame.text[:40])
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="is a folder that `save_to_disk` of `datasets` did not write"):
        load_corpus(str(tmp_path / "other"))
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"one cannot be loaded \(.*save it again"):
        load_corpus(str(tmp_path / "one"))


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_column_of_fractions_is_regression(tmp_path, ending):
    frame = frame_of(20).assign(label=[i / 7 for i in range(20)])
    path = tmp_path / f"t{ending}"
    path.write_text(frame.to_csv(index=False) if ending == ".csv" else frame.to_json(orient="records", lines=True))
    with pytest.raises(DataError, match=r"has fractions .*regression is not supported"):
        load_corpus(str(path))
    frame.assign(label=[f"{i % 2}.0" for i in range(20)]).to_csv(tmp_path / "t.csv", index=False)
    assert load_corpus(str(tmp_path / "t.csv")).label_names == ("0.0", "1.0")  # no fraction: two classes


@pytest.mark.parametrize("name", ["data/reviews.xlsx", "reviews.csv", "a/b.json", "x.feather"])
def test_a_missing_file_is_not_taken_for_a_hub_id(name):
    with pytest.raises(DataError, match=f"There is no data file {name} in the working folder /.*; check the path."):
        load_corpus(name)
