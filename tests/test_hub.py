"""The Hub: which names refer to it, contacted only for what is not local, and given up at once if it cannot be reached."""

import os
import socket
import types

import pytest

from layerprobe import hub
from layerprobe.data._files import READERS


@pytest.fixture
def fresh(monkeypatch):
    """The variable is set neither by the user nor by an earlier study, and a library has already read it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # so that it is restored afterwards
    del os.environ["HF_HUB_OFFLINE"]
    monkeypatch.setattr(hub, "_set_here", [])
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    library = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(hub.sys.modules, "huggingface_hub.constants", library)
    monkeypatch.setitem(hub.sys.modules, "datasets.config", types.SimpleNamespace(HF_HUB_OFFLINE=False))
    return library


def listening():
    server = socket.create_server(("127.0.0.1", 0))
    return server, f"http://127.0.0.1:{server.getsockname()[1]}"


def test_libraries_may_contact_the_hub_only_if_it_can_be_reached(fresh, monkeypatch):
    server, address = listening()
    monkeypatch.setenv("HF_ENDPOINT", address)
    with server:
        assert hub.allow() and "HF_HUB_OFFLINE" not in os.environ
    assert not hub.allow()  # the server is closed
    assert os.environ["HF_HUB_OFFLINE"] == "1" and fresh.HF_HUB_OFFLINE


def test_a_study_on_local_files_does_not_keep_a_later_one_from_the_hub(fresh, monkeypatch):
    server, address = listening()
    monkeypatch.setenv("HF_ENDPOINT", address)
    hub.stay_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "1" and fresh.HF_HUB_OFFLINE
    with server:
        assert hub.allow()
    assert "HF_HUB_OFFLINE" not in os.environ and not fresh.HF_HUB_OFFLINE


def test_the_setting_of_the_user_is_kept(fresh, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda: pytest.fail("it was contacted"))
    for given, allowed in {"1": False, "0": True}.items():
        monkeypatch.setenv("HF_HUB_OFFLINE", given)
        hub.stay_offline()
        assert hub.allow() is allowed and os.environ["HF_HUB_OFFLINE"] == given


def test_a_proxy_is_contacted_instead_of_the_hub(fresh, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert not hub._reachable()
    server, address = listening()
    monkeypatch.setenv("http_proxy", address)
    with server:
        assert hub._reachable()


def test_bundled_names_and_paths_are_no_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").write_text("")
    paths = ["bundled:minilm-l6", "./a", "/a", "~/a", "a/b/c", "texts.CSV", "org/rows.parquet", "folder", "org/model"]
    assert not any(hub.is_hub_id(name) for name in paths)
    assert all(hub.is_hub_id(name) for name in ("imdb", "org/other", "org/model-v1.5", "folders"))
    assert set(READERS) <= set(hub.FILE_ENDINGS)


def test_an_unreachable_id_is_reported_with_the_reason(fresh, monkeypatch):
    assert "'org/x', and it is not on the Hub or the Hub cannot be reached" in hub.unreachable("model", "org/x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "because HF_HUB_OFFLINE is set" in hub.unreachable("model", "org/x")
