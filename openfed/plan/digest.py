"""Canonical JSON and the digest of a plan."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from openfed.plan.schema import SCHEMA, Plan, canonical
from openfed.typing import Json


def canonical_json(value: Json) -> bytes:
    """Sorted keys, no spaces, UTF-8, floats in their shortest exact form; NaN is a ValueError."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def plan_digest(
    plan: Plan, files: Mapping[str, str], codecs: Mapping[str, int], model: Mapping[str, Any]
) -> str:
    """SHA-256, hex, of everything that decides what runs: addresses and sites' files do not."""
    return digest_of(
        {
            "schema": SCHEMA,
            "plan": canonical(plan),
            "files": dict(files),
            "codecs": dict(codecs),
            "model": dict(model),
        }
    )


def digest_of(content: Json) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()
