"""The same plan gives the same model: twice, in one process, and by the formula."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openfed.codec.chain import Chain
from openfed.store.journal import Journal
from openfed.store.spool import Spool
from openfed.tensors.frame import chunks, digest
from openfed.tensors.model_file import read_model
from openfed.tensors.record import DTYPES, Record

PLAY = Path(__file__).with_name("play.py")


def run(here, *words) -> dict:
    ran = here.fx("run", "--json", *words)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def play(here) -> dict:
    done = subprocess.run(
        [sys.executable, str(PLAY), str(here.root), "played"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SLOW = pytest.param("torch_digits", marks=pytest.mark.slow)


@pytest.mark.parametrize("template", [SLOW, "numpy_linear"])
def test_twice_and_in_process_the_digest_is_the_same(workspace, template):
    here = workspace(template)
    first = run(here, "-s", "rounds=3")
    second = run(here, "-s", "rounds=3")
    assert first["run"] != second["run"]
    assert first["plan_digest"] == second["plan_digest"]
    assert first["model"]["digest"] == second["model"]["digest"] == here.digest()
    assert play(here)["model"]["digest"] == first["model"]["digest"]
    if template == "torch_digits":
        other = run(here, "-s", "rounds=3", "-s", "seed=8")
        assert other["model"]["digest"] != first["model"]["digest"]


def whole(packet, spec):
    flat = np.empty(spec.count, DTYPES[spec.dtype])
    for start, count in chunks(spec):
        packet.read(spec.name, start, flat[start : start + count])
    return flat.reshape(spec.shape)


def test_one_round_moves_the_model_by_exactly_the_mean_of_the_kept_updates(workspace):
    here = workspace("torch_digits")
    ran = run(here, "-s", "rounds=1", "-s", "retention.updates=all")
    saved = here.root / "save"
    init, last = (read_model(saved / f"digits_{x}.safetensors") for x in ("init", "last"))
    folder = here.root / "runs" / ran["run"]
    journal, spool = Journal(folder / "journal.sqlite"), Spool(folder)
    (row,) = [row for row in journal.asks() if row.task == "train"]
    journal.close()
    updates = []
    for reply in sorted(row.replies, key=lambda reply: reply.collaborator):
        about = {"limit": 1 << 30, "allowed": (Chain(),)}
        with spool.packet(reply.digest, reply.collaborator, **about) as packet:
            updates.append(
                (packet.numbers["n"][0], {s.name: whole(packet, s) for s in packet.specs})
            )
    total = np.float32(sum(n for n, _ in updates))
    for name, base in init.items():
        terms = [np.float32(n) * update[name] for n, update in updates]
        expected = base + (terms[0] + terms[1]) / total
        assert expected.tobytes() == last[name].tobytes()
        assert not np.array_equal(base, last[name])
    assert ran["model"]["digest"] == digest(Record(last))
    models = {m["model"] for m in here.events("metric") if m["task"] == "validate"}
    assert models == {0, 1}


ODD = '''"""A model with one of everything."""
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(64, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.fixed = nn.Linear(16, 64)
        self.fixed.requires_grad_(False)
        self.head = nn.Linear(16, 10)
        self.tail = nn.Linear(16, 10)
        self.tail.weight = self.head.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        hidden = torch.relu(self.norm(self.embed(x.flatten(1))))
        back = torch.tanh(self.fixed(hidden)) + self.embed.weight.sum(0)
        return self.head(hidden) + self.tail(torch.relu(self.embed(back)))
'''


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedavg", "{fedadam: {lr: 0.01}}"])
def test_an_odd_model_trains_and_is_the_same_bits_after_a_save_and_a_load(workspace, strategy):
    here = workspace("torch_digits")
    (here.root / "src" / "model.py").write_text(ODD)
    settings = [
        "rounds=3",
        f"strategy={strategy}",
        "task_runner.torch.model=src.model:Odd",
        "task_runner.torch.optimizer={sgd: {lr: 0.1}}",
    ]
    first = run(here, *(word for setting in settings for word in ("-s", setting)))
    assert first["metrics"]["loss"] < 2.2
    saved = here.root / "save"
    init, last = (read_model(saved / f"digits_{x}.safetensors") for x in ("init", "last"))
    assert "tail.weight" not in last and "head.weight" in last
    assert last["fixed.weight"].tobytes() == init["fixed.weight"].tobytes()
    assert last["seen"] > 3 * 300 and last["norm.num_batches_tracked"] > 0
    assert np.abs(last["norm.running_mean"]).max() > 0
    assert digest(Record(last)) == first["model"]["digest"]
    (saved / "digits_last.safetensors").rename(here.root / "warm.safetensors")
    settings.append("init=warm.safetensors")
    again = run(here, *(word for setting in settings for word in ("-s", setting)))
    warm = read_model(saved / "digits_init.safetensors")
    assert digest(Record(warm)) == first["model"]["digest"]
    assert again["metrics"]["loss"] < first["metrics"]["loss"]
