"""Seeds that everyone can derive again: from the plan's seed and what the draw is for."""

import hashlib
import json


def derive(seed: int, *parts: str | int) -> int:
    """A seed in [0, 2**63) for the draw named by `parts`, e.g. (round, collaborator, task).

    SHA-256 of the canonical JSON of `[seed, *parts]`, so ("ab", "c") and ("a", "bc") differ.
    """
    text = json.dumps([seed, *parts], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
