"""Which chain an entry gets in a direction of the plan."""

import numpy as np
import pytest

from openfed.codec.base import CHUNK, Draw
from openfed.codec.pipeline import Pipeline
from openfed.plan.schema import Direction
from openfed.tensors.record import Spec

W = Spec("w", "float32", (CHUNK,))


def lost(pipeline: Pipeline) -> float:
    """The share of the squared norm of normal numbers that the chain of `W` loses."""
    x = np.random.default_rng(1).standard_normal(CHUNK).astype(np.float32)
    decoded, draw = np.empty_like(x), Draw(1, 0, 0)
    chain = pipeline.chain(W)
    chain.decode(chain.encode(x, draw), decoded, draw)
    return float(((x - decoded) ** 2).sum() / (x**2).sum())


@pytest.mark.parametrize(
    "codecs",
    [
        ["rotate", {"name": "grid", "settings": {"step": 3.5}}, "entropy"],
        [{"name": "randomk", "settings": {"fraction": 0.1}}],
        ["rotate", {"name": "lloyd", "settings": {"bits": 1}}],
    ],
    ids=["grid", "randomk", "lloyd"],
)
def test_what_the_downlink_loses_shrinks_from_packet_to_packet(codecs):
    """Its loss is in the next difference: a form that adds more than it sends would explode."""
    named = [{"name": c, "settings": {}} if isinstance(c, str) else c for c in codecs]
    direction = Direction.model_validate({"codecs": named})
    assert lost(Pipeline(direction, down=True)) < 1
    assert lost(Pipeline(direction, down=True)) < lost(Pipeline(direction))


def test_both_ends_name_the_same_chain_whichever_form_they_decode_with():
    direction = Direction.model_validate({"codecs": [{"name": "lloyd", "settings": {"bits": 2}}]})
    assert Pipeline(direction).chain(W).json() == Pipeline(direction, down=True).chain(W).json()
