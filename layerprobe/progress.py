"""Progress of long loops: libraries report through a context variable, so that no function needs a parameter for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Reporter = Callable[[str, int, int | None], None]
"""Called with what is being done, how many steps are done, and how many there are (None if unknown)."""

_reporter: ContextVar[Reporter | None] = ContextVar("layerprobe_progress", default=None)


@contextmanager
def reporting(reporter: Reporter | None) -> Iterator[None]:
    """Send the progress of all loops inside this context to a reporter; None restores the default.

    The default is a tqdm bar on stderr for loops of more than a second, if stderr is a terminal.
    """
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def report(label: str, done: int, total: int | None = None) -> None:
    """Report the progress of a loop that is not an iteration, such as a Trainer's; by default a line on a terminal."""
    if (reporter := _reporter.get()) is not None:
        reporter(label, done, total)
    elif sys.stderr.isatty():
        print(f"\r{label}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items and report progress after each."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    reporter = _reporter.get()
    if reporter is None:
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total, leave=False, delay=1, disable=not sys.stderr.isatty())
        return
    for done, item in enumerate(items):
        reporter(label, done, total)
        yield item
