"""Copies to the host: complete when they are used, in order, and never into memory that is still to be read."""

import numpy as np
import pytest
import torch

from layerprobe.activations import _capture, capture
from layerprobe.activations._streaming import HostCopies


class SlowTransfer:
    """Copies that take place only when they are waited for, like those of a busy device."""

    def __init__(self):
        self.buffers, self.unfinished = 0, 0

    def buffer(self, size, dtype):
        self.buffers += 1
        return torch.full((size,), torch.nan, dtype=dtype)

    def start(self, value, target):
        self.unfinished += 1
        value = value.clone()

        def finish():
            self.unfinished -= 1
            target.copy_(value)

        return finish


def test_each_copy_is_used_once_in_order_and_one_batch_late():
    transfer, used = SlowTransfer(), []
    copies = HostCopies("cpu", transfer)
    batches = [[torch.randn(rows, 3) for rows in sizes] for sizes in ((5, 4), (4, 4), (6, 1), (2, 2, 7), (1,))]
    for number, batch in enumerate(batches):
        for value in batch:
            copies.take(value, lambda array: used.append(array.copy()))
        copies.next_batch()
        assert len(used) == sum(map(len, batches[:number]))  # the last batch is on its way
    copies.close()
    assert transfer.unfinished == 0 and transfer.buffers <= 6  # two sets, enlarged where a batch is larger
    for array, value in zip(used, [value for batch in batches for value in batch], strict=True):
        np.testing.assert_array_equal(array, value.numpy())


def test_a_store_is_the_same_with_late_copies(tiny_encoder, tiny_corpus, tmp_path, monkeypatch):
    model = tiny_encoder.classifier(tiny_corpus.label_names, seed=0)
    config = _capture.CaptureConfig(token_examples=20, batch_size=6)
    at_once = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "once", config)
    transfer = SlowTransfer()
    monkeypatch.setattr(_capture, "HostCopies", lambda device: HostCopies(device, transfer))
    late = capture(model, tiny_encoder, tiny_corpus.test, tmp_path / "late", config)
    assert late.checksums == at_once.checksums and transfer.buffers > 0 and transfer.unfinished == 0


def test_cuda_copies_wait_for_the_device_and_are_waited_for(monkeypatch):
    """The calls of torch.cuda, in order, on a machine without one."""
    calls, current = [], object()

    class Stream:
        def wait_stream(self, other):
            calls.append(("wait_stream", other))

    class Event:
        def record(self, stream):
            calls.append(("record", stream))

        def synchronize(self):
            calls.append("synchronize")

    class Within:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            calls.append(("enter", self.stream))

        def __exit__(self, *error):
            calls.append(("exit", self.stream))

    side = Stream()
    empty = torch.empty
    for name, value in {
        "Stream": lambda: side,
        "Event": Event,
        "stream": Within,
        "current_stream": lambda: current,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(
        torch, "empty", lambda *size, pin_memory, **options: calls.append("pinned") or empty(*size, **options)
    )
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda value, stream: calls.append(("in use on", stream)))
    copies, used = HostCopies("cuda"), []
    copies.take(torch.arange(3.0), lambda array: used.append(array.tolist()))
    started = [
        "pinned",
        ("wait_stream", current),
        ("enter", side),
        ("record", side),
        ("exit", side),
        ("in use on", side),
    ]
    assert calls == started and not used
    copies.close()
    assert calls == [*started, "synchronize"] and used == [[0.0, 1.0, 2.0]]


def test_without_a_stream_copies_are_used_at_once():
    for device in ("cpu", "mps"):
        used = []
        HostCopies(device).take(torch.ones(2), lambda array, used=used: used.append(array.sum()))
        assert used == [pytest.approx(2)]
