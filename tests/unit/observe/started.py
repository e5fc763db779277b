"""How a run of two sites begins."""

STARTED = {
    "event": "run.started",
    "run": "r1",
    "plan_digest": "ab" * 32,
    "federation": "f",
    "name": "digits",
    "rounds": 2,
    "collaborators": ["one", "two"],
    "resumed": False,
}
