"""What the images are called, what a build gets, and what is refused before one."""

import gc
import io
import subprocess
import sys
import tarfile

import pytest

from openfed import __version__
from openfed.cli.main import main
from openfed.errors import UsageError
from openfed.launch.images import context, images, node_image, task_image, wheels_in, write_files
from openfed.workspace import create, open_workspace

BASE = "python:3.11-slim-bookworm"
OWN = f"openfed_fx-{__version__}-py3-none-any.whl"


@pytest.fixture
def workspace(tmp_path):
    create(tmp_path / "ward", "numpy_linear")
    return open_workspace(tmp_path / "ward")


@pytest.fixture
def wheelhouse(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / OWN).write_bytes(b"openfed")
    (folder / "numpy-2.whl").write_bytes(b"numpy")
    (folder / "secret.key").write_bytes(b"no wheel")
    return folder


@pytest.fixture
def call(capsys, monkeypatch, workspace):
    """Runs `fx workspace dockerize` in the workspace: (exit code, stdout, stderr)."""
    monkeypatch.chdir(workspace.root)

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["workspace", "dockerize", *map(str, arguments)])
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


def test_a_task_image_is_named_by_requirements_and_runner_and_by_nothing_else(workspace, tmp_path):
    first = task_image(workspace)
    assert node_image() == f"openfed-node:{__version__}"
    assert first.startswith("openfed-task:") and len(first.partition(":")[2]) == 12
    with (workspace.root / "src" / "linear.py").open("a") as file:
        file.write("# other code, same image\n")
    assert task_image(workspace) == first
    asked = workspace.root / "requirements.txt"
    asked.write_text(asked.read_text() + "scipy\n")
    other = task_image(workspace)
    asked.unlink()
    without = task_image(workspace)
    asked.write_text("")
    create(tmp_path / "torch", "torch_digits")
    torch = open_workspace(tmp_path / "torch")
    (torch.root / "requirements.txt").write_text("")
    names = {first, other, without, task_image(workspace), task_image(torch)}
    assert len(names) == 5


def test_a_build_gets_four_kinds_of_files_whatever_lies_in_the_workspace(workspace, wheelhouse):
    for name in ("cert/one/node.key", "data/one.csv", "docker/x", "wheelhouse/y.whl"):
        (workspace.root / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace.root / name).write_text("planted")
    node, task = images(workspace, BASE, True)
    for image in (node, task):
        into = io.BytesIO()
        context(workspace, image, wheels_in(wheelhouse), into)
        into.seek(0)
        with tarfile.open(fileobj=into) as archive:
            assert archive.getnames() == [
                "Dockerfile",
                "requirements.txt",
                "wheelhouse/numpy-2.whl",
                f"wheelhouse/{OWN}",
            ]
            assert archive.extractfile("Dockerfile").read().decode() == image.dockerfile


def test_with_wheels_nothing_is_asked_of_an_index(workspace):
    for image in images(workspace, BASE, True):
        assert "--no-index --find-links /wheelhouse" in image.dockerfile
    for image in images(workspace, BASE, False):
        assert "wheelhouse" not in image.dockerfile and "--no-index" not in image.dockerfile


def test_a_node_gets_no_extra_and_a_task_that_of_its_runner(tmp_path):
    for template, extra in (("torch_digits", "[torch]"), ("numpy_linear", "")):
        create(tmp_path / template, template)
        node, task = images(open_workspace(tmp_path / template), BASE, False)
        assert f'"openfed-fx=={__version__}"' in node.dockerfile
        assert "requirements" not in node.dockerfile
        assert f'"openfed-fx{extra}=={__version__}" -r /requirements.txt' in task.dockerfile


def test_the_last_stage_copies_one_folder_and_runs_as_nobody(workspace):
    for image in images(workspace, BASE, True):
        _, _, last = image.dockerfile.partition(f"\nFROM {BASE}\n")
        steps = [line.split()[0] for line in last.splitlines()]
        assert steps == ["LABEL", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "USER"]
        assert "COPY --from=build /opt/openfed /opt/openfed\n" in last
        assert last.endswith("USER 10001:10001\n")


def test_wheels_of_another_openfed_are_refused_before_a_build(wheelhouse):
    (wheelhouse / OWN).rename(wheelhouse / "openfed_fx-0.0.1-py3-none-any.whl")
    with pytest.raises(UsageError) as refused:
        wheels_in(wheelhouse)
    assert refused.value.code == "L07" and "pip wheel" in str(refused.value)


def test_dockerfiles_are_written_again_and_never_over_somebody_elses(workspace, call):
    assert call("--files")[0] == 0
    assert call("--files")[0] == 0
    ignored = workspace.root / ".dockerignore"
    assert [line for line in ignored.read_text().splitlines() if line[0] != "#"] == [
        "*",
        "!requirements.txt",
        "!wheelhouse/*.whl",
    ]
    ignored.write_text("data\n")
    (workspace.root / "docker" / "node.Dockerfile").unlink()
    code, _, err = call("--files")
    assert code == 2 and err.startswith("U18") and ".dockerignore" in err
    assert ignored.read_text() == "data\n"
    assert not (workspace.root / "docker" / "node.Dockerfile").exists()


def test_written_dockerfiles_are_those_that_are_built(workspace):
    written = {path.name: path.read_text() for path in write_files(workspace, BASE, True)}
    for image in images(workspace, BASE, True):
        assert written[f"{image.role}.Dockerfile"] == image.dockerfile


def test_what_cannot_be_saved_is_said_before_anything_is_built(workspace, call, tmp_path):
    here = tmp_path / "ward.tar"
    here.write_text("mine")
    code, _, err = call("--save", here)
    assert code == 2 and err.startswith("U18") and here.read_text() == "mine"
    code, _, err = call("--save", tmp_path / "other.tar")
    assert code == 2 and err.startswith("plan/plan.lock") or "P19" in err
    assert call("--save", here, "--files")[0] == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_an_engine_the_error_says_so(call, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    code, _, err = call()
    gc.collect()  # the docker package closes no socket that could not connect
    assert code == 1 and err.startswith("L01") and "Traceback" not in err


def test_without_dockers_package_the_error_names_the_extra(workspace):
    code = (
        "import sys; sys.modules['docker'] = None\n"
        "from openfed.cli.main import main; main(['workspace', 'dockerize'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workspace.root, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("L03") and "openfed-fx[docker]" in done.stderr
