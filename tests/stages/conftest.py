"""What the tests of single stages share: a tiny study that every stage is part of."""

from typing import Any

import pytest
from bench import Bench
from tiny import write_csv

from layerprobe import Study


@pytest.fixture(scope="session")
def content(tiny_bert, tiny_csv, tmp_path_factory) -> dict[str, Any]:
    """A tiny study that every stage is part of."""
    other = write_csv(tmp_path_factory.mktemp("other") / "other.csv", n=40, seed=1)
    return {
        "model": {"name": str(tiny_bert)},
        "data": {
            "source": str(tiny_csv),
            "train": 80,
            "test": 40,
            "max_length": 32,
            "ood": [{"name": "other", "source": str(other)}],
        },
        "seeds": [0, 1],
        "adaptation": {"methods": ["head", "top:1", "full"], "learning_rate": 1e-3, "epochs": 1, "checkpoints": 2},
        "activations": {"examples": 30},
        "similarity": {"measures": ["cka", "paired_cosine"], "units": ["token", "mean"], "shuffles": 3},
        "sae": {"layers": [2], "k": 4, "rows": 300},
    }


@pytest.fixture(scope="session")
def bench(content, tmp_path_factory) -> Bench:
    return Bench(Study.parse(content), tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def make_bench(content, tmp_path_factory):
    """A bench for the study with other sections."""
    return lambda **sections: Bench(Study.parse(content | sections), tmp_path_factory.mktemp("bench"))
