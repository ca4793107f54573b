"""Readers of an episode against slow twins and another library."""

import numpy as np
import pytest

from layerprobe.errors import ArgumentError
from layerprobe.metalearning import READERS, read


def vectors(seed=0, classes=4, n=6, width=7, spread=1.0):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((classes, width)) * 2
    labels = np.tile(np.arange(classes), n)
    return means[labels] + spread * rng.standard_normal((len(labels), width)), labels


def test_centroid_equals_the_nearest_centroid_of_scikit_learn():
    from sklearn.neighbors import NearestCentroid

    (support, labels), (query, _) = vectors(), vectors(1)
    np.testing.assert_array_equal(
        read("centroid", support, labels, query), NearestCentroid().fit(support, labels).predict(query)
    )


def test_nil_sums_cosines_of_support_vectors():
    (support, labels), (query, _) = vectors(), vectors(1)
    expected = []
    for q in query:
        votes = dict.fromkeys(range(4), 0.0)
        for s, label in zip(support, labels, strict=True):
            votes[label] += q @ s / (q @ q) ** 0.5 / (s @ s) ** 0.5
        expected.append(max(votes, key=votes.get))
    np.testing.assert_array_equal(read("nil", support, labels, query), expected)


@pytest.mark.parametrize("reader", READERS)
def test_separated_classes_are_read_and_scale_does_not_matter(reader):
    support, labels = vectors(spread=0.01)
    assert (read(reader, support, labels, support) == labels).all()
    (support, labels), (query, _) = vectors(), vectors(1)
    np.testing.assert_array_equal(
        read(reader, 1000 * support, labels, 1000 * query), read(reader, support, labels, query)
    )


def test_an_unknown_reader_is_refused():
    with pytest.raises(ArgumentError, match="reader is 'knn'; the readers are logistic, centroid, nil"):
        read("knn", *vectors(), vectors()[0])
