"""The chains that the tests of codecs go through: every stage, and stages behind stages."""

import pytest

CHAINS = {
    "raw": [],
    "zstd": [("zstd", {})],
    "zstd 19": [("zstd", {"level": 19})],
    "fp16": [("fp16", {})],
    "bf16 zstd": [("bf16", {}), ("zstd", {})],
    "quantize 8": [("quantize", {"bits": 8})],
    "quantize 8 nearest zstd": [
        ("quantize", {"bits": 8, "rounding": "nearest", "group": 64}),
        ("zstd", {}),
    ],
    "quantize 4 entropy": [("quantize", {"bits": 4}), ("entropy", {})],
    "quantize 2": [("quantize", {"bits": 2, "group": 16})],
    "quantize 1": [("quantize", {"bits": 1, "group": 100})],
    "rotate zstd": [("rotate", {}), ("zstd", {})],
    "rotate lloyd 1": [("rotate", {}), ("lloyd", {"bits": 1})],
    "rotate lloyd 2": [("rotate", {}), ("lloyd", {"bits": 2})],
    "rotate lloyd 4": [("rotate", {}), ("lloyd", {"bits": 4})],
    "lloyd 8 entropy": [("lloyd", {"bits": 8}), ("entropy", {})],
    "rotate grid entropy": [("rotate", {}), ("grid", {"step": 0.5}), ("entropy", {})],
    "grid fine entropy": [("grid", {"step": 0.05}), ("entropy", {})],
    "grid": [("grid", {"step": 4.0})],
    "topk": [("topk", {"fraction": 0.1})],
    "topk 1 zstd": [("topk", {"fraction": 1.0}), ("zstd", {})],
    "topk quantize zstd": [("topk", {"fraction": 0.25}), ("quantize", {}), ("zstd", {})],
    "topk rotate lloyd": [("topk", {"fraction": 0.3}), ("rotate", {}), ("lloyd", {"bits": 4})],
    "randomk": [("randomk", {"fraction": 0.2})],
    "ternary": [("ternary", {"fraction": 0.05})],
    "ternary 1": [("ternary", {"fraction": 1.0})],
    "kmeans 5": [("kmeans", {"centers": 5})],
    "kmeans 256 entropy": [("kmeans", {"centers": 256}), ("entropy", {})],
}


@pytest.fixture(scope="session", params=CHAINS.values(), ids=CHAINS.keys())
def stages(request):
    return request.param
