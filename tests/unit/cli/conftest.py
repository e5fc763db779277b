"""What tests of commands share."""

import pytest

from openfed.cli.main import main


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs `fx` in this process, in a folder of `tmp_path`: (exit code, stdout, stderr)."""

    def call(folder, *arguments):
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call
