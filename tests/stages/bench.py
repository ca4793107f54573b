"""A stage under test: parents are computed when first needed, the stage itself is built directly."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from layerprobe import Study
from layerprobe.activations import ActivationStore
from layerprobe.adaptation import parse_method
from layerprobe.context import Context
from layerprobe.executors import Settings
from layerprobe.executors._worker import Worker
from layerprobe.resolve import resolve
from layerprobe.stage import Stage
from layerprobe.stages._artifacts import dictionary_of
from layerprobe.store import Artifact

HEAD, TOP, FULL = (parse_method(name) for name in ("head", "top:1", "full"))


@dataclass(frozen=True)
class Built:
    """What a direct call of a stage's `build` wrote."""

    folder: Path
    parents: dict[str, Artifact]

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "tables" / f"{name}.parquet")

    @property
    def tables(self) -> set[str]:
        return {path.stem for path in self.folder.glob("tables/*.parquet")}


class Bench:
    """Builds tasks of one study: parents through a worker, the stage under test directly."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.context: Context = resolve(study, "cpu", "fp32")
        self.resolved = self.context.resolved
        self.folder, self._count = folder, 0
        self.worker = Worker(self.resolved, Settings(folder / "home"), lambda event: None, context=self.context)

    def get(self, task: Stage) -> Artifact:
        """The artifact of a task, computed with its parents if needed."""
        return self.worker.run(task).artifact

    def rows(self, capture: Stage) -> ActivationStore:
        return ActivationStore.open(self.get(capture).folder / "rows")

    def dictionary(self, task: Stage) -> Any:
        return dictionary_of(self.get(task))

    def build(self, task: Stage) -> Built:
        """Call `build` with the real context and the declared parents, and check what holds for every stage."""
        parents = {role: self.get(parent) for role, parent in task.parents().items()}
        self._count += 1
        folder = self.folder / f"build-{self._count}"
        folder.mkdir()
        task.build(self.context, parents, folder)
        metas = {role: parent.meta for role, parent in parents.items()}
        identity = task.identity(self.resolved, metas)
        assert json.loads(json.dumps(identity)) == identity  # JSON values alone, so that keys are stable
        assert task.key(self.resolved, metas) == task.key(self.resolved, metas)
        built = Built(folder, parents)
        specs = {spec.name: spec for spec in task.tables}
        assert built.tables <= set(specs)
        for name in built.tables:
            assert set(built.table(name).columns) <= set(specs[name].columns), name
        return built
