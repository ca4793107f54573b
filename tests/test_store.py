"""The artifact store: artifacts are found by key, damage is detected, and nothing half-written looks finished."""

import errno
import json
import os
import shutil
import threading
import time

import pytest

from layerprobe.errors import StorageError
from layerprobe.files import digest, home, is_intact, write_checked
from layerprobe.store import ArtifactStore, Draft

KEY = digest({"stage": "test"})
FILE = "inner/data.txt"


class Builder:
    """Writes one file, and counts how often it was called."""

    def __init__(self, text="content", **draft):
        self.text, self.draft, self.calls = text, draft, 0

    def __call__(self, folder):
        self.calls += 1
        (folder / FILE).parent.mkdir()
        (folder / FILE).write_text(self.text)
        return Draft(**self.draft)


def make(store, build, title="A name: 1", **options):
    return store.make("stage", title, KEY, build, identity={"seed": 1}, **options)


def test_an_artifact_is_found_again(tmp_path):
    store, build = ArtifactStore(tmp_path), Builder(content={"0": "abc"}, concurrent_tasks=2)
    assert store.find("stage", "A name: 1", KEY) is None
    first, second = make(store, build), make(store, build)
    assert build.calls == 1
    assert (first.reused, second.reused) == (False, True)
    assert first.folder == second.folder == tmp_path / "stage" / f"a-name-1-{KEY[:16]}"
    assert second.meta == first.meta == store.find("stage", "A name: 1", KEY).meta
    meta = json.loads((first.folder / "meta.json").read_text())
    assert meta["identity"] == {"seed": 1} and meta["content"] == {"0": "abc"} and meta["concurrent_tasks"] == 2
    assert meta["files"][FILE]["bytes"] == len("content")


def test_the_key_decides_and_not_the_title(tmp_path):
    store, build = ArtifactStore(tmp_path), Builder()
    assert make(store, build).folder == make(store, build, title="another title").folder
    assert build.calls == 1


def test_keys_depend_on_content_and_not_on_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_checksums_that_a_build_reports_are_not_computed_again(tmp_path):
    artifact = make(ArtifactStore(tmp_path), Builder(checksums={FILE: "reported"}))
    assert artifact.meta.files[FILE]["sha256"] == "reported"


META_VALUES = {
    "half": "{half",
    "list": "[1, 2]",
    "number": "3",
    "empty": "",
    "other-fields": '{"key": "x"}',
    "deep": "[" * 100_000,
}


def damage_meta(change):
    def damage(folder):
        path = folder / "meta.json"
        path.write_text(change(json.loads(path.read_text())))

    return damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def replace_by_file(folder):
    (folder / FILE).unlink()
    (folder / FILE).parent.rmdir()
    (folder / "meta.json").unlink()
    folder.rmdir()
    folder.write_text("a file")


def replace_by_broken_link(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("nowhere"))


SEEN_BY_FIND = {
    "truncated": (lambda folder: (folder / FILE).write_text("cont"), "has 4 bytes instead of 7"),
    "missing": (lambda folder: (folder / FILE).unlink(), f"{FILE} is missing"),
    "no meta.json": (lambda folder: (folder / "meta.json").unlink(), "meta.json is missing"),
    "other key": (damage_meta(lambda meta: json.dumps({**meta, "key": "other"})), "another key"),
    "another title": (
        damage_meta(lambda meta: json.dumps({**meta, "title": "A nane: 1"})),
        "does not match its checksum",
    ),
    "files as a list": (damage_meta(lambda meta: json.dumps({**meta, "files": [FILE]})), "unreadable"),
    "a file": (replace_by_file, "unreadable"),
    "a broken link": (replace_by_broken_link, "unreadable"),
    **{name: (damage_meta(lambda _, text=text: text), "unreadable") for name, text in META_VALUES.items()},
}


@pytest.mark.parametrize("name", SEEN_BY_FIND)
def test_damage_is_named_and_the_artifact_is_built_again(tmp_path, name):
    damage, words = SEEN_BY_FIND[name]
    build = Builder()
    damage(make(ArtifactStore(tmp_path), build).folder)
    store = ArtifactStore(tmp_path)
    assert store.find("stage", "A name: 1", KEY) is None
    assert words in store.inspect("stage", "A name: 1", KEY)[1]
    assert store.damaged == []  # finding removes nothing
    artifact = make(store, build)
    assert not artifact.reused and build.calls == 2
    assert (artifact.folder / FILE).read_text() == "content"
    (sentence,) = store.damaged
    assert sentence.startswith(f"stage/a-name-1-{KEY[:16]}: ") and words in sentence and "computed again" in sentence


