"""Committed traces, and that chance comes only from where it is the same on every version of Python."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import crdtkv.simulation
from crdtkv.replication.drive import Drive
from crdtkv.replication.membership import Membership
from crdtkv.replication.session import Session
from crdtkv.simulation import SCENARIOS, simulate
from tests.simulation.golden import PATH, SEEDS

GOLDEN = json.loads(PATH.read_text())
UNSTABLE = {
    "betavariate", "choice", "choices", "expovariate", "gauss", "lognormvariate", "normalvariate", "paretovariate", "randbytes", "randint",
    "randrange", "sample", "shuffle", "triangular", "uniform", "vonmisesvariate", "weibullvariate",
}  # fmt: skip
"""What Python may draw differently from one version to the next."""
BANNED_MODULES = {"secrets", "uuid", "time", "datetime", "threading", "asyncio"}


def test_every_scenario_has_golden_traces() -> None:
    assert GOLDEN.keys() == set(SCENARIOS), "renew them: python -m tests.simulation.golden"


@pytest.mark.parametrize("scenario", sorted(GOLDEN))
def test_the_trace_is_the_one_that_was_committed(scenario: str) -> None:
    found = {str(seed): simulate(seed, scenario).trace_sha256 for seed in SEEDS}
    assert found == GOLDEN[scenario], (
        "this run is another one than that committed. If the change was meant to alter what is sent, committed or drawn, renew them: "
        "python -m tests.simulation.golden. If not, or if they differ only on this Python, something is not drawn from the seed."
    )


@pytest.mark.parametrize("scenario", sorted(GOLDEN))
def test_what_the_drive_does_not_look_at_has_nothing_to_say(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drive that looks at needs and members at each tick, whatever came, and at the latter as if something had ended; it never rests,
    and asks each session anew that something came of."""
    tick = Drive.tick

    def tick_and_look(drive: Drive, now_ms: float) -> None:
        drive._news += 1
        drive._agreed_with = None
        tick(drive, now_ms)

    monkeypatch.setattr(Drive, "tick", tick_and_look)
    monkeypatch.setattr(Membership, "is_plain", lambda membership, live: False)
    monkeypatch.setattr(Drive, "idle_until", lambda drive, now_ms: None)
    monkeypatch.setattr(Session, "_rest", lambda session: setattr(session, "quiet", None))
    assert simulate(SEEDS[0], scenario).trace_sha256 == GOLDEN[scenario][str(SEEDS[0])]


@pytest.mark.parametrize("path", sorted(Path(crdtkv.simulation.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_chance_is_drawn_only_by_random_and_getrandbits(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in UNSTABLE, f"{where}: {node.attr}() may differ between versions of Python; draw with Dice"
        elif isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & (BANNED_MODULES | {"random"}), f"{where}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in BANNED_MODULES, f"{where}: {ast.unparse(node)}"
            if node.module == "random":
                assert {alias.name for alias in node.names} == {"Random"}, f"{where}: {ast.unparse(node)}"
