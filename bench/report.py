"""Tables on the console, results as JSON files."""

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.meter import cores

RESULTS = Path(__file__).parent / "results"
Row = Mapping[str, Any]


def table(title: str, rows: Sequence[Row]) -> None:
    """Print rows of the same keys, one line each."""
    print(f"\n{title}")
    if not rows:
        return
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([shown(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    sys.stdout.flush()


def shown(value: Any) -> str:
    """A number with three digits that count; anything else as it is."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(name: str, results: Any, out: str | None) -> None:
    """Write results with what they were measured on; says where."""
    now = time.strftime("%Y-%m-%dT%H%M%S")
    path = Path(out) if out else RESULTS / f"{name}-{now}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"benchmark": name, "at": now, "machine": machine(), "results": results}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten: {path}", flush=True)


def machine() -> dict[str, Any]:
    """What was measured on. `load`: what ran here in the last minute, this included."""
    load = Path("/proc/loadavg").read_text().split()[0]
    packages = ("numpy", "grpcio", "openfed-fx", "zstandard", "blake3", "constriction")
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_GiB": _memory(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": float(load),
        **{name: found for name in packages if (found := _version(name))},
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "?")


def _memory() -> int:
    line = Path("/proc/meminfo").read_text().splitlines()[0]
    return round(int(line.split()[1]) / (1 << 20))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
