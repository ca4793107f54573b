"""The artifact store: found again, damage noticed, nothing half-written taken for finished."""

import errno
import json
import threading
import time

import pytest

from layerprobe.artifacts import ArtifactStore, digest, home
from layerprobe.errors import StorageError

KEY = digest({"stage": "test"})


def writer(text="content"):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "inner").mkdir()
        (folder / "inner" / "data.txt").write_text(text)

    build.calls = calls
    return build


def test_what_was_made_is_found_again(tmp_path):
    store, build = ArtifactStore(tmp_path), writer()
    first = store.make("stage", "A name: 1", KEY, build, about={"seed": 1})
    again = store.make("stage", "A name: 1", KEY, build, about={"seed": 1})
    assert len(build.calls) == 1
    assert (first.reused, again.reused) == (False, True)
    assert first.folder == again.folder == tmp_path / "stage" / f"a-name-1-{KEY[:16]}"
    assert json.loads((first.folder / "meta.json").read_text())["about"] == {"seed": 1}
    assert again.seconds == pytest.approx(first.seconds)


def test_keys_follow_content_and_not_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize("damage", ["content", "missing", "meta", "foreign"])
def test_damage_is_noticed_named_and_mended(tmp_path, damage):
    store, build = ArtifactStore(tmp_path), writer()
    folder = store.make("stage", "x", KEY, build, about={}).folder
    if damage == "content":
        (folder / "inner" / "data.txt").write_text("altered")
    elif damage == "missing":
        (folder / "inner" / "data.txt").unlink()
    elif damage == "meta":
        (folder / "meta.json").write_text("{half")
    else:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, "key": "other"}))
    mended = store.make("stage", "x", KEY, build, about={})
    assert not mended.reused
    assert len(build.calls) == 2
    assert (mended.folder / "inner" / "data.txt").read_text() == "content"
    assert len(store.damaged) == 1
    assert "computed again" in store.damaged[0]


def test_an_interrupted_build_leaves_nothing_behind(tmp_path):
    store = ArtifactStore(tmp_path)

    def interrupted(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make("stage", "x", KEY, interrupted, about={})
    assert store.find("stage", "x", KEY) is None
    assert [p for p in (tmp_path / "stage").iterdir() if p.is_dir()] == []


def test_a_killed_build_is_swept_away(tmp_path):
    store = ArtifactStore(tmp_path)
    partial = tmp_path / "stage" / f".{KEY[:16]}.partial"
    partial.mkdir(parents=True)
    (partial / "stale.txt").write_text("from a killed process")
    made = store.make("stage", "x", KEY, writer(), about={})
    assert not (made.folder / "stale.txt").exists()
    assert not partial.exists()


def test_two_runs_share_the_work(tmp_path):
    counts = []

    def slow(folder):
        counts.append(1)
        time.sleep(0.3)
        (folder / "data.txt").write_text("x")

    def work():
        ArtifactStore(tmp_path).make("stage", "x", KEY, slow, about={})

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")])
def test_what_the_disk_refuses_is_said_with_the_way_out(tmp_path, number, words):
    def refused(folder):
        raise OSError(number, "refused")

    with pytest.raises(StorageError, match=words) as caught:
        ArtifactStore(tmp_path).make("stage", "x", KEY, refused, about={})
    assert "LAYERPROBE_HOME" in str(caught.value)


def test_a_full_disk_is_told_whatever_a_library_raises_for_it(tmp_path):
    from safetensors import SafetensorError

    def no_room(folder):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def wrapped(folder):
        raise StorageError("the activations could not be written") from OSError(errno.ENOSPC, "full")

    store = ArtifactStore(tmp_path)
    for build in (no_room, wrapped):
        with pytest.raises(StorageError, match=r"disk is full.* Every finished task is kept there"):
            store.make("stage", "x", KEY, build, about={})

    def other(folder):
        raise SafetensorError("header too small")

    with pytest.raises(SafetensorError):
        store.make("stage", "x", KEY, other, about={})


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"
    monkeypatch.delenv("LAYERPROBE_HOME")
    assert home().name == "layerprobe"
