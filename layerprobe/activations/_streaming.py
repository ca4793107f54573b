"""Copies from a device to the host while the device computes the next batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Use = Callable[[np.ndarray], None]
"""Reads a host copy at once: its memory is used again for a later one."""


@runtime_checkable
class Transfer(Protocol):
    """Starts copies, each of which is finished once what `start` returned has been called."""

    def buffer(self, size: int, dtype: torch.dtype) -> Tensor: ...
    def start(self, value: Tensor, target: Tensor) -> Callable[[], None]: ...


class _Cuda:
    """Copies on a stream of their own, into memory that the driver can write to without the processor."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=True)

    def start(self, value: Tensor, target: Tensor) -> Callable[[], None]:
        self.stream.wait_stream(torch.cuda.current_stream())  # the value is computed there
        with torch.cuda.stream(self.stream):
            target.copy_(value, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.stream)
        value.record_stream(self.stream)  # its memory is not given to another tensor before the copy is done
        return done.synchronize


class HostCopies:
    """Hands tensors to functions as host arrays: on CUDA one batch late, from two sets of pinned buffers in turn.

    The copies of a batch run while the host uses those of the batch before and the device computes the batch after. On
    other devices each tensor is copied and used at once.
    """

    def __init__(self, device: str, transfer: Transfer | None = None) -> None:
        self.transfer = _Cuda() if transfer is None and torch.device(device).type == "cuda" else transfer
        self._buffers: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._waiting: tuple[list[Any], list[Any]] = ([], [])
        self._turn = 0

    def take(self, value: Tensor, use: Use) -> None:
        """Copy a tensor of the current batch; `use` is called with the copy, in the order of these calls."""
        if self.transfer is None:
            use(value.cpu().numpy())
            return
        value = value.contiguous()
        buffers, waiting = self._buffers[self._turn], self._waiting[self._turn]
        place = len(waiting)
        if place == len(buffers) or buffers[place].numel() < value.numel() or buffers[place].dtype != value.dtype:
            with torch.inference_mode(False):  # a buffer outlives the mode that the values are computed in
                buffers[place : place + 1] = [self.transfer.buffer(value.numel(), value.dtype)]
        target = buffers[place][: value.numel()].view(value.shape)
        waiting.append((self.transfer.start(value, target), target, use))

    def next_batch(self) -> None:
        """End the current batch, and use the copies of the one before."""
        self._turn = 1 - self._turn
        waiting = self._waiting[self._turn]
        for finish, target, use in waiting:
            finish()
            use(target.numpy())
        waiting.clear()

    def close(self) -> None:
        """Use all copies that are left."""
        self.next_batch()
        self.next_batch()
