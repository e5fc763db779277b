"""What the chains of a plan would save, measured: on normally distributed numbers, as no data is
at hand, and on the sizes of the model where its signature is known."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from openfed.codec.base import CHUNK, Draw
from openfed.codec.chain import make_chain
from openfed.plan.chains import KEY, Broken, ways
from openfed.plan.choices import STAGES
from openfed.plan.schema import Codecs, Direction, Pipeline, Place, is_lossy
from openfed.tensors.record import DTYPES, FLOATING, Kind, Signature, Spec
from openfed.typing import Array

LEAST = 0.01
"""A stage that saves less than this share of what it gets is one that saves nothing."""


class Piece(NamedTuple):
    """A chunk of a tensor."""

    dtype: str
    size: int  # elements
    lossy: bool  # whether lossy stages see it


Pieces = Counter[Piece]

SAMPLE: Pieces = Counter([Piece("float32", CHUNK, lossy=True)])


def idle_stages(pipeline: Pipeline, signature: Signature | None = None) -> Iterator[Broken]:
    """Every stage that saves nothing and, of a model that is known, every `except` and every lossy
    chain that it has nothing for, or is too small for. Rules of `plan/chains.py` hold already."""
    for way, direction in ways(pipeline):
        entries = None if signature is None else _entries(direction, signature)
        for at, codecs in direction.chains().items():
            loc = (KEY, way, *at)
            if entries is None:
                wrong = _idle(codecs, SAMPLE, direction.feedback)
            elif not entries[at] and at[0] == "except":
                assert signature is not None
                yield loc, "K11", _unmatched(str(at[2]), direction, signature)
                continue
            elif saved := _too_small(codecs, _pieces(entries[at]), direction.feedback):
                yield _small(way, direction, at, saved)
                continue
            else:
                wrong = _misplaced(codecs, entries[at], direction.feedback)
            yield from (((*loc, index), "P23", message) for index, message in wrong)


def _small(way: str, direction: Direction, at: Place, saved: str) -> Broken:
    if direction.except_:
        return (KEY, way, *at), "P23", f"{saved}: its entries are too small: write []"
    return (KEY, way), "P23", f"{saved}: this model is too small for compression: remove {way}"


def ratio(direction: Direction, signature: Signature | None = None) -> float:
    """Bytes that travel for each byte of the numbers, roughly: without a model, those of the main
    chain on a large float32 tensor. What is no floating parameter counts at its full size."""
    if signature is None:
        return _bytes(direction.codecs, SAMPLE, direction.feedback) / _bytes((), SAMPLE, False)
    coded = raw = 0
    for at, specs in _entries(direction, signature).items():
        pieces = _pieces(specs)
        unknown = sum(spec.size for spec in specs if spec.dtype not in FLOATING)
        raw += unknown + _bytes((), pieces, False)
        coded += unknown + _bytes(direction.chains()[at], pieces, direction.feedback)
    return coded / raw if raw else 1.0


def _entries(direction: Direction, signature: Signature) -> dict[Place, list[Spec]]:
    """The entries that travel every round, by the chain that they take."""
    found: dict[Place, list[Spec]] = {at: [] for at in direction.chains()}
    for spec in signature:
        if spec.kind is not Kind.FROZEN:
            found[direction.place(spec.name)].append(spec)
    return found


def _unmatched(glob: str, direction: Direction, signature: Signature) -> str:
    names = sorted(spec.name for spec in signature if spec.kind is not Kind.FROZEN)
    alone = Direction.model_validate({"except": [{glob: []}]})
    if any(alone.place(name)[0] == "except" for name in names):
        return "a pattern before it takes all that it matches, and the first match wins"
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"{glob!r} matches no entry of the model, which has {listed or 'none'}"


def _misplaced(codecs: Codecs, specs: Sequence[Spec], feedback: bool) -> Iterator[tuple[int, str]]:
    pieces = _pieces(specs)
    if is_lossy(codecs) and not any(piece.lossy for piece in pieces):
        index = next(i for i, codec in enumerate(codecs) if STAGES[codec.name].lossy)
        why = (
            "no floating parameter to work on" if specs else "no entry left: except takes them all"
        )
        yield index, f"{codecs[index].name} has {why}: remove it"
    elif pieces:
        yield from _idle(codecs, pieces, feedback)


def _pieces(specs: Sequence[Spec]) -> Pieces:
    pieces: Pieces = Counter()
    for spec in specs:
        if spec.dtype in FLOATING:
            whole, rest = divmod(spec.size // DTYPES[spec.dtype].itemsize, CHUNK)
            lossy = spec.kind is Kind.PARAMETER
            pieces[Piece(spec.dtype, CHUNK, lossy)] += whole
            pieces[Piece(spec.dtype, rest, lossy)] += 1 if rest else 0
    return +pieces  # without those of count 0


def _idle(codecs: Codecs, pieces: Pieces, feedback: bool) -> Iterator[tuple[int, str]]:
    """Index and message of each stage that hardly shrinks what those before it leave."""
    sizes = [_sizes(codecs[:upto], pieces, feedback) for upto in range(len(codecs) + 1)]
    for index, codec in enumerate(codecs):
        if codec.name == "rotate":
            continue  # it makes others lose less
        seen = [piece for piece in pieces if piece.lossy or codec.name == "zstd"]
        before, after = (sum(sizes[i][piece] for piece in seen) for i in (index, index + 1))
        if seen and after > before * (1 - LEAST):
            yield index, f"{codec.name} saves nothing, {before:,} bytes become {after:,}: remove it"


def _too_small(codecs: Codecs, pieces: Pieces, feedback: bool) -> str:
    """What a chain does that would save something on large tensors and, wherever one cut it short,
    saves nothing on these; empty: it is no such chain."""
    before, *after = _totals(codecs, pieces, feedback)
    if not after or min(after) <= before * (1 - LEAST):
        return ""
    large = Counter({piece._replace(size=CHUNK): 1 for piece in pieces})
    raw, *coded = _totals(codecs, large, feedback)
    saves = coded[-1] <= raw * (1 - LEAST)
    return f"saves nothing, {before:,} bytes become {after[-1]:,}" if saves else ""


def _totals(codecs: Codecs, pieces: Pieces, feedback: bool) -> list[int]:
    """Bytes that travel after no stage, after the first, after the first two, ..."""
    return [_bytes(codecs[:upto], pieces, feedback) for upto in range(len(codecs) + 1)]


def _bytes(codecs: Codecs, pieces: Pieces, feedback: bool) -> int:
    return sum(_sizes(codecs, pieces, feedback).values())


def _sizes(codecs: Codecs, pieces: Pieces, feedback: bool) -> Pieces:
    """Bytes of all the pieces of each kind, once coded."""
    stages = [(codec.name, codec.settings) for codec in codecs if codec.name != "rotate"]
    chain = make_chain(stages, biased=feedback)
    sizes: Pieces = Counter()
    for piece, count in pieces.items():
        coder = chain if piece.lossy else chain.exact()
        values = NUMBERS[: piece.size].astype(DTYPES[piece.dtype])
        sizes[piece] = count * len(coder.encode(values, Draw(0, 0, 0)))
    return sizes


NUMBERS: Array = np.random.Generator(np.random.Philox(0)).standard_normal(CHUNK) * 0.01
