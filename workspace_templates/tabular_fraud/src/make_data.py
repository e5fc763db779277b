"""Invented card payments of three banks, always the same ones: python src/make_data.py"""

import csv
import os
from pathlib import Path

import numpy as np

BANKS = {"north": (6000, 0.15), "south": (4000, 0.35), "west": (2000, 0.60)}
"""Payments, and what share of them is made online."""

HEADER = ["amount", "hour", "distance_km", "declined_before", "abroad", "channel", "fraud"]


def write_payments(folder: Path) -> None:
    """Several sites may do this at once: they write the same, and no file is ever half there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (bank, (count, online)) in enumerate(BANKS.items()):
        path = folder / f"{bank}.csv"
        part = path.with_suffix(f".{os.getpid()}")
        with part.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *_payments(count, online, seed=number)])
        part.replace(path)


def _payments(count: int, online: float, seed: int) -> list[tuple[object, ...]]:
    """Frauds are larger, at night, far away, after refusals, online or by magnetic stripe."""
    rng = np.random.default_rng(seed)
    amount = np.round(rng.lognormal(3.4, 1.1, count).clip(0.5, 20000), 2)
    hour = np.round(rng.normal(14, 5, count)).astype(int) % 24
    distance = np.round(rng.lognormal(2, 1.4, count).clip(0, 15000), 1)
    declined, abroad = rng.poisson(0.2, count), rng.random(count) < 0.06
    rest = 1 - online
    channel = rng.choice(["chip", "online", "stripe"], count, p=[0.9 * rest, online, 0.1 * rest])
    chance = -7.6 + 3.0 * (np.log10(1 + amount) - 1.5) + 1.2 * np.cos(2 * np.pi * hour / 24)
    chance += 1.5 * (np.log10(1 + distance) - 1) + 2.0 * declined + 2.5 * abroad
    chance += 3.0 * (channel == "online") + 3.5 * (channel == "stripe")
    fraud = (rng.random(count) < 1 / (1 + np.exp(-chance))).astype(int)
    known = rng.random(count) < 0.97  # the rest has no distance
    return [
        (amount[i], hour[i], distance[i] if known[i] else "", declined[i],
         str(abroad[i]).lower(), channel[i], fraud[i])
        for i in range(count)
    ]  # fmt: skip


if __name__ == "__main__":
    write_payments(Path(__file__).parents[1] / "data")