def test_verification_reads_every_byte_once(tmp_path):
    artifact = make(ArtifactStore(tmp_path), Builder())
    store = ArtifactStore(tmp_path)
    assert store.verify(artifact)
    flip(artifact.folder / FILE)
    assert store.verify(artifact)  # not again in the same process
    store = ArtifactStore(tmp_path)
    assert store.find("stage", "A name: 1", KEY) is not None  # of the right size
    assert not store.verify(artifact)
    assert f"{FILE} does not match its checksum" in store.damaged[0]
    assert not artifact.folder.exists()
    assert not store.verify(artifact) and len(store.damaged) == 1


def test_verification_leaves_what_another_process_has_built_again(tmp_path):
    damaged = make(ArtifactStore(tmp_path), Builder("first"))
    flip(damaged.folder / FILE)
    assert not ArtifactStore(tmp_path).verify(damaged)
    rebuilt = make(ArtifactStore(tmp_path), Builder("again"))
    store = ArtifactStore(tmp_path)
    assert not store.verify(damaged)  # by the old checksums
    assert store.damaged == [] and store.verify(rebuilt)


def test_a_failed_or_interrupted_build_leaves_nothing_behind(tmp_path):
    store = ArtifactStore(tmp_path)
    for error in (KeyboardInterrupt, ValueError):

        def interrupted(folder, error=error):
            (folder / "half.txt").write_text("half")
            raise error

        with pytest.raises(error):
            make(store, interrupted)
        assert store.find("stage", "A name: 1", KEY) is None
        assert [path for path in (tmp_path / "stage").iterdir() if path.is_dir()] == []


def test_a_resumable_build_finds_what_an_interrupted_one_has_left(tmp_path):
    store = ArtifactStore(tmp_path)

    def interrupted(folder):
        (folder / "inner").mkdir()
        for name in ("state", "other"):
            write_checked(folder / "inner" / name, lambda path: path.write_text("half"))
        (folder / "inner" / ".state.1.partial").write_text("from a write that was cut")
        flip(folder / "inner" / "other")
        raise KeyboardInterrupt

    def resumed(folder):
        assert is_intact(folder / "inner" / "state")
        assert sorted(path.name for path in folder.rglob("*")) == ["inner", "state", "state.sha256"]
        return Draft()

    with pytest.raises(KeyboardInterrupt):
        make(store, interrupted, resumable=True)
    assert store.find("stage", "A name: 1", KEY) is None and store.damaged == []
    assert not make(store, resumed, resumable=True).reused
    (sentence,) = store.damaged
    assert sentence.startswith(f"stage/a-name-1-{KEY[:16]}: other does not match its checksum")

    def failed(folder):
        raise ValueError

    other = digest({"stage": "other"})
    with pytest.raises(ValueError):
        store.make("stage", "x", other, failed, identity={}, resumable=True)
    assert not (tmp_path / "stage" / f".{other[:16]}.partial").exists()


@pytest.mark.parametrize("resumable", [False, True])
def test_what_a_killed_process_has_left_is_removed(tmp_path, resumable):
    partial = tmp_path / "stage" / f".{KEY[:16]}.partial"
    partial.parent.mkdir(parents=True)
    if resumable:
        partial.write_text("not a folder")
    else:
        partial.mkdir()
        (partial / "stale.txt").write_text("from a killed process")
    artifact = make(ArtifactStore(tmp_path), Builder(), resumable=resumable)
    assert not (artifact.folder / "stale.txt").exists()
    assert not partial.exists()


