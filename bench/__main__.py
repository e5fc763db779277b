"""`scripts/bench NAME [options]`: what openfed costs, and what this machine can do."""

import importlib
import sys

BENCHES = {
    "limits": "what this machine can do: gRPC, TLS, memory, hashing, zstd",
    "rounds": "a round without training: openfed beside the bare round",
    "memory": "peak memory of the aggregator",
    "soak": "what the aggregator holds after hundreds of rounds",
    "crowd": "a thousand sites at one aggregator",
    "codecs": "speed, bits and error of every codec",
    "methods": "strategies side by side, on sites whose data differ",
    "accuracy": "what compression loses in accuracy and saves of all bytes",
    "peers": "openfed beside other frameworks, on the same work",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHES:
        print("usage: scripts/bench NAME [options]; --help after a name tells its options\n")
        for each, about in BENCHES.items():
            print(f"  {each:8} {about}")
        sys.exit(0 if name in ("-h", "--help") else 2)
    module = "bench.peers.run" if name == "peers" else f"bench.{name}"
    importlib.import_module(module).main(sys.argv[2:])


if __name__ == "__main__":
    main()
