"""The conclusion about depth: who is compared, from which rows, with what left out and said."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from layerprobe import Run, Study, pipeline, sufficiency
from layerprobe.adaptation import parse_method
from layerprobe.artifacts import Artifact
from layerprobe.stages.depth import CONCLUSION, conclude, correct, family_of, power_note, prices

pytestmark = pytest.mark.numerical


def family(*names, seeds=(0, 1)):
    methods = [parse_method(name) for name in names]
    return family_of(methods, lambda method: seeds[:1] if method.kind == "checkpoint" else seeds)


def names(found):
    return found.reference.name, [method.name for method in found.others]


def test_everything_is_held_against_full_or_else_the_deepest():
    assert names(family("head", "top:1", "full")) == ("full", ["head", "top:1"])
    assert names(family("top:1", "head", "top:12", "top:2")) == ("top:12", ["top:1", "head", "top:2"])
    assert family("head") is None and family("full") is None and family("head", "shuffled-labels") is None


def test_what_cannot_be_compared_is_left_out_with_the_reason():
    found = family("head", "full", "shuffled-labels", "checkpoint:/x")
    assert names(found) == ("full", ["head"])
    assert found.left_out["shuffled-labels"] == "it is a control that learns no task"
    assert found.left_out["checkpoint:/x"] == "it was not run with the seeds of full"
    assert names(family("full", "checkpoint:/x", seeds=(3,))) == ("full", ["checkpoint:/x"])
    assert family("full", "checkpoint:/x") is None


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


@pytest.fixture
def done(tmp_path):
    """Two methods, two seeds: head is wrong on texts 0-9 (seed 1: 0-11), full on 5-9; an out-of-domain set reverses that."""
    made = {}
    for method, seed, wrong, values in (
        ("head", 0, range(10), [1, 1]),
        ("head", 1, range(12), [1, 1]),
        ("full", 0, range(5, 10), [0.9, 0.5]),
        ("full", 1, range(5, 10), [0.7, 0.3]),
    ):
        rows = [
            quality(method, 1 - len(wrong) / 600, seed, seconds=10.0 + seed, flops=np.nan),
            quality(method, 0.1, seed, seconds=99.0, flops=np.nan) | {"split": "elsewhere"},
            quality(method, 0.1, seed, seconds=99.0, flops=np.nan) | {"when": "before"},
        ]
        for stage, tables in {
            "adapt": {
                "adaptation": pd.DataFrame(rows),
                "predictions": pd.concat(
                    [predictions(method, seed, wrong), predictions(method, seed, range(300), "elsewhere")]
                ),
            },
            "similarity": {"similarity": drift(method, values, seed)},
        }.items():
            folder = tmp_path / f"{stage}-{method}-{seed}"
            (folder / "tables").mkdir(parents=True)
            for name, table in tables.items():
                table.to_parquet(folder / "tables" / f"{name}.parquet")
            made[f"{stage}: {method} seed {seed}"] = Artifact(folder, "key", 0.0, reused=True)
    return made


def test_the_tables_hold_what_the_test_texts_say(done, tmp_path):
    inputs = SimpleNamespace(study=SimpleNamespace(adaptation=SimpleNamespace(margin=0.05)))
    adapts = [name for name in done if name.startswith("adapt")]
    folder = tmp_path / "out"
    folder.mkdir()
    conclude(
        inputs, family("head", "full", "shuffled-labels"), adapts, [n.replace("adapt", "similarity") for n in adapts]
    )(folder, done)
    table = {path.stem: pd.read_parquet(path) for path in (folder / "tables").glob("*.parquet")}
    assert set(table) == {"differences", "seed_differences", "sufficiency", "pareto"}
    (row,) = table["differences"].itertuples()
    assert (row.method, row.reference, row.n, row.seeds) == ("head", "full", 600, 2)  # nothing from elsewhere
    assert row.difference == pytest.approx(-(5 + 7) / 2 / 600)
    assert table["seed_differences"].set_index("seed").difference.to_dict() == pytest.approx({0: -5 / 600, 1: -7 / 600})
    assert table["sufficiency"].outcome.tolist() == ["sufficient"] and table["sufficiency"].margin.tolist() == [0.05]
    assert set(table["pareto"].cost) == {"seconds", "drift"}  # no operations were counted
    bought = table["pareto"].set_index(["cost", "method"])
    assert bought.loc[("seconds", "full"), "value"] == 10.5
    assert bought.loc[("drift", "full"), "value"] == pytest.approx(0.4)  # mean of .1 .5 .3 .7
    assert bought.loc[("drift", "head"), "value"] == 0
    kept = json.loads((folder / CONCLUSION).read_text())
    assert kept["smallest"] == "head" and kept["left_out"] == {"shuffled-labels": "it is a control that learns no task"}
    assert kept["sentence"].startswith("head is the smallest depth shown to be sufficient")
    assert kept["conditional_on_seeds"] is True and len(json.dumps(kept)) < 2000


def test_predictions_without_a_split_are_all_of_the_test_texts():
    older = predictions("head", 0, [1]).drop(columns="split")
    assert len(correct(older)) == 600 and correct(older).correct.sum() == 599


def test_drift_falls_back_to_the_cosine_and_then_to_nothing():
    table = pd.DataFrame([quality("full", 0.5, 0)])
    cosine = drift("full", [0.8, 0.6], 0).assign(measure="paired_cosine", unit="mean")
    assert prices(table, cosine).drift.tolist() == pytest.approx([0.3])
    assert "drift" not in prices(table, cosine.assign(measure="rsa"))


def test_the_needed_texts_are_told_before_anything_is_trained():
    one = power_note(family("head", "full"), 0.01, 500)
    needed = sufficiency.required_examples(0.12, 0.01)
    assert f"{needed:,} test texts, but data.test gives 500" in one and 7_400 < needed < 7_500
    assert "as head and full did on tweets" in one and "assuming" in one
    assert "which data.test reaches" in power_note(family("head", "full"), 0.05, 500)
    assert "of top:2's accuracy" in power_note(family("head", "top:2"), 0.01, 500)


def test_a_study_out_of_reach_is_told_too(tmp_path):
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
    first = pipeline.run(study, out=tmp_path / "out", home=tmp_path / "home", progress=False)
    kept = Run.load(tmp_path / "out").record["sufficiency"]
    assert (kept["reference"], kept["margin"], kept["n"], kept["seeds"]) == ("full", 0.1, 40, 1)
    assert list(kept["left_out"]) == ["shuffled-labels"]
    assert first.table("sufficiency").method.tolist() == ["head"] == first.table("differences").method.tolist()
    other = Study.load(path, ["adaptation.margin=0.2"])
    second = pipeline.run(other, out=tmp_path / "out", home=tmp_path / "home", progress=False)
    assert [task["stage"] for task in second.record["tasks"] if not task["reused"]] == ["depth"]
    assert second.record["sufficiency"]["margin"] == 0.2


def test_each_seed_is_a_training_of_its_own(tiny_bert, tiny_csv, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(model=str(tiny_bert), source=str(tiny_csv)))
    study = Study.load(path, ["seeds=[0, 1]", "adaptation.methods=['head', 'full']"])
    result = pipeline.run(study, out=tmp_path / "out", home=tmp_path / "home", progress=False)
    trained = [task["key"] for task in result.record["tasks"] if task["stage"] == "adapt"]
    assert len(set(trained)) == len(trained) == 4
    full = (
        result.table("predictions")
        .query("method == 'full'")
        .pivot(index="example_id", columns="seed", values="probability")
    )
    assert not np.array_equal(full[0], full[1])
    assert result.record["sufficiency"]["seeds"] == 2
