"""Children of a preloaded process that run the command line: with a home of their own, their output kept, sockets denied."""

import contextlib
import errno
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
for name in ("report", "stages"):  # whose helpers trials use
    sys.path.append(str(ROOT / "tests" / name))
LONGEST = 150.0
"""Seconds after which a child counts as stuck; shortly before, it writes to stderr where it is."""
STARTED = "started"


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int | None
    """Exit code, negative for a signal; None if it had to be ended."""
    out: str
    err: str

    @property
    def sentences(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("layerprobe: ")]

    def problems(self, *allowed: int) -> list[str]:
        """What is wrong with this end: an exit code that is not allowed, a traceback, or no sentence where there must be one."""
        found = []
        if self.code not in allowed:
            found.append(f"exit code {self.code} and not {allowed}: {self.err[-1500:]}")
        if "Traceback" in self.err or "Exception ignored" in self.err:
            found.append(f"traceback: {self.err[-1500:]}")
        if self.code == 2 and not self.sentences:
            found.append(f"no sentence: {self.err[-1500:]}")
        if self.code == 130 and "Interrupted" not in self.err:
            found.append(f"no word of the interruption: {self.err[-1500:]}")
        if "socket denied" in self.err:
            found.append("a socket was opened")
        return found


def server():
    """The context of the fork server, whose modules are imported when its first child starts."""
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    return context


class Child:
    """`layerprobe WORDS` in a child of the fork server.

    Args:
        words: of the command.
        folder: receives its output, and a file when it has started.
        home: its artifact store.
        options: of `_main`.
    """

    def __init__(self, words, folder: Path, home: Path, **options):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for name in (STARTED, "out", "err"):
            (folder / name).unlink(missing_ok=True)
        self.process = server().Process(target=_main, args=(list(map(str, words)), folder, Path(home), options))
        self.process.start()

    def wait_for_start(self):
        """Wait until the child handles signals."""
        end = time.monotonic() + LONGEST
        while not (self.folder / STARTED).exists() and time.monotonic() < end and self.process.is_alive():
            time.sleep(0.002)

    def send(self, number: int):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self, seconds: float = LONGEST) -> Ended:
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        texts = [
            (self.folder / name).read_text(errors="replace") if (self.folder / name).exists() else ""
            for name in ("out", "err")
        ]
        return Ended(code, *texts)


def run_child(words, folder, home, **options) -> Ended:
    """Start a child and wait for its end."""
    return Child(words, folder, home, **options).end()


def _main(words, folder, home, options):
    """In the child: redirect output, apply the options, and run the command.

    Options: `page` (whether to write the page), `checkpoints` (seconds between the states of a training), `fail` (an errno and
    the number of writes after which every write fails with it).
    """
    os.setsid()
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.dump_traceback_later(LONGEST - 20, file=sys.stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ |= {"LAYERPROBE_HOME": str(home), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    torch.set_num_threads(1)
    deny_sockets()
    _patch(**options)
    from layerprobe import interrupt
    from layerprobe.__main__ import main

    interrupt.end_quietly()
    (folder / STARTED).touch()
    sys.argv = ["layerprobe", *words]
    main()


def deny_sockets():
    """Make every connection an error that names itself."""
    import socket

    def refuse(*args, **options):
        print("socket denied", file=sys.stderr, flush=True)
        raise AssertionError("socket denied")

    socket.socket.connect = socket.socket.connect_ex = refuse
    socket.create_connection = socket.getaddrinfo = refuse


def _patch(page=False, checkpoints=None, fail=None):
    if not page:
        import layerprobe.report

        layerprobe.report.write_report = lambda run, path: path
    if checkpoints is not None:
        from layerprobe.sae import _training

        _training.CHECKPOINT_SECONDS = checkpoints
    if fail is not None:
        _fail_writes(*fail)


def _fail_writes(number, after):
    """Let every opening of a file for writing, every rename and every new folder fail from some count on, as on a full disk."""
    import builtins
    import io
    import pathlib

    left = after

    def failing(function, writes):
        def call(*args, **options):
            nonlocal left
            if writes(*args, **options):
                left -= 1
                if left < 0:
                    name = next((one for one in args if isinstance(one, str | pathlib.Path)), None)
                    raise OSError(number, os.strerror(number), str(name) if name is not None else None)
            return function(*args, **options)

        return call

    def opens(*args, mode="r", **options):
        chosen = args[1] if len(args) > 1 else mode
        return isinstance(chosen, str) and any(letter in chosen for letter in "wax+")

    opened = failing(io.open, opens)
    io.open = builtins.open = opened
    for name in ("replace", "rename", "mkdir"):
        setattr(os, name, failing(getattr(os, name), lambda *args, **options: True))


ERRNOS = {"full disk": errno.ENOSPC, "permission": errno.EACCES, "read-only": errno.EROFS, "device": errno.EIO}
