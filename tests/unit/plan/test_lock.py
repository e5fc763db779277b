import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openfed.errors import PlanError
from openfed.plan.choices import STAGES
from openfed.plan.digest import canonical_json, plan_digest
from openfed.plan.lock import Lock, code_files, make_lock, read_lock, verify_files, write_lock
from openfed.plan.schema import Plan, canonical
from openfed.tensors.record import Kind, Spec

Load = Callable[..., Plan]

SIGNATURE = (
    Spec("bias", "float32", (3,)),
    Spec("count", "int64", (), Kind.BUFFER),
    Spec("weight", "float32", (3, 4)),
)


def digest(plan: Plan) -> str:
    return plan_digest(plan, {}, {}, {})


# -- the digest -------------------------------------------------------------------------------


def test_canonical_json_is_what_its_docstring_says() -> None:
    value = {"b": 1.0, "a": [1, 0.1, "é", None, True], "c": 1e-8}
    assert canonical_json(value) == '{"a":[1,0.1,"é",null,true],"b":1.0,"c":1e-08}'.encode()
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})


def test_order_comments_and_spelling_do_not_change_the_digest(load: Load, plan_text: str) -> None:
    wanted = digest(load(plan_text))
    blocks: list[str] = []
    for line in plan_text.splitlines(keepends=True):
        if line.startswith(" "):
            blocks[-1] += line
        else:
            blocks.append(line)
    assert digest(load("# a comment\n" + "".join(reversed(blocks)))) == wanted
    for old, new in (
        ("rounds: 10", "rounds:   10  # ten"),
        ("lr: 3.0e-3", "lr: 0.003"),
        ("strategy: fedavg", "strategy: {template: fedavg, settings: {}}"),
        ("deadline: 10m", "deadline: 600s"),
        ("fraction: 1.0", "fraction: 1"),
        ("seed: 7\n", "seed: +7\n"),
        ("downlink: [zstd]", "downlink: {codecs: [{template: zstd}]}"),
        ("{quantize: {bits: 8}}", "{quantize: {bits: 8, rounding: null, group: 1024}}"),
        ("{adam: {lr: 3.0e-3}}", "{adam: {lr: 3.0e-3, betas: [0.9, 0.999]}}"),
        ("mode: max}", "}"),
    ):
        assert old in plan_text
        assert digest(load(plan_text.replace(old, new))) == wanted, new


def test_addresses_are_not_in_the_digest(load: Load, plan_text: str) -> None:
    wanted = digest(load(plan_text))
    assert digest(load(plan_text, "aggregator.listen=127.0.0.1:0")) == wanted
    assert digest(load(plan_text, "aggregator.advertise=[fl.example.org]")) == wanted


CHANGES = {
    "federation": "federation=other",
    "name": "name=other",
    "rounds": "rounds=11",
    "seed": "seed=8",
    "collaborators": "collaborators=[two, one]",
    "task_runner": "task_runner.epochs=4",
    "metrics": "metrics=[accuracy]",
    "data_loader": "data_loader.batch_size=33",
    "data_contract": "data_contract={samples: 9}",
    "tasks": "tasks=[validate, train]",
    "strategy": "strategy=fedadam",
    "weights": "weights=uniform",
    "compression_pipeline": "compression_pipeline.uplink.feedback=false",
    "cohort": "cohort.deadline=601s",
    "timeouts": "timeouts.idle=61s",
    "validation": "validation.every=2",
    "scope": "scope=[]",
    "best": "best={metric: loss, mode: min}",
    "stop": "stop.patience=6",
    "retention": "retention.updates=all",
    "init": "init=a.safetensors",
}


def test_every_part_of_the_plan_changes_the_digest(
    load: Load, plan_text: str, workspace: Path
) -> None:
    (workspace / "a.safetensors").write_bytes(b"")
    assert CHANGES.keys() | {"aggregator", "flow"} == Plan.model_fields.keys()  # flow: test_flows
    seen = {digest(load(plan_text))}
    for override in CHANGES.values():
        seen.add(digest(load(plan_text, override)))
    assert len(seen) == len(CHANGES) + 1


def test_every_setting_of_the_runner_changes_the_digest(load: Load, plan_text: str) -> None:
    runner = "task_runner"
    changes = [
        "model.classes=11",
        "loss=nll",
        "loss.label_smoothing=0.1",
        "optimizer=sgd",
        "optimizer.lr=1",
        "optimizer_state=keep",
        "scheduler=cosine",
        "clip_grad_norm=1",
        "accumulate=2",
        "precision=bf16",
        "freeze=[a]",
        "param_groups=[{match: a, lr: 1}]",
        "epochs=5",
    ]
    digests = {digest(load(plan_text, f"{runner}.{change}")) for change in changes}
    assert len(digests | {digest(load(plan_text))}) == len(changes) + 1


