"""Classifiers of an episode's query vectors that need no inner loop: logistic regression, nearest centroid and cosine."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import ArgumentError

READERS = ("logistic", "centroid", "nil")


def read(
    reader: str,
    support: Float[np.ndarray, "support width"],
    labels: Int[np.ndarray, " support"],
    query: Float[np.ndarray, "query width"],
) -> Int[np.ndarray, " query"]:
    """Predicted class of each query vector.

    Args:
        reader: `logistic` (L2-penalised logistic regression on the support vectors, C = 1 after scaling to a mean norm of
            sqrt(width)), `centroid` (nearest class mean, Snell et al. 2017) or `nil` (no trained head: each support vector
            votes for its class with its cosine similarity, Raghu et al. 2020).
        support: vectors of the support examples.
        labels: their classes.
        query: vectors of the query examples.

    Raises:
        ArgumentError: if the reader is unknown.
    """
    classes = np.unique(labels)
    if reader == "logistic":
        from sklearn.linear_model import LogisticRegression

        centre = support.mean(0)
        scale = np.sqrt(support.shape[1]) / max(float(np.linalg.norm(support - centre, axis=1).mean()), 1e-12)
        model = LogisticRegression(max_iter=1000).fit((support - centre) * scale, labels)
        return model.predict((query - centre) * scale)
    if reader == "centroid":
        means = np.stack([support[labels == label].mean(0) for label in classes])
        distances = ((query[:, None] - means) ** 2).sum(-1)
        return classes[distances.argmin(1)]
    if reader == "nil":
        cosine = _unit(query) @ _unit(support).T
        votes = np.stack([cosine[:, labels == label].sum(1) for label in classes], axis=1)
        return classes[votes.argmax(1)]
    raise ArgumentError(f"{{reader}} is {reader!r}; the readers are {', '.join(READERS)}.", "reader")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
