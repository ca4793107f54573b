"""Whether libraries may ask the model hub: never for what is on this disk, and not where nobody answers."""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.parse
import urllib.request

_SWITCH = "HF_HUB_OFFLINE"
_set_here: list[bool] = []


def stay_offline() -> None:
    """Keep libraries from looking anything up, unless the user has said otherwise."""
    if _SWITCH not in os.environ:
        _set_here.append(True)
        _switch(True)


def allow() -> bool:
    """Let libraries ask the hub, unless the user has said otherwise or it is out of reach; whether they may.

    An unknown id takes a library half a minute of retries a file where there is no network: one question beforehand
    takes a moment.
    """
    if _set_here:
        _set_here.clear()
        _switch(False)
    if _SWITCH in os.environ:
        return os.environ[_SWITCH] not in ("1", "true", "True")
    if _reachable():
        return True
    stay_offline()
    return False


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _reachable(seconds: float = 5.0) -> bool:
    """Whether the hub, or the proxy that stands before it, takes a connection."""
    url = urllib.parse.urlsplit(endpoint())
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    answered = threading.Event()

    def ask() -> None:
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname, port), timeout=seconds).close()
        except (OSError, ValueError):
            return
        answered.set()

    # In a thread, since looking up a name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _switch(offline: bool) -> None:
    if offline:
        os.environ[_SWITCH] = "1"
    else:
        os.environ.pop(_SWITCH, None)
    # Libraries read the variable when they are first imported, and then no more.
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            setattr(sys.modules[name], _SWITCH, offline)