def test_code_and_model_are_in_the_digest(load: Load) -> None:
    plan = load()
    model = "0" * 64
    first = make_lock(plan, {"src/a.py": "1" * 64}, model, SIGNATURE)
    assert make_lock(plan, {"src/a.py": "1" * 64}, model, SIGNATURE).digest == first.digest
    others = [
        make_lock(plan, {"src/a.py": "2" * 64}, model, SIGNATURE),
        make_lock(plan, {"src/b.py": "1" * 64}, model, SIGNATURE),
        make_lock(plan, {"src/a.py": "1" * 64}, "1" * 64, SIGNATURE),
        make_lock(plan, {"src/a.py": "1" * 64}, model, SIGNATURE[1:]),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 5


def test_every_setting_of_the_codecs_changes_the_digest(load: Load, plan_text: str) -> None:
    changes = [
        "uplink.codecs=[]",
        "uplink.codecs=[zstd]",
        "uplink.codecs=[{quantize: {bits: 4}}, zstd]",
        "uplink.codecs=[{quantize: {bits: 8, rounding: nearest}}, zstd]",
        "uplink.codecs=[{quantize: {bits: 8, group: 64}}, zstd]",
        "uplink.codecs=[{quantize: {bits: 8}}, {zstd: {level: 2}}]",
        "uplink.except=[]",
        "uplink.except=[{'*.bias': []}]",
        "uplink.except=[{'bias': [zstd]}]",
        "downlink.codecs=[]",
        "downlink.except=[{'*.bias': []}]",
    ]
    # feedback would have nothing to do in some of them
    base = (plan_text, "compression_pipeline.uplink.feedback=false")
    digests = {digest(load(*base, f"compression_pipeline.{change}")) for change in changes}
    assert len(digests | {digest(load(*base))}) == len(changes) + 1


def test_the_versions_of_the_codecs_in_use_are_in_the_lock_and_the_digest(
    load: Load, plan_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plan_text[: plan_text.index("compression_pipeline:")]
    lock = make_lock(load(), {}, "0" * 64, SIGNATURE)
    assert lock.codecs == {"quantize": 1, "zstd": 1}
    ways = "{uplink: {except: [{a: [bf16]}]}, downlink: {codecs: [fp16], except: [{a: [zstd]}]}}"
    other = make_lock(load(plain, f"compression_pipeline={ways}"), {}, "0" * 64, SIGNATURE)
    assert other.codecs == {"bf16": 1, "fp16": 1, "zstd": 1}
    newer = {**STAGES, "zstd": STAGES["zstd"]._replace(version=2)}
    monkeypatch.setattr("openfed.plan.schema.STAGES", newer)
    again = make_lock(load(), {}, "0" * 64, SIGNATURE)
    assert again.codecs == {"quantize": 1, "zstd": 2}
    assert again.digest != lock.digest


# -- the lock file ----------------------------------------------------------------------------


@pytest.fixture
def locked(load: Load, workspace: Path) -> tuple[Path, Lock]:
    path = workspace / "plan" / "plan.lock"
    lock = make_lock(load(), code_files(workspace), "a" * 64, SIGNATURE)
    write_lock(path, lock)
    return path, lock


def test_a_lock_is_read_as_it_was_written(locked: tuple[Path, Lock]) -> None:
    path, lock = locked
    assert read_lock(path) == lock
    assert (lock.listen, lock.advertise) == ("0.0.0.0:50051", ("localhost",))
    assert [file.name for file in path.parent.iterdir() if "lock" in file.name] == ["plan.lock"]
    content = json.loads(path.read_text())
    assert content["plan"] == canonical(lock.plan)
    assert "aggregator" not in content["plan"]
    assert content["addresses"] == {"listen": "0.0.0.0:50051", "advertise": ["localhost"]}


def test_addresses_may_be_changed_in_a_lock(locked: tuple[Path, Lock]) -> None:
    path, lock = locked
    path.write_text(path.read_text().replace("0.0.0.0:50051", "127.0.0.1:9"))
    assert read_lock(path).digest == lock.digest
    assert read_lock(path).listen == "127.0.0.1:9"


def changed(content: dict[str, Any], keys: str, value: Any) -> None:
    *path, last = keys.split("/")
    for key in path:
        content = content[int(key)] if isinstance(content, list) else content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("plan/rounds", 11),
        ("plan/rounds", 10.0),
        ("plan/rounds", "10"),
        ("plan/unknown", 1),
        ("plan/aggregator", {}),
        ("plan/strategy", "fedavg"),
        ("plan/best", None),
        ("plan", []),
        ("plan", None),
        ("files/src~model.py", "b" * 64),
        ("files/new.py", "b" * 64),
        ("files", {"src/model.py": "x"}),
        ("files", {"src/model.py": 3}),
        ("files", []),
        ("codecs", {}),
        ("codecs", {"quantize": 1, "zstd": 2}),
        ("codecs", {"quantize": 1, "zstd": "1"}),
        ("codecs", {"quantize": 1, "zstd": True}),
        ("codecs", {"quantize": 1, "zstd": 1, "topk": 1}),
        ("codecs", None),
        ("plan/compression_pipeline/downlink/codecs", []),
        ("plan/compression_pipeline/downlink", [{"name": "zstd", "settings": {"level": 1}}]),
        ("plan/compression_pipeline/uplink/codecs/0/settings/bits", 4),
        ("plan/compression_pipeline/uplink/codecs/0/settings", {}),
        ("plan/compression_pipeline/uplink/except", [{"*.bias": [], "*": []}]),
        ("digest", "0" * 64),
        ("digest", None),
        ("schema", 2),
        ("schema", "1"),
        ("addresses", {"listen": ":99999", "advertise": ["localhost"]}),
        ("addresses", None),
        ("model/digest", "b" * 64),
        ("model/digest", 3),
        ("model/signature/0/shape", [4]),
        ("model/signature/0/shape", ["4"]),
        ("model/signature/0/shape", [-1]),
        ("model/signature/0/dtype", "object"),
        ("model/signature/0/kind", "other"),
        ("model/signature/0/name", 3),
        ("model/signature/0/more", 3),
        ("model/signature", [3]),
        ("model", None),
        ("more", 1),
    ],
)
def test_a_changed_lock_is_refused(locked: tuple[Path, Lock], keys: str, value: Any) -> None:
    path, _ = locked
    content = json.loads(path.read_text())
    changed(content, keys, value)
    if "~" in keys:
        content["files"]["src/model.py"] = content["files"].pop("src~model.py")
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError) as caught:
        read_lock(path)
    assert caught.value.code == "P19"
    assert "fx plan initialize" in caught.value.message


