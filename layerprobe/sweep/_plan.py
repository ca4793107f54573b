"""What a sweep would compute, with every task that several combinations share counted once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from layerprobe.pipeline import Plan, PlannedTask, plan, stay_offline
from layerprobe.sweep._config import Combination, Sweep, for_each


@dataclass(frozen=True)
class SharedTask:
    """A task of a plan, and the combinations that use its artifact."""

    task: PlannedTask
    combinations: tuple[str, ...]


@dataclass(frozen=True)
class SweepPlan:
    """What `run_sweep` would do."""

    plans: Mapping[str, Plan]
    """The plan of each combination on its own, by name."""

    @property
    def tasks(self) -> tuple[SharedTask, ...]:
        """Every artifact once; content that is not computed yet counts as different."""
        return shared_tasks((name, one.tasks) for name, one in self.plans.items())

    @property
    def needed(self) -> int:
        """Bytes that unfinished tasks would add."""
        return sum(one.task.size or 0 for one in self.tasks if not one.task.finished)

    @property
    def home(self) -> Path:
        """Root of the artifact store."""
        return next(iter(self.plans.values())).home

    @property
    def free(self) -> int:
        """Bytes that are free there."""
        return next(iter(self.plans.values())).free

    @property
    def notes(self) -> Mapping[str, tuple[str, ...]]:
        """What cannot be known yet or should be considered: each note with the combinations that it is about."""
        notes: dict[str, tuple[str, ...]] = {}
        for name, one in self.plans.items():
            for note in one.notes:
                notes[note] = (*notes.get(note, ()), name)
        return notes


def shared_tasks(tasks: Iterable[tuple[str, Iterable[PlannedTask]]]) -> tuple[SharedTask, ...]:
    """Tasks of several combinations, each artifact once, in their order."""
    found: dict[object, SharedTask] = {}
    for name, some in tasks:
        for task in some:
            same = task.provisional_key or (name, task.stage, task.name)
            before = found.get(same)
            found[same] = SharedTask(task, (name,) if before is None else (*before.combinations, name))
    return tuple(found.values())


def plan_sweep(sweep: Sweep, *, device: str = "auto", precision: str = "auto", home: Path | None = None) -> SweepPlan:
    """What `run_sweep` would do. Computes nothing, and needs no network.

    Raises:
        StudyError: naming the axis and value of everything that cannot run.
    """
    studies = sweep.studies()
    stay_offline(*studies.values())

    def plan_of(one: Combination) -> Plan:
        return plan(studies[one], device=device, precision=precision, home=home)

    combinations = tuple(studies)
    plans = for_each(combinations, plan_of)
    return SweepPlan({one.name: planned for one, planned in zip(combinations, plans, strict=True)})
