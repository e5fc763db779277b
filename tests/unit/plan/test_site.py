"""`site.yaml`: what it may say, and what of a plan it forbids."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openfed.cli.main import main
from openfed.errors import CertificateError, PlanError, PolicyError, UsageError
from openfed.launch.sites import SITE, check_site, create_site, local_of, site_of
from openfed.parse import Proxy
from openfed.plan.load import load_plan
from openfed.plan.lock import Lock, make_lock
from openfed.plan.site import Container, Limits, in_words, objections, read_site, remarks
from openfed.tensors.record import Kind, signature_of
from openfed.workspace import Workspace, create

MODEL = {
    "bn.mean": np.zeros(250, np.float32),
    "head.b": np.zeros(250, np.float32),
    "head.w": np.zeros(500, np.float32),
}
LEAST = "name: one\ndata: data/one\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    create(tmp_path / "w", "numpy_linear")
    return Workspace(tmp_path / "w")


@pytest.fixture
def write(workspace: Workspace) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = workspace.root / SITE
        path.write_text(text)
        return path

    return write


@pytest.fixture
def lock(workspace: Workspace) -> Callable[..., Lock]:
    """The lock of the template's plan, some of it overridden, with the model above."""

    def lock(*overrides: str) -> Lock:
        plan = load_plan(workspace.plan, overrides)
        return make_lock(plan, {}, "0" * 64, signature_of(MODEL, {"bn.mean": Kind.BUFFER}))

    return lock


def test_a_site_says_where_its_data_is_and_what_it_allows(write: Callable[[str], Path]) -> None:
    text = """
name: one
data: {table: t, of: [1, null]}
device: cuda:1
threads: 4
address: "[2001:db8::7]:50051"
proxy: http://proxy.example.org:3128
limits: {rounds: 9, seconds: 2m, bytes_out: 1.5GiB, metrics: [accuracy], samples: 50}
filters: [{drop: ["head.*"]}, {clip_norm: 2}, {noise: {std: 0.5}}]
"""
    site = read_site(write(text))
    assert site.data == {"table": "t", "of": [1, None]}
    limits = Limits.model_validate(
        {"rounds": 9, "seconds": "120s", "bytes_out": "1610612736B", "samples": 50}
        | {"metrics": ["accuracy"]}
    )
    assert site.limits == limits
    assert [each.drop for each in site.filters] == [("head.*",), None, None]
    assert site.filters[1].clip_norm == 2.0
    assert site.filters[2].noise is not None and site.filters[2].noise.std == 0.5
    words = " | ".join(in_words(site))
    for told in ("at most 9 rounds", "120 seconds", "1536 MiB", "accuracy", "50 samples", "0.5"):
        assert told in words


def test_what_is_not_said_is_not_limited(write: Callable[[str], Path], lock: Callable) -> None:  # type: ignore[type-arg]
    site = read_site(write(LEAST + "limits:\n  # rounds: 1\nfilters:\n"))
    assert (site.limits, site.filters, site.device, site.threads) == (Limits(), (), "auto", 1)
    assert (site.proxy, site.address, site.isolation) == (None, None, "process")
    assert in_words(site) == []
    assert objections(site, lock().plan, lock()) == remarks(site, lock().plan, lock()) == []