def test_a_lock_that_leaves_a_default_out_is_refused(locked: tuple[Path, Lock]) -> None:
    path, _ = locked
    content = json.loads(path.read_text())
    del content["plan"]["init"]
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="P19"):
        read_lock(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b'{"a":1,"a":2}', b"[" * 100_000, b"9" * 5000],
)
def test_what_is_no_lock_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "plan.lock"
    path.write_bytes(data)
    with pytest.raises(PlanError) as caught:
        read_lock(path)
    assert caught.value.code == "P19"


def test_a_missing_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan\.lock.*fx plan initialize"):
        read_lock(tmp_path / "plan.lock")


# -- the code beside it -----------------------------------------------------------------------


def test_code_files_are_those_below_src_and_the_requirements(workspace: Path) -> None:
    (workspace / "requirements.txt").write_text("torch\n")
    (workspace / "README.md").write_text("not code\n")
    (workspace / "src" / "__pycache__").mkdir()
    (workspace / "src" / "__pycache__" / "model.pyc").write_bytes(b"")
    (workspace / "src" / "deep").mkdir()
    (workspace / "src" / "deep" / "labels.txt").write_text("")
    found = code_files(workspace)
    assert list(found) == sorted(found)
    assert found["requirements.txt"] == hashlib.sha256(b"torch\n").hexdigest()
    assert found["src/deep/labels.txt"] == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    names = {"broken", "data", "metrics", "model", "numeric"}
    assert found.keys() == {
        "requirements.txt",
        "src/deep/labels.txt",
        *(f"src/{name}.py" for name in names),
    }


@pytest.mark.parametrize("what", ["file", "folder", "src", "requirements", "pipe"])
def test_links_and_pipes_among_the_code_are_refused(workspace: Path, what: str) -> None:
    target = workspace / "elsewhere"
    if what == "folder":
        target.mkdir()
        (workspace / "src" / "linked").symlink_to(target)
    elif what == "src":
        (workspace / "src").rename(target)
        (workspace / "src").symlink_to(target)
    elif what == "pipe":
        os.mkfifo(workspace / "src" / "pipe.py")
    else:
        target.write_text("")
        name = "src/linked.py" if what == "file" else "requirements.txt"
        (workspace / name).symlink_to(target)
    with pytest.raises(PlanError) as caught:
        code_files(workspace)
    assert caught.value.code == "P20"


def test_the_first_file_that_differs_is_named(locked: tuple[Path, Lock], workspace: Path) -> None:
    _, lock = locked
    verify_files(workspace, lock)
    (workspace / "src" / "__pycache__").mkdir()
    (workspace / "src" / "__pycache__" / "model.pyc").write_bytes(b"")
    verify_files(workspace, lock)
    (workspace / "src" / "new.py").write_text("")
    with pytest.raises(PlanError, match=r"src/new\.py  P20  is new"):
        verify_files(workspace, lock)
    (workspace / "src" / "model.py").write_text("changed\n")
    with pytest.raises(PlanError, match=r"src/model\.py  P20  is not the file"):
        verify_files(workspace, lock)
    (workspace / "src" / "data.py").unlink()
    with pytest.raises(PlanError, match=r"src/data\.py  P20  is missing"):
        verify_files(workspace, lock)
