"""The tasks of a study in topological order."""

from __future__ import annotations

from graphlib import TopologicalSorter

from layerprobe.stage import Stage, StudyShape
from layerprobe.study import Study


def expand(study: Study, n_layers: int | None) -> tuple[Stage, ...]:
    """Every task of a study, parents first; needs no model.

    Args:
        study: what is asked.
        n_layers: number of blocks of the model; None if the model is out of reach, and layers are then symbolic.

    Raises:
        StudyError: if a method does not fit the number of layers.
    """
    from layerprobe.stages import REGISTRY

    shape = StudyShape(study, n_layers)
    graph: dict[Stage, tuple[Stage, ...]] = {}

    def add(task: Stage) -> None:
        if task not in graph:
            graph[task] = parents = tuple(task.parents().values())
            for parent in parents:
                add(parent)

    for stage in REGISTRY:
        if stage.few_shot == (study.few_shot is not None):
            for task in stage.tasks(shape):
                add(task)
    return tuple(TopologicalSorter(graph).static_order())
