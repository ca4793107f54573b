"""Clusters of devices on the tasks of a few-shot study: the inputs of a task, local steps on a device, and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from layerprobe.few_shot import naming_few_shot_keys, outer_depth
from layerprobe.stages._few_shot import make_inputs

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from layerprobe.context import Context
    from layerprobe.energy import ClusterRun
    from layerprobe.metalearning import Episode, InnerConfig, Learner, State

BATCH = 128
"""Query examples per forward pass."""


@dataclass(frozen=True)
class ClusterTask:
    """The inputs of one task, above the blocks that no body changes.

    Attributes:
        devices: input of each device's examples.
        labels: their classes, equal for all devices.
        queries: inputs and classes of the query examples, in batches.
    """

    devices: tuple[State, ...]
    labels: Int[Tensor, " local"]
    queries: tuple[tuple[State, Int[Tensor, " batch"]], ...]


def cluster_tasks(
    context: Context, learner: Learner, episodes: Sequence[Episode], local_shots: int
) -> list[ClusterTask]:
    """The inputs of episodes whose support examples are those of all devices, `local_shots` per class and device."""
    import torch

    inputs, depth = make_inputs(context, learner, None), outer_depth(context.study)
    level = 0 if depth is None else learner.n_layers + 1 - depth
    fixed = learner.parameters()

    def below(rows: np.ndarray) -> State:
        with torch.no_grad():
            return learner.apply(fixed, inputs.state(rows), to=level) if level else inputs.state(rows)

    def task(episode: Episode) -> ClusterTask:
        ways, shots = episode.support.shape
        asked = np.repeat(np.arange(ways), episode.query.shape[1])
        class_of = dict(zip(episode.query.ravel().tolist(), asked.tolist(), strict=True))
        queries = []
        for rows in inputs.batches(episode.query.ravel(), BATCH):
            labels = torch.tensor([class_of[int(row)] for row in rows], device=context.device)
            queries.append((below(rows), labels))
        held = [episode.support[:, first : first + local_shots] for first in range(0, shots, local_shots)]
        labels = torch.arange(ways, device=context.device).repeat_interleave(local_shots)
        return ClusterTask(tuple(below(rows) for rows in held), labels, tuple(queries))

    return [task(episode) for episode in episodes]


@dataclass(frozen=True)
class Body:
    """Where devices start from, and how they adapt.

    Attributes:
        learner: the model.
        parameters: all parameters; a cluster adapts and exchanges those of the inner depth.
        rates: learned inner rates, if there are any.
        config: the inner loop; its number of steps is that of a device per round.
    """

    learner: Learner
    parameters: Mapping[str, Tensor]
    rates: Mapping[str, Tensor] | None
    config: InnerConfig

    def above(self, task: ClusterTask) -> ClusterTask:
        """The task with inputs above all blocks that devices leave unchanged, which are computed once."""
        import torch

        level = self.config.level(self.learner)

        def higher(state: State) -> State:
            with torch.no_grad():
                return self.learner.apply(self.parameters, state, to=level) if level > state.level else state

        queries = tuple((higher(state), labels) for state, labels in task.queries)
        return replace(task, devices=tuple(map(higher, task.devices)), queries=queries)

    def vector(self, parameters: Mapping[str, Tensor]) -> Float[np.ndarray, " parameters"]:
        """The exchanged parameters of a model as one row."""
        names = self.config.names(self.learner)
        return np.concatenate([parameters[name].detach().cpu().numpy().ravel() for name in names])

    def model(self, vector: Float[np.ndarray, " parameters"]) -> dict[str, Tensor]:
        """All parameters of the model that has these exchanged ones."""
        import torch

        found, start = dict(self.parameters), 0
        for name in self.config.names(self.learner):
            like = self.parameters[name]
            part = torch.from_numpy(vector[start : start + like.numel()]).reshape(like.shape)
            found[name], start = part.to(like.device), start + like.numel()
        return found

    def run(
        self, task: ClusterTask, topology: str, devices: int, *, target: float | None, max_rounds: int
    ) -> ClusterRun:
        """Adapt a cluster of the first `devices` devices to a task that is given `above` the unchanged blocks."""
        import torch

        from layerprobe.energy import adapt_cluster
        from layerprobe.energy import topology as links_of
        from layerprobe.metalearning import adapt

        def local_steps(device: int, vector: np.ndarray) -> np.ndarray:
            model, support = self.model(vector), task.devices[device]
            adapted = adapt(self.learner, model, support, task.labels, self.config, rates=self.rates)
            return self.vector(adapted.parameters)

        def accuracy(vector: np.ndarray) -> float:
            model, right, asked = self.model(vector), 0, 0
            with torch.no_grad():
                for state, labels in task.queries:
                    right += int((self.learner.logits(model, state).argmax(1) == labels).sum())
                    asked += len(labels)
            return right / asked

        links, start = links_of(topology, devices), self.vector(self.parameters)
        with naming_few_shot_keys():
            return adapt_cluster(start, links, local_steps, accuracy, target=target, max_rounds=max_rounds)
