import os
import stat

import pytest

from openfed.files import lock_file, shipped


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_is_held_until_its_descriptor_closes(tmp_path, kind):
    path = tmp_path / "lock" if kind == "file" else tmp_path
    held = lock_file(path, wait=False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BlockingIOError):
        lock_file(path, wait=False)
    assert len(os.listdir("/proc/self/fd")) == before, "a refused lock leaves nothing open"
    os.close(held)
    os.close(lock_file(path, wait=True))


def test_a_lock_file_is_private_and_not_inherited(tmp_path):
    held = lock_file(tmp_path / "lock", wait=True)
    assert stat.S_IMODE(os.fstat(held).st_mode) == 0o600 and not os.get_inheritable(held)
    os.close(held)


def test_what_is_installed_is_found_before_a_strangers_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("openfed.files._PACKAGE", tmp_path / "openfed")
    (tmp_path / "plans").mkdir()
    assert shipped("plans") == tmp_path / "plans"
    (tmp_path / "openfed" / "_plans").mkdir(parents=True)
    assert shipped("plans") == tmp_path / "openfed" / "_plans"
