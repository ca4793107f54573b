"""Tasks and their keys: planned without a model, sent between processes, and changed by what decides the result alone."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from layerprobe import Study
from layerprobe.adaptation import parse_method
from layerprobe.executors import Settings
from layerprobe.graph import expand
from layerprobe.stage import LayerStage, ResolvedStudy, Stage, StudyShape
from layerprobe.stages import REGISTRY
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.capture import Capture
from layerprobe.stages.encode import Encode
from layerprobe.stages.match import Match
from layerprobe.stages.sae import Sae
from layerprobe.stages.similarity import Similarity
from layerprobe.store import ArtifactMeta

ANALYSES = sorted((Path(__file__).parents[1] / "analyses").glob("*.toml"))
FULL = parse_method("full")


def study(**sections) -> Study:
    return Study.parse({"model": {"name": "a/model"}, "data": {"source": "a/set"}} | sections)


def resolved(one: Study, **facts) -> ResolvedStudy:
    """What the pipeline would know of a study, without any model or data."""
    known = {
        "study": one,
        "n_layers": 6,
        "width": 32,
        "device": "cpu",
        "precision": "fp32",
        "corpus": "corpus digest",
        "encoder": "encoder digest",
        "ood": (),
        "checkpoints": {},
        "sae_source": "unseen",
        "n_train": 100,
        "n_test": 50,
        "train_tokens": 1000,
        "captured_tokens": 500,
        "model_bytes": 1000,
    }
    return ResolvedStudy(**known | facts)


def keys(given: ResolvedStudy) -> dict[Stage, str]:
    """The key of every task, as if each capture had content of its own."""
    metas: dict[Stage, ArtifactMeta] = {}
    for task in expand(given.study, given.n_layers):
        parents = {role: metas[parent] for role, parent in task.parents().items()}
        key = task.key(given, parents)
        content = {str(layer): f"{key} layer {layer}" for layer in range(given.n_layers + 1)}
        metas[task] = ArtifactMeta(task.name, task.title, key, {}, 0.0, 1, content, {})
    return {task: meta.key for task, meta in metas.items()}


@pytest.mark.parametrize("n_layers", [6, 12, None])
@pytest.mark.parametrize("path", ANALYSES, ids=lambda path: path.stem)
def test_every_task_survives_pickling(path, n_layers):
    tasks = expand(Study.load(path), n_layers)
    copies = pickle.loads(pickle.dumps(tasks))
    for task, copy in zip(tasks, copies, strict=True):
        assert copy == task and copy is not task
        assert hash(copy) == hash(task) and repr(copy) == repr(task) and copy.id == task.id
        assert dict(copy.parents()) == dict(task.parents())
    assert len(set(tasks)) == len(tasks) == len({task.id for task in tasks})
    # A task is a small message: it holds parameters and no data.
    assert max(len(pickle.dumps(task)) for task in tasks) < 100_000


def test_a_resolved_study_and_settings_survive_pickling():
    for value in (resolved(study()), Settings(Path("home"), jobs=2, threads=1)):
        assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("n_layers", [6, 12, None])
@pytest.mark.parametrize("path", ANALYSES, ids=lambda path: path.stem)
def test_parents_come_before_children(path, n_layers):
    seen = set()
    for task in expand(Study.load(path), n_layers):
        assert seen >= set(task.parents().values()), task
        seen.add(task)


def test_every_stage_is_in_the_registry_under_a_name_of_its_own():
    everything = {"data": {"source": "a/set", "ood": [{"name": "other", "source": "b"}]}, "seeds": [0, 1]}
    tasks = expand(study(**everything, adaptation={"checkpoints": 2}, sae={"census_nulls": 1}), 6)
    options = {"outer": "top:1", "inner": ["head", "top:1"], "convergence": True}
    few = expand(study(few_shot=options), 6)
    with_dictionaries = expand(study(few_shot=options | {"dictionaries": True}), 6)
    with_energy = expand(study(few_shot=options, energy={}), 6)
    assert {type(task) for task in (*tasks, *with_dictionaries, *with_energy)} == set(REGISTRY)
    # Dictionaries alone come from stages of both kinds.
    assert not {type(task) for task in tasks} & {type(task) for task in few}
    names = [stage.name for stage in REGISTRY]
    assert len(set(names)) == len(names)


def test_layers_are_symbols_without_a_model():
    planned, known = expand(study(), None), expand(study(), 12)
    layers = {task.layer for task in planned if isinstance(task, LayerStage)}
    assert layers == {"early", "middle", "last"}
    assert {task.layer for task in known if isinstance(task, LayerStage)} == {3, 6, 12}
    assert [task.name for task in planned] == [task.name for task in known]  # the same tasks
    chosen = expand(study(sae={"layers": [2, 5]}), None)
    assert {task.layer for task in chosen if isinstance(task, LayerStage)} == {2, 5}


def test_a_task_has_a_key_of_its_own_parameters():
    found = keys(resolved(study(adaptation={"methods": ["head", "top:1", "full"]}, seeds=[0, 1])))
    for name in ("adapt", "similarity", "transfer", "weights"):
        one_stage = [key for task, key in found.items() if task.name == name]
        assert len(one_stage) > 2 and len(set(one_stage)) == len(one_stage), name


@pytest.mark.parametrize(
    ("section", "changed", "kept"),
    [
        ({"adaptation": {"epochs": 3}}, Adapt(FULL, 0), Capture.of_base()),
        ({"activations": {"examples": 100}}, Capture.of_base(), Adapt(FULL, 0)),
        ({"similarity": {"measures": ["rsa"]}}, Similarity(FULL, 0), Capture(FULL, 0)),
        ({"sae": {"k": 7}}, Sae(layer=3), Similarity(FULL, 0)),
        ({"sae": {"layers": [1, 3, 6], "architecture": "batchtopk"}}, Sae(FULL, 0, 3), Capture(FULL, 0)),
        ({"sae": {"rows": 100}}, Encode(Sae(layer=6), Capture.of_base()), Similarity(FULL, 0)),
        ({"data": {"source": "a/set", "max_length": 20}}, Adapt(FULL, 0), None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_key_changes_with_what_decides_the_result_alone(section, changed, kept):
    before, after = keys(resolved(study())), keys(resolved(study(**section)))
    assert before[changed] != after[changed]
    assert kept is None or before[kept] == after[kept]


def test_a_key_changes_with_data_model_precision_and_version(monkeypatch):
    one = study()
    before = keys(resolved(one))
    for facts in ({"corpus": "other"}, {"encoder": "other"}):
        assert set(keys(resolved(one, **facts)).values()).isdisjoint(before.values()), facts
    in_bf16 = keys(resolved(one, precision="bf16"))
    assert in_bf16[Adapt(FULL, 0)] != before[Adapt(FULL, 0)]
    assert in_bf16[Capture.of_base()] == before[Capture.of_base()]  # activations are captured in float32
    monkeypatch.setattr(Match, "version", Match.version + 1)
    raised = keys(resolved(one))
    different = {task.name for task in before if raised[task] != before[task]}
    assert different == {"match", "latents", "transitions", "exhibit"}  # itself and what reads it


def test_device_jobs_and_threads_are_no_part_of_a_key():
    one = study()
    assert keys(resolved(one)) == keys(resolved(one, device="cuda"))
    # Settings, which hold jobs and threads, never reach a key: a task and the resolved study decide it.
    assert not {"jobs", "threads", "home"} & set(vars(resolved(one)))


def test_another_method_leaves_the_keys_of_the_others():
    before = keys(resolved(study(adaptation={"methods": ["head", "full"]})))
    after = keys(resolved(study(adaptation={"methods": ["head", "top:2", "full", "lora:2"]})))
    assert set(before) - set(after) == {task for task in before if task.name in ("depth", "crossing", "basis-excess")}
    different = {task.name for task in set(before) & set(after) if before[task] != after[task]}
    assert different == {"frozen"}  # one pass for all methods, from which an adapted model does not depend


def test_equal_rows_have_one_dictionary():
    one = resolved(study())
    rows = ArtifactMeta("capture-sae", "", "a", {}, 0.0, 1, {"3": "same", "6": "same"}, {})
    start = replace(rows, stage="sae", key="the start's")
    base = Sae(layer=3).key(one, {"rows": rows, "base rows": rows, "start": start})
    adapted = Sae(FULL, 0, 3)
    assert adapted.key(one, {"rows": replace(rows, key="b"), "base rows": rows, "start": start}) == base
    moved = replace(rows, key="b", content={"3": "other"})
    assert adapted.key(one, {"rows": moved, "base rows": rows, "start": start}) != base


def test_shape_lists_methods_that_keep_the_body_first():
    shape = StudyShape(study(adaptation={"methods": ["full", "head", "top:1"]}, seeds=[3, 4]), 6)
    assert [method.name for method in shape.methods] == ["head", "full", "top:1"]
    assert [seed for method, seed in shape.runs if method.name == "full"] == [3, 4]
