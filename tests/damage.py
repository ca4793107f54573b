"""Ways to damage a file, and files of a store or of a run folder to damage; all chosen by a seeded generator."""

import shutil
from pathlib import Path


def truncate(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))] if content else b"")


def flip(path, rng):
    content = bytearray(path.read_bytes()) or bytearray(b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def delete(path, rng):
    path.unlink()


def empty(path, rng):
    path.write_bytes(b"")


def folder_for_file(path, rng):
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "inner").write_text("a file in it")


def no_object(path, rng):
    path.write_text(rng.choice(["[1, 2]", "3", "null", '"text"', "[" * 100_000, "{}", "NaN"]))


def file_for_folder(path, rng):
    shutil.rmtree(path)
    path.write_text("a file")


def remove_folder(path, rng):
    shutil.rmtree(path)


OF_FILES = (truncate, flip, delete, empty, folder_for_file)
OF_JSON = (*OF_FILES, no_object)
OF_FOLDERS = (file_for_folder, remove_folder)


def damage(path: Path, rng) -> str:
    """Damage a file or a folder; returns what was done, in words."""
    kinds = OF_FOLDERS if path.is_dir() else OF_JSON if path.suffix == ".json" else OF_FILES
    kind = rng.choice(kinds)
    kind(path, rng)
    return f"{kind.__name__} of {path}"


def artifacts(home: Path) -> dict[str, list[Path]]:
    """Finished artifacts by stage."""
    found: dict[str, list[Path]] = {}
    for meta in sorted(home.glob("*/*/meta.json")):
        found.setdefault(meta.parent.parent.name, []).append(meta.parent)
    return found


def any_file(folder: Path, rng) -> Path:
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
