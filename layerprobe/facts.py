"""What only the data and the model of a study tell, kept so that a repeated run reads neither of them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from layerprobe import bundled, hub
from layerprobe.context import Context
from layerprobe.errors import LayerprobeError
from layerprobe.files import Stamp, checksum, digest, given_path, is_settled, stamp, write_json
from layerprobe.provenance import source_digest, versions
from layerprobe.record import DataRecord, EncoderRecord
from layerprobe.resolve import resolve
from layerprobe.stage import OodFacts, ResolvedStudy, StudyShape
from layerprobe.study import Study

FOLDER = "facts"
"""Folder of the kept facts, below the root of the artifact store."""
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Facts:
    """A resolved study, and what its record says of data and model."""

    resolved: ResolvedStudy
    data: DataRecord
    encoder: EncoderRecord


class KeptFacts:
    """The facts of one study in one store: they hold as long as everything that they follow from is the same.

    That is the study with every default, the chosen device and precision, the machine, the versions of packages, the source of
    this package, and the content of each file of the data, the model and the checkpoints. A file with the size, times and
    inode of its last reading is not read again, unless it had been written to just before. Facts of a study that names a
    data set or a model of the Hub are not kept, since only the Hub knows whether these have changed.

    Made before the study is resolved, so that a file that changes in the meantime is noticed.

    Args:
        study: what is asked.
        device: as given to `resolve`.
        precision: as given to `resolve`.
        home: root of the artifact store.
    """

    def __init__(self, study: Study, device: str, precision: str, home: Path) -> None:
        self.study = study
        self.stamps = _stamps(study)
        identity = {
            "study": study.resolved(),
            "paths": sorted(map(str, self.stamps or {})),
            "device": device,
            "precision": precision,
            "machine": _machine(),
            "versions": versions(),
            "source": source_digest(),
        }
        self.path = home / FOLDER / f"{digest(identity)}.json"

    def recall(self) -> Facts | None:
        """The facts of an earlier run, or None if there are none or a file has changed."""
        if self.stamps is None:
            return None
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            expected = content.pop("checksum")
            if digest(content) != expected:
                return None
            files, known = content["files"], content["facts"]
            changed = [path for path, now in self.stamps.items() if files[str(path)]["stamp"] != now]
            if any(checksum(path) != files[str(path)]["sha256"] for path in changed):
                return None
            facts = Facts(
                _resolved(self.study, known["resolved"]), DataRecord(**known["data"]), EncoderRecord(**known["encoder"])
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if changed:
            self.keep(facts)
        return facts

    def keep(self, facts: Facts) -> None:
        """Keep facts for later runs, unless a file has changed since this object was made."""
        if self.stamps is None:
            return
        with contextlib.suppress(OSError):  # a later run resolves the study again
            sums = {path: checksum(path) for path in self.stamps}
            if _stamps(self.study) != self.stamps:
                return
            files = {
                str(path): {"sha256": sums[path], "stamp": value if is_settled(value) else None}
                for path, value in self.stamps.items()
            }
            known = {
                "resolved": {
                    field.name: _plain(getattr(facts.resolved, field.name))
                    for field in fields(ResolvedStudy)
                    if field.name != "study"
                },
                "data": facts.data.model_dump(mode="json"),
                "encoder": facts.encoder.model_dump(mode="json"),
            }
            content = {"files": files, "facts": known}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**content, "checksum": digest(content)})


def read_facts(study: Study, device: str, precision: str) -> Facts:
    """What data and model tell, from reading them.

    Raises:
        StudyError, DataError, EncoderError: as `resolve` does.
    """
    context = resolve(study, device, precision)
    corpus, encoder = context.corpus, context.encoder
    data = DataRecord(
        name=corpus.name,
        label_names=list(corpus.label_names),
        n_train=len(corpus.train),
        n_test=len(corpus.test),
        n_unseen=len(corpus.unseen),
        notes=[*corpus.notes, *_notes(context)],
        fingerprint=corpus.fingerprint,
        revision=corpus.revision,
    )
    names = ("name", "family", "n_layers", "width", "fingerprint", "pooler", "revision")
    return Facts(context.resolved, data, EncoderRecord(**{name: getattr(encoder, name) for name in names}))


def _notes(context: Context) -> list[str]:
    """What a reader must know of how the examples were used."""
    notes = [note for ood in context.ood for note in ood.notes]
    if context.resolved.device == "mps":
        notes.append("The device mps has no float64, so sums in float64 were computed on the CPU.")
    if context.resolved.sae_layers and context.resolved.sae_source == "train":
        notes.append(
            "The source has too few examples that fine-tuning did not see, so dictionaries were trained on training "
            "examples, which an adapted model has partly memorised."
        )
    if "cls" in context.study.similarity.units:
        notes.append(
            "The embedding (layer 0) of the first token is the same vector for all examples unless the model has no fixed "
            "positions or adds segments; where it is the same, the similarity of first tokens is undefined and left out."
        )
    return notes


def _plain(value: Any) -> Any:
    """A field of a resolved study as JSON values."""
    if isinstance(value, tuple):
        return [one if isinstance(one, str) else asdict(one) for one in value]
    return {name: dict(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _resolved(study: Study, known: Mapping[str, Any]) -> ResolvedStudy:
    from layerprobe.data import CopyCount

    ood = tuple(
        OodFacts(one["name"], one["fingerprint"], tuple(one["classes"]), tuple(one["left_out"])) for one in known["ood"]
    )
    tuples = {name: tuple(known[name]) for name in ("left_out", "sae_left_out")}
    copies = tuple(CopyCount(**one) for one in known["near_copies"])
    return ResolvedStudy(study=study, **{**known, **tuples, "ood": ood, "near_copies": copies})


def _stamps(study: Study) -> dict[Path, Stamp] | None:
    """The stamps of all files that the study's facts follow from; None if not all of them are files on this disk."""
    try:
        methods = StudyShape(study, None).methods
        folders = [method.checkpoint_folder for method in methods if method.checkpoint_folder is not None]
        names = [study.model.name, study.data.source, *(ood.source for ood in study.data.ood)]
        names += [study.data.test_source] if study.data.test_source else []
        if any(hub.is_hub_id(name) for name in names):
            return None
        paths = [path for name in (*names, *map(str, folders)) for path in _files(name)]
        return {path: stamp(path) for path in paths}
    except (OSError, LayerprobeError):  # resolving the study says what is wrong
        return None


def _files(name: str) -> list[Path]:
    """The files behind a model or a data source."""
    if name.startswith("bundled:"):
        found = bundled.asset_files(name.removeprefix("bundled:"))
        # A model's folder holds its configuration and tokenizer, too.
        places = {path.parent for path in found if path.suffix == ".safetensors"}
        return sorted({*found, *(path for place in places for path in _files(str(place)))})
    path = given_path(name).resolve()
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def _machine() -> dict[str, Any]:
    """What decides which device and precision `auto` stands for."""
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    nodes = [str(path) for pattern in ("nvidia*", "kfd", "dxg") for path in sorted(Path("/dev").glob(pattern))]
    return {
        "platform": [platform.system(), platform.release(), platform.machine()],
        "flags": flags,
        "devices": nodes,
        "variables": {name: os.environ.get(name) for name in DEVICE_VARIABLES},
    }
