"""Whether the user has pressed Ctrl-C or a scheduler has sent SIGTERM: also where that came out as another error."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

_heard: list[int] = []


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Remember a Ctrl-C or SIGTERM that comes inside this context; either raises `KeyboardInterrupt`.

    One that falls into the middle of an import can break a lock of Python's or be swallowed by a library, and then comes
    out as an error that says nothing of it. A second SIGTERM raises nothing: the first one's clean-up goes on.

    Where `end_quietly` was called, the command is over after this context: Ctrl-C is ignored, since it would lose the exit code
    and the last lines.
    """
    _heard.clear()
    handlers = {signal.SIGINT: (signal.default_int_handler, _end), signal.SIGTERM: (signal.SIG_DFL,)}
    # Where someone else handles a signal, or it is ignored (as Ctrl-C is in the background of a shell), that stays.
    usual = {number: signal.getsignal(number) for number in handlers if signal.getsignal(number) in handlers[number]}
    if threading.current_thread() is not threading.main_thread():
        usual = {}
    for number in usual:
        signal.signal(number, _note)
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if _heard else unraisable(lost)
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in usual.items():
            signal.signal(number, signal.SIG_IGN if handler is _end else handler)


def end_quietly() -> None:
    """Let Ctrl-C end this process at once with one line, until it is in `listening`.

    After the exit functions, when Python takes its handlers back, Ctrl-C is ignored: all is done, and the exit code stands.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the first one registered runs last


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\nInterrupted.\n")
    os._exit(130)


def end_at_once(code: Any) -> NoReturn:
    """End an interrupted process without waiting for its threads.

    Ctrl-C may have found a library that was just starting a thread, of which its pool then does not know: nobody would end it.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 130)


def resume_listening() -> None:
    """Take SIGTERM back from a library that has set its own handler inside of `listening`."""
    if signal.getsignal(signal.SIGINT) is _note and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _note)


def heard() -> str | None:
    """What came first: `Ctrl-C`, `SIGTERM`, or None."""
    return ("SIGTERM" if _heard[0] == signal.SIGTERM else "Ctrl-C") if _heard else None


def _note(number: int, frame: FrameType | None) -> None:
    _heard.append(number)
    if number == signal.SIGTERM and _heard.count(number) > 1:
        return
    raise KeyboardInterrupt
