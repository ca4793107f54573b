"""Matching a checkpoint's labels with the data's, and the order that fits labelled examples best."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerprobe.adaptation import fit_order, match_labels
from layerprobe.errors import ArgumentError

DATA = ("bad", "fine", "good")
GENERIC = ("LABEL_0", "LABEL_1", "LABEL_2")
MAPPED = {"LABEL_0": "good", "LABEL_1": "bad", "LABEL_2": "fine"}


def test_labels_are_matched_by_mapping_by_name_and_last_by_number():
    by_name = match_labels(("good", "bad", "fine"), DATA, {}, "x")
    assert (by_name.matched, by_name.order) == ("name", (1, 2, 0))
    given_order = match_labels(GENERIC, DATA, MAPPED, "x")
    assert (given_order.matched, given_order.order) == ("given", (1, 2, 0))
    assert match_labels(GENERIC, DATA, {}, "x").matched == "order"
    # A mapping that is meant for another checkpoint changes nothing.
    assert match_labels(("good", "bad", "fine"), DATA, MAPPED, "x").matched == "name"
    # Names that are equal but mean something else can be mapped.
    crossed = match_labels(("a", "b"), ("a", "b"), {"a": "b", "b": "a"}, "x")
    assert (crossed.matched, crossed.order) == ("given", (1, 0))


@pytest.mark.parametrize(
    ("labels", "mapping", "message"),
    [
        (("a", "b"), {}, "has 2 labels (a, b), but the data has 3 (bad, fine, good)"),
        (
            ("a", "b", "c"),
            {},
            "map each of the checkpoint's labels to one of the data's with labels, such as a = \"bad\"",
        ),
        (GENERIC, {"LABEL_0": "good"}, "labels does not map LABEL_1, LABEL_2 of the checkpoint x; map each of LABEL_0"),
        (GENERIC, MAPPED | {"LABEL_2": "good"}, "each of the data's labels (bad, fine, good) must occur once"),
    ],
)
def test_labels_that_cannot_be_matched_are_refused(labels, mapping, message):
    with pytest.raises(ArgumentError) as caught:
        match_labels(labels, DATA, mapping, "x")
    assert message in str(caught.value)


@given(
    st.integers(2, 5).flatmap(
        lambda k: st.tuples(st.just(k), st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=1, max_size=40))
    )
)
def test_the_fitted_order_is_the_best_of_all_permutations(case):
    classes, pairs = case
    predicted, labels = np.array(pairs).T
    found = fit_order(predicted, labels, range(classes))

    def right(order):
        return np.mean(predicted == np.array(order)[labels])

    best = max(right(order) for order in itertools.permutations(range(classes)))
    assert found.fitted_accuracy == pytest.approx(best) == pytest.approx(right(found.order))
    assert found.accuracy == pytest.approx(right(range(classes))) and found.n == len(pairs)
    assert sorted(found.order) == list(range(classes))
    if found.accuracy == found.fitted_accuracy:
        assert found.order == tuple(range(classes))
