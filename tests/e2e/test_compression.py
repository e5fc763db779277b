"""Compression as a person uses it: the ready plan, all bytes counted, beside the same run whole."""

import json
from statistics import mean

import pytest

SETTINGS = (
    "rounds=30",
    "validation.every=10",
    "task_runner.torch.epochs=1",
    "task_runner.torch.scheduler=cosine",
    "task_runner.torch.model={'src.model:Net': {width: 64}}",
)


def run(here, seed: int) -> dict:
    words = (word for setting in (*SETTINGS, f"seed={seed}") for word in ("-s", setting))
    ran = here.fx("run", "--json", *words)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def moved(told: dict) -> int:
    return told["bytes"]["up"] + told["bytes"]["down"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_eighth_of_the_bytes_loses_less_than_a_point_of_accuracy(workspace):
    whole, coded = workspace("torch_digits"), workspace("torch_digits")
    coded.edit("federation:", "extends: compressed_8x\nfederation:")
    losses = []
    for seed in (0, 1):
        before, after = run(whole, seed), run(coded, seed)
        assert moved(after) < moved(before) / 8
        assert before["metrics"]["accuracy"] > 0.95
        losses.append(before["metrics"]["accuracy"] - after["metrics"]["accuracy"])
    assert mean(losses) < 0.01
