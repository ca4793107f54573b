"""Stages that test executors: they need neither data nor a model. In a module of their own, so that workers can import them."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from layerprobe import progress
from layerprobe.errors import ArgumentError, StorageError, StudyError
from layerprobe.files import write_json
from layerprobe.stage import ResolvedStudy, Stage
from layerprobe.study import Study


def resolved_study(device="cpu"):
    """A resolved study whose data and model do not exist, so that no task can use them."""
    content = {"model": {"name": "nowhere"}, "data": {"source": "nowhere.csv"}}
    return ResolvedStudy(
        study=Study.parse({"name": "toy", **content}),
        n_layers=2,
        width=8,
        device=device,
        precision="fp32",
        corpus="corpus",
        encoder="encoder",
        ood=(),
        checkpoints={},
        sae_source="train",
        n_train=8,
        n_test=8,
        train_tokens=64,
        captured_tokens=64,
        model_bytes=0,
    )


@dataclass(frozen=True)
class Toy(Stage):
    """Adds a number to the sum of its parents' values."""

    number: int
    before: tuple[Stage, ...] = ()

    name: ClassVar = "toy"
    version: ClassVar = 1

    @property
    def title(self):
        return f"number {self.number}"

    def parents(self) -> Mapping[str, Stage]:
        return {str(place): parent for place, parent in enumerate(self.before)}

    def identity(self, study, parents):
        return {"number": self.number}

    def build(self, context, parents, folder):
        total = self.number
        for done, parent in enumerate(parents.values()):
            progress.report("adding", done, len(parents))
            total += int((parent.folder / "value.txt").read_text())
        (folder / "value.txt").write_text(str(total))


@dataclass(frozen=True)
class Meeting(Toy):
    """Ends only when another task of the same place runs at the same time."""

    place: Path = Path()

    name: ClassVar = "meeting"

    def build(self, context, parents, folder):
        (self.place / f"here-{self.number}").touch()
        deadline = time.monotonic() + 120
        while len(list(self.place.glob("here-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        super().build(context, parents, folder)


@dataclass(frozen=True)
class Accelerated(Toy):
    """A task for a device that computes one at a time."""

    name: ClassVar = "accelerated"
    accelerator: ClassVar = True

    def build(self, context, parents, folder):
        start = time.monotonic()
        super().build(context, parents, folder)
        write_json(folder / "times.json", [start, time.monotonic()])


@dataclass(frozen=True)
class AcceleratedMeeting(Accelerated, Meeting):
    """Such a task that ends only when another one of its place runs at the same time."""


@dataclass(frozen=True)
class Threads(Toy):
    """Records how many threads it may use."""

    name: ClassVar = "threads"

    def build(self, context, parents, folder):
        import torch

        write_json(folder / "threads.json", {"torch": torch.get_num_threads(), "OMP": os.environ["OMP_NUM_THREADS"]})


@dataclass(frozen=True)
class Killed(Toy):
    """Kills its own process a number of times; then it succeeds."""

    times: int = 1
    place: Path = Path()

    name: ClassVar = "killed"

    def build(self, context, parents, folder):
        assert not (folder / "half.txt").exists()
        attempts = len(list(self.place.glob("attempt-*")))
        if attempts < self.times:
            (self.place / f"attempt-{attempts}").touch()
            (folder / "half.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        super().build(context, parents, folder)


@dataclass(frozen=True)
class Counted(Toy):
    """Leaves a mark each time it is computed."""

    place: Path = Path()

    name: ClassVar = "counted"

    def build(self, context, parents, folder):
        with (self.place / f"built-{self.number}").open("a") as file:
            file.write("x")
        super().build(context, parents, folder)


def losses(place):
    """A task that is killed twice between two others, and what shows afterwards that nothing was lost: `times_built`."""
    first = Counted(1, place=place)
    killed = Killed(2, (first,), times=2, place=place)
    return first, killed, Counted(3, (first, killed), place=place)


def times_built(place):
    """How often each `Counted` task was computed, and how often `Killed` was killed."""
    built = {int(path.name.partition("-")[2]): len(path.read_text()) for path in place.glob("built-*")}
    return built, len(list(place.glob("attempt-*")))


class PeculiarError(Exception):
    """An error that can be pickled, but not unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


ERRORS = {
    "study": lambda: StudyError("the study is wrong."),
    "argument": lambda: ArgumentError("{k} is 99; lower {k}.", "k"),
    "storage": lambda: StorageError("the disk is read-only."),
    "full": lambda: OSError(28, "No space left on device"),
    "bug": lambda: ZeroDivisionError("a bug"),
    "peculiar": lambda: PeculiarError("this", "that"),
    "exit": lambda: SystemExit("a library that exits"),
}


@dataclass(frozen=True)
class Failing(Toy):
    """Raises an error."""

    error: str = "study"

    name: ClassVar = "failing"
    study_keys: ClassVar = {"k": "sae.k"}

    def build(self, context, parents, folder):
        raise ERRORS[self.error]()
