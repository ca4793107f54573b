"""A device for tests on machines that have none: computed on the CPU, but with the rules of an accelerator.

Tensors on it report the device `meta`, cannot become numpy arrays, and cannot be combined with tensors on the CPU. What is
copied to the host and what is computed there is recorded.
"""

import sys
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"
COPIES = {"aten._to_copy.default", "aten.copy_.default"}


class OnDevice(torch.Tensor):
    """A tensor that reports another device than its values are on."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=DEVICE
        )

    def __init__(self, values):
        self.values_ = values

    def __repr__(self):
        return f"OnDevice({self.values_})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("a tensor left its device")


class StandInDevice(TorchDispatchMode):
    """Within this mode, the device `meta` computes."""

    def __init__(self):
        super().__init__()
        self.to_host = []
        """Shapes of what was copied to the host."""
        self.on_host = set()
        """Operations on tensors of the host with more than one element."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [z for z in tree_flatten((args, kwargs))[0] if isinstance(z, torch.Tensor)]
        there = [z for z in tensors if isinstance(z, OnDevice)]
        name = str(function)
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == DEVICE:
            kwargs["device"] = "cpu"
            wrap = True
        else:
            wrap = bool(there) and target is None
            if there and target is not None:
                self.to_host.append(tuple(there[0].shape))
        if there and name not in COPIES:
            strangers = [z for z in tensors if not isinstance(z, OnDevice) and z.dim()]
            assert not strangers, f"{name} combines tensors of two devices"
        if not there and not wrap and any(z.numel() > 1 for z in tensors):
            self.on_host.add(name)
        originals = {id(z.values_): z for z in there}
        inner = tree_map(lambda z: z.values_ if isinstance(z, OnDevice) else z, (args, kwargs))
        result = function(*inner[0], **inner[1])
        if name == "aten.copy_.default":
            return args[0]
        if not wrap or name == "aten._local_scalar_dense.default":
            return result
        return tree_map(
            lambda z: originals.get(id(z)) if id(z) in originals else OnDevice(z) if torch.is_tensor(z) else z, result
        )


@contextmanager
def stand_in_device(monkeypatch):
    """The mode, with those functions of torch replaced that do not know the device."""
    optimizer = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE])
    # `new_tensor` does not go through the dispatcher.
    monkeypatch.setattr(torch.Tensor, "new_tensor", lambda self, data: self.new_full((), data))
    # torch has no autocast on `meta`, and no inference tensors of other classes than its own.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)
    with StandInDevice() as device:
        yield device
