"""The tables of a run: each is declared by the stage that writes it, and each column has a meaning."""

import pandas as pd
import pytest
from tiny import write_csv

from layerprobe import Study, run
from layerprobe.description import ADDED_TABLES
from layerprobe.stages import REGISTRY
from layerprobe.store import ArtifactStore

STAGES = [stage for stage in REGISTRY if not stage.few_shot]
"""Those of a study of adaptation; few-shot studies have others."""
LEFT_OUT = {"weights_left_out", "interventions_left_out", "checkpoint_labels"}
"""Written only where something cannot be measured, or for a checkpoint, which other tests provoke."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def result(tiny_bert, tiny_csv, home, tmp_path_factory):
    """A run of a small study that has every table."""
    folder = tmp_path_factory.mktemp("run")
    study = Study.parse(
        {
            "model": {"name": str(tiny_bert)},
            "data": {
                "source": str(tiny_csv),
                "train": 80,
                "test": 40,
                "max_length": 32,
                "ood": [{"name": "other", "source": str(write_csv(folder / "ood.csv", n=40, seed=1))}],
            },
            "adaptation": {"methods": ["head", "full"], "learning_rate": 1e-3, "epochs": 1, "checkpoints": 1},
            "activations": {"examples": 30},
            "similarity": {"measures": ["cka", "mean_cca"], "shuffles": 3},  # 40 examples are too few for CCA
            "sae": {"layers": [2], "k": 4, "rows": 300, "census_nulls": 1},
        }
    )
    return run(study, out=folder / "out", home=home, progress=False)


def test_every_table_and_column_of_a_run_is_documented(result):
    described = result.tables
    for name in described:
        table = described[name]
        assert table.description.endswith("."), name
        assert [column for column, meaning in table.columns.items() if not meaning] == [], name
    assert described["similarity"].columns["depth"].startswith("number of top blocks")
    assert "concurrent_tasks" in described["adaptation"].columns


def test_a_run_has_exactly_the_declared_tables_with_the_declared_columns(result):
    specs = {spec.name: spec for stage in STAGES for spec in stage.tables}
    specs |= {spec.name: spec for spec in ADDED_TABLES}
    assert set(result.tables) == set(specs) - LEFT_OUT
    for name in result.tables:
        assert set(result.table(name).columns) == set(specs[name].columns), name


def test_each_stage_declares_the_tables_that_it_writes(result, home):
    store = ArtifactStore(home)
    written: dict[str, set[str]] = {}
    for task in result.record.tasks:
        artifact = store.find(task.stage, task.name, task.key)
        written.setdefault(task.stage, set()).update(artifact.table_names)
    declared = {stage.name: {spec.name for spec in stage.tables} - LEFT_OUT for stage in STAGES}
    shared = {"seeds": {"similarity_nulls"}}  # this study has one seed
    assert {name: tables for name, tables in declared.items() if name not in shared} == {
        name: written[name] for name in declared if name not in shared
    }
    assert declared["seeds"] == shared["seeds"]


def test_one_table_has_one_description():
    specs: dict[str, set[int]] = {}
    for stage in REGISTRY:
        for spec in stage.tables:
            specs.setdefault(spec.name, set()).add(id(spec))
    assert all(len(versions) == 1 for versions in specs.values())


def test_declared_columns_are_plain_names_and_meanings():
    for spec in [*ADDED_TABLES, *(spec for stage in REGISTRY for spec in stage.tables)]:
        assert spec.columns and all(name.isidentifier() for name in spec.columns), spec.name
        assert all(len(meaning) < 200 and "\n" not in meaning for meaning in spec.columns.values()), spec.name


def test_what_the_pipeline_adds_holds_for_each_method(result):
    facts = pd.concat(
        result.table(name)[["method", "depth", "is_control", "is_reference"]] for name in ("adaptation", "similarity")
    )
    facts = facts.drop_duplicates().set_index("method")
    assert facts.index.is_unique
    assert facts.depth["head"] == 0 and facts.depth["full"] == 2 and not facts.is_control.any()
    assert {name for name, is_reference in facts.is_reference.items() if is_reference} == {
        "reference:logistic-mean",
        "reference:logistic-cls",
        "reference:majority",
    }