@pytest.mark.parametrize(
    ("text", "code", "where", "remedy"),
    [
        ("name: one", "P06", "site.yaml:1:1", "add data: data/one"),
        (LEAST + "limit: {rounds: 1}", "P01", "site.yaml:3:1", "did you mean 'limits'"),
        (LEAST + "limits: {round: 1}", "P01", "site.yaml:3:10", "did you mean 'rounds'"),
        (LEAST + "limits: {rounds: 0}", "P08", "site.yaml:3:18", ">= 1"),
        (LEAST + "limits: {seconds: 30}", "P07", "site.yaml:3:19", "30s"),
        (LEAST + "limits: {bytes_out: 500}", "P07", "site.yaml:3:21", "say the unit"),
        (LEAST + "limits: {bytes_out: 5 gigs}", "P07", "site.yaml:3:21", "2GiB"),
        (LEAST + "limits: {bytes_out: 0.1B}", "P08", "site.yaml:3:21", "1B"),
        (LEAST + "limits: {metrics: accuracy}", "P07", "site.yaml:3:19", "a list"),
        (LEAST + "filters: [{clip: 1}]", "P01", "site.yaml:3:12", "did you mean 'clip_norm'"),
        (LEAST + "filters: [{clip_norm: 0}]", "P08", "site.yaml:3:23", "> 0"),
        (LEAST + "filters: [{noise: 0.1}]", "P07", "site.yaml:3:19", "noise: {std: 0.001}"),
        (LEAST + "filters: [{noise: {st: 1}}]", "P01", "site.yaml:3:20", "'std'"),
        (LEAST + "filters: [{drop: []}]", "P08", "site.yaml:3:18", "at least 1"),
        (LEAST + "filters: [{}]", "P40", "site.yaml:3:11", "got nothing"),
        (
            LEAST + "filters: [{clip_norm: 1, drop: [a]}]",
            "P40",
            "site.yaml:3:11",
            "got clip_norm and drop",
        ),
        (
            LEAST + "filters: [{noise: {std: 1}}, {clip_norm: 1}]",
            "P41",
            "site.yaml:3:10",
            "before it",
        ),
        (LEAST + "address: example.org", "P13", "site.yaml:3:10", "host:port to dial"),
        (LEAST + "address: example.org:0", "P13", "site.yaml:3:10", "host:port to dial"),
        (LEAST + "address: 0.0.0.0:50051", "P13", "site.yaml:3:10", "host:port to dial"),
        (LEAST + "proxy: env", "P13", "site.yaml:3:8", "http://host:port"),
        (LEAST + "proxy: https://p:3128", "P13", "site.yaml:3:8", "http://host:port"),
        (LEAST + "proxy: http://me:secret@p:3128/x", "P13", "site.yaml:3:8", "none"),
        (LEAST + "proxy: {http: secret}", "P13", "site.yaml:3:1", "none"),
        (LEAST + "proxy: http://me:secret@p:3128", "P44", "site.yaml:3:8", "chmod 600 site.yaml"),
        (LEAST + "proxy: http://0.0.0.0:3128", "P13", "site.yaml:3:8", "http://host:port"),
        (LEAST + "isolation: vm", "P09", "site.yaml:3:12", "container"),
        (LEAST + "device: gpu", "P09", "site.yaml:3:9", "cuda:N"),
        (LEAST + "data: again", "P03", "site.yaml:3:1", "given twice"),
        ("name: a/b\ndata: x", "P14", "site.yaml:1:7", "file name"),
        ("", "P02", "site.yaml:1:1", "empty file"),
    ],
)
def test_a_wrong_site_yaml_is_answered_like_a_wrong_plan(
    write: Callable[[str], Path], text: str, code: str, where: str, remedy: str
) -> None:
    with pytest.raises(PlanError) as caught:
        read_site(write(text))
    found = [(p.code, p.where, p.message) for p in caught.value.problems]
    assert any(each[:2] == (code, where) and remedy in each[2] for each in found), found


# -- a plan against a site ------------------------------------------------------------------------

FEEDBACK = "compression_pipeline.uplink={feedback: true, codecs: [{topk: {fraction: 0.1}}]}"


