"""scripts/bench: each benchmark runs, in its smallest form, and says what it should."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench import codecs, meter, report, rounds, samples, task

ROOT = Path(__file__).parents[2]


def bench(tmp_path, *arguments):
    """The results of `scripts/bench ...`, and what it printed."""
    out = tmp_path / "results.json"
    given = [sys.executable, "-m", "bench", *arguments, "--out", str(out)]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


@pytest.mark.slow
def test_a_round_is_measured_beside_the_bare_one(tmp_path):
    found, said = bench(tmp_path, "rounds", "--points", "2x1", "--rounds", "2", "--repeat", "1")
    (row,) = found["results"]["table"]
    assert (row["N"], row["MB"]) == (2, 1)
    assert 0 < row["bare CPU s"] < row["openfed CPU s"] < 5
    assert row["x CPU"] == pytest.approx(row["openfed CPU s"] / row["bare CPU s"])
    assert row["of 2NM"] is None or 1 <= row["of 2NM"] < 1.1
    assert "openfed beside bare" in said
    assert found["machine"]["cores"] == meter.cores()


@pytest.mark.slow
def test_memory_is_measured_and_the_model_is_the_formula_s(tmp_path):
    arguments = ("memory", "--mb", "1", "--sites", "2", "--strategies", "fedavg,median")
    found, _ = bench(tmp_path, *arguments)
    assert [row["strategy"] for row in found["results"]] == ["fedavg", "median"]
    assert all(20 < row["anonymous"] < row["peak"] < 1000 for row in found["results"])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_aggregator_holds_no_more_after_many_rounds(tmp_path):
    found, _ = bench(tmp_path, "soak", "--rounds", "90", "--sites", "4", "--retention", "none,2")
    for run, kept in zip(found["results"]["runs"], (0, 2), strict=True):
        early, late = run["rounds"][44], run["rounds"][-1]
        assert late["anonymous MB"] - early["anonymous MB"] < 0.1 * 45
        assert late["files"] <= early["files"] + 2  # calls that are open as it happens
        assert late["threads"] <= early["threads"] + 2  # the pool's, up to six
        models = late["blobs"] - 2 * 4 * kept  # the replies to both tasks
        assert early["blobs"] == late["blobs"] and models in (1, 2, 3)
        # a full write-ahead log, the rows, and 13 entries of the ledger a round
        assert late["journal KB"] < 4.2 * 1024 + 90 * 15


@pytest.mark.slow
def test_every_site_of_a_crowd_counts_once(tmp_path):
    found, said = bench(tmp_path, "crowd", "--sites", "20", "--rounds", "2")
    (row,) = found["results"]
    assert (row["N"], row["rounds"]) == (20, 2)
    assert 0 < row["CPU s"] < row["run s"] * meter.cores() and row["files"] > 20
    assert "CPU ms a site and round" in said


def test_codecs_are_measured_beside_theory(tmp_path):
    found, said = bench(tmp_path, "codecs", "--quick", "--only", "topk")
    rows = [row for row in found["results"]["chains"] if row["theory"]]
    assert {row["values"] for row in rows} == set(samples.SAMPLES)
    assert all(0.999 < row["x theory"] < 1.001 for row in rows)
    assert "OpenFL 1.9" in said


def test_one_core_limits_are_measured(tmp_path):
    found, _ = bench(tmp_path, "limits", "--quick", "--only", "memory,hashing,zstd")
    assert set(found["results"]) == {"memory", "hashing", "zstd"}
    assert all(row["GB/s"] > 0.01 for row in found["results"]["hashing"])
    assert all(row["left"] < 1 for row in found["results"]["zstd"])


@pytest.mark.slow
def test_the_wire_and_the_bare_round_are_measured(tmp_path):
    found, _ = bench(tmp_path, "limits", "--quick", "--only", "wire,bare")
    kinds = {row["through"] for row in found["results"]["wire"]}
    assert kinds == {"tcp", "tls", "gRPC", "gRPC aio"}
    assert found["results"]["bare"][0]["CPU s"] > 0


def test_an_unknown_benchmark_is_answered_with_those_there_are():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "speed"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "rounds" in done.stdout


def test_the_cpu_time_of_another_process_is_seen():
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin and worker.stdout
    with worker:
        worker.stdout.readline()
        assert 0.3 <= meter.cpu_seconds(worker.pid) < 2
        assert meter.children([os.getpid()]) >= {os.getpid(), worker.pid}
        worker.stdin.close()
    assert meter.cpu_seconds(worker.pid) == 0  # gone


def test_own_cpu_time_is_that_of_the_interpreter():
    assert meter.cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)


def test_what_lies_between_marks_is_their_difference():
    marks = [meter.Mark(1.0, 2.0, 10), meter.Mark(3.0, 2.5, 30), meter.Mark(4.0, 4.5, 31)]
    assert meter.between(marks) == [meter.Mark(2.0, 0.5, 20), meter.Mark(1.0, 2.0, 1)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (0.01234, "0.0123"), (1234.5, "1,234"), (7, "7"), ("x", "x")],
)
def test_numbers_are_shown_with_three_digits(value, shown):
    assert report.shown(value) == shown


def test_a_row_s_ratios_are_of_medians():
    def run(*used):
        return {"rounds": [{"wall": w, "cpu": c, "wire": 2 << 20} for w, c in used],
                "peak_mb": {"server": 100.0}, "counted": True}  # fmt: skip

    bare, ours = [run((1, 2), (1, 2), (9, 9))], [run((2, 3)), run((2, 3), (50, 50))]
    row = rounds.row(1, 1, bare, ours)
    assert (row["x wall"], row["x CPU"], row["of 2NM"]) == (2, 1.5, 1)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.6028), (2, 0.3428), (4, 0.0975)])
def test_theory_of_the_best_quantiser_is_the_known_one(bits, error):
    """Max 1960, table I: distortion 0.3634, 0.1175, 0.009497."""
    assert math.sqrt(codecs.lloyd_max(1 << bits)) == pytest.approx(error, abs=5e-5)


def test_theory_at_8_bits_is_just_below_the_limit_of_many_levels():
    """Panter and Dite 1951: D tends to sqrt(3) pi / 2 * 4^-bits from below."""
    limit = math.sqrt(3) * math.pi / 2 * 4.0**-8
    assert 0.99 * limit < codecs.lloyd_max(256) < limit


def test_what_sites_add_is_exact_in_float32():
    moved = [task.change(i, 3, 1000, 500) for i in range(1, 33)]
    mean = np.mean(moved, axis=0, dtype=np.float64)
    total = sum(np.float32(100) * x for x in moved) / np.float32(3200)
    assert np.array_equal(total, mean)
    model = task.first(3, 1000, 500)
    assert np.array_equal(model + total, model.astype(np.float64) + mean)
    assert len(np.unique(model)) > 490


def test_gradients_are_the_slopes_of_the_loss():
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal(size) for size in ((4, 6), (6, 5), (5, 3))]
    x, wanted = rng.standard_normal((7, 4)), np.eye(3)[rng.integers(0, 3, 7)]

    def loss():
        inside = np.maximum(np.maximum(x @ weights[0], 0) @ weights[1], 0)
        scores = inside @ weights[2]
        return (np.log(np.exp(scores).sum(axis=1)) - (scores * wanted).sum(axis=1)).mean()

    found, before = samples.gradients(weights, x, wanted), loss()
    for w, slope in zip(weights, found, strict=True):
        w[1, 2] += 1e-6
        assert (loss() - before) / 1e-6 == pytest.approx(slope[1, 2], abs=1e-4)
        w[1, 2] -= 1e-6
