"""Studies: defaults, overrides, paths, and one clear sentence for each mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from layerprobe.errors import StudyError
from layerprobe.study import Study, slug

FOUR_LINES = '[model]\nname = "bundled:minilm-l6"\n[data]\nsource = "bundled:tweets"\n'


def write(folder: Path, text: str, name: str = "my_study.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_four_lines_are_a_study(tmp_path):
    study = Study.load(write(tmp_path, FOUR_LINES))
    assert study.name == "my-study"
    assert study.adaptation.methods == ("head", "full")
    assert study.seeds == (0,)
    assert study.similarity.measures == ("paired_cosine", "paired_cosine_baseline", "cka", "procrustes")
    assert study.sae.layers is None


def test_overrides_take_toml_values_and_bare_words(tmp_path):
    path = write(tmp_path, FOUR_LINES)
    study = Study.load(
        path,
        ["data.train=50", "adaptation.methods=['top:2']", "model.name=some/hub-id", "seeds=[3, 4]", "sae.layers=[]"],
    )
    assert study.data.train == 50
    assert study.adaptation.methods == ("top:2",)
    assert study.model.name == "some/hub-id"
    assert study.seeds == (3, 4)
    assert study.sae.layers == ()


def test_paths_are_relative_to_the_study_file(tmp_path, monkeypatch):
    (tmp_path / "texts.csv").write_text("text,label\n", encoding="utf-8")
    (tmp_path / "tuned").mkdir()
    text = '[model]\nname = "org/model"\n[data]\nsource = "texts.csv"\n[adaptation]\nmethods = ["checkpoint:tuned"]\n'
    path = write(tmp_path, text)
    monkeypatch.chdir(tmp_path.parent)
    study = Study.load(path)
    assert study.data.source == str(tmp_path / "texts.csv")
    assert study.adaptation.methods == (f"checkpoint:{tmp_path / 'tuned'}",)
    assert study.model.name == "org/model"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("[adaptation]\nmethod = ['head']\n", ["adaptation.method", "did you mean 'methods'"]),
        ("[similarities]\nunits = ['token']\n", ["similarities", "did you mean 'similarity'"]),
        ("[sae]\nzzz = 1\n", ["sae.zzz", "layers", "expansion"]),
        ("[adaptation]\nepochs = 0\n", ["adaptation.epochs", "0", "greater than or equal to 1"]),
        ("[adaptation]\nlearning_rate = 3\n", ["adaptation.learning_rate", "less than 1"]),
        ("[activations]\ndtype = 'int8'\n", ["activations.dtype", "int8", "float32", "float16"]),
        ("[similarity]\nunits = ['word']\n", ["similarity.units", "word", "token"]),
        ("[similarity]\nunits = ['cls', 'cls']\n", ["similarity.units", "twice"]),
        ("[sae]\nlayers = ['last']\n", ["sae.layers", "last", "integer"]),
    ],
)
def test_a_mistake_is_named_with_the_way_out(tmp_path, extra, words):
    with pytest.raises(StudyError) as caught:
        Study.load(write(tmp_path, FOUR_LINES + extra))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(StudyError, match="data is missing"):
        Study.load(write(tmp_path, '[model]\nname = "bundled:minilm-l6"\n'))
    with pytest.raises(StudyError, match="no study file"):
        Study.load(tmp_path / "nowhere.toml")
    with pytest.raises(StudyError, match="not valid TOML"):
        Study.load(write(tmp_path, "[model\n"))
    with pytest.raises(StudyError, match="folder"):
        Study.load(tmp_path)
    with pytest.raises(StudyError, match=r"section\.key=value"):
        Study.load(write(tmp_path, FOUR_LINES), ["data.train"])
    with pytest.raises(StudyError, match="not UTF-8"):
        (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"\n')
        Study.load(tmp_path / "latin.toml")


def test_every_key_carries_its_help():
    for section in Study.model_fields["model"].annotation, Study.model_fields["sae"].annotation:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no help"


def test_the_shipped_studies_parse():
    folder = Path(__file__).parent.parent / "analyses"
    names = {path.stem for path in folder.glob("*.toml")}
    assert {"quickstart", "news_topics", "layerwise_evolution", "adaptation_depth", "adaptation_depth_bbc"} <= names
    for path in folder.glob("*.toml"):
        assert path.read_text(encoding="utf-8").startswith("# "), f"{path.name} does not open with its question"
        assert Study.load(path).question.endswith("?")
    for name in ("adaptation_depth", "adaptation_depth_bbc"):
        depths = Study.load(folder / f"{name}.toml")
        assert depths.adaptation.methods == "depths" and len(depths.seeds) == 3 and depths.sae.layers == ()
    published = Study.load(folder / "layerwise_evolution.toml")
    assert published.sae.layers == (3, 6, 12)
    assert (published.adaptation.learning_rate, published.adaptation.batch_size) == (2e-5, 16)
    assert (published.adaptation.epochs, published.data.max_length) == (2, 512)


def test_slugs_are_safe_folder_names():
    assert slug("Top:2 / seed 0 ../é") == "top-2-seed-0"
    assert slug("../../etc") == "etc"


def test_a_study_is_read_without_torch():
    code = (
        "import sys, layerprobe.study; import layerprobe; "
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