@pytest.mark.parametrize(
    ("more", "overrides", "code", "where", "words"),
    [
        ("limits: {rounds: 4}", ["rounds=5"], "R30", "3:18", "rounds: 5"),
        ("limits: {metrics: [r2]}", ["metrics=[mse]"], "R31", "3:19", "metrics asks for mse"),
        ("limits: {metrics: []}", ["stop={metric: loss, patience: 2}"], "R31", "3:19", "for loss"),
        ("limits: {bytes_out: 19kB}", ["rounds=5"], "R32", "3:21", "20 kB or more"),
        ("filters: [{noise: {std: 1}}]", [FEEDBACK], "R33", "3:12", "uplink.feedback"),
        ('filters: [{drop: ["head.*", haed]}]', [], "R35", "3:29", "'haed' matches no entry"),
    ],
)
def test_a_plan_cannot_widen_what_a_site_allows(
    workspace: Workspace,
    write: Callable[[str], Path],
    lock: Callable[..., Lock],
    more: str,
    overrides: list[str],
    code: str,
    where: str,
    words: str,
) -> None:
    site, frozen = read_site(write(LEAST + more)), lock("best=null", *overrides)
    assert code in {each.code for each in objections(site, frozen.plan, frozen)}
    with pytest.raises(PolicyError) as caught:
        check_site(workspace, site, frozen)
    lines = str(caught.value).splitlines()
    told = [line for line in lines if line.startswith(f"{code}  site.yaml:{where}  ")]
    assert any(words in line for line in told), lines
    assert caught.value.exit_code == 6


def test_every_objection_is_said_at_once(
    workspace: Workspace, write: Callable[[str], Path], lock: Callable[..., Lock]
) -> None:
    site = read_site(write(LEAST + "limits: {rounds: 1, bytes_out: 1kB, metrics: []}"))
    with pytest.raises(PolicyError) as caught:
        check_site(workspace, site, lock("rounds=5", "metrics=[mse]"))
    said = str(caught.value)
    assert "R30" in said and "R31" in said and "R32" in said and "\n" in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["rounds=4"],  # exactly what is allowed
        ["rounds=5", "compression_pipeline.uplink=[zstd]"],
        ["rounds=5", "stop={metric: loss, patience: 2}"],
        ["rounds=5", "cohort={fraction: 0.5}"],
    ],
)
def test_a_size_that_is_not_certain_is_no_objection(
    write: Callable[[str], Path], lock: Callable[..., Lock], overrides: list[str]
) -> None:
    """Four rounds of 4,000 bytes are 16 kB; five may need less than 20 kB."""
    site, frozen = read_site(write(LEAST + "limits: {bytes_out: 16kB}")), lock(*overrides)
    assert objections(site, frozen.plan, frozen) == []
    told = any("limits.bytes_out" in each for each in remarks(site, frozen.plan, frozen))
    assert told is ("rounds=5" in overrides)


def test_what_no_noise_reaches_is_said(
    write: Callable[[str], Path], lock: Callable[..., Lock]
) -> None:
    noisy = read_site(write(LEAST + "filters: [{noise: {std: 1}}]"))
    (told,) = remarks(noisy, lock().plan, lock())
    assert "bn.mean leave as they are" in told
    both = read_site(write(LEAST + 'filters: [{drop: ["bn.*"]}, {noise: {std: 1}}]'))
    assert remarks(both, lock().plan, lock()) == []


# -- fx collaborator create -----------------------------------------------------------------------


def test_a_created_site_yaml_reads_back_and_so_does_each_of_its_examples(
    workspace: Workspace,
) -> None:
    (path,) = create_site(workspace, "mill", 'data/the "mill"')
    site = site_of(workspace)
    assert site is not None and (site.name, site.data) == ("mill", 'data/the "mill"')
    assert site.limits == Limits() and site.filters == ()
    commented = [line for line in path.read_text().splitlines() if line.lstrip().startswith("# ")]
    examples = [line for line in commented if ": " in line and "  #" in line]
    assert len(examples) == 13
    whole = path.read_text()
    for line in examples:
        whole = whole.replace(line, line.replace("# ", "", 1))
    path.write_text(whole)
    site = read_site(path)
    assert None not in dict(site.limits).values() and len(site.filters) == 3 and site.address
    assert site.container.cpus == 2.0 and site.container.user == "1000:1000"
    local = local_of(site, "mill")
    assert (local.sites, local.threads) == ({"mill": 'data/the "mill"'}, 1)
    with pytest.raises(UsageError, match="U16"):
        local_of(site, "farm")


