"""What an accelerator is, has room for and can compute: its name, batch sizes from free memory, number formats; rows on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SHARE = 4
"""A batch takes at most this part of the free memory: estimates leave out what libraries need for themselves."""
MOST_EXAMPLES = 1024
"""Examples per forward pass, at most: more do not make it faster."""
MOST_ROWS = 2**18
"""Rows per product with a dictionary, at most."""
FLOAT64 = {"cuda"}
"""Kinds of accelerator with float64."""


def name(device: str) -> str:
    """The device as people know it, such as `NVIDIA H200`."""
    if kind(device) == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return {"mps": "Apple GPU", "cpu": "CPU"}.get(kind(device), device)


def kind(device: Any) -> str:
    """`cuda`, `mps`, `cpu`, ...: the device without its number."""
    return str(device).partition(":")[0]


def free_bytes(device: Any) -> int | None:
    """Bytes that this process can still allocate on an accelerator, what its allocator keeps for reuse included.

    None on the CPU, and on devices that do not report it.
    """
    import torch

    if kind(device) == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if kind(device) == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return None


def batch_size(device: Any, bytes_each: int, *, usual: int, most: int) -> int:
    """How many examples or rows to compute at once.

    On the CPU always `usual`, so that results do not depend on the machine's memory. On an accelerator `usual` times a
    power of two, as many as a quarter of the free memory holds; fewer than `usual` where not even that many fit.

    Args:
        device: where they are computed.
        bytes_each: memory that one takes, estimated from above.
        usual: on the CPU.
        most: upper limit on an accelerator.
    """
    free = free_bytes(device)
    if free is None:
        return usual
    size = usual
    while 2 * size <= most and 2 * size * bytes_each * SHARE <= free:
        size *= 2
    while size > 1 and size * bytes_each * SHARE > free:
        size //= 2
    return size


def forward_bytes(config: Any, tokens: int, *, kept: int = 1) -> int:
    """Memory of one example of so many tokens in a float32 forward pass without gradients, estimated from above.

    Args:
        config: of a transformer: `hidden_size`, `num_attention_heads`, and `intermediate_size` where it has one.
        tokens: of the longest example.
        kept: number of layers whose values are kept until the end of the pass.
    """
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # Query, key, value, attention output, two sums and a norm; the feed-forward part before and after its activation;
    # attention scores before and after the softmax, as far as a fused kernel does not avoid them.
    within = tokens * (8 * width + 3 * inner) + 2 * config.num_attention_heads * tokens**2
    return 4 * (kept * tokens * width + within)


def in_float64(value: Tensor) -> Tensor:
    """The tensor in float64: where it is, or on the CPU for mps, which has no float64."""
    return (value.cpu() if value.device.type == "mps" else value).double()


def has_float64(device: Any) -> bool:
    """Whether the device is an accelerator with float64; what is measured is computed on the CPU where it is not."""
    return kind(device) in FLOAT64


class DeviceRows:
    """Stored rows for computations on a device: a part is copied there when it is read, so that memory need not hold all.

    Rows are taken from it as from a tensor on the device.

    Args:
        stored: rows x features; may be memory-mapped.
        device: where rows are copied.
        removed: orthonormal directions, features x directions, that are projected out of the rows (in float64).
    """

    def __init__(self, stored: np.ndarray, device: Any, removed: np.ndarray | None = None) -> None:
        import torch

        self.stored, self.device = stored, torch.device(device)
        self.shape, self.ndim, self.dtype = stored.shape, stored.ndim, stored.dtype
        self._removed = None if removed is None else torch.from_numpy(removed.copy()).to(self.device)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        import numpy as np
        import torch

        part = torch.from_numpy(np.array(self.stored[rows])).to(self.device)
        if self._removed is None:
            return part
        part = part.double()
        return part - (part @ self._removed) @ self._removed.T

    def double(self) -> Tensor:
        """All rows in float64."""
        return self[:].double()

    def detach(self) -> DeviceRows:
        return self

    def cpu(self) -> Tensor:
        """All rows, on the CPU."""
        return self[:].cpu()

    def is_complex(self) -> bool:
        return self.dtype.kind == "c"


def for_device(rows: Any, device: Any) -> Any:
    """Stored rows as `DeviceRows` if the device has float64; else as they are, for computation on the CPU."""
    return DeviceRows(rows, device) if has_float64(device) else rows


def has_bf16(device: str) -> bool:
    """Whether the device has instructions for bf16, so that training in it is fast."""
    import torch

    if kind(device) == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind(device) == "cpu" and torch.cpu._is_avx512_bf16_supported()


def has_tf32(device: str) -> bool:
    """Whether the device multiplies float32 matrices in TF32: NVIDIA GPUs from compute capability 8 on."""
    import torch

    return kind(device) == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability()[0] >= 8


@contextmanager
def float32_matmul(*, tf32: bool) -> Iterator[None]:
    """Within this context, products of float32 matrices are computed in TF32, or in float32 itself."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
