"""The stages: the only bridge from a study and its artifacts to the packages that compute.

One function a stage, in modules by what they are about. Each returns a build: a function that writes one artifact's data
into an empty folder from finished parents.
"""

from __future__ import annotations

from collections.abc import Mapping

VERSIONS: Mapping[str, int] = {
    "adapt": 3,
    "outside": 1,
    "capture": 1,
    "capture-train": 2,
    "capture-sae": 1,
    "reference": 4,
    "similarity": 2,
    "nulls": 2,
    "seeds": 2,
    "geometry": 2,
    "sentences": 2,
    "probes": 1,
    "weights": 1,
    "interventions": 3,
    "sae": 3,
    "crosscoder": 2,
    "associations": 1,
    "transfer": 4,
    "match": 1,
    "latents": 2,
    "sentence-latents": 3,
    "exhibit": 1,
    "crossing": 1,
    "depth": 1,
    "steps": 1,
}
"""Raised when a stage's result changes for the same input, so that older artifacts are not taken for it."""
