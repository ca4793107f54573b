"""Whether the user has pressed Ctrl-C: also where that came out as another error."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_heard: list[int] = []


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Remember a Ctrl-C that comes inside this context.

    One that falls into the middle of an import can break a lock of Python's or be swallowed by a library, and then comes
    out as an error that says nothing of it.
    """
    _heard.clear()
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        _heard.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def heard() -> bool:
    """Whether one came."""
    return bool(_heard)
