"""The agent's own store, where its disk refuses."""

import resource
from contextlib import contextmanager

import pytest

from openfed.errors import OpenFedError
from openfed.store.local import LocalStore, Owed


@contextmanager
def no_file_grows():
    """As on a full disk: this process can write no file beyond its first byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_by_code_and_the_store_goes_on_afterwards(tmp_path):
    store = LocalStore(tmp_path / "agent")
    owed = Owed("ask", "upload", "d" * 64, 10, {})
    try:
        with no_file_grows(), pytest.raises(OpenFedError, match="local.sqlite") as raised:
            store.owe(owed)
        assert raised.value.code == "S10"
        store.owe(owed)
        assert store.unsettled() == [owed]
    finally:
        store.close()
