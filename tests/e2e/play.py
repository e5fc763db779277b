"""Run an initialised workspace in this one process, with the plan's own runners at every site.

    python play.py WORKSPACE RUN

Prints the digest of the last model. The tasks of all sites share this process's generators, so
they run one at a time; over mTLS each site has a process of its own. The digest is the same.
"""

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

from openfed.launch.initial import task_config
from openfed.launch.node import load_lock
from openfed.node.trainer import DirectTrainer
from openfed.plan.local import read_local
from openfed.simulate.inprocess import run_inprocess
from openfed.tasks.config import read_config
from openfed.tasks.runners import make_data, make_runner


def trainers(root: Path, lock):
    one = threading.Lock()
    local = read_local(root / "local.yaml", lock.plan.collaborators)
    for name, source in local.sites.items():
        told = task_config(root, lock.plan, name, source, "cpu", 1)
        (root / "task.json").write_text(json.dumps(told))
        config = read_config(root / "task.json")
        runner = make_runner(config, make_data(config.data_loader, config.source))

        def run(task, model, local, runner=runner):
            with one:
                return runner.run(task, model, local)

        yield name, DirectTrainer(run)


def main(root: Path, run: str) -> None:
    os.chdir(root)
    sys.path.insert(0, str(root))
    lock = load_lock(root)

    async def play():
        return await run_inprocess(root, lock, run, dict(trainers(root, lock)), lambda *_: None)

    ended = asyncio.run(play())
    print(json.dumps(ended.summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
