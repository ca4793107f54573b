"""The Hugging Face Hub: which names refer to it, and whether libraries may contact it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import urllib.parse
import urllib.request

FILE_ENDINGS = (
    *(".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather", ".txt", ".xml", ".h5"),
    *(".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".zip", ".gz", ".tar", ".safetensors", ".bin", ".pt"),
)
"""Names with these endings are files, even if there is no such file: no Hub id ends so."""

_SWITCH = "HF_HUB_OFFLINE"
_set_here: list[bool] = []


def is_hub_id(name: str) -> bool:
    """Whether a model or data source is named by a Hub id: it is neither bundled nor a path, existing or not."""
    is_path = (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or name.lower().endswith(FILE_ENDINGS)
        or os.path.exists(name)
    )
    return not is_path and not name.startswith("bundled:")


def described(path: str) -> str:
    """A path as a message shows it, with the folder that it is relative to."""
    return path if os.path.isabs(os.path.expanduser(path)) else f"{path} in the working folder {os.getcwd()}"


def is_offline() -> bool:
    """Whether libraries may not contact the Hub."""
    return os.environ.get(_SWITCH) in ("1", "true", "True")


def unreachable(kind: str, name: str) -> str:
    """The error message for a Hub id that could not be loaded.

    Args:
        kind: what was named, such as `model`.
        name: its Hub id.
    """
    reason = "it is not on the Hub or the Hub cannot be reached"
    if is_offline():
        reason = "the Hub was not contacted because HF_HUB_OFFLINE is set"
    return f"There is no local {kind} {name!r}, and {reason}; check the id and the network, or give a local path."


def stay_offline() -> None:
    """Keep libraries from contacting the Hub, unless the user has set `HF_HUB_OFFLINE`."""
    if _SWITCH not in os.environ:
        _set_here.append(True)
        _switch(True)


def allow() -> bool:
    """Let libraries contact the Hub, unless the user has set `HF_HUB_OFFLINE` or it cannot be reached; whether they may.

    One connection is tried first: without a network, libraries retry each file of an unknown id for half a minute.
    """
    if _set_here:
        _set_here.clear()
        _switch(False)
    if _SWITCH in os.environ:
        return not is_offline()
    if _reachable():
        return True
    stay_offline()
    return False


def endpoint() -> str:
    """Address of the Hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _reachable(seconds: float = 5.0) -> bool:
    """Whether the Hub, or the proxy for it, accepts a connection."""
    url = urllib.parse.urlsplit(endpoint())
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connected = threading.Event()

    def connect() -> None:
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname, port), timeout=seconds).close()
        except (OSError, ValueError):
            return
        connected.set()

    # In a thread, because a name lookup has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return connected.is_set()


def _switch(offline: bool) -> None:
    if offline:
        os.environ[_SWITCH] = "1"
    else:
        os.environ.pop(_SWITCH, None)
    # Libraries read the variable only once, when they are imported.
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            setattr(sys.modules[name], _SWITCH, offline)
