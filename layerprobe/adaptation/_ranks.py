"""The processes that a launcher such as `accelerate launch` has started for one training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch.utils.data import Dataset, Sampler

from layerprobe.errors import ArgumentError, LayerprobeError

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=2)
"""For a process that is busy alone, as the first one is while it computes frozen values; a launcher ends all processes as
soon as one of them fails."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model together; by default it is alone."""

    index: int = 0
    """Number of this process, from 0. The first one writes."""
    count: int = 1
    several_machines: bool = False

    @classmethod
    def join(cls, device: str) -> Ranks:
        """Join the processes that a launcher started, if one did; each call after the first finds the same group.

        Args:
            device: where the processes compute: `cpu` (which communicates by gloo), or `cuda`, of which each takes the GPU
                of its number.

        Raises:
            ArgumentError: if several processes were started for a device that they cannot share.
        """
        if (count := int(os.environ.get("WORLD_SIZE") or 1)) == 1:
            return cls()
        if device not in ("cpu", "cuda"):
            raise ArgumentError(
                f"{{device}} is {device!r}, which one process uses alone, but a launcher started {count}; start one, or use "
                "cuda or cpu.",
                "device",
            )
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu", timeout=LONGEST_WAIT)
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or state.num_processes)
        return cls(state.process_index, state.num_processes, here < state.num_processes)

    def check_batch(self, batch_size: int) -> None:
        """Check that the processes can share each batch equally.

        Raises:
            ArgumentError: if they cannot.
        """
        if batch_size % self.count:
            fitting = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
            raise ArgumentError(
                f"{{batch_size}} is {batch_size}, which {self.count} processes cannot share equally; start as many processes "
                f"as divide it ({', '.join(map(str, fitting))}), since the batch size is part of the method.",
                "batch_size",
            )

    def once(self, function: Callable[[], T]) -> T:
        """Call a function on the first process alone; all of them return its result, or raise its user error."""
        if self.count == 1:
            return function()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.index == 0:
            try:
                outcome[0] = function()
            except LayerprobeError as error:
                outcome[1] = error
        broadcast_object_list(outcome, from_process=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def agreed(self, value: T) -> T:
        """The value of the first process, on all of them."""
        return self.once(lambda: value)

    def share(self, batch: Sequence[T]) -> tuple[Sequence[T], float]:
        """This process's part of a batch, and the weight of its mean loss.

        The mean over processes of weighted losses, and so of their gradients, is the mean over the whole batch, however
        many examples the last batch has. A process for which none is left takes one with weight 0, since all processes
        exchange gradients in every step.
        """
        own = batch[self.index :: self.count]
        return own or batch[:1], len(own) * self.count / len(batch)


class SharedBatches(Sampler[list[int]]):
    """The batches of one process, in the order that the first process draws; each is given whole to all processes."""

    def __init__(self, order: Any, batch_size: int, ranks: Ranks) -> None:
        self.order, self.batch_size, self.ranks = order, batch_size, ranks

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # Drawn when the first batch is asked for, after the random number that every DataLoader draws when it starts, as
        # the order of one process is.
        order = self.ranks.once(lambda: list(self.order))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


class SharedExamples(Dataset[dict[str, Any]]):
    """From a whole batch to the inputs of this process's part, with the weight of its loss as `weight`."""

    def __init__(self, rows: Sequence[Any], collate: Callable[[list[Any]], dict[str, Any]], ranks: Ranks) -> None:
        self.rows, self.collate, self.ranks = rows, collate, ranks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: Any) -> dict[str, Any]:
        own, weight = self.ranks.share(batch)
        return {**self.collate([self.rows[i] for i in own]), "weight": weight}
