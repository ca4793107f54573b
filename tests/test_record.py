"""The record of a run: every field is documented, what is read is what was written, older schemas are refused."""

import inspect
import json

import pytest
from pydantic import BaseModel, ValidationError

from layerprobe import record as module
from layerprobe.errors import StorageError
from layerprobe.record import (
    Conclusion,
    DataRecord,
    EncoderRecord,
    Finding,
    MeasureRecord,
    MethodRecord,
    Provenance,
    RunRecord,
    StudyRecord,
    TableRecord,
    TaskRecord,
)

MODELS = [
    model
    for _, model in inspect.getmembers(module, inspect.isclass)
    if issubclass(model, BaseModel) and model.__module__ == module.__name__ and not model.__name__.startswith("_")
]


def whole():
    return RunRecord(
        name="x",
        question="What changed?",
        study=StudyRecord(given="name = 'x'", resolved={"seeds": [0]}),
        command="layerprobe run x.toml --seed 3",
        provenance=Provenance(python="3", platform="x", packages={"torch": "2"}, device="cpu", started="now"),
        data=DataRecord(name="d", label_names=["a"], n_train=1, n_test=2, n_unseen=0, notes=["n"], fingerprint="f"),
        encoder=EncoderRecord(name="e", family="bert", n_layers=2, width=8, fingerprint="f", pooler="none"),
        tasks=[TaskRecord(stage="adapt", name="head", key="k", seconds=1.5, reused=False, concurrent=2)],
        findings=[Finding(text="It did.", figure="drift")],
        sufficiency=Conclusion(
            reference="full",
            margin=0.01,
            alpha=0.05,
            smallest=None,
            undecided="head",
            needed=900,
            sentence="S.",
            n=40,
            seeds=1,
            conditional_on_seeds=True,
            left_out={},
        ),
        tables={"similarity": TableRecord(description="d", columns={"layer": "layer"}, rows=3, sha256="s")},
        measures=[
            MeasureRecord(name="cka", label="CKA", kind="similarity", low=None, high=1, symmetric=True, citation="K")
        ],
        methods=[MethodRecord(name="head", depth=0, changes_body=False)],
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_documented(model):
    assert model.__doc__
    assert {name for name, field in model.model_fields.items() if not field.description} == set()


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(whole().to_json(), allow_nan=False))
    assert json.loads(path.read_text())["schema"] == module.SCHEMA
    assert RunRecord.read(path) == whole()


def test_an_older_schema_is_refused_in_one_sentence_with_the_command(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema": 1, "status": "complete", "command": "layerprobe run x.toml --seed 3"}))
    with pytest.raises(StorageError) as error:
        RunRecord.read(path)
    message = str(error.value)
    assert "schema 1" in message and message.endswith("repeat the run with: layerprobe run x.toml --seed 3")
    assert "\n" not in message and ". " not in message.replace(str(path), "")


def test_a_damaged_record_names_the_field(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(whole().to_json() | {"tasks": [{"stage": "adapt"}]}))
    with pytest.raises(StorageError, match=r"damaged at tasks\.0\.name .*repeat the run with: layerprobe run"):
        RunRecord.read(path)


def places(value, path=()):
    """The path of every key and every item of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def test_a_change_of_any_key_is_noticed(tmp_path):
    path = tmp_path / "run.json"
    whole().write(path)
    assert RunRecord.read(path) == whole()
    content = json.loads(path.read_text())
    every = list(places(content))
    assert ("tables", "similarity", "sha256") in every and ("tasks", 0, "seconds") in every
    for where in every:
        for change in ("removed", "another value", "another type"):
            if where == ("checksum",) and change == "removed":
                continue  # as in records of earlier versions
            damaged = json.loads(path.read_text())
            table = damaged
            for key in where[:-1]:
                table = table[key]
            value = table[where[-1]]
            if change == "removed":
                del table[where[-1]]
            elif change == "another type":
                table[where[-1]] = {"a": [value]}
            else:
                table[where[-1]] = (
                    not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "other"
                )
            other = tmp_path / "damaged.json"
            other.write_text(json.dumps(damaged))
            with pytest.raises(StorageError, match=r"damaged\.json") as error:
                RunRecord.read(other)
            assert "\n" not in str(error.value), where


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"schema": true}', b'{"command": 7}']
)
def test_what_is_no_record_is_refused(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"run\.json"):
        RunRecord.read(path)


def test_unknown_fields_and_wrong_values_are_refused():
    record = whole()
    with pytest.raises(ValidationError):
        record.status = "done"
    with pytest.raises(ValidationError):
        RunRecord.model_validate(record.to_json() | {"notes": []})


def test_what_a_method_and_a_measure_imply():
    full = MethodRecord(name="full", depth=6, trains_embeddings=True)
    assert full.is_full and not MethodRecord(name="top:6", depth=6).is_full
    assert not MethodRecord(name="lp-ft", depth=None, trains_embeddings=True).is_full
    distance = {"label": "", "low": 0, "high": None, "symmetric": True, "citation": ""}
    assert MeasureRecord(name="a", kind="distance", **distance).unchanged == 0
    assert MeasureRecord(name="a", kind="similarity", **distance).unchanged == 1
