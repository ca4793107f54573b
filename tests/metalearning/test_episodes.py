"""Parts share no class, group or text; episodes are seeded and consistent; too few of anything is refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerprobe.errors import ArgumentError
from layerprobe.metalearning import EpisodeSampler, split_classes


def corpus(groups=9, classes=4, texts=12):
    """Texts with label and group, shuffled; every class has the same number of texts."""
    rows = [
        (f"text {t} of {g}.{c}", f"class {g}.{c}", f"group {g}")
        for g in range(groups)
        for c in range(classes)
        for t in range(texts)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    return tuple(list(column) for column in zip(*(rows[i] for i in order), strict=True))


def parts_of(found):
    return found.train, found.validation, found.test


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), grouped=st.booleans())
def test_parts_share_no_class_group_or_text(seed, grouped):
    texts, labels, groups = corpus()
    found = split_classes(texts, labels, groups if grouped else None, min_texts=10, seed=seed)
    for values in (labels, texts, *([groups] if grouped else [])):
        sets = [{values[i] for rows in part.rows for i in rows} for part in parts_of(found)]
        assert sum(map(len, sets)) == len(set.union(*sets)) == len(set(values))
    for part in parts_of(found):
        for label, rows in zip(part.classes, part.rows, strict=True):
            assert {labels[i] for i in rows} == {label} and len(rows) == 12
        if grouped:
            assert part.groups == tuple(label.split(".")[0].replace("class", "group") for label in part.classes)


def test_sizes_follow_the_shares():
    """As in the trial on ICD-10-CM: 12, 4 and 6 of 22 chapters."""
    texts, labels, groups = corpus(groups=22, classes=2, texts=2)
    found = split_classes(texts, labels, groups, min_texts=2)
    assert [len(set(part.groups)) for part in parts_of(found)] == [12, 4, 6]
    even = split_classes(texts, labels, groups, min_texts=2, shares=(0.98, 0.01, 0.01))
    assert [len(set(part.groups)) for part in parts_of(even)] == [20, 1, 1]


def test_the_division_is_seeded():
    texts, labels, groups = corpus()

    def classes(seed):
        return [part.classes for part in parts_of(split_classes(texts, labels, groups, min_texts=10, seed=seed))]

    assert classes(3) == classes(3) and classes(3) != classes(4)


def test_repeated_and_ambiguous_texts_and_small_classes_are_left_out_and_counted():
    texts, labels, groups = corpus(texts=6)
    texts += ["Text  0 OF 0.0", "shared", "Shared ", "alone"]
    labels += ["class 0.0", "class 0.0", "class 1.0", "class small"]
    groups += ["group 0", "group 0", "group 1", "group 1"]
    found = split_classes(texts, labels, groups, min_texts=6)
    assert (found.repeated, found.ambiguous, found.small) == (1, 2, ("class small",))
    kept = {i for part in parts_of(found) for rows in part.rows for i in rows}
    assert kept == set(range(len(texts) - 4))


@pytest.fixture
def test_part():
    texts, labels, groups = corpus()
    return split_classes(texts, labels, groups, min_texts=10).test, labels, groups


@pytest.mark.parametrize("within_group", [False, True])
def test_support_and_query_come_from_one_set_of_classes(test_part, within_group):
    part, labels, groups = test_part
    sampler = EpisodeSampler(part, ways=3, shots=2, queries=5, within_group=within_group)
    for number in range(50):
        episode = sampler.draw(number)
        assert episode.support.shape == (3, 2) and episode.query.shape == (3, 5)
        rows = np.hstack([episode.support, episode.query])
        assert len(np.unique(rows)) == rows.size
        for label, of_class in zip(episode.classes, rows, strict=True):
            assert {labels[i] for i in of_class} == {label}
        assert len(set(episode.classes)) == 3
        if within_group:
            assert len({groups[i] for i in rows.ravel()}) == 1


def test_episodes_are_seeded_by_number_and_class_order_is_redrawn(test_part):
    part, *_ = test_part
    sampler, other = (EpisodeSampler(part, 3, 2, 5, seed=seed) for seed in (0, 1))
    again = [sampler.draw(n) for n in (7, 3)]
    np.testing.assert_array_equal(again[0].support, sampler.draw(7).support)
    assert again[0].classes == sampler.draw(7).classes
    assert any(sampler.draw(n).classes != other.draw(n).classes for n in range(5))
    whole = EpisodeSampler(part, len(part.classes), 2, 5)
    orders = {whole.draw(n).classes for n in range(20)}
    assert len(orders) > 10 and len({frozenset(order) for order in orders}) == 1


def test_every_class_and_text_is_drawn_equally_often(test_part):
    """4,000 episodes: shares within 5 standard errors."""
    part, *_ = test_part
    sampler = EpisodeSampler(part, ways=3, shots=1, queries=1, within_group=True)
    episodes = [sampler.draw(n) for n in range(4000)]
    classes = np.array([label for episode in episodes for label in episode.classes])
    share = 3 / len(part.classes)
    for label in part.classes:
        found = (classes == label).sum() / 4000
        assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / 4000)
    first = np.bincount(np.concatenate([episode.support.ravel() for episode in episodes]))
    first = first[np.concatenate(part.rows)]
    assert abs(first - first.mean()).max() < 5 * np.sqrt(first.mean())


def test_within_group_skips_groups_with_too_few_classes():
    texts, labels, groups = corpus(classes=3)
    keep = [i for i, label in enumerate(labels) if label not in ("class 0.2", "class 1.2", "class 2.2")]
    texts, labels, groups = ([column[i] for i in keep] for column in (texts, labels, groups))
    found = split_classes(texts, labels, groups, min_texts=10, seed=1)
    for part in parts_of(found):
        sampler = EpisodeSampler(part, 3, 1, 1)
        enough = {group for group in part.groups if group not in ("group 0", "group 1", "group 2")}
        assert set(sampler.groups) == enough


def sample(**changes):
    texts, labels, groups = corpus()
    part = split_classes(texts, labels, groups if changes.pop("grouped", True) else None, min_texts=10).test
    return EpisodeSampler(part, **{"ways": 3, "shots": 2, "queries": 5, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 1}, "ways is 1; it must be at least 2"),
        ({"shots": 0}, "shots is 0"),
        ({"queries": 0}, "queries is 0"),
        ({"ways": 9}, "ways is 9, but the test part has 8 classes"),
        ({"shots": 8}, r"shots \+ queries is 13, but a class of the test part has 12 texts"),
        ({"ways": 5, "within_group": True}, "no group of the test part has more than 4 classes"),
        ({"within_group": True, "grouped": False}, "within_group needs groups"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        sample(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a"]}, "texts has 432 values, labels 1"),
        ({"groups": ["a"]}, "groups 1; each text takes one of each"),
        ({"min_texts": 13}, "groups leaves a part without a group: 0 have a class of 13 or more distinct texts"),
        ({"groups": ["one"] * 432}, "groups leaves a part without a group: 1 have"),
        ({"groups": None, "labels": ["a", "b"] * 216}, "labels leaves a part without a class: 2 have"),
        ({"ways": 9}, "ways is 9, but the validation part has 8 classes"),
        ({"groups": [str(i % 9) for i in range(432)]}, "a class has one group"),
        ({"shares": (1, 0, 1)}, "shares is"),
        ({"min_texts": 1}, "min_texts is 1"),
    ],
)
def test_what_cannot_be_divided_is_refused(changes, message):
    texts, labels, groups = corpus()
    with pytest.raises(ArgumentError, match=message):
        split_classes(**{"texts": texts, "labels": labels, "groups": groups, "min_texts": 10, **changes})


def test_classes_may_have_different_numbers_of_texts():
    labels = [f"class {i}" for i in range(9) for _ in range(5 + i)]
    texts = [f"text {i}" for i in range(len(labels))]
    parts = split_classes(texts, labels, None, min_texts=4, ways=2, seed=0)
    sizes = [len(rows) for part in (parts.train, parts.validation, parts.test) for rows in part.rows]
    assert sorted(sizes) == list(range(5, 14))