def test_two_runs_share_the_work(tmp_path):
    calls = []

    def slow(folder):
        calls.append(1)
        time.sleep(0.2)
        return Draft()

    threads = [threading.Thread(target=lambda: make(ArtifactStore(tmp_path), slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written"), (errno.EROFS, "cannot be written")],
)
def test_errors_of_the_disk_name_the_way_out(tmp_path, number, words):
    def refused(folder):
        raise OSError(number, "refused")

    with pytest.raises(StorageError, match=words) as caught:
        make(ArtifactStore(tmp_path), refused)
    assert "LAYERPROBE_HOME" in str(caught.value)


def test_files_in_the_place_of_folders_and_the_reverse_are_named(tmp_path):
    home = tmp_path / "home"
    home.write_text("")
    with pytest.raises(StorageError, match="/home is a file, not a folder; set LAYERPROBE_HOME"):
        ArtifactStore(home)
    home.unlink()
    home.mkdir()
    (home / "stage").write_text("")
    with pytest.raises(StorageError, match=r"/home/stage cannot be used \(it is a file where a folder should be\)"):
        make(ArtifactStore(home), Builder())
    (home / "stage").unlink()
    lock = home / "stage" / f".{KEY[:16]}.lock"
    lock.mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"{lock} cannot be used \(it is a folder where a file should be\)"):
        make(ArtifactStore(home), Builder())
    lock.rmdir()
    lock.with_suffix(".verified").mkdir()  # where stamps are kept, which are not needed
    assert make(ArtifactStore(home), Builder()).table_names == ()


def test_a_folder_that_is_removed_while_it_is_used_is_named(tmp_path):
    def removed(folder):
        shutil.rmtree(tmp_path)
        (folder / FILE).write_text("content")

    words = rf"{tmp_path} cannot be used \(it is missing\).*run the same command again"
    with pytest.raises(StorageError, match=words):
        make(ArtifactStore(tmp_path), removed)

    def at_the_end(folder):
        shutil.rmtree(tmp_path)
        return Draft()

    with pytest.raises(StorageError, match=words):
        make(ArtifactStore(tmp_path), at_the_end)


def test_damage_that_cannot_be_removed_is_never_read(tmp_path, monkeypatch):
    artifact = make(ArtifactStore(tmp_path), Builder())
    flip(artifact.folder / FILE)
    monkeypatch.setattr("layerprobe.store._remove_path", lambda path: None)
    with pytest.raises(StorageError, match=rf"{artifact.folder} is damaged .*cannot be removed"):
        ArtifactStore(tmp_path).verify(artifact)


def test_a_full_disk_is_reported_whatever_a_library_raises_for_it(tmp_path):
    from safetensors import SafetensorError

    def no_room(folder):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def wrapped(folder):
        raise StorageError("the activations could not be written") from OSError(errno.ENOSPC, "full")

    store = ArtifactStore(tmp_path)
    for build in (no_room, wrapped):
        with pytest.raises(StorageError, match=r"disk is full.* Every finished task is kept there"):
            make(store, build)

    def other(folder):
        raise SafetensorError("header too small")

    with pytest.raises(SafetensorError):
        make(store, other)


def test_a_finished_artifact_is_read_from_a_store_that_cannot_be_written(tmp_path, monkeypatch):
    make(ArtifactStore(tmp_path), Builder())
    monkeypatch.setattr("filelock.FileLock.acquire", lambda *_, **__: pytest.fail("a lock was taken"))
    store = ArtifactStore(tmp_path)
    assert store.verify(store.find("stage", "A name: 1", KEY))


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"
    monkeypatch.delenv("LAYERPROBE_HOME")
    assert home().name == "layerprobe"


def test_an_artifact_is_read_again_only_if_it_was_written_to(tmp_path, monkeypatch):
    artifact = make(ArtifactStore(tmp_path), Builder())
    path = artifact.folder / FILE
    assert ArtifactStore(tmp_path).check(artifact)
    time.sleep(0.15)  # from here on, a change shows in the stamp
    assert ArtifactStore(tmp_path).verify(artifact)
    with monkeypatch.context() as patch:
        patch.setattr("layerprobe.store.checksum", lambda path: pytest.fail("a file was read"))
        assert ArtifactStore(tmp_path).check(artifact)
    path.touch()  # a new stamp
    assert ArtifactStore(tmp_path).check(artifact)
    before = path.stat()
    path.write_text("tnetnoc")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    store = ArtifactStore(tmp_path)
    assert not store.check(artifact) and "does not match its checksum" in store.damaged[0]
    assert not artifact.folder.exists()


def test_stamps_of_another_artifact_or_damaged_ones_are_not_used(tmp_path):
    artifact = make(ArtifactStore(tmp_path), Builder())
    time.sleep(0.15)
    assert ArtifactStore(tmp_path).verify(artifact)
    stamps = next((tmp_path / "stage").glob(".*.verified"))
    content = json.loads(stamps.read_text())
    (artifact.folder / FILE).write_text("tnetnoc")
    for broken in (content | {"meta": "other"}, content | {"stamps": {}}, [1], content | {"stamps": {"gone": [1]}}):
        stamps.write_text(json.dumps(broken))
        store = ArtifactStore(tmp_path)
        copy = tmp_path / "kept"
        shutil.copytree(artifact.folder, copy, dirs_exist_ok=True)
        assert not store.check(artifact), broken
        shutil.copytree(copy, artifact.folder)
