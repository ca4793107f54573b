"""Near copies: planted ones are found in every pair of parts, removed, replaced and counted; nothing else changes."""

import csv
import pickle
import re
import unicodedata
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tiny import WORDS

from layerprobe import Study
from layerprobe.context import Context
from layerprobe.data import Examples, KnownCopies, Labelled, NearCopies, load_corpus, load_ood
from layerprobe.data._near_copies import BANDS, ROWS, SHINGLE, THRESHOLD, shingles
from layerprobe.description import near_copies_table
from layerprobe.errors import DataError, StudyError
from layerprobe.pipeline import plan
from layerprobe.resolve import resolve
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.capture import Capture, CaptureSae

NAMES = ("a", "b")
LENGTH = 12


def sentences(n, seed=0, words=WORDS[:50]):
    """Texts of 30 words that have next to no pair of words in common."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, 30)) for _ in range(n)]


def made_of(texts, labels=None, pairs=None):
    """Examples with their numbers as ids."""
    labels = np.arange(len(texts)) % 2 if labels is None else np.asarray(labels)
    ids = tuple(f"{text} | {pairs[i] if pairs else ''}" for i, text in enumerate(texts))
    return Examples(ids, tuple(texts), None if pairs is None else tuple(pairs), labels)


def tokens(examples):
    """Numbers of the first words, as a tokenizer with an unknown token and truncation gives them."""
    texts = [f"{text} / {examples.pairs[i]}" if examples.pairs else text for i, text in enumerate(examples.texts)]
    return [[WORDS.index(w) if w in WORDS else -1 for w in text.split()[:LENGTH]] for text in texts]


def capitals(text):
    return text.upper()


def spaces(text):
    return f"\t{text.replace(' ', '  ', 3)}\n"


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in text)


def other_end(text):
    """The same tokens up to the maximal length, and other words from there on."""
    return " ".join(text.split()[:LENGTH] + [f"x{i}" for i in range(18)])


def punctuation(text):
    return ", ".join(text.split()) + " !"


def one_word(text):
    """Another word in the middle, so that 27 of the pairs of words are shared by 31."""
    words = text.split()
    return " ".join([*words[:8], "another", *words[9:]])


COPIES = {
    capitals: "text",
    spaces: "text",
    full_width: "text",
    other_end: "tokens",
    punctuation: "shingles",
    one_word: "shingles",
}


@pytest.mark.parametrize("change", COPIES, ids=lambda one: one.__name__)
def test_each_kind_of_copy_is_found_and_named(change):
    originals = made_of(sentences(40))
    copied = [3, 7, 20]
    examples = made_of([*sentences(30, seed=1), *(change(originals.texts[i]) for i in copied)], [0] * 33)
    found = NearCopies(tokens).of(originals)(examples)
    assert found.kinds == ("",) * 30 + (COPIES[change],) * 3
    assert found.originals == {*copied} and found.n_originals == 40
    assert found.same_label.tolist() == [False] * 30 + [False, False, True]  # 3 and 7 have the label 1
    # Without a tokenizer, what is equal up to the maximal length alone is not found.
    by_text = NearCopies().of(originals)(examples)
    assert by_text.mask.any() == (change is not other_end)


def test_a_reordered_or_half_changed_text_is_no_copy():
    originals = made_of(sentences(20))
    turned = [" ".join(text.split()[::-1]) for text in originals.texts]
    halves = [
        " ".join([*text.split()[:15], *other.split()[15:]]) for text, other in zip(turned, originals.texts, strict=True)
    ]
    assert not NearCopies(tokens).of(originals)(made_of([*turned, *halves])).mask.any()


def test_pairs_are_copies_where_both_texts_are():
    questions, passages = sentences(20), sentences(20, seed=1)
    originals = made_of(questions, pairs=passages)
    find = NearCopies().of(originals)
    # One passage with many questions is common, and no leak.
    assert not find(made_of(sentences(20, seed=2), pairs=passages)).mask.any()
    assert not find(made_of(passages, pairs=questions)).mask.any()
    both = made_of([one_word(text) for text in questions], pairs=[one_word(text) for text in passages])
    assert find(both).kinds == ("shingles",) * 20
    assert NearCopies(tokens).of(originals)(made_of(list(map(other_end, questions)), pairs=passages)).mask.all()


def test_short_texts_and_texts_without_words():
    originals = made_of(["good film", "...", "🎉", "fine", "ﬁne match"])
    examples = made_of(["Good  film!", "... ", "🎉🎉", "bad film", "fine match", "film", "…"])
    assert NearCopies().of(originals)(examples).kinds == ("shingles", "text", "", "", "text", "", "text")
    assert not NearCopies().of(originals.take([]))(examples).mask.any()
    assert NearCopies().of(originals)(examples.take([])).mask.shape == (0,)


def all_pairs(examples, originals):
    """The slow twin: normalised, split and compared with every original, without hashes."""

    def pairs_of_words(text):
        words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
        return set(pairwise(words))

    similarity = np.zeros((len(examples), len(originals)))
    sets = [pairs_of_words(text) for text in originals]
    for i, text in enumerate(examples):
        mine = pairs_of_words(text)
        similarity[i] = [len(mine & other) / len(mine | other) for other in sets]
    return similarity


def edited(text, edits, rng):
    words = text.split()
    for _ in range(edits):
        words[rng.integers(len(words))] = f"n{rng.integers(1000)}"
    return " ".join(words)


def test_candidates_and_their_similarities_agree_with_all_pairs():
    rng = np.random.default_rng(0)
    originals = sentences(150, seed=1, words=[f"v{i}" for i in range(300)])
    examples = [edited(originals[rng.integers(150)], edits, rng) for edits in range(7) for _ in range(90)]
    similarity = all_pairs(examples, originals)
    expected = similarity >= THRESHOLD
    near = np.abs(similarity - THRESHOLD) < 0.1
    assert (near & expected).sum() > 50 and (near & ~expected).sum() > 50  # there are many close to the threshold
    found = NearCopies().of(made_of(originals))(made_of(examples))
    assert (found.mask == expected.any(1)).all()
    assert found.originals == {*np.flatnonzero(expected.any(0)).tolist()}
    again = NearCopies().of(made_of(originals))(made_of(examples))
    assert again.kinds == found.kinds and again.originals == found.originals


def test_the_index_misses_next_to_nothing_at_the_threshold():
    assert (1 - THRESHOLD**ROWS) ** BANDS < 2e-4
    assert SHINGLE == 2 and shingles("a b c") == {"a b", "b c"}


# Across parts ------------------------------------------------------------------------------------------------------------


def planted(change, part, of, n=60):
    """A source with a test split, whose unlabelled examples are unseen, with two copies of examples of `of` in `part`."""
    parts = {"train": sentences(n, 1), "test": sentences(n // 2, 2), "unseen": sentences(n // 2, 3)}
    parts[part][:2] = [change(text) for text in parts[of][-2:]]
    texts = [text for one in parts.values() for text in one]
    split = np.repeat(list(parts), [len(one) for one in parts.values()])
    labels = np.where(split == "unseen", -1, np.arange(len(texts)) % 2)
    return Labelled("planted", made_of(texts, labels), NAMES, split == "test", None, ()), parts


@pytest.mark.parametrize("change", COPIES, ids=lambda one: one.__name__)
def test_copies_of_test_examples_leave_training_and_the_test_part_stays(change):
    source, parts = planted(change, "train", "test")
    options = {"train": 60, "test": 30, "finder": NearCopies(tokens)}
    kept = load_corpus(source, near_duplicates="keep", **options)
    clean = load_corpus(source, **options)
    assert set(parts["train"]) - set(clean.train.texts) == {*parts["train"][:2]}
    assert clean.test.ids == kept.test.ids and set(clean.test.texts) == set(parts["test"])
    assert set(kept.train.texts) == set(parts["train"])
    # Nor are they used for dictionaries.
    assert set(clean.unseen.texts) == set(parts["unseen"]) and len(clean.left_out) == 2 and kept.left_out == ()
    count = clean.near_copies
    assert (count.part, count.of, count.n, count.n_of) == ("train", "test", 60, 30)
    assert (count.copies, count.originals, count.removed, count.replaced) == (2, 2, 2, 0)
    by_kind = {"text": count.equal_text, "tokens": count.equal_tokens, "shingles": count.similar}
    assert by_kind.pop(COPIES[change]) == 2 and set(by_kind.values()) == {0}
    assert kept.near_copies == replace(count, removed=0)


@pytest.mark.parametrize("of", ["train", "test"])
@pytest.mark.parametrize("change", COPIES, ids=lambda one: one.__name__)
def test_copies_of_training_and_test_examples_leave_out_of_domain_sets(change, of):
    source, parts = planted(capitals, "unseen", "test")
    corpus = load_corpus(source, train=60, test=30, finder=NearCopies(tokens))
    others = sentences(50, seed=9)
    copies = [change(text) for text in parts[of][-2:]]
    outside = Labelled("other", made_of([*others, *copies]), NAMES, None, None, ())
    clean = load_ood("other", outside, corpus, finder=NearCopies(tokens))
    assert set(clean.examples.texts) == set(others)
    assert (clean.near_copies.copies, clean.near_copies.removed, clean.near_copies.n_of) == (2, 2, 90)
    assert (clean.near_copies.part, clean.near_copies.name) == ("out-of-domain", "other")
    kept = load_ood("other", outside, corpus, near_duplicates="keep", finder=NearCopies(tokens))
    assert set(kept.examples.texts) == {*others, *copies} and kept.near_copies.copies == 2
    # The number of examples asked for is kept where there are others; and no copy takes their place.
    drawn = load_ood("other", outside, corpus, rows=50, finder=NearCopies(tokens))
    assert set(drawn.examples.texts) == set(others)
    known = load_ood("other", outside, corpus, rows=50, finder=KnownCopies(drawn.left_out))
    assert known.fingerprint == drawn.fingerprint


def crowded(share, n=400, seed=0):
    """A source in which a share of the examples is a near copy of another one, in groups of up to four."""
    rng = np.random.default_rng(seed)
    texts = sentences(n, seed)
    for i in np.flatnonzero(rng.uniform(size=n) < share):
        texts[i] = one_word(texts[i - i % 4]) + f" {i}"
    labels = np.where(rng.uniform(size=n) < 0.2, 1, 0)
    return Labelled("crowded", made_of(texts, labels), NAMES, None, None, ())


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_sizes_and_everything_else_are_kept_while_there_are_others(share, seed):
    source = crowded(share, seed=seed)
    kept = load_corpus(source, train=100, test=60, seed=seed, near_duplicates="keep")
    clean = load_corpus(source, train=100, test=60, seed=seed)
    copies = NearCopies().of(kept.test)
    assert len(clean.train) == 100 and clean.test.ids == kept.test.ids
    assert not copies(clean.train).mask.any()
    leaks = {kept.train.ids[i] for i in np.flatnonzero(copies(kept.train).mask)}
    assert set(kept.train.ids) - set(clean.train.ids) == leaks and leaks <= set(clean.left_out)
    assert clean.near_copies.copies == clean.near_copies.replaced == len(leaks) and (leaks or share == 0)
    assert abs((clean.train.labels == 1).sum() - (kept.train.labels == 1).sum()) == 0
    ids = [*clean.train.ids, *clean.test.ids, *clean.unseen.ids, *clean.left_out]
    assert sorted(ids) == sorted(source.examples.ids)
    if not leaks:
        assert clean.train.ids == kept.train.ids and clean.unseen.ids == kept.unseen.ids
    # A worker that is told which ones were left out has the same examples in the same order, and compares nothing.
    worker = load_corpus(source, train=100, test=60, seed=seed, finder=KnownCopies(clean.left_out))
    for part in ("train", "test", "unseen"):
        assert getattr(worker, part).ids == getattr(clean, part).ids
    assert worker.left_out == clean.left_out


def test_where_there_are_no_others_training_is_smaller_and_its_class_shares_shift():
    source, _ = planted(capitals, "train", "test")
    count = load_corpus(source, train=59, test=30, finder=NearCopies()).near_copies
    assert count.removed - count.replaced == 1  # one example was spare
    few = crowded(0.6)
    clean = load_corpus(few, train=300, test=100)
    assert len(clean.train) == 300 - clean.near_copies.removed + clean.near_copies.replaced < 300
    assert not NearCopies().of(clean.test)(clean.train).mask.any() and len(clean.unseen) == 0


def test_a_class_that_removal_empties_is_named_in_one_sentence(tmp_path, tiny_bert):
    texts = sentences(40)
    rare = [f"{sentences(1, seed=5)[0]} {end}" for end in ("x", "y", "z")]
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((text, "b") for text in texts), *((text, "a") for text in rare)]
        )
    assert set(load_corpus(str(path), train=20, test=20, near_duplicates="keep").train.labels) == {0, 1}
    words = r"All examples of the class 'a' .* near copies of test examples; lower {}, .* set {} = \"keep\"\.$"
    with pytest.raises(DataError, match=words.format("test", "near_duplicates")) as caught:
        load_corpus(str(path), train=20, test=20)
    assert "\n" not in str(caught.value)
    study = {
        "model": {"name": str(tiny_bert)},
        "data": {"source": str(path), "train": 20, "test": 20, "max_length": 32},
    }
    with pytest.raises(DataError, match=words.format("data.test", "data.near_duplicates")):
        resolve(Study.parse(study), "cpu", "fp32")


def test_an_out_of_domain_set_that_removal_empties_is_refused_in_one_sentence():
    source, parts = planted(capitals, "train", "test")
    corpus = load_corpus(source, train=60, test=30)
    texts = [*sentences(5, seed=9), *(one_word(text) for text in parts["test"][-2:])]
    outside = Labelled("other", made_of(texts, [0] * 5 + [1] * 2), NAMES, None, None, ())
    with pytest.raises(
        DataError, match=r"has 1 class \('a'\) in its 5 examples that are not near copies of .* \(2 are\)"
    ):
        load_ood("other", outside, corpus)


# In a study --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tiny_bert, tmp_path_factory):
    """A study with copies that only its tokenizer and its maximal length make copies, in all parts."""
    folder = tmp_path_factory.mktemp("copies")
    texts = sentences(150)
    texts += [
        " ".join([*text.split()[:14], *other.split()[14:]])
        for text, other in zip(texts, sentences(150, 1), strict=True)
    ]
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(texts)]
    for name, some in (
        ("t", rows),
        ("o", [*rows[:40], *((text, "ab"[i % 2]) for i, text in enumerate(sentences(30, 2)))]),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *some])
    data = {"source": str(folder / "t.csv"), "train": 60, "test": 40, "max_length": 16}
    return {
        "model": {"name": str(tiny_bert)},
        "data": data | {"ood": [{"name": "other", "source": str(folder / "o.csv")}]},
        "adaptation": {"methods": ["full"]},
        "sae": {"layers": [1], "rows": 300},
    }


def study(content, **data):
    return Study.parse(content | {"data": content["data"] | data})


def test_a_study_removes_copies_from_every_part_and_its_workers_do_the_same(content):
    context = resolve(study(content), "cpu", "fp32")
    corpus, resolved = context.corpus, context.resolved

    def heads(examples):
        return {" ".join(text.split()[:14]) for text in examples.texts}

    assert len(corpus.train) == 60 and len(corpus.test) == 40
    used = [heads(part) for part in (corpus.train, corpus.test, context.sae_examples, context.ood[0].examples)]
    assert all(not one & other for i, one in enumerate(used[:3]) for other in used[:i])
    assert not used[3] & (used[0] | used[1])
    table = near_copies_table(resolved).set_index("part")
    assert table.index.tolist() == ["train", "unseen", "out-of-domain"] and resolved.sae_source == "unseen"
    assert (
        (table.copies == table.equal_tokens).all()
        and (table.removed == table.copies).all()
        and (table.copies > 0).all()
    )
    # A worker reads the study and what was left out from a message.
    worker = Context(pickle.loads(pickle.dumps(resolved)))
    assert worker.corpus.train.ids == corpus.train.ids and worker.corpus.test.ids == corpus.test.ids
    assert worker.sae_examples.ids == context.sae_examples.ids
    assert worker.ood[0].fingerprint == context.ood[0].fingerprint == resolved.ood[0].fingerprint


def test_copies_that_are_kept_are_counted_and_what_a_study_removes_is_part_of_keys(content):
    kept = resolve(study(content, near_duplicates="keep"), "cpu", "fp32").resolved
    clean = resolve(study(content), "cpu", "fp32").resolved
    counts = near_copies_table(kept)
    assert (counts.copies > 0).all() and (counts.removed == 0).all()
    assert kept.left_out == kept.sae_left_out == kept.ood[0].left_out == ()
    full = clean.shape.methods[0]
    for task in (Adapt(full, 0), Capture.of_base(), CaptureSae.of_base()):
        assert task.identity(kept, {}) != task.identity(clean, {})
    # Rows for dictionaries do not decide what is trained.
    fewer = replace(clean, sae_left_out=())
    assert Adapt(full, 0).identity(fewer, {}) == Adapt(full, 0).identity(clean, {})
    assert CaptureSae.of_base().identity(fewer, {}) != CaptureSae.of_base().identity(clean, {})
    # Where nothing is removed, both settings share their artifacts.
    assert replace(kept, study=clean.study).texts == replace(clean, left_out=()).texts


def test_a_plan_says_what_would_be_removed(content, tmp_path):
    notes = plan(study(content), home=tmp_path).notes
    assert [
        note for note in notes if re.search("of 40 test examples had a near copy among the training examples", note)
    ]
    assert [note for note in notes if re.match(r"Of \d+ examples of the out-of-domain set other, \d+ were", note)]
    with pytest.raises(StudyError, match=r"data\.near_duplicates = 'drop'"):
        study(content, near_duplicates="drop")
