"""A study of a checkpoint alone, from its file to its page, with labels that have no names."""

import json
import re
import shutil

import pytest
from running import LIGHT, run_study, write_study
from safetensors.torch import load_file, save_file

from layerprobe.adaptation import AdaptConfig, adapt, parse_method
from layerprobe.data import load_corpus
from layerprobe.errors import StudyError
from layerprobe.stages.adapt import CHECKPOINT_LABELS

NAMES = ("class a", "class b")


@pytest.fixture(scope="module")
def checkpoint(tiny_encoder, tiny_csv, tmp_path_factory):
    """A fine-tuned checkpoint whose classes are in the other order and have no names."""
    folder = tmp_path_factory.mktemp("checkpoint")
    corpus, config = (
        load_corpus(str(tiny_csv), train=80, test=40),
        AdaptConfig(epochs=6, learning_rate=1e-3, max_length=32),
    )
    tuned = adapt(tiny_encoder, corpus, folder / "tuned", method=parse_method("full"), seed=0, config=config)
    assert tuned.after.accuracy > 0.8
    turned = shutil.copytree(tuned.checkpoint, folder / "turned")
    weights = load_file(turned / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, turned / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((turned / "config.json").read_text())
    settings |= {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (turned / "config.json").write_text(json.dumps(settings))
    return turned, tuned.after.accuracy


@pytest.fixture(scope="module")
def study(checkpoint, tiny_bert, tiny_csv, tmp_path_factory):
    folder, home = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("home")
    path = write_study(folder, tiny_bert, tiny_csv)

    def run(name, *overrides):
        method = f"adaptation.methods=['checkpoint:{checkpoint[0]}']"
        return run_study(path, folder / name, home, method, *LIGHT, *overrides, page=True)

    return run


def accuracy(run):
    rows = run.table("adaptation").query("when == 'after' and method.str.startswith('checkpoint')")
    return rows.accuracy.item()


def test_labels_in_another_order_are_suspected_and_the_suggested_mapping_repairs_them(study, checkpoint):
    _, expected = checkpoint
    taken = study("taken")
    assert accuracy(taken) == pytest.approx(1 - expected)  # two classes, turned round
    rows = taken.table("checkpoint_labels")
    assert (
        list(rows.label) == list(NAMES)
        and list(rows.fitted) == list(reversed(NAMES))
        and set(rows.matched) == {"order"}
    )
    assert set(rows.columns) == set(CHECKPOINT_LABELS.columns)
    assert rows.fitted_accuracy.iloc[0] == pytest.approx(1 - rows.accuracy.iloc[0]) and set(rows.n) == {80}
    warning = taken.answer()[0]
    assert warning.startswith("Warning: ") and "below chance" in warning
    mapping = re.search(r"set (data\.labels = \{.*\})", warning).group(1)
    html = (taken.folder / "index.html").read_text(encoding="utf-8")
    assert "Warning." in html and "no conclusion about depth" not in html
    # What the warning says can be copied as it is.
    mapped = study("mapped", mapping.replace(" = {", "={", 1))
    assert accuracy(mapped) == pytest.approx(expected)
    assert set(mapped.table("checkpoint_labels").matched) == {"given"}
    assert not any(line.startswith("Warning") for line in mapped.answer())
    needed = next(one for one in mapped.cards() if one.title == "Was it needed?")
    assert f"{expected:.1%}" in needed.claim and "majority baseline" in needed.claim
    assert "This run trained no model" in (mapped.folder / "index.html").read_text(encoding="utf-8")


def test_a_mapping_that_does_not_fit_is_one_sentence_about_the_key(study):
    with pytest.raises(StudyError, match=r"data\.labels does not map LABEL_1 of the checkpoint"):
        study("wrong", 'data.labels={LABEL_0="class a"}')
