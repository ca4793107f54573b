"""User mistakes: each is reported before the first task starts, in one line that names it, and several at once."""

import json
import shutil
from pathlib import Path

import pytest
from running import write_study
from safetensors.torch import load_file, save_file
from tiny import make_encoder
from trials_of_runs import few_shot
from typer.testing import CliRunner

from layerprobe.cli import app
from layerprobe.errors import CombinedError, EncoderError, StudyError

CLASSES = ["class a", "class b"]


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_bert, tiny_csv):
    return write_study(tmp_path_factory.mktemp("study"), tiny_bert, tiny_csv)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of the shape and tokenizer of the tiny encoder."""
    return make_encoder(tmp_path_factory.mktemp("classifier") / "bert", labels=CLASSES)


def lines(study, tmp_path, *overrides, words=()):
    """The lines that a run with mistakes ends with; nothing is computed."""
    home = tmp_path / "home"
    changes = [word for override in overrides for word in ("--set", override)]
    command = ["run", str(study), "--out", str(tmp_path / "out"), *changes, *words]
    result = CliRunner().invoke(app, command, env={"LAYERPROBE_HOME": str(home)})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr and "]" not in result.stderr.partition(":")[0]
    assert not home.exists() or not any(path.is_dir() for path in home.iterdir())
    found = [line for line in result.stderr.splitlines() if line.startswith("layerprobe: ")]
    assert len(found) == len(result.stderr.rstrip().splitlines()) - ("Reading the data" in result.stderr)
    return found


def edited(folder, tmp_path, name, **changes):
    """A copy of a model with other settings in one of its JSON files; None removes a key."""
    copy = shutil.copytree(folder, tmp_path / "edited", dirs_exist_ok=True)
    content = json.loads((copy / name).read_text()) | changes
    (copy / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return copy


def test_several_mistakes_are_reported_at_once_one_line_each(study, tmp_path):
    found = lines(
        study,
        tmp_path,
        "data.text='headline'",
        "adaptation.methods=['head', 'checkpoint:/nowhere', 'checkpoint:/nothing']",
        "similarity.measures=['cka', 'ckka']",
        "sae.layers=[1, 7]",
        "sae.architecture='topq'",
        "data.max_length=100",
    )
    words = ("topq", "ckka", "headline", "100, but", "/nowhere", "/nothing", "layer 7")
    for word in words[:4] + words[6:]:
        assert sum(word in line for line in found) == 1, (word, found)


def test_mistakes_of_a_few_shot_study_are_reported_at_once(tiny_bert, tmp_path):
    path = few_shot(tmp_path)
    path.write_text(path.read_text() + "[energy]\ndevices = [2, 2]\ntasks = 2\n")
    found = lines(
        path,
        tmp_path,
        f"model.name={str(tiny_bert)!r}",
        "few_shot.inner=['head', 'top:1', 'top:9', 'anil']",
        "few_shot.inner_rates={full=0.1}",
        "few_shot.ways=40",
        "few_shot.tasks_per_step=3",
        "data.max_length=100",
    )
    words = (
        "lists a depth twice",
        "inner_rates has 'full'",
        "keep_steps lists none",
        "energy.tasks is 2",
        "devices = [2, 2]",
    )
    for word in (*words, "few_shot.ways", "but the model has", "data.max_length is 100"):
        assert sum(word in line for line in found) == 1, (word, found)
    assert len(found) == 8, found


def test_values_that_no_study_has_are_all_named(study, tmp_path):
    found = lines(study, tmp_path, "data.train='many'", "sae.expansion=inf", "seeds=[-1]", "sae.colour=1")
    assert len(found) == 4
    for word in ("data.train = 'many'", "sae.expansion = inf", "seeds", "sae.colour"):
        assert sum(word in line for line in found) == 1, (word, found)
    found = lines(study, tmp_path, words=("--device", "tpu", "--jobs", "0"))
    assert len(found) == 2 and "--device tpu is unknown" in found[0] and "--jobs is 0" in found[1]


@pytest.mark.parametrize(
    ("override", "words"),
    {
        "similarity.measures=['cka', 'cka']": ["similarity.measures", "twice"],
        "adaptation.methods=['head', 'head']": ["'head' twice"],
        "sae.k=5000": ["sae.k is 5000", "latents"],
        "sae.expansion=100": ["sae.rows has", "latents", "lower sae.expansion"],
        "sae.rows=3": ["sae.rows is 3", "less than the tokens of the first example"],
        "sae.expansion=0.001": ["sae.expansion is 0.001", "no latent"],
    }.items(),
)
def test_sizes_and_names_that_do_not_fit_are_found_before_the_first_task(study, tmp_path, override, words):
    (line,) = lines(study, tmp_path, override)
    for word in words:
        assert word in line


def test_a_class_with_one_training_example_is_named(study, tmp_path, tiny_csv):
    path = tmp_path / "single.csv"
    path.write_text(Path(tiny_csv).read_text() + "w1 w2 odd one,rare\nw3 w4 odd two,rare\n")
    (line,) = lines(study, tmp_path, f"data.source='{path}'")
    assert "The class 'rare'" in line and "one training example" in line and "probes" in line


def checkpoint_faults():
    def rewrite(change):
        def damage(folder):
            weights = load_file(folder / "model.safetensors")
            change(weights)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

        return damage

    def set_nan(weights):
        weights["classifier.weight"][0, 0] = float("nan")

    def settings(**changes):
        def damage(folder):
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return damage

    def pickled(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def other_words(folder):
        path = folder / "tokenizer.json"
        path.write_text(
            path.read_text().replace('"w1":', '"w-1":').replace('"w2":', '"w1":').replace('"w-1":', '"w2":')
        )

    names = {"id2label": {"0": "x", "1": "y"}, "label2id": {"x": 0, "y": 1}}
    return {
        "truncated": (lambda folder: (folder / "model.safetensors").write_bytes(b"1" * 50), "cannot be loaded"),
        "pickle": (pickled, "pickle"),
        "no head": (rewrite(lambda weights: weights.pop("classifier.weight")), "no trained classification head"),
        "NaN": (rewrite(set_nan), "NaN"),
        "labels": (settings(**names), "labels x, y"),
        "blocks": (settings(num_hidden_layers=1), "1 blocks"),
        "tokenizer": (other_words, "tokenizers"),
        "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "config.json"),
    }


@pytest.mark.parametrize("name", checkpoint_faults())
def test_faults_of_a_checkpoint_are_found_before_the_first_task(study, classifier, tmp_path, name):
    damage, word = checkpoint_faults()[name]
    folder = shutil.copytree(classifier, tmp_path / "checkpoint")
    damage(folder)
    (line,) = lines(study, tmp_path, f"adaptation.methods=['head', 'checkpoint:{folder}']")
    assert word in line and str(folder) in line


# Models ----------------------------------------------------------------------------------------------------------------

CONFIGS = {
    "hidden_size": 0,
    "num_hidden_layers": -1,
    "vocab_size": 10**12,
    "hidden_dropout_prob": float("nan"),
    "attention_probs_dropout_prob": 7.0,
    "pad_token_id": 10**9,
    "dtype": "float99",
    "model_type": "t5",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "layer_norm_eps": float("nan"),
}


@pytest.mark.parametrize("key", CONFIGS)
def test_a_configuration_that_no_encoder_has_is_refused(tiny_bert, tmp_path, key):
    from layerprobe.encoder import load_encoder

    folder = edited(tiny_bert, tmp_path, "config.json", **{key: CONFIGS[key]})
    with pytest.raises(EncoderError) as error:
        load_encoder(str(folder))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_an_index_of_weights_names_files_of_its_own_folder(tiny_bert, tmp_path):
    from layerprobe.encoder import load_encoder

    folder = shutil.copytree(tiny_bert, tmp_path / "sharded")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    names = load_file(folder / "model-00001-of-00001.safetensors")
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")})
    )
    assert load_encoder(str(folder)).n_layers == 2
    elsewhere = str(tiny_bert / "model.safetensors")
    for content in ("[]", "3", "{", '{"weight_map": [1]}', json.dumps({"weight_map": dict.fromkeys(names, elsewhere)})):
        index.write_text(content)
        with pytest.raises(EncoderError, match=r"index\.json"):
            load_encoder(str(folder))


@pytest.mark.parametrize("fault", ["no unknown token", "number beyond the vocabulary", "other shapes", "not JSON"])
def test_tokenizers_and_weights_that_do_not_fit_are_refused(tiny_bert, tmp_path, fault):
    from layerprobe.encoder import load_encoder

    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    if fault == "no unknown token":
        content["model"]["unk_token"] = "[NOTHING]"
    elif fault == "number beyond the vocabulary":
        content["model"]["vocab"]["w1"] = 10**6
    elif fault == "other shapes":
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if name.endswith("intermediate.dense.weight"))
        weights[name] = weights[name][:-1].contiguous()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path.write_text("{" if fault == "not JSON" else json.dumps(content))
    with pytest.raises(EncoderError) as error:
        load_encoder(str(folder))
    text = str(error.value)
    assert str(folder) in text and "\n" not in text and "report" not in text
    if fault == "other shapes":
        assert "other shapes than config.json" in text


# Files and words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "data.source='~nosuchuser/texts.csv'",
        "model.name='~nosuchuser/model'",
        "adaptation.methods=['checkpoint:~nosuchuser/model']",
        f"data.source='{'x' * 5000}.csv'",
        f"model.name='./{'x' * 5000}'",
        f"name='{'-' * 5000}'",
        f"data.label='{'x' * 5000}'",
        f"sae.{'x' * 5000}=1",
        "data.train=" + "[" * 50_000,
        "data.train=" + "9" * 10_000,
        "data.source='a\\u0000b.csv'",
        "=",
        "a.b.c.d=1",
    ],
    ids=lambda override: override[:30],
)
def test_hostile_values_are_one_line(study, tmp_path, override):
    assert len(lines(study, tmp_path, override)) == 1


def test_paths_that_cannot_be_used_are_one_line(study, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for words in (["run", "~nosuchuser/x.toml"], ["run", "x" * 5000], ["report", "x" * 5000], ["plan", str(tmp_path)]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
    for value in (str(tmp_path / "file"), "~nosuchuser/home", "x" * 5000):
        for command in (["run", str(study), "--out", str(tmp_path / "out")], ["plan", str(study)]):
            result = CliRunner().invoke(app, command, env={"LAYERPROBE_HOME": value})
            assert result.exit_code == 2, result.output
            assert result.stderr.splitlines()[-1].startswith("layerprobe: ")


@pytest.mark.parametrize("text", ["x = " + "[" * 50_000, "x." * 5000 + "y = 1", "x = 1e9999", "x = " + "9" * 10_000])
def test_a_deep_or_huge_study_is_one_line(tmp_path, text):
    path = tmp_path / "deep.toml"
    path.write_text(text)
    for command in ("run", "plan", "sweep"):
        result = CliRunner().invoke(app, [command, str(path)])
        assert result.exit_code == 2 and "Traceback" not in result.stderr, result.output
        assert all(line.startswith(("layerprobe: ", "Planning")) for line in result.stderr.splitlines())


@pytest.mark.parametrize("command", ["plan", "sweep"])
def test_a_byte_order_mark_is_accepted(study, tmp_path, command):
    path = study.parent / f"{command}-mark.toml"
    text = study.read_text() if command == "plan" else f"base = {str(study)!r}\n[axes]\n'data.train' = [70, 80]\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    result = CliRunner().invoke(app, [command, str(path), *(["--plan"] if command == "sweep" else [])])
    assert result.exit_code == 0, result.output


def test_combined_errors_keep_their_parts_between_processes():
    import pickle

    error = CombinedError([StudyError("One."), StudyError("Two.")])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "One. Two." and [str(one) for one in again.errors] == ["One.", "Two."]


def test_a_rank_is_a_number(study, tmp_path):
    """Of several processes of a launcher, each would run the whole study; the variable may be anything."""
    result = CliRunner().invoke(app, ["run", str(study)], env={"WORLD_SIZE": "two"})
    assert result.exit_code == 2 and "WORLD_SIZE is two" in result.stderr
