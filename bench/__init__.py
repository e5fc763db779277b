"""How fast openfed is, beside what this machine can do: `scripts/bench` (docs/performance.md)."""
