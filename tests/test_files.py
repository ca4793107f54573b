"""Pages of memory maps are dropped without changing what is read."""

import sys
from pathlib import Path

import numpy as np
import pytest

from layerprobe import files
from layerprobe.files import checked_files, is_intact, remove_checked, write_checked


def resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssFile"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_released_pages_leave_the_process_and_are_read_again(tmp_path, monkeypatch):
    values = np.arange(4_000_000, dtype=np.float64).reshape(-1, 10)
    np.save(tmp_path / "rows.npy", values)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.asarray(rows).sum() == values.sum()
    before = resident_file_bytes()
    files.release_pages(rows)  # 32 MB: small enough to keep
    assert resident_file_bytes() > before - 10e6
    monkeypatch.setattr(files, "RESIDENT_BYTES", 1e6)
    files.release_pages(rows[10:20])
    assert resident_file_bytes() < before - 25e6
    np.testing.assert_array_equal(rows, values)


def test_maps_that_could_hold_changes_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESIDENT_BYTES", 1)
    np.save(tmp_path / "rows.npy", np.zeros(10_000))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="c")
    rows[:] = 7
    files.release_pages(rows)
    files.release_pages(np.zeros(3))
    assert (rows == 7).all()


def test_a_checked_file_is_intact_only_as_it_was_written(tmp_path):
    path = tmp_path / "state"
    assert not is_intact(path)
    write_checked(path, lambda to: to.write_bytes(b"state"))
    assert is_intact(path) and list(checked_files(tmp_path)) == [path]
    for content in (b"stbte", b"stat", b"", None):
        path.unlink() if content is None else path.write_bytes(content)
        assert not is_intact(path)
    write_checked(path, lambda to: to.write_bytes(b"again"))
    assert is_intact(path)
    note = tmp_path / "state.sha256"
    note.write_bytes(b"\xff")
    assert not is_intact(path)
    remove_checked(path)
    assert list(tmp_path.iterdir()) == []
