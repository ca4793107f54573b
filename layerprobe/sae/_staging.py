"""Training batches on the device: from rows that lie there, if they fit, else copied batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from layerprobe.device import free_bytes
from layerprobe.sae._rows import read

STAGED_AT_A_TIME = 16_384


def batches(
    rows: np.ndarray,
    order: Iterable[np.ndarray],
    device: torch.device,
) -> Iterator[Float[Tensor, "batch d"]]:
    """The rows of each batch in float32, on the device.

    On an accelerator, all rows are copied there first if they take at most half of its free memory; then a batch needs no
    copy from the host. Otherwise batches are copied through pinned memory, which on CUDA does not wait for the device.

    Args:
        rows: (n, d); may be memory-mapped.
        order: row numbers of each batch.
        device: where training computes.
    """
    free = free_bytes(device)
    staged = None if free is None or 2 * rows.nbytes > free else stage(rows, device)
    for chosen in order:
        if staged is not None:
            yield staged[torch.from_numpy(chosen).to(device)].float()
            continue
        batch = torch.from_numpy(read(rows, chosen))
        if device.type == "cuda":
            # The allocator of pinned memory keeps it until the copy is done.
            yield batch.pin_memory().to(device, non_blocking=True)
        else:
            yield batch.to(device)


def stage(rows: np.ndarray, device: torch.device) -> Tensor:
    """All rows on the device, in their stored type; the host holds one part at a time."""
    staged = torch.empty(rows.shape, dtype=torch.from_numpy(np.array(rows[:1])).dtype, device=device)
    for start in range(0, len(rows), STAGED_AT_A_TIME):
        part = slice(start, start + STAGED_AT_A_TIME)
        # A copy: torch warns of read-only arrays, which memory-mapped rows are.
        staged[part].copy_(torch.from_numpy(np.array(rows[part])))
    return staged
