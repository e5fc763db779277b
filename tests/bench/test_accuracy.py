"""What `scripts/bench accuracy` concludes from runs, on figures worked out by hand."""

import pytest

from bench.accuracy import NONE, PIPELINES, TASKS, half_width, of_an_update, override, row
from openfed.plan.load import load_plan


def ran(accuracy: float, wire: int | None, moved: int) -> dict:
    return {"accuracy": accuracy, "wire": wire, "moved": moved}


def test_the_interval_is_that_of_student() -> None:
    # deviations -2, -1, 0, 1, 2: variance 10 / 4, so 2.776 * sqrt(2.5) / sqrt(5)
    assert half_width([-2.0, -1.0, 0.0, 1.0, 2.0]) == pytest.approx(2.776 * 0.5**0.5)
    assert half_width([3.0] * 8) == 0
    assert half_width([1.0]) is None


def test_what_is_lost_is_the_mean_over_pairs_of_the_same_seed() -> None:
    whole = [ran(0.90, 8 << 20, 1), ran(0.80, 8 << 20, 1)]
    coded = [ran(0.89, 1 << 20, 1), ran(0.77, 1 << 20, 1)]
    found = row("large", TASKS["large"], "8x", whole, coded)
    assert found["points lost"] == pytest.approx(2.0)
    assert found["+-"] == pytest.approx(12.706)  # differences 1 and 3: s / sqrt(2) is 1
    assert (found["wire MB"], found["float32 MB"], found["times fewer"]) == (1, 8, 8)
    assert (found["wanted"], found["at most"]) == (8, 0.5)


def test_where_the_wire_is_not_counted_what_the_aggregator_moved_is() -> None:
    found = row("large", TASKS["large"], "30x", [ran(0.9, None, 60)], [ran(0.9, None, 2)])
    assert found["times fewer"] == 30 and "moved MB" in found and "wire MB" not in found


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_update_is_as_small_as_the_ready_plan_says(pipeline: str) -> None:
    found = of_an_update(pipeline)
    assert found["times fewer"] > {"8x": 12, "30x": 64}[pipeline]
    assert found["error"] < {"8x": 0.21, "30x": 0.8}[pipeline]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("pipeline", [NONE, *PIPELINES])
def test_each_task_is_a_plan_with_each_pipeline(task: str, pipeline: str) -> None:
    settings = [*TASKS[task].settings, *override(pipeline)]
    plan = load_plan(TASKS[task].workspace / "plan" / "plan.yaml", settings)
    assert plan.rounds >= 50
    assert bool(plan.compression_pipeline.uplink.codecs) == (pipeline != NONE)
