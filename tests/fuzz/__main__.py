"""python -m tests.fuzz [TARGET ...] --seconds N [--keep]: the coverage-guided fuzzer (atheris).

What breaks a rule is written into the corpus, where the everyday test finds it too.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
SEEN = HERE.parents[1] / ".cache" / "fuzz"
"""What the fuzzer has found on this machine; `--keep` adds to the corpus what covers more."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="default: all, one after the other")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="what covers more goes to the corpus")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        fuzz(given.target[0], given.seconds, given.keep)
    from tests.fuzz.targets import TARGETS

    if unknown := sorted(set(given.target) - set(TARGETS)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    failed = [name for name in given.target or TARGETS if not one(name, given.seconds, given.keep)]
    if failed:
        print(f"broken: {', '.join(failed)}; the inputs are in {CORPUS}")
    return 1 if failed else 0


def one(name: str, seconds: int, keep: bool) -> bool:
    """Fuzz one target in a process of its own; whether it kept its rule."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--here", "--seconds", str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.splitlines()
    executed = next((line for line in lines if line.startswith("Done")), "stopped")
    print(f"{name:12} {executed}", flush=True)
    if done.returncode:
        print(done.stdout[done.stdout.find(" === Uncaught") :][-6000:], flush=True)
    elif keep:
        subprocess.run([*command, "--keep"], check=True, capture_output=True)
    return not done.returncode


def fuzz(name: str, seconds: int, merge: bool) -> None:
    """Never returns. `merge`: no fuzzing, only what covers more is copied into the corpus."""
    import atheris

    with atheris.instrument_imports(include=["openfed"]):
        from tests.fuzz.targets import LONGEST, MEMORY, SECONDS, TARGETS, attempt, honest
    kept, seen = CORPUS / name, SEEN / name
    for folder in (kept, seen):
        folder.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(honest()[name]):
        (seen / f"honest-{index}").write_bytes(seed)
    options = [
        f"-max_len={LONGEST}",
        f"-max_total_time={seconds}",
        f"-timeout={10 * SECONDS:g}",  # this machine has other things to do
        f"-malloc_limit_mb={MEMORY >> 20}",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={kept}/",
        "-print_final_stats=1",
    ]
    folders = [str(kept), str(seen)] if merge else [str(seen), str(kept)]
    words = ["-merge=1"] if merge else []

    def once(data: bytes) -> None:
        attempt(TARGETS[name], data)

    atheris.Setup([sys.argv[0], *words, *options, *folders], once)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
