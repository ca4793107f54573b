"""The conclusion about depth: which methods are compared, from which rows, and which are left out with a reason."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from running import run_study

from layerprobe import Run, Study, pipeline, sufficiency
from layerprobe.adaptation import parse_method
from layerprobe.stage import StudyShape
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.depth import ASSUMED_SEED_SD, CONCLUSION, Depth, costs_by_method, family_of, power_note
from layerprobe.stages.reference import LOGISTIC, Reference
from layerprobe.stages.similarity import Similarity
from layerprobe.store import Artifact, ArtifactMeta

pytestmark = pytest.mark.numerical


def shape(*methods, seeds=(0, 1)):
    content = {"model": {"name": "m"}, "data": {"source": "d"}, "adaptation": {"methods": list(methods)}}
    return StudyShape(Study.parse({"name": "x", "seeds": list(seeds), **content}), None)


def family(*methods, **options):
    return family_of(shape(*methods, **options))


def names(family):
    return family.reference.name, [method.name for method in family.others]


def test_the_reference_is_full_or_else_the_deepest():
    assert names(family("head", "top:1", "full")) == ("full", ["head", "top:1"])
    assert names(family("top:1", "head", "top:12", "top:2")) == ("top:12", ["head", "top:1", "top:2"])
    assert family("head") is None and family("head", "shuffled-labels") is None
    assert names(family("full")) == ("full", [])  # logistic regression is compared with it


def test_what_cannot_be_compared_is_left_out_with_the_reason():
    compared = family("head", "full", "shuffled-labels", "checkpoint:/x")
    assert names(compared) == ("full", ["head"])
    left_out = dict(compared.left_out)
    assert left_out["shuffled-labels"] == "it is a control that learns no task"
    assert left_out["checkpoint:/x"] == "it was not run with the seeds of full"
    assert names(family("full", "checkpoint:/x", seeds=(3,))) == ("full", ["checkpoint:/x"])
    assert names(family("full", "checkpoint:/x")) == ("full", [])


def predictions(method, seed, wrong, split="test"):
    n = 600
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "split": split,
            "example_id": [f"{split}{i}" for i in range(n)],
            "label": "a",
            "predicted": np.where(np.isin(np.arange(n), wrong), "b", "a"),
            "probability": 0.9,
        }
    )


def quality(method, accuracy, seed, **more):
    return {"method": method, "seed": seed, "when": "after", "split": "test", "accuracy": accuracy, **more}


def drift(method, values, seed):
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "unit": "token",
            "rows": "all",
            "measure": "cka",
            "layer": range(len(values)),
            "value": values,
        }
    )


def artifact(folder, tables):
    (folder / "tables").mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(folder / "tables" / f"{name}.parquet")
    return Artifact(folder, ArtifactMeta("stage", "title", "key", {}, 0.0, 1, {}, {}))


@pytest.fixture
def parents(tmp_path):
    """Two methods and two seeds.

    head is wrong on examples 0-9 (seed 1: 0-11), full on 5-9; on an out-of-domain set it is the reverse. Logistic regression
    is wrong on 8-13 (mean; the best on validation data) or on 0-99 (first token; the worst).
    """
    artifacts = {}
    linear = {"reference:logistic-cls": (range(100), 0.6), "reference:logistic-mean": (range(8, 14), 0.9)}
    artifacts[Reference().id] = artifact(
        tmp_path / "reference",
        {
            "adaptation": pd.DataFrame(
                quality(name, 1 - len(wrong) / 600, seed, validation_accuracy=held_out, validation_loss=0.5)
                for name, (wrong, held_out) in linear.items()
                for seed in (0, 1)
            ),
            "predictions": pd.concat(
                predictions(name, seed, wrong) for name, (wrong, _) in linear.items() for seed in (0, 1)
            ),
        },
    )
    chosen = {"validation_accuracy": 0.8, "validation_loss": 0.5}
    for method, seed, wrong, values in (
        ("head", 0, range(10), [1, 1]),
        ("head", 1, range(12), [1, 1]),
        ("full", 0, range(5, 10), [0.9, 0.5]),
        ("full", 1, range(5, 10), [0.7, 0.3]),
    ):
        rows = [
            quality(method, 1 - len(wrong) / 600, seed, seconds=10.0 + seed, flops=np.nan, **chosen),
            quality(method, 0.1, seed, seconds=99.0, flops=np.nan) | {"split": "elsewhere"},
            quality(method, 0.1, seed, seconds=99.0, flops=np.nan) | {"when": "before"},
        ]
        elsewhere = predictions(method, seed, range(300), "elsewhere")
        adapt = {
            "adaptation": pd.DataFrame(rows),
            "predictions": pd.concat([predictions(method, seed, wrong), elsewhere]),
        }
        parsed = parse_method(method)
        artifacts[Adapt(parsed, seed).id] = artifact(tmp_path / f"adapt-{method}-{seed}", adapt)
        similarity = {"similarity": drift(method, values, seed)}
        artifacts[Similarity(parsed, seed).id] = artifact(tmp_path / f"similarity-{method}-{seed}", similarity)
    return artifacts


def test_the_tables_follow_from_the_test_examples(parents, tmp_path):
    context = SimpleNamespace(
        study=SimpleNamespace(adaptation=SimpleNamespace(margin=0.05)), resolved=SimpleNamespace(n_layers=2)
    )
    (task,) = Depth.tasks(shape("head", "full", "shuffled-labels"))
    assert set(task.parents()) == set(parents)
    folder = tmp_path / "out"
    folder.mkdir()
    task.build(context, parents, folder)
    table = {path.stem: pd.read_parquet(path) for path in (folder / "tables").glob("*.parquet")}
    assert set(table) == {"differences", "seed_differences", "sufficiency", "pareto"}
    row, *others = table["differences"].itertuples()
    assert {other.method for other in others} == set(LOGISTIC)
    assert (row.method, row.reference, row.n, row.seeds) == ("head", "full", 600, 2)  # nothing from elsewhere
    assert row.difference == pytest.approx(-(5 + 7) / 2 / 600)
    seeds = table["seed_differences"].query("method == 'head'").set_index("seed")
    assert seeds.difference.to_dict() == pytest.approx({0: -5 / 600, 1: -7 / 600})
    tests = table["sufficiency"].set_index("method")
    assert tests.outcome.to_dict() == {
        "head": "sufficient", "reference:logistic-mean": "sufficient", "reference:logistic-cls": "inferior",
    }  # fmt: skip
    assert tests["order"].to_dict() == {"head": 2, "reference:logistic-mean": 1, "reference:logistic-cls": 3}
    assert set(tests.margin) == {0.05} and set(tests.depth) == {0} and tests.validation_accuracy["head"] == 0.8
    assert set(table["pareto"].cost) == {"seconds", "drift"}  # no operations were counted
    costs = table["pareto"].set_index(["cost", "method"])
    assert costs.loc[("seconds", "full"), "value"] == 10.5
    assert costs.loc[("drift", "full"), "value"] == pytest.approx(0.4)  # mean of .1 .5 .3 .7
    assert costs.loc[("drift", "head"), "value"] == 0
    conclusion = json.loads((folder / CONCLUSION).read_text())
    assert conclusion["smallest"] == conclusion["frozen"] == "reference:logistic-mean"
    assert conclusion["order"] == ["reference:logistic-mean", "head", "reference:logistic-cls"]
    assert conclusion["left_out"] == {"shuffled-labels": "it is a control that learns no task"}
    assert conclusion["sentence"].startswith(
        "Logistic regression on the mean over tokens of the frozen model is the smallest depth shown to be sufficient"
    )
    assert (
        conclusion["conditional_on_seeds"] is True and conclusion["df"] is None and len(json.dumps(conclusion)) < 2500
    )


def test_predictions_without_a_split_are_those_of_the_test_examples():
    older = predictions("head", 0, [1]).drop(columns="split")
    assert sufficiency.correctness(older).correct.sum() == 599 and len(older) == 600


def test_drift_falls_back_to_the_cosine_and_then_to_nothing():
    table = pd.DataFrame([quality("full", 0.5, 0)])
    cosine = drift("full", [0.8, 0.6], 0).assign(measure="paired_cosine", unit="mean")
    assert costs_by_method(table, cosine).drift.tolist() == pytest.approx([0.3])
    assert "drift" not in costs_by_method(table, cosine.assign(measure="rsa"))


def test_the_needed_examples_are_reported_before_anything_is_trained():
    note = power_note(family("head", "full"), 0.01, 500, 1)
    needed = sufficiency.required_examples(0.12, 0.01)
    assert f"{needed:,} test examples, but data.test gives 500" in note and 7_400 < needed < 7_500
    assert "as head and full did on tweets" in note and "assuming" in note
    takes = sufficiency.required_seeds(ASSUMED_SEED_SD, 0.12, 0.01, 2 * needed)
    assert f"it takes {takes} seeds on {2 * needed:,} test examples, assuming" in note and 3 < takes < 20
    assert "with the 1 of this study, the conclusion does not cover another training run" in note
    three = power_note(family("head", "full"), 0.05, 500, 3)
    few = [sufficiency.required_seeds(ASSUMED_SEED_SD, 0.12, 0.05, n) for n in (500, 594)]
    assert f"it takes {few[0]} seeds on 500 test examples or {few[1]} seeds on 594" in three and few[0] >= few[1] >= 3
    assert "the study has 3." in three
    assert "which data.test reaches" in power_note(family("head", "full"), 0.05, 500, 3)
    assert "of top:2's accuracy" in power_note(family("head", "top:2"), 0.01, 500, 1)


def test_so_are_those_of_a_study_out_of_reach(tmp_path):
    for methods in ("depths", ["head", "full"]):
        content = {
            "model": {"name": "org/unknown"},
            "data": {"source": "org/unknown"},
            "adaptation": {"methods": methods},
        }
        notes = pipeline.plan(Study.parse({"name": "x", **content}), home=tmp_path).notes
        assert "pending" in notes[0] and "data.test gives 500" in notes[1]


STUDY = """
question = "How deep?"
[model]
name = {model!r}
[data]
source = {source!r}
train = 80
test = 40
max_length = 32
[adaptation]
methods = ["head", "full", "shuffled-labels"]
learning_rate = 1e-3
margin = 0.1
[activations]
examples = 20
[similarity]
measures = ["cka"]
units = ["token"]
[sae]
layers = []
[internals]
parts = []
"""


def test_a_run_keeps_its_conclusion_and_another_margin_concludes_again(tiny_bert, tiny_csv, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(model=str(tiny_bert), source=str(tiny_csv)))
    study = Study.load(path)
    assert "of full's accuracy" in pipeline.plan(study, home=tmp_path / "home").notes[0]
    first = run_study(path, tmp_path / "out", tmp_path / "home")
    conclusion = Run.load(tmp_path / "out").record.sufficiency
    assert (conclusion.reference, conclusion.margin, conclusion.n, conclusion.seeds) == ("full", 0.1, 40, 1)
    assert list(conclusion.left_out) == ["shuffled-labels"]
    expected = ["head", *LOGISTIC]
    assert first.table("sufficiency").method.tolist() == expected == first.table("differences").method.tolist()
    assert sorted(conclusion.order) == sorted(expected) and conclusion.frozen == conclusion.order[0]
    second = run_study(path, tmp_path / "out", tmp_path / "home", "adaptation.margin=0.2")
    assert [task.stage for task in second.record.tasks if not task.reused] == ["depth"]
    assert second.record.sufficiency.margin == 0.2


def test_each_seed_is_a_training_of_its_own(tiny_bert, tiny_csv, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(model=str(tiny_bert), source=str(tiny_csv)))
    result = run_study(path, tmp_path / "out", tmp_path / "home", "seeds=[0, 1]", "adaptation.methods=['head', 'full']")
    trained = [task.key for task in result.record.tasks if task.stage == "adapt"]
    assert len(set(trained)) == len(trained) == 4
    full = (
        result.table("predictions")
        .query("method == 'full'")
        .pivot(index="example_id", columns="seed", values="probability")
    )
    assert not np.array_equal(full[0], full[1])
    assert result.record.sufficiency.seeds == 2
