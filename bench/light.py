"""Many agents in one process, over real mTLS links, with training that is worked out on the fly.

    python -m bench.light WORKSPACE ADDRESS NAME...

Only the aggregator is being measured: an agent here holds a chunk of the model, not the model.
"""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.task import change
from openfed.assemble import make_agent
from openfed.launch.node import load_lock
from openfed.node.trainer import Inputs, Result
from openfed.pki.files import load_identity
from openfed.plan.lock import Lock
from openfed.tasks.base import VALIDATE, Task
from openfed.tensors.frame import FrameFile, open_frame
from openfed.transport.grpc import GrpcLink
from openfed.transport.retry import Policy, retrying


@dataclass(frozen=True)
class Trained(FrameFile):
    """The model in a frame file plus what site `number` adds, read in pieces."""

    number: int = 0

    def read(self, name: str, start: int, out: Any) -> None:
        super().read(name, start, out)
        tensor = [spec.name for spec in self.specs].index(name)
        out += change(self.number, tensor, start, out.size)


class LightTrainer:
    """See `openfed.node.trainer.Trainer`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.versions: Mapping[str, str] = {}

    async def run(self, task: Task, inputs: Inputs, limit: int) -> Result:
        if task.name == VALIDATE:
            n = 100.0
            return Result({"n": (n,), "metrics/validate/loss": (n * self.number, n)})
        frame = open_frame(inputs.model, limit=1 << 48)
        return Result({"n": (100.0,)}, Trained(frame.descriptor, frame.layout, self.number))


async def take_part(root: Path, lock: Lock, name: str, address: str) -> None:
    identity, number = load_identity(root / "cert", name), lock.plan.named.index(name) + 1
    link = retrying(GrpcLink(address, identity), Policy())
    try:
        await make_agent(root, lock, name, link, LightTrainer(number), lambda text: None).run()
    finally:
        await link.close()


async def main(root: Path, address: str, names: list[str]) -> None:
    lock = load_lock(root)
    await asyncio.gather(*(take_part(root, lock, name, address) for name in names))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