def test_create_is_safe_to_repeat_and_overwrites_nothing(workspace: Workspace) -> None:
    assert site_of(workspace) is None
    (path,) = create_site(workspace, "mill", "data/mill")
    path.write_text(path.read_text() + "# mine\n")
    kept = path.read_bytes()
    assert create_site(workspace, "mill", "data/mill") == ()
    for name, data in (("farm", "data/mill"), ("mill", "elsewhere")):
        with pytest.raises(UsageError, match="P42"):
            create_site(workspace, name, data)
    path.write_text("name: [")
    with pytest.raises(PlanError):
        create_site(workspace, "mill", "data/mill")
    assert path.read_text() == "name: ["
    path.write_bytes(kept)
    assert path.read_bytes() == kept


def test_the_command_lists_what_it_wrote_and_says_what_it_left(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.root)
    for name, code, words in (
        ("mill", 0, "site.yaml  what only this site decides; stays here"),
        ("mill", 0, "was left as it is"),
        ("farm", 2, "P42"),
    ):
        with pytest.raises(SystemExit) as left:
            main(("collaborator", "create", "-n", name, "-d", "data/x", "--silent"))
        captured = capsys.readouterr()
        assert left.value.code == code
        assert words in captured.out + captured.err


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [("../x", CertificateError, "C04"), ("barn", UsageError, "it has: ")],
)
def test_a_site_must_have_a_name_of_the_plan(
    workspace: Workspace, name: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        create_site(workspace, name, "data")
    assert not (workspace.root / SITE).exists()


def test_the_password_of_a_proxy_is_for_the_sites_owner_alone(write: Callable[[str], Path]) -> None:
    path = write(LEAST + "proxy: http://me:s3cret@p.example:3128")
    path.chmod(0o640)
    with pytest.raises(PlanError, match="P44") as caught:
        read_site(path)
    path.chmod(0o600)
    site = read_site(path)
    assert site.proxy == Proxy("p.example", 3128, "me", "s3cret")
    assert in_words(site) == ["It reaches the aggregator through the proxy http://p.example:3128"]
    assert "s3cret" not in f"{caught.value} {site!r} {site} {in_words(site)}"


def test_a_new_site_yaml_is_its_owners_alone(workspace: Workspace) -> None:
    (path,) = create_site(workspace, "mill", "data")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_site_says_what_its_containers_may_use(write: Callable[[str], Path]) -> None:
    site = read_site(write(LEAST + "container: {memory: 1.5GiB, cpus: 2, pids: 99, user: '7:8'}"))
    assert site.container == Container(memory="1.5GiB", cpus=2.0, pids=99, user="7:8")  # type: ignore[arg-type]
    for nothing in ("", "container:", "container: {}"):
        found = read_site(write(LEAST + nothing)).container
        assert (found.memory, found.cpus, found.pids, found.user) == (4 << 30, None, 512, None)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("memory: 1MB", "P08"),
        ("memory: 4", "P07"),
        ("cpus: 0", "P08"),
        ("pids: 3", "P08"),
        ("user: root", "P07"),
        ("user: '1000'", "P07"),
        ("user: 1000:50", "P05"),  # a number to YAML 1.1
        ("privileged: true", "P01"),
    ],
)
def test_what_no_container_can_be_given_is_refused_with_its_place(
    write: Callable[[str], Path], said: str, code: str
) -> None:
    with pytest.raises(PlanError) as error:
        read_site(write(f"{LEAST}container: {{{said}}}"))
    (problem,) = error.value.problems
    assert (problem.code, problem.path) == (code, "container." + said.partition(":")[0])
