"""A workspace with a valid plan, to be spoilt by the tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.plan.load import load_plan
from openfed.plan.schema import Plan

PLAN = """\
federation: consortium
name: digits
rounds: 10
seed: 7
aggregator:
  listen: 0.0.0.0:50051
  advertise: [localhost]
collaborators: [one, two]
task_runner:
  torch:
    model: {"src.model:Net": {classes: 10}}
    loss: cross_entropy
    optimizer: {adam: {lr: 3.0e-3}}
    optimizer_state: reset
    epochs: 3
metrics: [accuracy, "src.metrics:dice"]
data_loader:
  "src.data:Digits": {batch_size: 32}
tasks: [validate, train, validate_tuned]
strategy: fedavg
weights: {samples: {cap: 10000}}
cohort: {fraction: 1.0, quorum: all, deadline: 10m, late: discard}
validation: {cohort: all, every: 1}
scope: [{"head.*": local}, {"*": global}]
best: {metric: accuracy, mode: max}
stop: {metric: accuracy, patience: 5, min_delta: 0.001}
retention: {updates: none}
compression_pipeline:
  uplink: {feedback: true, codecs: [{quantize: {bits: 8}}, zstd], except: [{"*.bias": [zstd]}]}
  downlink: [zstd]
"""

SOURCES = {
    "model.py": """\
import torch


class Net(torch.nn.Module):
    def __init__(self, classes: int = 10, *, dropout: float = 0.0):
        super().__init__()
""",
    "data.py": """\
class Digits:
    def __init__(self, source, *, batch_size: int):
        self.source = source


class Bare:
    pass
""",
    "metrics.py": """\
def dice(output, targets):
    return 1.0, 2.0


def accuracy(output, targets):
    return 1.0, 2.0
""",
    "broken.py": "def f(:\n",
    "numeric.py": """\
def train(record, data, settings):
    return record, 1, {}
""",
}


@pytest.fixture
def plan_text() -> str:
    return PLAN


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / name).write_text(text)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.yaml").write_text(PLAN)
    return tmp_path


@pytest.fixture
def load(workspace: Path) -> Callable[..., Plan]:
    """Loads a plan text from the workspace, with overrides."""

    def load(text: str | bytes = PLAN, *overrides: str) -> Plan:
        path = workspace / "plan" / "plan.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_plan(path, overrides)

    return load
